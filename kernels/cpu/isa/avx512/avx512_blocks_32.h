// avx512_blocks_32: products of rows in blocks of 32 with activations rounded to Q8_0 or Q8_1, 32 rows and up
// to 6 tokens at a time.
//
// Owns: how each type's quants are unpacked, a row to a lane, and the order of the work. Invariant: a lane is
// one row, whose floats are added in the order of docs/paths.md; a panel holds the integers of the blocks.
#pragma once
#include "kernels/cpu/isa/avx512/avx512_panel.h"
#include "kernels/cpu/isa/each_row/generic.h"

enum { TOKENS_32 = 6, AHEAD_32 = 1024 }; // bytes of a row that are prefetched beyond the block

typedef struct {                       // of 16 rows
  uint8_t q[QK_32 / 4][PANEL_ROWS][4]; // quants plus the type's offset, so that they are unsigned
  float d[PANEL_ROWS], m[PANEL_ROWS];
} __attribute__((aligned(64))) panel_32;

static inline void store_32(panel_32 *p, int group, __m512i q) {
  _mm512_store_si512(p->q[group], q);
}

// 4 bytes at `offset` of each row.
static inline __m512i words_of_rows(const char *const *row, size_t offset) {
  int32_t word[PANEL_ROWS];
  for (int r = 0; r < PANEL_ROWS; r++) memcpy(&word[r], row[r] + offset, sizeof word[r]);
  return _mm512_loadu_si512(word);
}

// Both nibbles of 16 bytes at `offset`; fifth: their fifth bits as 16 in each byte, or NULL.
static inline void panel_nibbles(panel_32 *p, const char *const *row, size_t offset, const __m512i *fifth) {
  const __m512i four = _mm512_set1_epi8(15);
  __m512i word[4];
  transpose_words(word, row, offset);
  for (int k = 0; k < 4; k++) {
    __m512i low = _mm512_and_si512(word[k], four),
            high = _mm512_and_si512(_mm512_srli_epi16(word[k], 4), four);
    store_32(p, k, fifth ? _mm512_or_si512(low, fifth[k]) : low);
    store_32(p, 4 + k, fifth ? _mm512_or_si512(high, fifth[4 + k]) : high);
  }
}

static inline void panel_values(panel_32 *p, const char *const *row, size_t offset, __m512i values) {
  panel_nibbles(p, row, offset, NULL);
  for (int k = 0; k < QK_32 / 4; k++) store_32(p, k, _mm512_shuffle_epi8(values, _mm512_load_si512(p->q[k])));
}

// Bits 4 k .. 4 k + 3 of 32, each as 16 in a byte of its own.
static inline void fifths_of(__m512i out[8], const char *const *row, size_t offset) {
  const __m512i four = _mm512_set1_epi32(15), spread = _mm512_set1_epi32(0x00204081),
                ones = _mm512_set1_epi8(1);
  __m512i bits = words_of_rows(row, offset);
  for (int k = 0; k < 8; k++) {
    __m512i nibbles = _mm512_and_si512(_mm512_srli_epi32(bits, (unsigned)(4 * k)), four);
    out[k] = _mm512_slli_epi16(_mm512_and_si512(_mm512_mullo_epi32(nibbles, spread), ones), 4);
  }
}

static inline void panel_q8_0(panel_32 *p, const char *const *row) {
  const __m512i sign = _mm512_set1_epi8(-128);
  for (int half = 0; half < 2; half++) {
    __m512i word[4];
    transpose_words(word, row, offsetof(block_q8_0, qs) + (size_t)(16 * half));
    for (int k = 0; k < 4; k++) store_32(p, 4 * half + k, _mm512_xor_si512(word[k], sign));
  }
}

// Of a type without its own panel: row by row.
static inline void panel_of_quants(panel_32 *p, weight_type type, const char *const *row) {
  quants_32 w;
  for (int r = 0; r < PANEL_ROWS; r++) {
    quants_of_block(&w, type, row[r]);
    for (int i = 0; i < QK_32; i++) p->q[i / 4][r][i % 4] = (uint8_t)(w.q[i] + 128);
    p->d[r] = w.f.d;
    p->m[r] = w.f.second;
  }
}

// Returns the offset of the quants.
static inline int panel_32_of(panel_32 *p, weight_type type, const char *const row[PANEL_ROWS]) {
  __m512i fifth[8], words;
  static_assert(offsetof(block_q4_1, m) == 2 && offsetof(block_q5_1, m) == 2, "d and m are a word");
  if (type == TYPE_MXFP4) {
    for (int r = 0; r < PANEL_ROWS; r++) p->d[r] = factors_mxfp4((const block_mxfp4 *)row[r]).d;
    panel_values(p, row, offsetof(block_mxfp4, qs), nibble_values(FP4_VALUES_LOW, FP4_VALUES_HIGH));
    return 128;
  }
  words = words_of_rows(row, 0);
  _mm512_store_ps(p->d, halves_of_words(words));
  _mm512_store_ps(p->m, halves_of_words(_mm512_srli_epi32(words, 16))); // where the type has one
  switch ((int)type) {
  case TYPE_Q8_0:
    panel_q8_0(p, row);
    return 128;
  case TYPE_IQ4_NL:
    panel_values(p, row, offsetof(block_iq4_nl, qs), nibble_values(IQ4_VALUES_LOW, IQ4_VALUES_HIGH));
    return 128;
  case TYPE_Q4_0:
    panel_nibbles(p, row, offsetof(block_q4_0, qs), NULL);
    return 8;
  case TYPE_Q4_1:
    panel_nibbles(p, row, offsetof(block_q4_1, qs), NULL);
    return 0;
  case TYPE_Q5_0:
    fifths_of(fifth, row, offsetof(block_q5_0, qh));
    panel_nibbles(p, row, offsetof(block_q5_0, qs), fifth);
    return 16;
  case TYPE_Q5_1:
    fifths_of(fifth, row, offsetof(block_q5_1, qh));
    panel_nibbles(p, row, offsetof(block_q5_1, qs), fifth);
    return 0;
  }
  panel_of_quants(p, type, row);
  return 128;
}

// sum[t][lane] of one block and n tokens.
static inline __attribute__((always_inline)) void panel_32_times(float (*sum)[ROW_TILE], const panel_32 *p,
                                                                 const block_q8_32 *const *x, int64_t b,
                                                                 const int offset, const bool with_m,
                                                                 const int n) {
  __m512i isum[2][TOKENS_32];
#pragma GCC unroll 6
  for (int t = 0; t < n; t++) isum[0][t] = isum[1][t] = _mm512_set1_epi32(-offset * x[t][b].sum);
#pragma GCC unroll 8
  for (int i = 0; i < QK_32 / 4; i++) {
    __m512i first = _mm512_load_si512(p[0].q[i]), second = _mm512_load_si512(p[1].q[i]);
#pragma GCC unroll 6
    for (int t = 0; t < n; t++) {
      __m512i four = word_of(x[t][b].qs + 4 * i);
      isum[0][t] = _mm512_dpbusd_epi32(isum[0][t], first, four);
      isum[1][t] = _mm512_dpbusd_epi32(isum[1][t], second, four);
    }
  }
#pragma GCC unroll 6
  for (int t = 0; t < n; t++) {
    __m512 dx = _mm512_set1_ps(x[t][b].d), s = _mm512_set1_ps(x[t][b].s);
    for (int half = 0; half < 2; half++) {
      float *at = sum[t] + half * PANEL_ROWS;
      __m512 y = _mm512_load_ps(at);
      if (with_m) y = _mm512_fmadd_ps(_mm512_load_ps(p[half].m), s, y);
      __m512 d = _mm512_mul_ps(_mm512_load_ps(p[half].d), dx);
      _mm512_store_ps(at, _mm512_fmadd_ps(d, _mm512_cvtepi32_ps(isum[half][t]), y));
    }
  }
}

static void block_32_times(float (*sum)[ROW_TILE], const panel_32 *p, const block_q8_32 *const *x, int64_t b,
                           int offset, bool with_m, int64_t n) {
  int64_t t = 0;
  for (; t + TOKENS_32 <= n; t += TOKENS_32) panel_32_times(sum + t, p, x + t, b, offset, with_m, TOKENS_32);
  for (; t + 2 <= n; t += 2) panel_32_times(sum + t, p, x + t, b, offset, with_m, 2);
  if (t < n) panel_32_times(sum + t, p, x + t, b, offset, with_m, 1);
}

static void product_32_rows(float *const *out, int64_t first, int64_t n_rows, const matrix *m,
                            const block_q8_32 *const *x, int64_t n) {
  float sum[TOKEN_TILE][ROW_TILE] __attribute__((aligned(64)));
  panel_32 p[2];
  const type_info *type = type_find(m->type);
  size_t row_bytes = type_row_bytes(type, (size_t)m->cols);
  const char *row[ROW_TILE]; // those beyond the matrix repeat the last
  bool with_m = type_has_m(m->type);
  for (int64_t r = 0; r < ROW_TILE; r++)
    row[r] = (const char *)m->data + (size_t)(first + (r < n_rows ? r : n_rows - 1)) * row_bytes;
  memset(sum, 0, (size_t)n * sizeof *sum);
  for (int64_t b = 0; b < m->cols / QK_32; b++) {
    for (int64_t r = b % 2 * PANEL_ROWS; r < b % 2 * PANEL_ROWS + PANEL_ROWS; r++)
      _mm_prefetch(row[r] + AHEAD_32, _MM_HINT_T0); // a line of each row every other block
    int offset = panel_32_of(&p[0], m->type, row);
    panel_32_of(&p[1], m->type, row + PANEL_ROWS);
    block_32_times(sum, p, x, b, offset, with_m, n);
    for (int64_t r = 0; r < ROW_TILE; r++) row[r] += type->bytes;
  }
  for (int64_t t = 0; t < n; t++) memcpy(out[t] + first, sum[t], (size_t)n_rows * sizeof(float));
}

void product_q8_0_avx512(float *const *out, const matrix *m, const block_q8_K *const *x, int64_t n_tokens) {
  const block_q8_32 *blocks[TOKEN_TILE];
  static_assert((int)ROW_TILE == 2 * (int)PANEL_ROWS, "a tile of rows is a pair of panels");
  for (int64_t t = 0; t < n_tokens; t += TOKEN_TILE) {
    int64_t n = n_tokens - t < TOKEN_TILE ? n_tokens - t : TOKEN_TILE;
    for (int64_t i = 0; i < n; i++) blocks[i] = blocks_32_of(x[t + i], m->cols);
    for (int64_t r = 0; r < m->rows; r += ROW_TILE)
      product_32_rows(out + t, r, m->rows - r < ROW_TILE ? m->rows - r : ROW_TILE, m, blocks, n);
  }
}
