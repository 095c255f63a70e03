// avx2_f32: products of rows of any type with float activations, two rows times two tokens.
//
// Owns: dequantisation in lanes and the order of the work. Invariant: one of the 32 lanes of sum32 is one
// lane of a register; its two halves are two passes, and the tree folds them.
#pragma once
#include "kernels/cpu/isa/each_row/generic.h"
#include <immintrin.h>

enum { PAIR = 2, WIDE = 8, HALF_LANES = LANES / 2 };

// ---- K-quants to floats, 8 at a time ----

static inline __m256i eight_bytes(const uint8_t *bytes) {
  return _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)bytes));
}

static inline __m256 scaled(__m256i q, float step) {
  return _mm256_mul_ps(_mm256_set1_ps(step), _mm256_cvtepi32_ps(q));
}

// Q4_K, or Q5_K with its fifth bits `high`.
static inline __attribute__((always_inline)) void floats_with_mins(float *out, uint16_t d, uint16_t dmin,
                                                                   const uint8_t *scales, const uint8_t *qs,
                                                                   const uint8_t *high) {
  float d_wide = _cvtsh_ss(d), dmin_wide = _cvtsh_ss(dmin);
  for (int j = 0; j < 8; j++) {
    int scale, min;
    block_scale_min(&scale, &min, scales, j);
    float step = d_wide * (float)scale, base = dmin_wide * (float)min;
    for (int i = 0; i < 32; i += 8) {
      __m256i q = eight_bytes(qs + j / 2 * 32 + i);
      q = _mm256_and_si256(_mm256_srli_epi32(q, j % 2 * 4), _mm256_set1_epi32(15));
      if (high) {
        __m256i fifth = _mm256_srli_epi32(_mm256_slli_epi32(eight_bytes(high + i), 4), j);
        q = _mm256_or_si256(q, _mm256_and_si256(fifth, _mm256_set1_epi32(16)));
      }
      _mm256_storeu_ps(out + 32 * j + i, _mm256_sub_ps(scaled(q, step), _mm256_set1_ps(base)));
    }
  }
}

static inline void floats_q6k(float *out, const block_q6_K *b) {
  float d = _cvtsh_ss(b->d);
  for (int group = 0; group < 8; group++) { // see dequantize_q6_K
    int half = group / 4, g = group % 4;
    for (int i = 0; i < 32; i += 8) {
      __m256i low = _mm256_srli_epi32(eight_bytes(b->ql + half * 64 + g % 2 * 32 + i), g / 2 * 4);
      __m256i high = _mm256_srli_epi32(_mm256_slli_epi32(eight_bytes(b->qh + half * 32 + i), 4), g * 2);
      __m256i q = _mm256_or_si256(_mm256_and_si256(low, _mm256_set1_epi32(15)),
                                  _mm256_and_si256(high, _mm256_set1_epi32(48)));
      q = _mm256_sub_epi32(q, _mm256_set1_epi32(32));
      _mm256_storeu_ps(out + 32 * group + i, scaled(q, d * (float)b->scales[2 * group + i / 16]));
    }
  }
}

static void dequantize_avx2(float *out, weight_type type, const void *row, int64_t cols) {
  const block_q4_K *four = (const block_q4_K *)row;
  const block_q5_K *five = (const block_q5_K *)row;
  const block_q6_K *six = (const block_q6_K *)row;
  switch (type) {
  case TYPE_Q4_K:
    for (int64_t b = 0; b < cols / QK_K; b++, out += QK_K)
      floats_with_mins(out, four[b].d, four[b].dmin, four[b].scales, four[b].qs, NULL);
    break;
  case TYPE_Q5_K:
    for (int64_t b = 0; b < cols / QK_K; b++, out += QK_K)
      floats_with_mins(out, five[b].d, five[b].dmin, five[b].scales, five[b].qs, five[b].qh);
    break;
  case TYPE_Q6_K:
    for (int64_t b = 0; b < cols / QK_K; b++, out += QK_K) floats_q6k(out, six + b);
    break;
    CASES_WITHOUT_Q8K
    dequantize(out, type, row, (size_t)cols);
    break;
  }
}

// ---- products ----

// out[r][t][i] = sums of half of the lanes: four dot products whose 8 chains hide each other's latency.
static inline __attribute__((always_inline)) void half_dots(__m256 out[PAIR][PAIR][2], const float *const *w,
                                                            const float *const *x, int64_t cols, int half,
                                                            const int rows, const int tokens) {
  __m256 sum[PAIR][PAIR][2];
  for (int r = 0; r < rows; r++)
    for (int t = 0; t < tokens; t++) sum[r][t][0] = sum[r][t][1] = _mm256_setzero_ps();
  for (int64_t c = half * HALF_LANES; c < cols; c += LANES)
    for (int i = 0; i < 2; i++) {
      __m256 b[PAIR];
      for (int r = 0; r < rows; r++) b[r] = _mm256_loadu_ps(w[r] + c + i * WIDE);
      for (int t = 0; t < tokens; t++) {
        __m256 a = _mm256_loadu_ps(x[t] + c + i * WIDE);
        for (int r = 0; r < rows; r++) sum[r][t][i] = _mm256_fmadd_ps(b[r], a, sum[r][t][i]);
      }
    }
  for (int r = 0; r < rows; r++)
    for (int t = 0; t < tokens; t++)
      for (int i = 0; i < 2; i++) out[r][t][i] = sum[r][t][i];
}

// Out of line: what the first half leaves must not take the second one's registers.
#define HALF_DOTS(rows, tokens)                                                                              \
  static __attribute__((noinline)) void half_dots_##rows##_##tokens(                                         \
      __m256 sum[PAIR][PAIR][2], const float *const *w, const float *const *x, int64_t cols, int half) {     \
    half_dots(sum, w, x, cols, half, rows, tokens);                                                          \
  }
HALF_DOTS(1, 1)
HALF_DOTS(2, 1)
HALF_DOTS(2, 2)
#undef HALF_DOTS

typedef void half_dots_n(__m256 sum[PAIR][PAIR][2], const float *const *w, const float *const *x,
                         int64_t cols, int half);

// num_tree_f32 from where 8 lanes are left.
static inline float tree_wide(__m256 x) {
  __m128 y = _mm_add_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_add_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_add_ss(y, _mm_movehdup_ps(y)));
}

static inline void dots(float *const *out, int64_t row, const float *const *w, const float *const *x,
                        int64_t cols, int rows, int tokens) {
  __m256 low[PAIR][PAIR][2], high[PAIR][PAIR][2];
  half_dots_n *halves = rows == 1 ? half_dots_1_1 : tokens == 1 ? half_dots_2_1 : half_dots_2_2;
  halves(low, w, x, cols, 0);
  halves(high, w, x, cols, 1);
  for (int t = 0; t < tokens; t++)
    for (int r = 0; r < rows; r++)
      out[t][row + r] = tree_wide(_mm256_add_ps(_mm256_add_ps(low[r][t][0], high[r][t][0]),
                                                _mm256_add_ps(low[r][t][1], high[r][t][1])));
}

// A pair of rows, the second of which may be missing, times all tokens.
static void pair_times(float *const *out, int64_t row, int64_t rows, const float *const *w,
                       const void *const *x, int64_t n, int64_t cols) {
  for (int64_t t = 0; t < n; t += PAIR) {
    const float *from[PAIR] = {(const float *)x[t], (const float *)x[t + 1 < n ? t + 1 : t]};
    if (rows == PAIR && t + 1 < n)
      dots(out + t, row, w, from, cols, PAIR, PAIR);
    else if (rows == PAIR)
      dots(out + t, row, w, from, cols, PAIR, 1);
    else
      for (int64_t i = t; i < n && i < t + PAIR; i++) dots(out + i, row, w, from + (i - t), cols, 1, 1);
  }
}

static void product_tile_avx2(void *const *out, const matrix *m, const void *const *x, int64_t n_tokens,
                              float *scratch) {
  if (m->cols % LANES) {
    product_f32(out, m, x, n_tokens, scratch);
    return;
  }
  size_t row_bytes = type_row_bytes(type_find(m->type), (size_t)m->cols);
  for (int64_t r = 0; r < m->rows; r += PAIR) {
    int64_t count = m->rows - r < PAIR ? 1 : PAIR;
    const float *w[PAIR];
    for (int64_t i = 0; i < count; i++) {
      const char *row = (const char *)m->data + (size_t)(r + i) * row_bytes;
      w[i] = m->type == TYPE_F32 ? (const float *)(const void *)row : scratch + i * m->cols;
      if (m->type != TYPE_F32) dequantize_avx2(scratch + i * m->cols, m->type, row, m->cols);
    }
    pair_times((float *const *)out, r, count, w, x, n_tokens, m->cols);
  }
}
