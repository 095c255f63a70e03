#include "src/model/model.h"
#include "base/memory.h"
#include "src/model/settings.h"
#include "src/model/type_counts.h"
#include <stdlib.h>
#include <string.h>

static status read_settings(model *m) {
  model_settings s;
  TRY(settings_read(&m->architecture, &s, m->file));
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

static status bind_tensor(model *m, size_t *bound, const tensor_row *row, int64_t layer) {
  char name[TENSOR_NAME_BYTES];
  tensor_row_name(name, row, layer);
  const gguf_tensor *t = gguf_tensor_find(m->file, name);
  void *to = place_of(m, row, layer);
  if (!t && row->tied) {
    m->tied = true;
    *(matrix *)to = m->weights.embedding;
    return 0;
  }
  if (!t) return FAIL("%s: tensor %s is missing", gguf_path(m->file), name);
  TRY(check_shape(t, row, &m->weights.shape));
  ++*bound;
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

// Fails, naming the first tensor that the architecture does not have.
static status refuse_unknown(const model *m) {
  int64_t layer, n_layers = m->weights.shape.n_layers;
  for (size_t i = 0; i < gguf_tensor_count(m->file); i++) {
    const gguf_tensor *t = gguf_tensor_at(m->file, i);
    if (!architecture_tensor_find(&layer, m->architecture, n_layers, t->name))
      return FAIL(
          "%s: tensor %s does not belong to a %s of %lld layers; ignoring it would compute another model",
          t->file, t->name, m->architecture->title, (long long)n_layers);
  }
  return 0;
}

static status bind_tensors(model *m) {
  int64_t layer, n_layers = m->weights.shape.n_layers;
  size_t bound = 0, count = architecture_tensor_count(m->architecture, n_layers);
  TRY(read_vocabulary(m));
  TRY(TAKE(&m->weights.layers, (size_t)n_layers, "the layers' table"));
  for (size_t i = 0; i < count; i++) {
    const tensor_row *row = architecture_tensor_at(&layer, m->architecture, n_layers, i);
    TRY(bind_tensor(m, &bound, row, layer));
  }
  return bound == gguf_tensor_count(m->file) ? 0 : refuse_unknown(m);
}

bool model_is_expert_stack(const model *m, const gguf_tensor *t) {
  int64_t layer;
  const tensor_row *row =
      architecture_tensor_find(&layer, m->architecture, m->weights.shape.n_layers, t->name);
  return row && row->kind == TENSOR_EXPERTS;
}

static void count_bytes(model *m) {
  type_counts types = {.n = 0};
  for (size_t i = 0; i < gguf_tensor_count(m->file); i++) {
    const gguf_tensor *t = gguf_tensor_at(m->file, i);
    if (model_is_expert_stack(m, t))
      m->expert_bytes += t->bytes / (uint64_t)m->weights.shape.n_experts;
    else
      m->shared_bytes += t->bytes;
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

status model_open(model **out, const char *path) {
  *out = NULL;
  model *m;
  TRY(memory_take((void **)&m, 1, sizeof *m, "the model"));
  status result;
  TRY_DONE(result, gguf_open(&m->file, path));
  TRY_DONE(result, read_settings(m));
  TRY_DONE(result, read_name(m));
  TRY_DONE(result, bind_tensors(m));
  count_bytes(m);
  *out = m;
done:
  if (result) model_close(m);
  return result;
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
  free(m->weights.layers);
  free(m->name);
  gguf_close(m->file);
  free(m);
}

uint64_t model_experts_bytes(const model *m, const expert_local *owned) {
  uint64_t count = 0;
  for (int64_t e = 0; e < m->weights.shape.n_experts; e++) count += expert_is_owned(owned[e]);
  return count * m->expert_bytes;
}
