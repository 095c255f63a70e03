// avx512_q8k: products of K-quant rows with rounded activations, 32 rows a panel pair and up to 6 tokens at a
// time.
//
// Owns: the order of the work. Invariant: a lane is one row; its floats are added in the order of
// docs/paths.md, its integers in any.
#pragma once
#include "kernels/cpu/isa/avx512/avx512_row.h"
#include "kernels/cpu/isa/avx512/avx512_stream.h"

enum {
  PAIR_ROWS = 2 * PANEL_ROWS,
  PANEL_TOKENS = 6, // 2 x 6 sums and 2 x 6 sub-block sums, with the weights, fill the 32 registers
};
static_assert((int)PAIR_ROWS == (int)ROW_TILE, "a tile of rows is a pair of panels");

// What is taken off a block's sum: d * isum - dmin * msum of sums of minimums, or of an offset that the
// quants have, a power of two.
typedef struct {
  int n_sub;       // sub-blocks
  bool with_mins;  //
  int offset_bits; // without
} panel_form;

#define FORM_Q4K   ((panel_form){8, true, 0}) // and Q5_K
#define FORM_Q6K   ((panel_form){16, false, 5})
#define FORM_Q2K   ((panel_form){16, true, 0})
#define FORM_Q3K   ((panel_form){16, false, 2})
#define FORM_IQ4XS ((panel_form){8, false, 7})

// The sum over pairs of sub-blocks of weight times activations' sum.
static inline __attribute__((always_inline)) __m512i weighted(const panel *p, const block_q8_K *x,
                                                              const min_sums *mins, const int n_sub) {
  __m512i sum = _mm512_setzero_si512();
  for (int k = 0; k < n_sub / 2; k++)
    sum = _mm512_dpwssd_epi32(sum, _mm512_load_si512(p->weight[k]),
                              n_sub == 8 ? word_of(mins->pair[k]) : word_of(x->bsums + 2 * k));
  return sum;
}

// sum[t][lane] of one block and n tokens.
static inline __attribute__((always_inline)) void panel_times(float (*sum)[PAIR_ROWS], const panel *p,
                                                              const block_q8_K *const *x, int64_t b,
                                                              const min_sums *mins, const int n,
                                                              const panel_form form) {
  __m512i isum[2][PANEL_TOKENS];
  const int8_t *q[PANEL_TOKENS];
  for (int t = 0; t < n; t++) {
    isum[0][t] = isum[1][t] = _mm512_setzero_si512();
    q[t] = x[t][b].qs;
  }
  const int groups = QK_K / 4 / form.n_sub;
  for (int j = 0; j < form.n_sub; j++) {
    __m512i part[2][PANEL_TOKENS];
    for (int t = 0; t < n; t++) part[0][t] = part[1][t] = _mm512_setzero_si512();
#pragma GCC unroll 8
    for (int i = 0; i < groups; i++) {
      __m512i first = _mm512_load_si512(p[0].q[j * groups + i]),
              second = _mm512_load_si512(p[1].q[j * groups + i]);
#pragma GCC unroll 6
      for (int t = 0; t < n; t++) {
        __m512i four = word_of(q[t] + 4 * (j * groups + i));
        part[0][t] = _mm512_dpbusd_epi32(part[0][t], first, four);
        part[1][t] = _mm512_dpbusd_epi32(part[1][t], second, four);
      }
    }
    for (int half = 0; half < 2; half++) {
      __m512i scale = _mm512_load_si512(p[half].scale[j]);
#pragma GCC unroll 6
      for (int t = 0; t < n; t++)
        isum[half][t] = _mm512_add_epi32(isum[half][t], _mm512_mullo_epi32(part[half][t], scale));
    }
  }
#pragma GCC unroll 6
  for (int t = 0; t < n; t++) {
    __m512 dx = _mm512_set1_ps(x[t][b].d);
    for (int half = 0; half < 2; half++) {
      __m512i msum = weighted(&p[half], &x[t][b], &mins[t], form.n_sub);
      __m512 term, d = _mm512_load_ps(p[half].d);
      if (form.with_mins) {
        __m512 base = _mm512_mul_ps(_mm512_load_ps(p[half].dmin), _mm512_cvtepi32_ps(msum));
        term = _mm512_fmsub_ps(d, _mm512_cvtepi32_ps(isum[half][t]), base);
      } else {
        __m512i offset = _mm512_slli_epi32(msum, (unsigned)form.offset_bits);
        term = _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_sub_epi32(isum[half][t], offset)));
      }
      float *at = sum[t] + half * PANEL_ROWS;
      _mm512_store_ps(at, _mm512_fmadd_ps(dx, term, _mm512_load_ps(at)));
    }
  }
}

typedef void panel_times_n(float (*sum)[PAIR_ROWS], const panel *p, const block_q8_K *const *x, int64_t b,
                           const min_sums *mins);

#define PANEL_TIMES(name, n, form)                                                                           \
  static __attribute__((noinline)) void panel_times_##name##_##n(                                            \
      float(*sum)[PAIR_ROWS], const panel *p, const block_q8_K *const *x, int64_t b, const min_sums *mins) { \
    panel_times(sum, p, x, b, mins, n, form);                                                                \
  }
#define PANEL_TIMES_ALL(name, form)                                                                          \
  PANEL_TIMES(name, 1, form)                                                                                 \
  PANEL_TIMES(name, 2, form)                                                                                 \
  PANEL_TIMES(name, 3, form)                                                                                 \
  PANEL_TIMES(name, 4, form)                                                                                 \
  PANEL_TIMES(name, 5, form)                                                                                 \
  PANEL_TIMES(name, 6, form)                                                                                 \
  static panel_times_n *const times_##name[PANEL_TOKENS + 1] = {NULL,                                        \
                                                                panel_times_##name##_1,                      \
                                                                panel_times_##name##_2,                      \
                                                                panel_times_##name##_3,                      \
                                                                panel_times_##name##_4,                      \
                                                                panel_times_##name##_5,                      \
                                                                panel_times_##name##_6};
PANEL_TIMES_ALL(q4k, FORM_Q4K)
PANEL_TIMES_ALL(q6k, FORM_Q6K)
PANEL_TIMES_ALL(q2k, FORM_Q2K)
PANEL_TIMES_ALL(q3k, FORM_Q3K)
PANEL_TIMES_ALL(iq4xs, FORM_IQ4XS)
#undef PANEL_TIMES_ALL
#undef PANEL_TIMES

static panel_times_n *const *times_of(weight_type type) {
  switch (type) {
  case TYPE_Q4_K:
  case TYPE_Q5_K:
    return times_q4k;
  case TYPE_Q6_K:
    return times_q6k;
  case TYPE_Q2_K:
    return times_q2k;
  case TYPE_Q3_K:
    return times_q3k;
  case TYPE_IQ4_XS:
    return times_iq4xs;
    CASES_OF_32
  case TYPE_F32:
  case TYPE_F16:
  case TYPE_BF16:
    break;
  }
  __builtin_trap(); // it has other kernels
}

// One block of up to 32 rows, for all tokens of a group; tiles of tokens are as even as they can be.
static void block_times(float (*sum)[PAIR_ROWS], const panel *p, panel_times_n *const *times,
                        const block_q8_K *const *x, int64_t b, int64_t n) {
  min_sums mins[PANEL_TOKENS];
  int64_t tiles = (n + PANEL_TOKENS - 1) / PANEL_TOKENS, t = 0;
  for (int64_t tile = 0; tile < tiles; tile++) {
    int64_t count = (n - t + tiles - tile - 1) / (tiles - tile);
    for (int64_t i = 0; i < count; i++) min_sums_of(&mins[i], &x[t + i][b]);
    times[count](sum + t, p, x + t, b, mins);
    t += count;
  }
}

static void product_rows(float *const *out, int64_t first, int64_t n_rows, const matrix *m,
                         const block_q8_K *const *x, int64_t n) {
  float sum[TOKEN_TILE][PAIR_ROWS] __attribute__((aligned(64)));
  panel p[2];
  const type_info *type = type_find(m->type);
  panel_times_n *const *times = times_of(m->type);
  size_t row_bytes = type_row_bytes(type, (size_t)m->cols);
  const char *row[PAIR_ROWS];
  for (int64_t r = 0; r < PAIR_ROWS; r++)
    row[r] = (const char *)m->data + (size_t)(first + (r < n_rows ? r : n_rows - 1)) * row_bytes;
  memset(sum, 0, (size_t)n * sizeof *sum);
  const char *ahead = (const char *)m->data + (size_t)(first + PAIR_ROWS) * row_bytes;
  for (int64_t b = 0; b < m->cols / QK_K; b++) {
    for (size_t i = 0; i < PAIR_ROWS * type->bytes; i += 64, ahead += 64) _mm_prefetch(ahead, _MM_HINT_T1);
    panel_of(&p[0], m->type, row);
    panel_of(&p[1], m->type, row + PANEL_ROWS);
    block_times(sum, p, times, x, b, n);
    for (int64_t r = 0; r < PAIR_ROWS; r++) row[r] += type->bytes;
  }
  for (int64_t t = 0; t < n; t++) memcpy(out[t] + first, sum[t], (size_t)n_rows * sizeof(float));
}

void product_q8k_avx512(float *const *out, const matrix *m, const block_q8_K *const *x, int64_t n_tokens) {
  for (int64_t t = 0; t < n_tokens; t += TOKEN_TILE) {
    int64_t n = n_tokens - t < TOKEN_TILE ? n_tokens - t : TOKEN_TILE;
    for (int64_t r = 0; r < m->rows; r += PAIR_ROWS)
      product_rows(out + t, r, m->rows - r < PAIR_ROWS ? m->rows - r : PAIR_ROWS, m, x + t, n);
  }
}
