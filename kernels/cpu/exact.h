// exact: attention in integers (q8k; docs/paths.md) between the steps and the ISA rows: the cache of limbs,
// the rows of queries that read it, and what an ISA row computes of it.
//
// Owns: the cache's layout, which all ISA rows share. Independent of: arithmetic (ISA rows), the order of the
// steps.
// Invariant: a limb lies as limb + 128, so that a plane is the unsigned operand of a product of bytes, and in
// fours, as VNNI and AMX add four products to a lane.
#pragma once
#include "kernels/formats/attention_exact.h"
#include <stddef.h>

enum {
  EXACT_TILE = 16, // rows of queries that a kernel takes at a time: the rows of an AMX tile
  EXACT_PACK = 16, // a head's width is padded to a multiple of this many channels
  LIMB_BIAS = 128,
};

static inline int64_t exact_width(int64_t head_dim) {
  return (head_dim + EXACT_PACK - 1) / EXACT_PACK * EXACT_PACK;
}

// The cache of one (layer, sequence, key/value head): chunks of EXACT_CHUNK positions, each as four planes of
// limbs and two of units. A channel beyond head_dim meets zeros of the query, or is not read.
typedef struct {
  char *chunks;
  int64_t width;
} exact_cache;

typedef struct {                   // one chunk of it
  uint8_t *key_high, *key_low;     // [EXACT_CHUNK / 16][width / 4][16 keys][4 channels]
  uint8_t *value_high, *value_low; // [width / 16][EXACT_CHUNK / 4][16 channels][4 keys]
  float *key_unit, *value_unit;    // [EXACT_CHUNK]
} exact_chunk;

// Where key j of a chunk has channel d in its planes, and value j.
static inline int64_t exact_key_at(int64_t j, int64_t d, int64_t width) {
  return ((j / 16 * (width / 4) + d / 4) * 16 + j % 16) * 4 + d % 4;
}

static inline int64_t exact_value_at(int64_t j, int64_t d) {
  return ((d / 16 * (EXACT_CHUNK / 4) + j / 4) * 16 + d % 16) * 4 + j % 4;
}

static inline size_t exact_chunk_bytes(int64_t width) {
  return (size_t)EXACT_CHUNK * (4 * (size_t)width + 2 * sizeof(float));
}

static inline exact_chunk exact_chunk_at(const exact_cache *kv, int64_t index) {
  size_t plane = (size_t)(EXACT_CHUNK * kv->width);
  uint8_t *p = (uint8_t *)kv->chunks + (size_t)index * exact_chunk_bytes(kv->width);
  float *units = (float *)(void *)(p + 4 * plane);
  return (exact_chunk){p, p + plane, p + 2 * plane, p + 3 * plane, units, units + EXACT_CHUNK};
}

typedef struct {      // rows of queries, a head of a token each, as integers
  int8_t *high, *low; // [rows][width], 0 beyond head_dim
  float *unit;        // [rows]
  int32_t *high_sum;  // [rows] LIMB_BIAS times the sum of a row's limbs: what the bias of the keys' planes
  int32_t *low_sum;   // adds to a sum of products
} exact_queries;

typedef struct {    // of rows of queries: a chunk's result, or what chunks were folded to
  float *max, *sum; // [rows]
  float *out;       // [rows][width]
} exact_rows;

static inline exact_queries exact_queries_from(const exact_queries *q, int64_t row, int64_t width) {
  return (exact_queries){q->high + row * width, q->low + row * width, q->unit + row, q->high_sum + row,
                         q->low_sum + row};
}

static inline exact_rows exact_rows_from(const exact_rows *r, int64_t row, int64_t width) {
  return (exact_rows){r->max + row, r->sum + row, r->out + row * width};
}

typedef struct { // what a layer's channels are multiplied by before they are rounded: powers of two
  const float *query, *key, *value; // [head_dim] each; of values 1
} exact_factors;

// Fills [head_dim] of each from the layer's norms.
void exact_factors_fill(float *query, float *key, float *value, const float *q_norm, const float *k_norm,
                        int64_t head_dim);

// Neighbouring query heads of n tokens, all of which read one cache.
typedef struct {
  void *const *out;      // [n] to floats [heads][head_dim]
  const void *const *q;  // [n] to floats [heads][head_dim], after norm, RoPE and scale
  const int64_t *n_keys; // [n]: token t sees the keys 0 .. n_keys[t] - 1, at least one
  int64_t n, heads;
  exact_factors factors;
  exact_cache kv;
} exact_span;

typedef struct exact_ops exact_ops;

// A span's attention, all of its chunks, with the kernels of `ops`. scratch: exact_scratch_bytes.
void exact_attend(const exact_ops *ops, const exact_span *span, int64_t head_dim, void *scratch);
size_t exact_scratch_bytes(int64_t head_dim);

struct exact_ops {
  // Rounds key and value of a position into the cache.
  void (*store)(const exact_cache *kv, int64_t position, const float *k, const float *v,
                const exact_factors *factors, int64_t head_dim);
  // Rounds a query into row 0 of `to`.
  void (*query)(const exact_queries *to, const float *q, const exact_factors *factors, int64_t head_dim,
                int64_t width);
  // Rows 0 .. n - 1, at most EXACT_TILE, over the first n_keys[row] keys of a chunk; a row with none is left
  // alone.
  void (*chunk)(const exact_rows *to, const exact_queries *q, const exact_chunk *chunk, const int32_t *n_keys,
                int64_t n, int64_t width);
  // Folds row 0 of `next` into that of `run`; rows after it are left alone.
  void (*fold)(const exact_rows *run, const exact_rows *next, int64_t width);
  // out[head_dim] = row 0 of `run`, divided by its sum; unit: of its query
  void (*finish)(float *out, const exact_rows *run, float unit, int64_t head_dim);
  void (*attend)(const exact_ops *ops, const exact_span *span, int64_t head_dim,
                 void *scratch); // exact_attend
};
