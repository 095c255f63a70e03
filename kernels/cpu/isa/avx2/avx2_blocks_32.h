// avx2_blocks_32: products of rows in blocks of 32 with activations rounded to Q8_0 or Q8_1, 8 rows and up to
// 4 tokens at a time; the sibling of avx512_blocks_32.h.
//
// Owns: how quants are unpacked, a row to a lane, and the order of the work. Invariant: a lane is one row,
// whose floats are added in the order of docs/paths.md; a panel holds the integers of the blocks.
#pragma once
#include "kernels/cpu/isa/avx2/avx2_q8k.h"
#include "kernels/cpu/isa/each_row/generic.h"

typedef struct { // of 8 rows: signed quants
  int8_t q[QK_32 / 4][PANEL_ROWS][4];
  float d[PANEL_ROWS], m[PANEL_ROWS];
} __attribute__((aligned(32))) panel_32;

static inline void panel_q8_0(panel_32 *p, const char *const *row) {
  for (int half = 0; half < 2; half++) {
    __m256i word[4];
    transpose_words(word, row, offsetof(block_q8_0, qs) + (size_t)(16 * half));
    for (int k = 0; k < 4; k++) store_words(p->q[4 * half + k], word[k]);
  }
}

static inline void panel_nibbles(panel_32 *p, const char *const *row, size_t offset, __m256i values) {
  const __m256i four = _mm256_set1_epi8(15);
  __m256i word[4];
  transpose_words(word, row, offset);
  for (int k = 0; k < 4; k++) {
    store_words(p->q[k], _mm256_shuffle_epi8(values, _mm256_and_si256(word[k], four)));
    store_words(p->q[4 + k],
                _mm256_shuffle_epi8(values, _mm256_and_si256(_mm256_srli_epi16(word[k], 4), four)));
  }
}

// Of a type without a panel of its own: row by row.
static inline void panel_of_quants(panel_32 *p, weight_type type, const char *const *row) {
  quants_32 w;
  for (int r = 0; r < PANEL_ROWS; r++) {
    quants_of_block(&w, type, row[r]);
    for (int i = 0; i < QK_32; i++) p->q[i / 4][r][i % 4] = w.q[i];
    p->d[r] = w.f.d;
    p->m[r] = w.f.second;
  }
}

static inline void panel_32_of(panel_32 *p, weight_type type, const char *const row[PANEL_ROWS]) {
  const __m256i less_8 = dup2(_mm_setr_epi8(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7));
  if (type == TYPE_Q8_0)
    panel_q8_0(p, row);
  else if (type == TYPE_IQ4_NL)
    panel_nibbles(p, row, offsetof(block_iq4_nl, qs), nibble_values(IQ4_VALUES_LOW, IQ4_VALUES_HIGH));
  else if (type == TYPE_Q4_0)
    panel_nibbles(p, row, offsetof(block_q4_0, qs), less_8);
  else
    panel_of_quants(p, type, row);
  if (type == TYPE_Q8_0 || type == TYPE_IQ4_NL || type == TYPE_Q4_0)
    _mm256_store_ps(p->d, floats_of_halves(words_of_rows(row, 0)));
}

// y[t] += the term of a block, for n tokens.
static inline __attribute__((always_inline)) void panel_32_times(float (*y)[PANEL_ROWS], const panel_32 *p,
                                                                 const block_q8_32 *const *x, int64_t b,
                                                                 const bool with_m, const int n) {
  const __m256i ones = _mm256_set1_epi16(1);
  __m256i isum[PANEL_TOKENS];
  for (int t = 0; t < n; t++) isum[t] = _mm256_setzero_si256();
#pragma GCC unroll 8
  for (int i = 0; i < QK_32 / 4; i++) {
    __m256i q = _mm256_load_si256((const __m256i *)p->q[i]);
#pragma GCC unroll 4
    for (int t = 0; t < n; t++) // 128 * 127 twice fits 16 bits
      isum[t] = _mm256_add_epi32(isum[t],
                                 _mm256_madd_epi16(pairs_of(q, word_of(x[t][b].qs + 4 * i), SIGNED), ones));
  }
#pragma GCC unroll 4
  for (int t = 0; t < n; t++) {
    __m256 sum = _mm256_load_ps(y[t]), dx = _mm256_set1_ps(x[t][b].d);
    if (with_m) sum = _mm256_fmadd_ps(_mm256_load_ps(p->m), _mm256_set1_ps(x[t][b].s), sum);
    __m256 d = _mm256_mul_ps(_mm256_load_ps(p->d), dx);
    _mm256_store_ps(y[t], _mm256_fmadd_ps(d, _mm256_cvtepi32_ps(isum[t]), sum));
  }
}

static void product_32_rows(float *const *out, int64_t first, int64_t n_rows, const matrix *m,
                            const block_q8_32 *const *x, int64_t n) {
  float y[TOKEN_TILE][PANEL_ROWS] __attribute__((aligned(32)));
  const type_info *type = type_find(m->type);
  size_t row_bytes = type_row_bytes(type, (size_t)m->cols);
  const char *row[PANEL_ROWS]; // those beyond the matrix repeat the last
  bool with_m = type_has_m(m->type);
  panel_32 p;
  for (int64_t r = 0; r < PANEL_ROWS; r++)
    row[r] = (const char *)m->data + (size_t)(first + (r < n_rows ? r : n_rows - 1)) * row_bytes;
  const char *ahead = (const char *)m->data + (size_t)(first + n_rows) * row_bytes;
  memset(y, 0, (size_t)n * sizeof *y);
  for (int64_t b = 0; b < m->cols / QK_32; b++) {
    int64_t t = 0;
    prefetch_rows(&ahead, type->bytes);
    panel_32_of(&p, m->type, row);
    for (; t + PANEL_TOKENS <= n; t += PANEL_TOKENS)
      panel_32_times(y + t, &p, x + t, b, with_m, PANEL_TOKENS);
    for (; t < n; t++) panel_32_times(y + t, &p, x + t, b, with_m, 1);
    for (int64_t r = 0; r < PANEL_ROWS; r++) row[r] += type->bytes;
  }
  for (int64_t t = 0; t < n; t++) memcpy(out[t] + first, y[t], (size_t)n_rows * sizeof(float));
}

static void product_q8_0_avx2(float *const *out, const matrix *m, const block_q8_K *const *x,
                              int64_t n_tokens) {
  const block_q8_32 *blocks[TOKEN_TILE];
  for (int64_t t = 0; t < n_tokens; t += TOKEN_TILE) {
    int64_t n = n_tokens - t < TOKEN_TILE ? n_tokens - t : TOKEN_TILE;
    for (int64_t i = 0; i < n; i++) blocks[i] = blocks_32_of(x[t + i], m->cols);
    for (int64_t r = 0; r < m->rows; r += PANEL_ROWS)
      product_32_rows(out + t, r, m->rows - r < PANEL_ROWS ? m->rows - r : PANEL_ROWS, m, blocks, n);
  }
}
