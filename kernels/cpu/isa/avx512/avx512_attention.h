// avx512_attention: attention in floats for the query heads of several tokens that share a cache.
//
// Owns: the order of the work over chunks, tokens and heads. Invariant: every sum is the chain of
// docs/paths.md: a score over head_dim in a lane of its key, an output over keys in a lane of its dimension.
#pragma once
#include "kernels/cpu/isa/avx512/avx512_float.h"

enum { HEAD_TILE = 4, REGISTERS = 4 }; // 4 heads times 64 keys or dimensions: 16 sums
static_assert(ATTENTION_CHUNK == REGISTERS * FLOATS, "a chunk's scores are one tile");

// out[h][0 .. 16 wide - 1] (rows of out_stride) = sum over k ascending, from +0, of a[h][k] * b[k][..]
static inline __attribute__((always_inline)) void chains(float *out, int64_t out_stride, const float *a,
                                                         int64_t a_stride, const float *b, int64_t b_stride,
                                                         int64_t n, const int heads, const int wide) {
  __m512 sum[HEAD_TILE][REGISTERS];
  for (int h = 0; h < heads; h++)
    for (int i = 0; i < wide; i++) sum[h][i] = _mm512_setzero_ps();
  for (int64_t k = 0; k < n; k++) {
    __m512 row[REGISTERS];
    for (int i = 0; i < wide; i++) row[i] = _mm512_loadu_ps(b + k * b_stride + i * FLOATS);
    for (int h = 0; h < heads; h++) {
      __m512 factor = _mm512_set1_ps(a[h * a_stride + k]);
      for (int i = 0; i < wide; i++) sum[h][i] = _mm512_fmadd_ps(factor, row[i], sum[h][i]);
    }
  }
  for (int h = 0; h < heads; h++)
    for (int i = 0; i < wide; i++) _mm512_storeu_ps(out + h * out_stride + i * FLOATS, sum[h][i]);
}

// The same for any number of heads and any multiple of 16 columns.
static void chains_all(float *out, int64_t out_stride, const float *a, int64_t a_stride, const float *b,
                       int64_t b_stride, int64_t n, int64_t heads, int64_t columns) {
  for (int64_t h = 0; h < heads; h += HEAD_TILE)
    for (int64_t c = 0; c < columns;) {
      float *to = out + h * out_stride + c;
      const float *from = a + h * a_stride;
      int64_t count = heads - h < HEAD_TILE ? heads - h : HEAD_TILE;
      bool whole = columns - c >= REGISTERS * FLOATS;
      if (whole && count == HEAD_TILE)
        chains(to, out_stride, from, a_stride, b + c, b_stride, n, HEAD_TILE, REGISTERS);
      else if (whole && count == 3)
        chains(to, out_stride, from, a_stride, b + c, b_stride, n, 3, REGISTERS);
      else if (whole && count == 2)
        chains(to, out_stride, from, a_stride, b + c, b_stride, n, 2, REGISTERS);
      else if (whole)
        chains(to, out_stride, from, a_stride, b + c, b_stride, n, 1, REGISTERS);
      else
        for (int64_t i = 0; i < count; i++)
          chains(to + i * out_stride, out_stride, from + i * a_stride, a_stride, b + c, b_stride, n, 1, 1);
      c += whole ? REGISTERS * FLOATS : FLOATS;
    }
}

static const float *kv_floats(const kv_head *kv, const void *cache, int64_t at, int64_t n, float *wide) {
  const uint16_t *half = (const uint16_t *)cache + at;
  switch (kv->storage) {
  case KV_HALF:
    for (int64_t i = 0; i < n; i += FLOATS)
      _mm512_store_ps(wide + i, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(half + i))));
    return wide;
  case KV_REAL:
    break;
  }
  return (const float *)cache + at;
}

// Scores of one chunk to weights; lanes from n on become 0. Returns their sum.
static inline float weights_avx512(float score[ATTENTION_CHUNK], int64_t n, float *max_out) {
  __m512 s[REGISTERS], e[REGISTERS];
  __mmask16 has[REGISTERS];
  __m512 most = _mm512_set1_ps(score[0]);
  for (int i = 0; i < REGISTERS; i++) {
    int64_t left = n - i * FLOATS;
    has[i] = left >= FLOATS ? 0xffff : left > 0 ? (__mmask16)((1u << left) - 1) : 0;
    s[i] = _mm512_loadu_ps(score + i * FLOATS);
    most = _mm512_mask_max_ps(most, has[i], s[i], most);
  }
  float max = _mm512_reduce_max_ps(most);
  for (int i = 0; i < REGISTERS; i++) {
    e[i] = _mm512_maskz_mov_ps(has[i], exp_lanes(_mm512_sub_ps(s[i], _mm512_set1_ps(max))));
    _mm512_storeu_ps(score + i * FLOATS, e[i]);
  }
  *max_out = max;
  return tree_lanes(_mm512_add_ps(e[0], e[2]), _mm512_add_ps(e[1], e[3]));
}

typedef struct { // of one head of one token
  float max, sum;
} running;

static inline void fold_avx512(running *run, float *out, float max, float sum, const float *fresh_out,
                               int64_t head_dim) {
  float both = run->max > max ? run->max : max;
  float shift[FLOATS] = {run->max - both, max - both};
  _mm512_storeu_ps(shift, exp_lanes(_mm512_loadu_ps(shift)));
  run->sum = num_fma_f32(sum, shift[1], run->sum * shift[0]);
  run->max = both;
  __m512 old = _mm512_set1_ps(shift[0]), fresh = _mm512_set1_ps(shift[1]);
  for (int64_t d = 0; d < head_dim; d += FLOATS) {
    __m512 kept = _mm512_mul_ps(_mm512_loadu_ps(out + d), old);
    _mm512_storeu_ps(out + d, _mm512_fmadd_ps(_mm512_loadu_ps(fresh_out + d), fresh, kept));
  }
}

typedef struct { // the scratch of attend_span_avx512
  float *keys, *values, *scores, *fresh;
  running *run;
} attention_room;

static attention_room room_of(void *scratch, int64_t heads, int64_t head_dim) {
  attention_room r;
  r.keys = (float *)scratch;
  r.values = r.keys + ATTENTION_CHUNK * head_dim;
  r.scores = r.values + ATTENTION_CHUNK * head_dim;
  r.fresh = r.scores + heads * ATTENTION_CHUNK;
  r.run = (running *)(void *)(r.fresh + heads * head_dim);
  return r;
}

// One token's heads over one chunk of n keys.
static void attend_chunk(float *out, running *run, const float *q, const float *keys, const float *values,
                         bool first, int64_t n, int64_t heads, int64_t head_dim, const attention_room *room) {
  chains_all(room->scores, ATTENTION_CHUNK, q, head_dim, keys, ATTENTION_CHUNK, head_dim, heads,
             ATTENTION_CHUNK);
  running fresh[ATTEND_HEADS];
  for (int64_t h = 0; h < heads; h++)
    fresh[h].sum = weights_avx512(room->scores + h * ATTENTION_CHUNK, n, &fresh[h].max);
  chains_all(first ? out : room->fresh, head_dim, room->scores, ATTENTION_CHUNK, values, head_dim, n, heads,
             head_dim);
  for (int64_t h = 0; h < heads; h++)
    if (first)
      run[h] = fresh[h];
    else
      fold_avx512(&run[h], out + h * head_dim, fresh[h].max, fresh[h].sum, room->fresh + h * head_dim,
                  head_dim);
}

static void attend_span_avx512(const attention_span *s, int64_t head_dim, void *scratch) {
  if (head_dim % FLOATS) {
    for (int64_t i = 0; i < s->n * s->heads; i++) {
      int64_t t = i / s->heads, at = i % s->heads * head_dim;
      attend_f32((float *)s->out[t] + at, (const float *)s->q[t] + at, &s->kv, s->n_keys[t], head_dim,
                 scratch);
    }
    return;
  }
  int64_t heads = s->heads;
  attention_room room = room_of(scratch, heads, head_dim);
  int64_t n_keys = 0;
  for (int64_t t = 0; t < s->n; t++) n_keys = s->n_keys[t] > n_keys ? s->n_keys[t] : n_keys;
  for (int64_t first = 0; first < n_keys; first += ATTENTION_CHUNK) {
    int64_t n_values = n_keys - first < ATTENTION_CHUNK ? n_keys - first : ATTENTION_CHUNK;
    const float *keys =
        kv_floats(&s->kv, s->kv.keys, first * head_dim, ATTENTION_CHUNK * head_dim, room.keys);
    const float *values = kv_floats(&s->kv, s->kv.values, first * head_dim, n_values * head_dim, room.values);
    for (int64_t t = 0; t < s->n; t++) {
      int64_t n = s->n_keys[t] - first;
      if (n > 0)
        attend_chunk((float *)s->out[t], room.run + t * heads, (const float *)s->q[t], keys, values, !first,
                     n < ATTENTION_CHUNK ? n : ATTENTION_CHUNK, heads, head_dim, &room);
    }
  }
  for (int64_t t = 0; t < s->n; t++)
    for (int64_t h = 0; h < heads; h++) {
      __m512 inverse = _mm512_set1_ps(1.0f / room.run[t * heads + h].sum);
      for (int64_t d = 0; d < head_dim; d += FLOATS) {
        float *at = (float *)s->out[t] + h * head_dim + d;
        _mm512_storeu_ps(at, _mm512_mul_ps(_mm512_loadu_ps(at), inverse));
      }
    }
}
