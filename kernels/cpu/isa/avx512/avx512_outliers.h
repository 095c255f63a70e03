// avx512_outliers: the sum of outliers' terms of q8k_split, with columns of weights taken from 16 rows at a
// time.
//
// Owns: how a column is gathered. Invariant: a lane is one row, and its weight has the float operations of
// dequantize.h in their order.
#pragma once
#include "kernels/cpu/isa/avx512/avx512_panel.h"
#include "kernels/cpu/isa/avx512/avx512_row.h"
#include "kernels/cpu/isa/each_row/generic.h"

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
