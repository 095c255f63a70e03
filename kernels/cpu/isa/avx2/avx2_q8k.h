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

// What is taken off a block's sum: sums of minimums, an offset that unsigned quants have, a power of two; or
// nothing, of signed quants.
typedef enum { WITH_MINS, WITH_OFFSET, SIGNED } quant_kind;

typedef struct {
  quant_kind kind;
  int sub;         // groups of 4 quants to a sub-block
  int run;         // groups to a sum of 16 bits
  int offset_bits; // WITH_OFFSET
} panel_form;

#define FORM_Q4K   ((panel_form){WITH_MINS, 8, 8, 0})
#define FORM_Q5K   ((panel_form){WITH_MINS, 8, 4, 0})
#define FORM_Q6K   ((panel_form){WITH_OFFSET, 4, 2, 5})
#define FORM_Q2K   ((panel_form){WITH_MINS, 4, 4, 0})
#define FORM_Q3K   ((panel_form){WITH_OFFSET, 4, 4, 2})
#define FORM_IQ4XS ((panel_form){SIGNED, 8, 1, 0})

static inline __attribute__((always_inline)) __m256 term_of(const panel *p, __m256i isum, const block_q8_K *x,
                                                            const panel_form form) {
  __m256 d = _mm256_load_ps(p->d);
  int16_t sums[8];
  __m256i taken;
  if (form.kind == SIGNED) return _mm256_mul_ps(d, _mm256_cvtepi32_ps(isum));
  min_sums_of(sums, x);
  taken = form.sub == 8 ? weighted(p, sums, 4) : weighted(p, x->bsums, 8);
  if (form.kind == WITH_OFFSET) {
    taken = _mm256_slli_epi32(taken, form.offset_bits);
    return _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_sub_epi32(isum, taken)));
  }
  __m256 base = _mm256_mul_ps(_mm256_load_ps(p->dmin), _mm256_cvtepi32_ps(taken));
  return _mm256_fmsub_ps(d, _mm256_cvtepi32_ps(isum), base);
}

// Pairs of products of bytes, of unsigned quants or of signed ones, whose sign goes to the activations.
static inline __m256i pairs_of(__m256i q, __m256i x, const quant_kind kind) {
  return kind == SIGNED ? _mm256_maddubs_epi16(_mm256_abs_epi8(q), _mm256_sign_epi8(x, q))
                        : _mm256_maddubs_epi16(q, x);
}

// y[t] += the term of a block, for n tokens.
static inline __attribute__((always_inline)) void panel_times(float (*y)[PANEL_ROWS], const panel *p,
                                                              const block_q8_K *const *x, int64_t b,
                                                              const int n, const panel_form form) {
  __m256i isum[PANEL_TOKENS];
  for (int t = 0; t < n; t++) isum[t] = _mm256_setzero_si256();
  for (int g = 0; g < QK_K / 4; g += form.run) {
    __m256i part[PANEL_TOKENS], scale = _mm256_load_si256((const __m256i *)p->scale[g / form.sub]);
    for (int t = 0; t < n; t++) part[t] = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int i = g; i < g + form.run; i++) {
      __m256i q = _mm256_load_si256((const __m256i *)p->q[i]);
#pragma GCC unroll 4
      for (int t = 0; t < n; t++)
        part[t] = _mm256_add_epi16(part[t], pairs_of(q, word_of(x[t][b].qs + 4 * i), form.kind));
    }
#pragma GCC unroll 4
    for (int t = 0; t < n; t++) isum[t] = _mm256_add_epi32(isum[t], _mm256_madd_epi16(part[t], scale));
  }
#pragma GCC unroll 4
  for (int t = 0; t < n; t++) {
    __m256 term = term_of(p, isum[t], &x[t][b], form);
    _mm256_store_ps(y[t], _mm256_fmadd_ps(_mm256_set1_ps(x[t][b].d), term, _mm256_load_ps(y[t])));
  }
}

// All tokens, four and then what is left.
static inline __attribute__((always_inline)) void panel_times_all(float (*y)[PANEL_ROWS], const panel *p,
                                                                  const block_q8_K *const *x, int64_t b,
                                                                  int64_t n, const panel_form form) {
  int64_t t = 0;
  for (; t + PANEL_TOKENS <= n; t += PANEL_TOKENS) panel_times(y + t, p, x + t, b, PANEL_TOKENS, form);
  if (n - t == 3) panel_times(y + t, p, x + t, b, 3, form);
  if (n - t == 2) panel_times(y + t, p, x + t, b, 2, form);
  if (n - t == 1) panel_times(y + t, p, x + t, b, 1, form);
}

static void block_times(float (*y)[PANEL_ROWS], weight_type type, const char *const row[PANEL_ROWS],
                        const block_q8_K *const *x, int64_t b, int64_t n) {
  static_assert(8 * 2 * 15 * 127 <= INT16_MAX && 4 * 2 * 31 * 127 <= INT16_MAX &&
                    2 * 2 * 63 * 127 <= INT16_MAX && 4 * 2 * 7 * 127 <= INT16_MAX &&
                    2 * 127 * 127 <= INT16_MAX,
                "the sums of 16 bits hold their runs of groups: 8, 4, 2, 4, 1");
  panel p;
  switch (type) {
  case TYPE_Q4_K:
    panel_q4k(&p, row);
    panel_times_all(y, &p, x, b, n, FORM_Q4K);
    return;
  case TYPE_Q5_K:
    panel_q5k(&p, row);
    panel_times_all(y, &p, x, b, n, FORM_Q5K);
    return;
  case TYPE_Q6_K:
    panel_q6k(&p, row);
    panel_times_all(y, &p, x, b, n, FORM_Q6K);
    return;
  case TYPE_Q2_K:
    panel_q2k(&p, row);
    panel_times_all(y, &p, x, b, n, FORM_Q2K);
    return;
  case TYPE_Q3_K:
    panel_q3k(&p, row);
    panel_times_all(y, &p, x, b, n, FORM_Q3K);
    return;
  case TYPE_IQ4_XS:
    panel_iq4xs(&p, row);
    panel_times_all(y, &p, x, b, n, FORM_IQ4XS);
    return;
    CASES_OF_32
  case TYPE_F32:
  case TYPE_F16:
  case TYPE_BF16:
    break;
  }
  __builtin_trap(); // it has other kernels
}

// A block of each of the rows that follow, which lie one after the other.
static inline void prefetch_rows(const char **ahead, size_t block_bytes) {
  const size_t bytes = PANEL_ROWS * block_bytes;
  for (size_t i = 0; i < bytes; i += 64) _mm_prefetch(*ahead + i, _MM_HINT_T0);
  *ahead += bytes;
}

static void product_rows(float *const *out, int64_t first, int64_t n_rows, const matrix *m,
                         const block_q8_K *const *x, int64_t n) {
  float y[TOKEN_TILE][PANEL_ROWS] __attribute__((aligned(32)));
  const type_info *type = type_find(m->type);
  size_t row_bytes = type_row_bytes(type, (size_t)m->cols);
  const char *row[PANEL_ROWS]; // those beyond the matrix repeat the last
  for (int64_t r = 0; r < PANEL_ROWS; r++)
    row[r] = (const char *)m->data + (size_t)(first + (r < n_rows ? r : n_rows - 1)) * row_bytes;
  const char *ahead = (const char *)m->data + (size_t)(first + n_rows) * row_bytes;
  memset(y, 0, (size_t)n * sizeof *y);
  for (int64_t b = 0; b < m->cols / QK_K; b++) {
    prefetch_rows(&ahead, type->bytes);
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
