// avx512_outliers: the path q8k_split, as each_row/outliers.h has it: the criterion 16 elements at a time,
// and the sum of the outliers' terms with columns of weights from 16 rows at a time.
//
// Owns: how a column is gathered. Invariant: a lane of a column is one row, and its weight has the float
// operations of dequantize.h in their order.
#pragma once
#include "kernels/cpu/isa/avx512/avx512_float.h"
#include "kernels/cpu/isa/avx512/avx512_panel.h"
#include "kernels/cpu/isa/avx512/avx512_row.h"

// ---- the criterion ----

static inline __m512 magnitudes(const float *x) {
  return _mm512_abs_ps(_mm512_loadu_ps(x));
}

static inline __m512 lane_maxima(const float *x) {
  __m512 most = _mm512_setzero_ps();
  for (int i = 0; i < QK_K; i += FLOATS) most = _mm512_max_ps(magnitudes(x + i), most);
  return most;
}

static bool has_outliers_avx512(const float *x) {
  const __m512 ratio = _mm512_set1_ps(num_outlier_limit(1));
  __m512 all = _mm512_set1_ps(_mm512_reduce_max_ps(lane_maxima(x)));
  int within = 0;
  for (int i = 0; i < QK_K; i += FLOATS)
    within +=
        __builtin_popcount(_mm512_cmp_ps_mask(_mm512_mul_ps(ratio, magnitudes(x + i)), all, _CMP_GE_OQ));
  return within <= MOST_OUTLIERS;
}

// The element of rank MOST_OUTLIERS + 1 of n, none of them below 0; FLOATS may be read beyond them. It is the
// largest with so many that are no less.
static inline float ranked(const float *c, int n) {
  float found = 0;
  for (int i = 0; i < n; i++) {
    int no_less = 0;
    for (int j = 0; j < n; j += FLOATS) {
      __mmask16 there = n - j < FLOATS ? (__mmask16)((1 << (n - j)) - 1) : (__mmask16)-1;
      no_less += __builtin_popcount(
          _mm512_mask_cmp_ps_mask(there, _mm512_loadu_ps(c + j), _mm512_set1_ps(c[i]), _CMP_GE_OQ));
    }
    if (no_less > MOST_OUTLIERS && c[i] > found) found = c[i];
  }
  return found;
}

// The lanes' maxima bound it from below, so only what is no less can be it: a few more than are asked for.
static float ordinary_magnitude_avx512(const float *x) {
  float lane[FLOATS], c[QK_K + FLOATS];
  int n = 0;
  _mm512_storeu_ps(lane, lane_maxima(x));
  __m512 bound = _mm512_set1_ps(ranked(lane, FLOATS));
  for (int i = 0; i < QK_K; i += FLOATS) {
    __m512 m = magnitudes(x + i);
    __mmask16 no_less = _mm512_cmp_ps_mask(m, bound, _CMP_GE_OQ);
    _mm512_storeu_ps(c + n, _mm512_maskz_compress_ps(no_less, m));
    n += __builtin_popcount(no_less);
  }
  return ranked(c, n);
}

static void take_outliers_avx512(row_outliers *out, float *rest, const float *x, int64_t first) {
  __m512 limit = _mm512_set1_ps(num_outlier_limit(ordinary_magnitude_avx512(x)));
  for (int i = 0; i < QK_K; i += FLOATS) {
    unsigned is_out = _mm512_cmp_ps_mask(magnitudes(x + i), limit, _CMP_GT_OQ);
    _mm512_storeu_ps(rest + i, _mm512_maskz_mov_ps((__mmask16)~is_out, _mm512_loadu_ps(x + i)));
    for (; is_out; is_out &= is_out - 1) {
      int at = i + __builtin_ctz(is_out);
      out->of[out->count++] = (outlier){(int32_t)(first + at), x[at]};
    }
  }
}

void split_q8k_avx512(block_q8_K *out, const float *x, int64_t n) {
  split_q8k_with(has_outliers_avx512, take_outliers_avx512, quantize_q8k_avx512, out, x, n);
}

// ---- a column of weights ----

// Byte `at` of each row's block, a row a lane.
static inline __m512i bytes_of_rows(const char *const *row, size_t at) {
  __m512i word[4];
  transpose_words(word, row, at / 16 * 16);
  return _mm512_and_si512(_mm512_srli_epi32(word[at / 4 % 4], (unsigned)(at % 4 * 8)),
                          _mm512_set1_epi32(255));
}

// fifth: where Q5_K has the fifth bits of its quants, 0: Q4_K. quants: where the others are.
static inline __m512 column_with_mins(const char *const *row, size_t fifth, size_t quants, int i) {
  static_assert(offsetof(block_q4_K, d) == 0 && offsetof(block_q4_K, qs) == 16,
                "a piece starts each of them");
  static_assert(offsetof(block_q5_K, qh) == 16 && offsetof(block_q5_K, qs) == 48, "and here");
  const __m512i byte = _mm512_set1_epi32(255);
  __m512i word[4];
  row_heads h;
  int j = i / 32, shift = j % 4 * 8;
  transpose_words(word, row, 0);
  heads_of(&h, word);
  __m512i scale = _mm512_and_si512(_mm512_srli_epi32(h.scale[j / 4], (unsigned)shift), byte);
  __m512i min = _mm512_and_si512(_mm512_srli_epi32(h.min[j / 2], (unsigned)(j % 2 * 16)), byte);
  __m512i q = bytes_of_rows(row, quants + (size_t)(i / 64 * 32 + i % 32));
  q = _mm512_and_si512(_mm512_srli_epi32(q, (unsigned)(j % 2 * 4)), _mm512_set1_epi32(15));
  if (fifth) {
    __m512i high = _mm512_srli_epi32(bytes_of_rows(row, fifth + (size_t)(i % 32)), (unsigned)j);
    q = _mm512_or_si512(q, _mm512_slli_epi32(_mm512_and_si512(high, _mm512_set1_epi32(1)), 4));
  }
  __m512 step = _mm512_mul_ps(h.d, _mm512_cvtepi32_ps(scale));
  __m512 base = _mm512_mul_ps(h.dmin, _mm512_cvtepi32_ps(min));
  return _mm512_sub_ps(_mm512_mul_ps(step, _mm512_cvtepi32_ps(q)), base);
}

static inline __m512 column_q6k(const char *const *row, int i) {
  static_assert(offsetof(block_q6_K, qh) == 128 && offsetof(block_q6_K, scales) == 192, "pieces of 16");
  int half = i / 128, group = i / 32 % 4, l = i % 32;
  uint16_t d[PANEL_ROWS];
  for (int r = 0; r < PANEL_ROWS; r++) memcpy(&d[r], row[r] + offsetof(block_q6_K, d), sizeof d[r]);
  __m512i low = bytes_of_rows(row, (size_t)(half * 64 + group % 2 * 32 + l));
  __m512i high = bytes_of_rows(row, offsetof(block_q6_K, qh) + (size_t)(half * 32 + l));
  __m512i scale = bytes_of_rows(row, offsetof(block_q6_K, scales) + (size_t)(i / 16));
  low = _mm512_and_si512(_mm512_srli_epi32(low, (unsigned)(group / 2 * 4)), _mm512_set1_epi32(15));
  high = _mm512_and_si512(_mm512_srli_epi32(high, (unsigned)(group * 2)), _mm512_set1_epi32(3));
  __m512i q = _mm512_sub_epi32(_mm512_or_si512(low, _mm512_slli_epi32(high, 4)), _mm512_set1_epi32(32));
  scale = _mm512_srai_epi32(_mm512_slli_epi32(scale, 24), 24);
  __m512 step =
      _mm512_mul_ps(_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)d)), _mm512_cvtepi32_ps(scale));
  return _mm512_mul_ps(step, _mm512_cvtepi32_ps(q));
}

static inline __m512 column_of(weight_type type, const char *const *row, int i) {
  switch (type) {
  case TYPE_Q4_K:
    return column_with_mins(row, 0, offsetof(block_q4_K, qs), i);
  case TYPE_Q5_K:
    return column_with_mins(row, offsetof(block_q5_K, qh), offsetof(block_q5_K, qs), i);
  case TYPE_Q6_K:
    return column_q6k(row, i);
    CASES_WITHOUT_Q8K
    break;
  }
  __builtin_trap(); // the arm was refused
}

// As weight_column: rows beyond the matrix repeat the last.
static void weight_column_avx512(float w[ROW_TILE], weight_type type, const char *rows, size_t row_bytes,
                                 int64_t n, int64_t at) {
  rows += (size_t)(at / QK_K) * type_find(type)->bytes;
  for (int64_t first = 0; first < ROW_TILE; first += PANEL_ROWS) {
    const char *row[PANEL_ROWS];
    for (int64_t r = 0; r < PANEL_ROWS; r++)
      row[r] = rows + (size_t)(first + r < n ? first + r : n - 1) * row_bytes;
    _mm512_storeu_ps(w + first, column_of(type, row, (int)(at % QK_K)));
  }
}

void add_outliers_avx512(float *const *out, const matrix *rows, const block_q8_K *const *x,
                         int64_t n_tokens) {
  add_outliers_with(weight_column_avx512, out, rows, x, n_tokens);
}
