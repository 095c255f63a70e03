#include "src/model/model.h"
#include "base/memory.h"
#include "src/model/settings.h"
#include "src/model/type_counts.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static status read_settings(model *m, message_list *refusals) {
  model_settings s;
  TRY(settings_read(&m->architecture, &s, m->file, &m->warnings, refusals));
  m->weights.shape = s.shape;
  m->context_length = s.context_length;
  return 0;
}

// ---- tensors ----

// The number of tokens follows from the shape of the embedding alone.
static status read_vocabulary(model *m) {
  char name[TENSOR_NAME_BYTES];
  tensor_row_name(name, architecture_tensor(m->architecture, TENSOR_TOKEN_EMBD), -1);
  const gguf_tensor *embedding = gguf_tensor_find(m->file, name);
  if (!embedding) return FAIL("%s: tensor %s is missing", gguf_path(m->file), name);
  m->weights.shape.vocabulary = embedding->dim[1];
  if (embedding->dim[1] < 1 || embedding->dim[1] > INT32_MAX)
    return FAIL("%s: tensor %s: a vocabulary of %lld", embedding->file, name, (long long)embedding->dim[1]);
  return 0;
}

static status check_shape(const gguf_tensor *t, const tensor_row *row, const model_shape *s) {
  for (int i = 0; i < GGUF_MAX_DIMS; i++)
    if (t->dim[i] != tensor_row_dim(row, i, s))
      return FAIL("%s: tensor %s: expected shape [%lld, %lld, %lld], found [%lld, %lld, %lld, %lld]", t->file,
                  t->name, (long long)tensor_row_dim(row, 0, s), (long long)tensor_row_dim(row, 1, s),
                  (long long)tensor_row_dim(row, 2, s), (long long)t->dim[0], (long long)t->dim[1],
                  (long long)t->dim[2], (long long)t->dim[3]);
  return 0;
}

// A vector is small: copied, so that a backend reads floats whatever the file stores.
static status bind_vector(const float **to, const gguf_tensor *t) {
  float *copy;
  TRY(TAKE(&copy, (size_t)t->dim[0], "norm weights"));
  dequantize_row(copy, t->type->type, t->data, (size_t)t->dim[0]);
  *to = copy;
  return 0;
}

// Where the row's tensor of that layer goes.
static void *place_of(model *m, const tensor_row *row, int64_t layer) {
  return (char *)(row->per_layer ? (void *)&m->weights.layers[layer] : (void *)&m->weights) + row->to;
}

// Tensors of the layer (of no layer: -1) that the architecture does not have, as "; there is a, b"; "": none.
static const char *others_there(char *out, size_t size, const model *m, int64_t layer) {
  int64_t found, rows;
  char prefix[32] = "";
  *out = 0;
  if (layer >= 0) snprintf(prefix, sizeof prefix, "blk.%lld.", (long long)layer);
  for (size_t i = 0; i < gguf_tensor_count(m->file); i++) {
    const gguf_tensor *t = gguf_tensor_at(m->file, i);
    size_t used = strlen(out);
    if (layer >= 0 ? strncmp(t->name, prefix, strlen(prefix)) != 0 : strncmp(t->name, "blk.", 4) == 0)
      continue;
    if (architecture_tensor_find(&found, m->architecture, m->weights.shape.n_layers, t->name)) continue;
    if (architecture_fused_find(&found, &rows, m->architecture, &m->weights.shape, t->name)) continue;
    int more = snprintf(out + used, size - used, "%s%s", used ? ", " : "; there is ", t->name);
    if (more < 0 || (size_t)more >= size - used) { // no part of a name
      out[used] = 0;
      break;
    }
  }
  return out;
}

static status refuse_missing(const model *m, const char *name, int64_t layer) {
  char others[256];
  return FAIL("%s: tensor %s is missing%s", gguf_path(m->file), name,
              others_there(others, sizeof others, m, layer));
}

// The rows of a tensor that holds several: *t stays NULL where the layer has none such.
static status bind_fused(const gguf_tensor **t, matrix *to, const model *m, const tensor_row *row,
                         int64_t layer) {
  char name[TENSOR_NAME_BYTES];
  int64_t rows;
  const model_shape *s = &m->weights.shape;
  *t = NULL;
  if (!row->fused) return 0;
  tensor_row_fused_name(name, row, layer);
  const gguf_tensor *whole = gguf_tensor_find(m->file, name);
  if (!whole || !whole->type) return 0;
  architecture_fused_find(&layer, &rows, m->architecture, s, name);
  if (whole->dim[0] != tensor_row_dim(row, 0, s) || whole->dim[1] != rows || whole->n_dims > 2)
    return FAIL("%s: tensor %s: expected shape [%lld, %lld], found [%lld, %lld, %lld, %lld]", whole->file,
                name, (long long)tensor_row_dim(row, 0, s), (long long)rows, (long long)whole->dim[0],
                (long long)whole->dim[1], (long long)whole->dim[2], (long long)whole->dim[3]);
  size_t before = (size_t)architecture_fused_rows(m->architecture, s, row);
  size_t row_bytes = type_row_bytes(whole->type, (size_t)whole->dim[0]);
  *t = whole;
  *to = (matrix){(const char *)whole->data + before * row_bytes, whole->type->type, tensor_row_dim(row, 1, s),
                 whole->dim[0]};
  return 0;
}

static status bind_missing(model *m, const tensor_row *row, const char *name, int64_t layer) {
  void *to = place_of(m, row, layer);
  const gguf_tensor *whole;
  if (row->tied) {
    m->tied = true;
    *(matrix *)to = m->weights.embedding;
    return 0;
  }
  TRY(bind_fused(&whole, to, m, row, layer));
  return whole ? 0 : refuse_missing(m, name, layer);
}

static status bind_tensor(model *m, const tensor_row *row, int64_t layer) {
  char name[TENSOR_NAME_BYTES];
  tensor_row_name(name, row, layer);
  const gguf_tensor *t = gguf_tensor_find(m->file, name);
  void *to = place_of(m, row, layer);
  if (!t) return bind_missing(m, row, name, layer);
  TRY(check_shape(t, row, &m->weights.shape));
  if (!t->type || !t->data) return 0; // was refused
  switch (row->kind) {
  case TENSOR_VECTOR:
    return bind_vector(to, t);
  case TENSOR_ROUTER:
  case TENSOR_MATRIX:
  case TENSOR_EXPERTS:
    *(matrix *)to = (matrix){t->data, t->type->type, t->dim[1], t->dim[0]};
    return 0;
  }
  return FAIL("%s: tensor %s: no rule for it", t->file, name);
}

static status refuse_unknown(const model *m, const gguf_tensor *t) {
  int64_t layer, rows;
  const model_shape *s = &m->weights.shape;
  if (architecture_tensor_find(&layer, m->architecture, s->n_layers, t->name)) return 0;
  if (!architecture_fused_find(&layer, &rows, m->architecture, s, t->name))
    return FAIL(
        "%s: tensor %s does not belong to a %s of %lld layers; ignoring it would compute another model",
        t->file, t->name, m->architecture->title, (long long)s->n_layers);
  for (size_t i = 0; i < m->architecture->n_tensors; i++) {
    char part[TENSOR_NAME_BYTES];
    tensor_row_name(part, &m->architecture->tensors[i], layer);
    if (m->architecture->tensors[i].fused && gguf_tensor_find(m->file, part))
      return FAIL("%s: tensors %s and %s: expected one of them, found the same weights twice", t->file,
                  t->name, part);
  }
  return 0;
}

static status bind_tensors(model *m, message_list *refusals) {
  int64_t layer, n_layers = m->weights.shape.n_layers;
  size_t count = architecture_tensor_count(m->architecture, n_layers);
  TRY(read_vocabulary(m));
  TRY(TAKE(&m->weights.layers, (size_t)n_layers, "the layers' table"));
  for (size_t i = 0; i < count; i++) {
    const tensor_row *row = architecture_tensor_at(&layer, m->architecture, n_layers, i);
    TRY(message_list_take_error(refusals, bind_tensor(m, row, layer)));
  }
  for (size_t i = 0; i < gguf_tensor_count(m->file); i++)
    TRY(message_list_take_error(refusals, refuse_unknown(m, gguf_tensor_at(m->file, i))));
  return 0;
}

bool model_is_expert_stack(int64_t *layer, const model *m, const gguf_tensor *t) {
  const tensor_row *row =
      architecture_tensor_find(layer, m->architecture, m->weights.shape.n_layers, t->name);
  return row && row->kind == TENSOR_EXPERTS;
}

static void count_bytes(model *m) {
  type_counts types = {.n = 0};
  for (size_t i = 0; i < gguf_tensor_count(m->file); i++) {
    const gguf_tensor *t = gguf_tensor_at(m->file, i);
    if (!t->type) continue; // was refused
    int64_t layer;
    if (!m->weights.shape.n_experts || !model_is_expert_stack(&layer, m, t)) m->shared_bytes += t->bytes;
    type_counts_add(&types, t->type);
  }
  type_counts_text(m->types, sizeof m->types, &types);
}

// ---- the whole ----

static status read_name(model *m) {
  gguf_string name;
  if (gguf_key_exists(m->file, "general.name")) {
    TRY(gguf_key_string(m->file, "general.name", &name));
  } else {
    const char *slash = strrchr(gguf_path(m->file), '/');
    name.text = slash ? slash + 1 : gguf_path(m->file);
    name.length = strlen(name.text);
  }
  size_t length = name.length < 200 ? name.length : 200;
  TRY(TAKE(&m->name, length + 1, "the model's name"));
  memcpy(m->name, name.text, length);
  return 0;
}

// Settings, then tensors, for which the settings give the sizes.
static status read_all(model *m, message_list *refusals) {
  size_t before = refusals ? refusals->count : 0;
  TRY(message_list_take_error(refusals, read_settings(m, refusals)));
  TRY(read_name(m));
  bool sized = m->architecture && (!refusals || refusals->count == before);
  if (sized) TRY(message_list_take_error(refusals, bind_tensors(m, refusals)));
  if (m->architecture) count_bytes(m);
  return 0;
}

static status open_model(model **out, const char *path, message_list *refusals) {
  *out = NULL;
  model *m;
  TRY(memory_take((void **)&m, 1, sizeof *m, "the model"));
  status result;
  TRY_DONE(result, refusals ? gguf_open_to_show(&m->file, path, refusals) : gguf_open(&m->file, path));
  TRY_DONE(result, read_all(m, refusals));
  m->whole = !refusals || !refusals->count;
  *out = m;
done:
  if (result) model_close(m);
  return result;
}

status model_open(model **out, const char *path) {
  return open_model(out, path, NULL);
}

status model_open_to_show(model **out, const char *path, message_list *refusals) {
  return open_model(out, path, refusals);
}

static void free_vectors(model *m, bool per_layer, int64_t layer) {
  for (size_t i = 0; i < m->architecture->n_tensors; i++) {
    const tensor_row *row = &m->architecture->tensors[i];
    if (row->kind == TENSOR_VECTOR && row->per_layer == per_layer) free(*(void **)place_of(m, row, layer));
  }
}

void model_close(model *m) {
  if (!m) return;
  for (int64_t i = 0; m->weights.layers && i < m->weights.shape.n_layers; i++) free_vectors(m, true, i);
  if (m->architecture) free_vectors(m, false, -1);
  message_list_close(&m->warnings);
  free(m->weights.layers);
  free(m->name);
  gguf_close(m->file);
  free(m);
}

uint64_t model_expert_bytes(const model *m, int64_t layer) {
  const layer_weights *w = &m->weights.layers[layer];
  const matrix *of[] = {&w->gate, &w->up, &w->down};
  uint64_t bytes = 0;
  for (size_t i = 0; i < sizeof of / sizeof *of; i++)
    bytes += (uint64_t)of[i]->rows * type_row_bytes(type_find((uint32_t)of[i]->type), (size_t)of[i]->cols);
  return bytes;
}

uint64_t model_experts_bytes(const model *m, const expert_map *held) {
  uint64_t bytes = 0;
  for (int64_t l = 0; l < m->weights.shape.n_layers; l++)
    bytes += (uint64_t)expert_map_held(held, l, m->weights.shape.n_experts) * model_expert_bytes(m, l);
  return bytes;
}
