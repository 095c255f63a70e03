#include "src/model/model.h"
#include "base/memory.h"
#include "kernels/formats/numerics.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum { SLICE_BYTES = 4 << 20 }; // of a shared tensor, hashed at once; fixed, for the sum must not vary

// ---- metadata ----

static status read_size(const gguf *g, const char *name, int64_t least, int64_t most, int64_t *out) {
  char key[96];
  uint64_t value;
  snprintf(key, sizeof key, "qwen3moe.%s", name);
  TRY(gguf_key_u64(g, key, &value));
  if (value < (uint64_t)least || value > (uint64_t)most)
    return FAIL("%s: key %s: expected %lld to %lld, found %llu", gguf_path(g), key, (long long)least,
                (long long)most, (unsigned long long)value);
  *out = (int64_t)value;
  return 0;
}

static status read_optional_size(const gguf *g, const char *name, int64_t fallback, int64_t *out) {
  char key[96];
  snprintf(key, sizeof key, "qwen3moe.%s", name);
  *out = fallback;
  return gguf_key_exists(g, key) ? read_size(g, name, 1, INT32_MAX, out) : 0;
}

// Flags are bools, counts integers, factors floats; writers do not agree on which is which.
static status read_any_number(const gguf *g, const char *key, double *out) {
  bool flag;
  uint64_t count;
  if (gguf_key_bool(g, key, &flag) == 0) {
    *out = flag;
    return 0;
  }
  status_reset();
  if (gguf_key_u64(g, key, &count) == 0) {
    *out = (double)count;
    return 0;
  }
  status_reset();
  return gguf_key_f64(g, key, out);
}

// A setting that, when present with another value than `expected`, would ask for arithmetic that is not here.
static status refuse_other(const gguf *g, const char *name, double expected) {
  char key[96];
  double value;
  snprintf(key, sizeof key, "qwen3moe.%s", name);
  if (!gguf_key_exists(g, key)) return 0;
  TRY(read_any_number(g, key, &value));
  if (value != expected)
    return FAIL("%s: key %s: only %g is supported, found %g", gguf_path(g), key, expected, value);
  return 0;
}

static status refuse_settings(const gguf *g) {
  TRY(refuse_other(g, "expert_weights_norm", 1));
  TRY(refuse_other(g, "expert_weights_scale", 1));
  TRY(refuse_other(g, "expert_shared_count", 0));
  TRY(refuse_other(g, "expert_gating_func", 1)); // llama.cpp's enum: 1 is softmax, 2 is sigmoid
  TRY(refuse_other(g, "leading_dense_block_count", 0));
  TRY(refuse_other(g, "rope.scaling.factor", 1));
  gguf_string kind;
  if (!gguf_key_exists(g, "qwen3moe.rope.scaling.type")) return 0;
  TRY(gguf_key_string(g, "qwen3moe.rope.scaling.type", &kind));
  if (kind.length != 4 || memcmp(kind.text, "none", 4))
    return FAIL("%s: key qwen3moe.rope.scaling.type: only \"none\" is supported, found \"%.*s\"",
                gguf_path(g), (int)(kind.length < 64 ? kind.length : 64), kind.text);
  return 0;
}

static status check_architecture(const gguf *g) {
  gguf_string found;
  TRY(gguf_key_string(g, "general.architecture", &found));
  if (found.length == 8 && !memcmp(found.text, "qwen3moe", 8)) return 0;
  return FAIL("%s: key general.architecture: expected \"qwen3moe\", found \"%.*s\"", gguf_path(g),
              (int)(found.length < 64 ? found.length : 64), found.text);
}

static status read_real(const gguf *g, const char *key, double above, double below, double *out) {
  TRY(gguf_key_f64(g, key, out));
  if (!(*out > above && *out < below))
    return FAIL("%s: key %s: expected a number between %g and %g, found %g", gguf_path(g), key, above, below,
                *out);
  return 0;
}

static status read_heads(const gguf *g, model_shape *s) {
  int64_t value_length, rotated;
  TRY(read_size(g, "attention.head_count", 1, 4096, &s->n_heads));
  TRY(read_size(g, "attention.head_count_kv", 1, 4096, &s->n_kv_heads));
  TRY(read_optional_size(g, "attention.key_length", s->hidden / s->n_heads, &s->head_dim));
  TRY(read_optional_size(g, "attention.value_length", s->head_dim, &value_length));
  TRY(read_optional_size(g, "rope.dimension_count", s->head_dim, &rotated));
  if (s->n_heads % s->n_kv_heads)
    return FAIL("%s: %lld query heads cannot share %lld key/value heads", gguf_path(g), (long long)s->n_heads,
                (long long)s->n_kv_heads);
  if (s->head_dim < 2 || s->head_dim > 4096 || s->head_dim % 2)
    return FAIL("%s: key qwen3moe.attention.key_length: expected an even number up to 4096, found %lld",
                gguf_path(g), (long long)s->head_dim);
  if (value_length != s->head_dim || rotated != s->head_dim)
    return FAIL("%s: head of %lld keys, %lld values, %lld rotated by RoPE: expected the same three",
                gguf_path(g), (long long)s->head_dim, (long long)value_length, (long long)rotated);
  return 0;
}

static status read_shape(model *m) {
  const gguf *g = m->file;
  model_shape *s = &m->weights.shape;
  TRY(check_architecture(g));
  TRY(refuse_settings(g));
  TRY(read_size(g, "block_count", 1, 4096, &s->n_layers));
  TRY(read_size(g, "embedding_length", 2, 1 << 20, &s->hidden));
  TRY(read_heads(g, s));
  TRY(read_size(g, "expert_count", 1, 65536, &s->n_experts));
  TRY(read_size(g, "expert_used_count", 1, s->n_experts < MAX_TOP_K ? s->n_experts : MAX_TOP_K, &s->top_k));
  TRY(read_size(g, "expert_feed_forward_length", 1, 1 << 20, &s->expert_width));
  TRY(read_size(g, "context_length", 1, INT32_MAX, &m->context_length));
  TRY(read_real(g, "qwen3moe.attention.layer_norm_rms_epsilon", 0, 1, &s->rms_epsilon));
  return read_real(g, "qwen3moe.rope.freq_base", 1, 1e15, &s->rope_base);
}

// ---- tensors ----

typedef struct { // what a tensor must be, and where its view goes
  char name[64];
  int64_t dim[3];     // dim[0] the row; 0: absent
  const float **norm; // a vector of norm weights
  matrix *to;         // or a matrix, of which stacks give the first expert
} expected_tensor;

static status find_tensor(const gguf *g, const expected_tensor *want, const gguf_tensor **out) {
  const gguf_tensor *t = gguf_tensor_find(g, want->name);
  if (!t) return FAIL("%s: tensor %s is missing", gguf_path(g), want->name);
  for (int i = 0; i < GGUF_MAX_DIMS; i++) {
    int64_t dim = i < 3 && want->dim[i] ? want->dim[i] : 1;
    if (t->dim[i] != dim)
      return FAIL("%s: tensor %s: expected shape [%lld, %lld, %lld], found [%lld, %lld, %lld, %lld]", t->file,
                  want->name, (long long)want->dim[0], (long long)(want->dim[1] ? want->dim[1] : 1),
                  (long long)(want->dim[2] ? want->dim[2] : 1), (long long)t->dim[0], (long long)t->dim[1],
                  (long long)t->dim[2], (long long)t->dim[3]);
  }
  *out = t;
  return 0;
}

static status bind_tensor(model *m, const expected_tensor *want) {
  const gguf_tensor *t;
  TRY(find_tensor(m->file, want, &t));
  if (want->norm) { // small: copied, so that a backend reads floats whatever the file stores
    float *copy;
    TRY(TAKE(&copy, (size_t)want->dim[0], "norm weights"));
    dequantize_row(copy, t->type->type, t->data, (size_t)want->dim[0]);
    *want->norm = copy;
    return 0;
  }
  *want->to = (matrix){t->data, t->type->type, want->dim[1], want->dim[0]};
  return 0;
}

enum { TENSORS_PER_LAYER = 12 };

static void layer_tensors(model *m, int64_t layer, expected_tensor out[TENSORS_PER_LAYER]) {
  const model_shape *s = &m->weights.shape;
  layer_weights *w = &m->weights.layers[layer];
  int64_t q = s->n_heads * s->head_dim, kv = s->n_kv_heads * s->head_dim;
  const expected_tensor list[TENSORS_PER_LAYER] = {
      {"attn_norm", {s->hidden}, &w->attn_norm, NULL},
      {"attn_q", {s->hidden, q}, NULL, &w->q},
      {"attn_k", {s->hidden, kv}, NULL, &w->k},
      {"attn_v", {s->hidden, kv}, NULL, &w->v},
      {"attn_q_norm", {s->head_dim}, &w->q_norm, NULL},
      {"attn_k_norm", {s->head_dim}, &w->k_norm, NULL},
      {"attn_output", {q, s->hidden}, NULL, &w->o},
      {"ffn_norm", {s->hidden}, &w->ffn_norm, NULL},
      {"ffn_gate_inp", {s->hidden, s->n_experts}, NULL, &w->router},
      {"ffn_gate_exps", {s->hidden, s->expert_width, s->n_experts}, NULL, &w->gate},
      {"ffn_up_exps", {s->hidden, s->expert_width, s->n_experts}, NULL, &w->up},
      {"ffn_down_exps", {s->expert_width, s->hidden, s->n_experts}, NULL, &w->down},
  };
  memcpy(out, list, sizeof list);
  for (size_t i = 0; i < TENSORS_PER_LAYER; i++) {
    char part[48];
    snprintf(part, sizeof part, "%.40s", list[i].name);
    snprintf(out[i].name, sizeof out[i].name, "blk.%lld.%s.weight", (long long)layer, part);
  }
}

static status bind_outer(model *m, size_t *bound) {
  model_weights *w = &m->weights;
  const gguf_tensor *embedding = gguf_tensor_find(m->file, "token_embd.weight");
  if (!embedding) return FAIL("%s: tensor token_embd.weight is missing", gguf_path(m->file));
  w->shape.vocabulary = embedding->dim[1];
  if (w->shape.vocabulary < 1 || w->shape.vocabulary > INT32_MAX)
    return FAIL("%s: tensor token_embd.weight: a vocabulary of %lld", embedding->file,
                (long long)embedding->dim[1]);
  m->tied = !gguf_tensor_find(m->file, "output.weight");
  expected_tensor list[3] = {
      {"token_embd.weight", {w->shape.hidden, w->shape.vocabulary}, NULL, &w->embedding},
      {"output_norm.weight", {w->shape.hidden}, &w->output_norm, NULL},
      {"output.weight", {w->shape.hidden, w->shape.vocabulary}, NULL, &w->output},
  };
  size_t count = m->tied ? 2 : 3;
  for (size_t i = 0; i < count; i++) TRY(bind_tensor(m, &list[i]));
  if (m->tied) w->output = w->embedding;
  *bound += count;
  return 0;
}

// The first tensor that nothing of a Qwen3-MoE asks for.
static status refuse_unknown(model *m) {
  const model_shape *s = &m->weights.shape;
  for (size_t i = 0; i < gguf_tensor_count(m->file); i++) {
    const gguf_tensor *t = gguf_tensor_at(m->file, i);
    bool known = !strcmp(t->name, "token_embd.weight") || !strcmp(t->name, "output_norm.weight") ||
                 !strcmp(t->name, "output.weight");
    long long layer = -1;
    expected_tensor list[TENSORS_PER_LAYER];
    if (!known && sscanf(t->name, "blk.%lld.", &layer) == 1 && layer >= 0 && layer < s->n_layers) {
      layer_tensors(m, layer, list);
      for (size_t k = 0; k < TENSORS_PER_LAYER; k++) known = known || !strcmp(t->name, list[k].name);
    }
    if (!known)
      return FAIL(
          "%s: tensor %s is none of a Qwen3-MoE of %lld layers; without it another model would be computed",
          t->file, t->name, (long long)s->n_layers);
  }
  return 0;
}

static status bind_tensors(model *m) {
  size_t bound = 0;
  TRY(bind_outer(m, &bound));
  TRY(TAKE(&m->weights.layers, (size_t)m->weights.shape.n_layers, "the layers' table"));
  for (int64_t layer = 0; layer < m->weights.shape.n_layers; layer++) {
    expected_tensor list[TENSORS_PER_LAYER];
    layer_tensors(m, layer, list);
    for (size_t i = 0; i < TENSORS_PER_LAYER; i++) TRY(bind_tensor(m, &list[i]));
    bound += TENSORS_PER_LAYER;
  }
  return bound == gguf_tensor_count(m->file) ? 0 : refuse_unknown(m);
}

static bool is_expert_stack(const gguf_tensor *t) {
  return strstr(t->name, "_exps.") != NULL;
}

static void count_bytes(model *m) {
  struct {
    const char *name;
    int count;
  } seen[16] = {0};
  size_t n_seen = 0;
  for (size_t i = 0; i < gguf_tensor_count(m->file); i++) {
    const gguf_tensor *t = gguf_tensor_at(m->file, i);
    if (is_expert_stack(t))
      m->expert_bytes += t->bytes / (uint64_t)m->weights.shape.n_experts;
    else
      m->shared_bytes += t->bytes;
    size_t k = 0;
    while (k < n_seen && strcmp(seen[k].name, t->type->name)) k++;
    if (k == n_seen) seen[n_seen++].name = t->type->name;
    seen[k].count++;
  }
  for (size_t k = 0; k < n_seen; k++) {
    size_t used = strlen(m->types);
    snprintf(m->types + used, sizeof m->types - used, "%s%s %d", k ? ", " : "", seen[k].name, seen[k].count);
  }
}

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
  TRY_DONE(result, read_shape(m));
  TRY_DONE(result, read_name(m));
  TRY_DONE(result, bind_tensors(m));
  count_bytes(m);
  *out = m;
done:
  if (result) model_close(m);
  return result;
}

void model_close(model *m) {
  if (!m) return;
  model_weights *w = &m->weights;
  for (int64_t i = 0; w->layers && i < w->shape.n_layers; i++) {
    free((void *)w->layers[i].attn_norm);
    free((void *)w->layers[i].q_norm);
    free((void *)w->layers[i].k_norm);
    free((void *)w->layers[i].ffn_norm);
  }
  free((void *)w->output_norm);
  free(w->layers);
  free(m->name);
  gguf_close(m->file);
  free(m);
}

uint64_t model_experts_bytes(const model *m, const expert_local *owned) {
  uint64_t count = 0;
  for (int64_t e = 0; e < m->weights.shape.n_experts; e++) count += owned[e] >= 0;
  return count * m->expert_bytes;
}

// ---- values ----

typedef struct { // rows of a tensor that are checked and hashed as one
  const gguf_tensor *tensor;
  size_t row_bytes, first_row, rows;
  uint64_t key; // what distinguishes the slice in the sum
} slice;

static status check_slice(const slice *s, uint64_t *hash) {
  const char *data = (const char *)s->tensor->data + s->first_row * s->row_bytes;
  *hash = num_mix64(XXH3_64bits(data, s->rows * s->row_bytes) ^ num_mix64(s->key));
  for (size_t r = 0; r < s->rows; r++) {
    int64_t block =
        row_first_not_finite(s->tensor->type->type, data + r * s->row_bytes, (size_t)s->tensor->dim[0]);
    if (block >= 0)
      return FAIL("%s: tensor %s: row %zu, block %lld: expected finite numbers, found a NaN or infinity",
                  s->tensor->file, s->tensor->name, s->first_row + r, (long long)block);
  }
  return 0;
}

// Slice `index` of tensor t: an expert of a stack, or up to SLICE_BYTES of rows of a shared tensor.
static slice slice_at(const gguf_tensor *t, size_t tensor_index, size_t index) {
  size_t row_bytes = type_row_bytes(t->type, (size_t)t->dim[0]), rows = t->bytes / row_bytes;
  size_t each = is_expert_stack(t) ? (size_t)t->dim[1] : SLICE_BYTES / row_bytes;
  if (!each) each = 1;
  size_t first = index * each;
  size_t count = first >= rows ? 0 : rows - first < each ? rows - first : each;
  return (slice){t, row_bytes, first, count, (uint64_t)tensor_index << 32 | index};
}

static size_t slice_count(const gguf_tensor *t) {
  size_t row_bytes = type_row_bytes(t->type, (size_t)t->dim[0]), rows = t->bytes / row_bytes;
  size_t each = slice_at(t, 0, 0).rows;
  return (rows + each - 1) / each;
}

status model_check_weights(const model *m, const expert_local *owned, int threads, uint64_t *shared_hash,
                           uint64_t *experts_hash) {
  uint64_t shared = 0, experts = 0;
  status result = 0;
  for (size_t i = 0; i < gguf_tensor_count(m->file) && !result; i++) {
    const gguf_tensor *t = gguf_tensor_at(m->file, i);
    bool stack = is_expert_stack(t);
    int64_t n = (int64_t)slice_count(t);
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(+ : shared, experts) reduction(| : result)
    for (int64_t k = 0; k < n; k++) {
      if (stack && owned[k] < 0) continue;
      slice s = slice_at(t, i, (size_t)k);
      uint64_t hash = 0;
      result |= check_slice(&s, &hash);
      if (stack)
        experts += hash;
      else
        shared += hash;
    }
  }
  *shared_hash = shared;
  *experts_hash = experts;
  return result;
}
