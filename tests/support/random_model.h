// random_model: a model of any shape and any types in memory, for tests that call a backend without files.
//
// Owns: the weights, scaled so that activations stay near one; ties of the router where `ties` asks for them.
// Invariant: what it makes follows from the random state alone, and every block is a valid encoding.
#pragma once
#include "base/memory.h"
#include "kernels/backend.h"
#include "kernels/formats/half.h"
#include "kernels/formats/numerics.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static uint64_t random_state;

static uint64_t random_next(void) { // SplitMix64
  return num_mix64(random_state += 0x9e3779b97f4a7c15u);
}

static int64_t random_below(int64_t n) {
  return (int64_t)(random_next() % (uint64_t)n);
}

static int64_t random_of(const int64_t *list, int64_t n) {
  return list[random_below(n)];
}
#define RANDOM_OF(...)                                                                                       \
  random_of((const int64_t[]){__VA_ARGS__},                                                                  \
            (int64_t)(sizeof((const int64_t[]){__VA_ARGS__}) / sizeof(int64_t)))

static float random_unit(void) { // from -1 to 1
  return (float)((double)(int64_t)random_next() * 0x1p-63);
}

static void *random_room(size_t count, size_t size) {
  void *p;
  if (memory_take(&p, count, size, "a test")) abort();
  return p;
}

// ---- a matrix ----

// The scale for which weights of random bits have a standard deviation of about `deviation`.
static float block_scale(weight_type type, float deviation) {
  switch (type) {
  case TYPE_Q8_0:
    return deviation / 74;
  case TYPE_Q4_K:
    return deviation / 200;
  case TYPE_Q5_K:
    return deviation / 400;
  case TYPE_Q6_K:
    return deviation / 1370;
  case TYPE_F32:
  case TYPE_F16:
  case TYPE_BF16:
    CASES_OF_FEW_BITS
    break;
  }
  return deviation * 1.7f;
}

// Scales of a block of few bits, for weights of about that deviation.
static void random_factors(char *block, weight_type type, float deviation) {
  static const struct {
    weight_type type;
    float rms; // of its weights of random bits, over d
    size_t d, second;
  } kinds[] = {{TYPE_Q2_K, 14, offsetof(block_q2_K, d), offsetof(block_q2_K, dmin)},
               {TYPE_Q3_K, 43, offsetof(block_q3_K, d), 0},
               {TYPE_IQ4_XS, 1246, 0, 0},
               {TYPE_IQ4_NL, 67, 0, 0},
               {TYPE_Q4_0, 4.6f, 0, 0},
               {TYPE_Q4_1, 4.6f, 0, offsetof(block_q4_1, m)},
               {TYPE_Q5_0, 9.2f, 0, 0},
               {TYPE_Q5_1, 9.2f, 0, offsetof(block_q5_1, m)}};
  if (type == TYPE_MXFP4)
    *block = (char)(int8_t)(126 + (int)log2f(deviation) - random_below(3)); // times about 6
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
    if (kinds[i].type != type) continue;
    uint16_t d = f32_to_half(deviation / kinds[i].rms * (random_below(2) ? 1 : -1)),
             second = f32_to_half(deviation * random_unit());
    memcpy(block + kinds[i].d, &d, sizeof d);
    if (kinds[i].second) memcpy(block + kinds[i].second, &second, sizeof second);
  }
}

static void random_block(char *block, weight_type type, float deviation) {
  size_t bytes = type_find(type)->bytes;
  float scale = block_scale(type, deviation) * (1 + 0.5f * random_unit()), x = scale * random_unit();
  uint16_t half = f32_to_half(x), d = f32_to_half(random_below(64) ? scale : 1e-7f);
  uint16_t dmin = f32_to_half(scale * 3), b16 = (uint16_t)(num_bits_f32(x) >> 16);
  for (size_t i = 0; i < bytes; i += 4) {
    uint32_t bits = (uint32_t)(random_next() >> 32);
    memcpy(block + i, &bits, bytes - i < 4 ? bytes - i : 4);
  }
  if (type == TYPE_F32) memcpy(block, &x, sizeof x);
  if (type == TYPE_F16) memcpy(block, &half, sizeof half);
  if (type == TYPE_BF16) memcpy(block, &b16, sizeof b16);
  if (type == TYPE_Q8_0 || type == TYPE_Q4_K || type == TYPE_Q5_K) memcpy(block, &d, sizeof d);
  if (type == TYPE_Q4_K || type == TYPE_Q5_K) memcpy(block + sizeof d, &dmin, sizeof dmin);
  if (type == TYPE_Q6_K) memcpy(block + offsetof(block_q6_K, d), &d, sizeof d);
  if (type_find(type)->few_bits) random_factors(block, type, deviation);
}

// Every matrix a K-quant where its rows allow it, and a router of floats: the models that one token at a time
// has kernels of its own for. By chance alone hardly any model is one.
static bool random_k_quants;

// Types of few bits, as often as not, where the rows allow them.
static bool random_few_bits;

static weight_type random_few_bits_type(int64_t cols) {
  if (cols % QK_K == 0 && random_below(2)) return (weight_type)RANDOM_OF(TYPE_Q2_K, TYPE_Q3_K, TYPE_IQ4_XS);
  return (weight_type)RANDOM_OF(TYPE_Q8_0, TYPE_IQ4_NL, TYPE_Q4_0, TYPE_Q4_1, TYPE_Q5_0, TYPE_Q5_1,
                                TYPE_MXFP4);
}

// Any type whose blocks fit into rows of `cols`; K-quants most of the time where they do.
static weight_type random_type(int64_t cols) {
  if (random_few_bits && cols % QK_32 == 0 && random_below(2)) return random_few_bits_type(cols);
  if (cols % QK_K == 0 && (random_k_quants || random_below(4)))
    return (weight_type)RANDOM_OF(TYPE_Q4_K, TYPE_Q5_K, TYPE_Q6_K);
  if (cols % QK8_0 == 0) return (weight_type)RANDOM_OF(TYPE_F32, TYPE_F16, TYPE_BF16, TYPE_Q8_0);
  return (weight_type)RANDOM_OF(TYPE_F32, TYPE_F16, TYPE_BF16);
}

static matrix random_matrix(weight_type type, int64_t members, int64_t rows, int64_t cols) {
  const type_info *info = type_find(type);
  size_t n = (size_t)(members * rows * cols) / info->elements;
  char *data = random_room(n, info->bytes);
  float deviation = 1 / sqrtf((float)cols);
  for (size_t i = 0; i < n; i++) random_block(data + i * info->bytes, type, deviation);
  return (matrix){data, type, rows, cols};
}

static float *random_norm(int64_t n) {
  float *x = random_room((size_t)n, sizeof *x);
  for (int64_t i = 0; i < n; i++) x[i] = 1 + 0.5f * random_unit();
  if (random_below(3) == 0) x[random_below(n)] = 40; // an outlier, which crushes the rest of its block
  return x;
}

// ---- a model ----

// Rows that are copies of others: their logits are equal to the bit.
static void tie_rows(const matrix *router) {
  size_t bytes = type_row_bytes(type_find(router->type), (size_t)router->cols);
  char *data = (char *)(uintptr_t)router->data;
  for (int64_t e = 1; e < router->rows; e++)
    if (random_below(2)) memcpy(data + (size_t)e * bytes, data + (size_t)random_below(e) * bytes, bytes);
}

static void random_layer(layer_weights *w, const model_shape *s, bool ties) {
  int64_t q = s->n_heads * s->head_dim, kv = s->n_kv_heads * s->head_dim;
  weight_type in = random_type(s->hidden), in_experts = random_type(s->hidden);
  *w = (layer_weights){.attn_norm = random_norm(s->hidden),
                       .q_norm = random_norm(s->head_dim),
                       .k_norm = random_norm(s->head_dim),
                       .ffn_norm = random_norm(s->hidden)};
  w->q = random_matrix(in, 1, q, s->hidden);
  w->k = random_matrix(in, 1, kv, s->hidden);
  w->v = random_matrix(random_type(s->hidden), 1, kv, s->hidden);
  w->o = random_matrix(random_type(q), 1, s->hidden, q);
  w->router = random_matrix(random_k_quants || random_below(3) ? TYPE_F32 : random_type(s->hidden), 1,
                            s->n_experts, s->hidden);
  w->gate = random_matrix(in_experts, s->n_experts, s->expert_width, s->hidden);
  w->up = random_matrix(in_experts, s->n_experts, s->expert_width, s->hidden);
  w->down = random_matrix(random_type(s->expert_width), s->n_experts, s->hidden, s->expert_width);
  if (ties) tie_rows(&w->router);
}

static void random_model_open(model_weights *m, const model_shape *shape, bool ties) {
  *m = (model_weights){.shape = *shape};
  m->embedding = random_matrix(random_type(shape->hidden), 1, shape->vocabulary, shape->hidden);
  m->output = random_below(3) ? random_matrix(random_type(shape->hidden), 1, shape->vocabulary, shape->hidden)
                              : m->embedding;
  m->output_norm = random_norm(shape->hidden);
  m->layers = random_room((size_t)shape->n_layers, sizeof *m->layers);
  for (int64_t l = 0; l < shape->n_layers; l++) random_layer(&m->layers[l], shape, ties);
}

static void random_model_close(model_weights *m) {
  for (int64_t l = 0; l < m->shape.n_layers; l++) {
    layer_weights *w = &m->layers[l];
    const void *owned[] = {w->attn_norm, w->q_norm, w->k_norm,      w->ffn_norm,  w->q.data,  w->k.data,
                           w->v.data,    w->o.data, w->router.data, w->gate.data, w->up.data, w->down.data};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free((void *)(uintptr_t)owned[i]);
  }
  if (m->output.data != m->embedding.data) free((void *)(uintptr_t)m->output.data);
  free((void *)(uintptr_t)m->embedding.data);
  free((void *)(uintptr_t)m->output_norm);
  free(m->layers);
}
