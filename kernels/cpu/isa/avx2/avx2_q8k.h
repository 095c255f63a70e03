// avx2_q8k: products of K-quant rows with rounded activations, 8 rows a panel and up to 4 tokens at a time.
//
// Owns: the order of the work. Invariant: a lane is one row; its floats are added in the order of
// docs/paths.md, its integers in any. Sums of 16 bits hold as many pairs of products as cannot overflow them.
#pragma once
#include "kernels/cpu/isa/avx2/avx2_panel.h"

enum { PANEL_TOKENS = 4 }; // 4 sums and 4 parts of 16 registers

static inline __m256i word_of(const void *bytes) {
  int32_t w;
  memcpy(&w, bytes, sizeof w);
  return _mm256_set1_epi32(w);
}

// Sums of the sub-blocks of 32.
static inline void min_sums_of(int16_t sums[8], const block_q8_K *x) {
  __m256i pairs = _mm256_madd_epi16(_mm256_loadu_si256((const __m256i *)x->bsums), _mm256_set1_epi16(1));
  _mm_storeu_si128((__m128i *)sums,
                   _mm_packs_epi32(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1)));
}

// The sum over pairs of sub-blocks of weight times activations' sum.
static inline __attribute__((always_inline)) __m256i weighted(const panel *p, const int16_t *sums,
                                                              const int pairs) {
  __m256i total = _mm256_setzero_si256();
  for (int k = 0; k < pairs; k++)
    total = _mm256_add_epi32(
        total, _mm256_madd_epi16(_mm256_load_si256((const __m256i *)p->weight[k]), word_of(sums + 2 * k)));
  return total;
}

static inline __m256 term_with_mins(const panel *p, __m256i isum, const block_q8_K *x) {
  int16_t sums[8];
  min_sums_of(sums, x);
  __m256 base = _mm256_mul_ps(_mm256_load_ps(p->dmin), _mm256_cvtepi32_ps(weighted(p, sums, 4)));
  return _mm256_fmsub_ps(_mm256_load_ps(p->d), _mm256_cvtepi32_ps(isum), base);
}

static inline __m256 term_q6k(const panel *p, __m256i isum, const block_q8_K *x) {
  __m256i offset = _mm256_slli_epi32(weighted(p, x->bsums, 8), 5); // the quants' is 32
  return _mm256_mul_ps(_mm256_load_ps(p->d), _mm256_cvtepi32_ps(_mm256_sub_epi32(isum, offset)));
}

// y[t] += the term of a block, for n tokens. sub: groups of 4 to a sub-block; run: to a sum of 16 bits.
static inline __attribute__((always_inline)) void panel_times(float (*y)[PANEL_ROWS], const panel *p,
                                                              const block_q8_K *const *x, int64_t b,
                                                              const int n, const int sub, const int run) {
  __m256i isum[PANEL_TOKENS];
  for (int t = 0; t < n; t++) isum[t] = _mm256_setzero_si256();
  for (int g = 0; g < QK_K / 4; g += run) {
    __m256i part[PANEL_TOKENS], scale = _mm256_load_si256((const __m256i *)p->scale[g / sub]);
    for (int t = 0; t < n; t++) part[t] = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int i = g; i < g + run; i++) {
      __m256i q = _mm256_load_si256((const __m256i *)p->q[i]);
#pragma GCC unroll 4
      for (int t = 0; t < n; t++)
        part[t] = _mm256_add_epi16(part[t], _mm256_maddubs_epi16(q, word_of(x[t][b].qs + 4 * i)));
    }
#pragma GCC unroll 4
    for (int t = 0; t < n; t++) isum[t] = _mm256_add_epi32(isum[t], _mm256_madd_epi16(part[t], scale));
  }
#pragma GCC unroll 4
  for (int t = 0; t < n; t++) {
    __m256 term = sub == 8 ? term_with_mins(p, isum[t], &x[t][b]) : term_q6k(p, isum[t], &x[t][b]);
    _mm256_store_ps(y[t], _mm256_fmadd_ps(_mm256_set1_ps(x[t][b].d), term, _mm256_load_ps(y[t])));
  }
}

// All tokens, four and then what is left.
static inline __attribute__((always_inline)) void panel_times_all(float (*y)[PANEL_ROWS], const panel *p,
                                                                  const block_q8_K *const *x, int64_t b,
                                                                  int64_t n, const int sub, const int run) {
  int64_t t = 0;
  for (; t + PANEL_TOKENS <= n; t += PANEL_TOKENS) panel_times(y + t, p, x + t, b, PANEL_TOKENS, sub, run);
  if (n - t == 3) panel_times(y + t, p, x + t, b, 3, sub, run);
  if (n - t == 2) panel_times(y + t, p, x + t, b, 2, sub, run);
  if (n - t == 1) panel_times(y + t, p, x + t, b, 1, sub, run);
}

static void block_times(float (*y)[PANEL_ROWS], weight_type type, const char *const row[PANEL_ROWS],
                        const block_q8_K *const *x, int64_t b, int64_t n) {
  enum { WITH_MINS = 8, Q6K = 4 }; // groups of 4 to a sub-block
  static_assert(8 * 2 * 15 * 127 <= INT16_MAX && 4 * 2 * 31 * 127 <= INT16_MAX &&
                    2 * 2 * 63 * 127 <= INT16_MAX,
                "the sums of 16 bits hold their runs of groups: 8, 4, 2");
  panel p;
  switch (type) {
  case TYPE_Q4_K:
    panel_q4k(&p, row);
    panel_times_all(y, &p, x, b, n, WITH_MINS, 8);
    return;
  case TYPE_Q5_K:
    panel_q5k(&p, row);
    panel_times_all(y, &p, x, b, n, WITH_MINS, 4);
    return;
  case TYPE_Q6_K:
    panel_q6k(&p, row);
    panel_times_all(y, &p, x, b, n, Q6K, 2);
    return;
    CASES_WITHOUT_Q8K
    break;
  }
  __builtin_trap(); // the arm was refused
}

static void product_rows(float *const *out, int64_t first, int64_t n_rows, const matrix *m,
                         const block_q8_K *const *x, int64_t n) {
  float y[TOKEN_TILE][PANEL_ROWS] __attribute__((aligned(32)));
  const type_info *type = type_find(m->type);
  size_t row_bytes = type_row_bytes(type, (size_t)m->cols);
  const char *row[PANEL_ROWS]; // those beyond the matrix repeat the last
  for (int64_t r = 0; r < PANEL_ROWS; r++)
    row[r] = (const char *)m->data + (size_t)(first + (r < n_rows ? r : n_rows - 1)) * row_bytes;
  memset(y, 0, (size_t)n * sizeof *y);
  for (int64_t b = 0; b < m->cols / QK_K; b++) {
    block_times(y, m->type, row, x, b, n);
    for (int64_t r = 0; r < PANEL_ROWS; r++) row[r] += type->bytes;
  }
  for (int64_t t = 0; t < n; t++) memcpy(out[t] + first, y[t], (size_t)n_rows * sizeof(float));
}

static void product_q8k_avx2(float *const *out, const matrix *m, const block_q8_K *const *x,
                             int64_t n_tokens) {
  for (int64_t t = 0; t < n_tokens; t += TOKEN_TILE) {
    int64_t n = n_tokens - t < TOKEN_TILE ? n_tokens - t : TOKEN_TILE;
    for (int64_t r = 0; r < m->rows; r += PANEL_ROWS)
      product_rows(out + t, r, m->rows - r < PANEL_ROWS ? m->rows - r : PANEL_ROWS, m, x + t, n);
  }
}
