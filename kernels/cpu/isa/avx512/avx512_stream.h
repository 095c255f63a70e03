// avx512_stream: products of Q6_K rows of 2048 or 4096 columns with one token's rounded activations. 16
// neighbouring blocks are side by side, not 16 rows: of such rows 32 (16, and the 16 fetched meanwhile) are
// more than the L1 cache holds, and a model's largest matrix, its output, is of them.
//
// Owns: the order of the work and what is fetched ahead. Invariant: a lane is a block, whose term is that of
// docs/paths.md; a row's terms are added one after the other.
#pragma once
#include "kernels/cpu/isa/avx512/avx512_vector.h"
#include <math.h>

enum {
  GROUP = 16,            // blocks side by side
  SHORT_ROW = GROUP / 2, // blocks; two such rows are a group, as is one of 16 blocks
  FETCH_GROUPS = 2,      // so many are on their way
};

// Terms without the activations' scale.
static inline __attribute__((always_inline)) __m512 stream_terms_q6k(const block_q6_K *w, const block_q8_K *x,
                                                                     const int64_t row_blocks) {
  __m512i fours[4];
  uint16_t d[GROUP];
  for (int i = 0; i < GROUP; i++) memcpy(&d[i], &w[i].d, sizeof d[i]);
#pragma GCC unroll 4
  for (int g = 0; g < 4; g++) {
    __m512i v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) v[i] = sums_q6k(w + 4 * g + i, x + (4 * g + i) % row_blocks);
    fours[g] = sum_four(v);
  }
  __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)d));
  return _mm512_mul_ps(scale, _mm512_cvtepi32_ps(sum_quarters(fours)));
}

// out: the rows of a group, of row_blocks terms each.
static inline __attribute__((always_inline)) void stream_add(float *out, __m512 terms, const block_q8_K *x,
                                                             const int64_t row_blocks) {
  float term[GROUP];
  _mm512_storeu_ps(term, terms);
  for (int64_t r = 0; r < GROUP / row_blocks; r++) {
    float y = 0;
#pragma GCC unroll 16
    for (int64_t b = 0; b < row_blocks; b++) y = fmaf(x[b].d, term[r * row_blocks + b], y);
    out[r] = y;
  }
}

// m: whole groups; ahead: what is fetched during the last of them.
static inline __attribute__((always_inline)) void vector_stream_q6k(float *out, const matrix *m,
                                                                    const block_q8_K *x, const char *ahead,
                                                                    const int64_t row_blocks) {
  const size_t bytes = GROUP * sizeof(block_q6_K);
  const char *data = (const char *)m->data;
  int64_t groups = m->rows * row_blocks / GROUP;
  for (int64_t g = 0; g < groups; g++) {
    int64_t far = g + FETCH_GROUPS;
    const char *fetch = far < groups ? data + (size_t)far * bytes : ahead + (size_t)(far - groups) * bytes;
    for (size_t i = 0; i < bytes; i += 64) _mm_prefetch(fetch + i, _MM_HINT_T0);
    const block_q6_K *w = (const block_q6_K *)(data + (size_t)g * bytes);
    stream_add(out + g * (GROUP / row_blocks), stream_terms_q6k(w, x, row_blocks), x, row_blocks);
  }
}

static void vector_q8k_avx512(float *out, const matrix *m, const block_q8_K *x, const void *ahead) {
  const char *next = (const char *)(ahead ? ahead : m->data);
  int64_t blocks = m->type == TYPE_Q6_K ? m->cols / QK_K : 0;
  if (blocks == SHORT_ROW && m->rows % 2 == 0)
    vector_stream_q6k(out, m, x, next, SHORT_ROW);
  else if (blocks == GROUP)
    vector_stream_q6k(out, m, x, next, GROUP);
  else
    vector_side_by_side(out, m, x, next);
}
