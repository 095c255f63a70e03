// avx512_vector_32: products of rows in blocks of 32 with one token's activations rounded to Q8_0 or Q8_1,
// which memory bandwidth bounds: blocks are read once, in place, four neighbours of each of four rows side by
// side.
//
// Owns: the order of the work and what is prefetched. Invariant: a block is summed in integers across a
// register, in any order; a row's floats are added in the order of docs/paths.md.
#pragma once
#include "kernels/cpu/isa/avx512/avx512_quants_32.h"
#include "kernels/cpu/isa/avx512/avx512_stream.h"
#include "kernels/cpu/isa/each_row/generic.h"

enum {
  SIDE = 4,             // rows, and blocks of each: a quarter of a register is a block of the rows
  FETCH_BYTES_32 = 8192 // so far ahead is prefetched; L1 holds as much again
};

// Element i of the result's quarter k is *(at + k * stride).
static inline __m512i quarters_of(const void *at, size_t stride) {
  const char *p = (const char *)at;
  int32_t w[SIDE];
#pragma GCC unroll 4
  for (int k = 0; k < SIDE; k++) memcpy(&w[k], p + (size_t)k * stride, sizeof w[k]);
  __m512i all = _mm512_set1_epi32(w[0]);
  all = _mm512_mask_set1_epi32(all, 0x00f0, w[1]);
  all = _mm512_mask_set1_epi32(all, 0x0f00, w[2]);
  return _mm512_mask_set1_epi32(all, 0xf000, w[3]);
}

typedef struct { // four rows
  const char *row[SIDE];
  __m512i words; // offsets of the four rows' next four blocks from the first row's, a quarter a block
  __m128 y;
} rows_32;

// y += the terms of four blocks of four rows.
static inline __attribute__((always_inline)) void terms_of_four(rows_32 *r, const block_q8_32 *x,
                                                                const weight_type type, const bool with_m,
                                                                const size_t bytes) {
  const __m512i zero = _mm512_setzero_si512();
  __m512i half[2], words = _mm512_i32gather_epi32(r->words, r->row[0], 1);
#pragma GCC unroll 2
  for (int h = 0; h < 2; h++) { // blocks 2 h and 2 h + 1
    __m512i v[SIDE], q = two_of_32((const char *)x[2 * h].qs, (const char *)x[2 * h + 1].qs);
#pragma GCC unroll 4
    for (int i = 0; i < SIDE; i++) {
      const char *block = r->row[i] + (size_t)(2 * h) * bytes;
      v[i] = _mm512_dpbusd_epi32(zero, quants_of_two(type, block, block + bytes), q);
    }
    half[h] = sum_four(v);
  }
  __m512i isum = _mm512_add_epi32(_mm512_shuffle_i32x4(half[0], half[1], 0x88),
                                  _mm512_shuffle_i32x4(half[0], half[1], 0xdd));
  if (quants_offset(type))
    isum = _mm512_sub_epi32(
        isum, _mm512_mullo_epi32(quarters_of(&x->sum, sizeof *x), _mm512_set1_epi32(quants_offset(type))));
  __m512 terms = _mm512_cvtepi32_ps(isum),
         d = _mm512_mul_ps(scales_of_words(type, words), _mm512_castsi512_ps(quarters_of(&x->d, sizeof *x)));
  __m512 m = _mm512_setzero_ps(), s = m;
  if (with_m) {
    m = halves_of_words(_mm512_srli_epi32(words, 16));
    s = _mm512_castsi512_ps(quarters_of(&x->s, sizeof *x));
  }
#define QUARTER(k)                                                                                           \
  do {                                                                                                       \
    if (with_m) r->y = _mm_fmadd_ps(_mm512_extractf32x4_ps(m, k), _mm512_extractf32x4_ps(s, k), r->y);       \
    r->y = _mm_fmadd_ps(_mm512_extractf32x4_ps(d, k), _mm512_extractf32x4_ps(terms, k), r->y);               \
  } while (0)
  QUARTER(0);
  QUARTER(1);
  QUARTER(2);
  QUARTER(3);
#undef QUARTER
}

// The blocks after the last four, of which a model's rows have none.
static void terms_of_rest(float y[SIDE], const rows_32 *r, const block_q8_32 *x, weight_type type,
                          size_t bytes, int64_t blocks) {
  quants_32 w;
  for (int64_t b = 0; b < blocks; b++)
    for (int i = 0; i < SIDE; i++) {
      quants_of_block(&w, type, r->row[i] + (size_t)b * bytes);
      y[i] = term_32(y[i], &w, x + b, type_has_m(type));
    }
}

// Four rows from `row` on, of which the last may repeat. ahead: bytes to prefetch meanwhile, as many as they
// have.
static inline __attribute__((always_inline)) __m128 vector_rows_32(rows_32 *r, const block_q8_32 *x,
                                                                   int64_t blocks, const char *ahead,
                                                                   const weight_type type, const bool with_m,
                                                                   const size_t bytes) {
  r->y = _mm_setzero_ps();
  int64_t b = 0;
  for (; b + SIDE <= blocks; b += SIDE) {
    for (size_t i = 0; i < SIDE * SIDE * bytes; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T0);
    ahead += SIDE * SIDE * bytes;
    terms_of_four(r, x + b, type, with_m, bytes);
    for (int i = 0; i < SIDE; i++) r->row[i] += SIDE * bytes;
  }
  if (b < blocks) {
    float y[SIDE];
    _mm_storeu_ps(y, r->y);
    terms_of_rest(y, r, x + b, type, bytes, blocks - b);
    r->y = _mm_loadu_ps(y);
  }
  return r->y;
}

static inline __attribute__((always_inline)) void vector_of_32(float *out, const matrix *m,
                                                               const block_q8_32 *x, const char *ahead,
                                                               const weight_type type, const bool with_m,
                                                               const size_t bytes) {
  const char *data = (const char *)m->data;
  const int64_t blocks = m->cols / QK_32;
  const size_t row_bytes = (size_t)blocks * bytes, all = (size_t)m->rows * row_bytes;
  for (int64_t first = 0; first < m->rows; first += SIDE) {
    int64_t n = m->rows - first < SIDE ? m->rows - first : SIDE;
    int32_t words[SIDE][SIDE];
    rows_32 r;
    for (int i = 0; i < SIDE; i++) {
      size_t offset = (size_t)(i < n ? i : n - 1) * row_bytes;
      r.row[i] = data + (size_t)first * row_bytes + offset;
      for (int b = 0; b < SIDE; b++) words[b][i] = (int32_t)(offset + (size_t)b * bytes);
    }
    r.words = _mm512_loadu_si512(words);
    size_t far = (size_t)first * row_bytes + FETCH_BYTES_32;
    const char *fetch = far < all ? data + far : ahead + (far - all);
    _mm_mask_storeu_ps(out + first, (__mmask8)((1u << n) - 1),
                       vector_rows_32(&r, x, blocks, fetch, type, with_m, bytes));
  }
}

// vector_rounded of types in blocks of 32.
static void vector_32_avx512(float *out, const matrix *m, const block_q8_K *row, const char *ahead) {
  const block_q8_32 *x = blocks_32_of(row, m->cols);
#define CASE(name, b)                                                                                        \
  case TYPE_##name:                                                                                          \
    vector_of_32(out, m, x, ahead, TYPE_##name, type_has_m(TYPE_##name), sizeof(block_##b));                 \
    break;
  switch ((int)m->type) { TYPES_WITH_QUANTS_32(CASE) } // each with its type known to the compiler
#undef CASE
}

static bool vector_takes_avx512(weight_type type) {
  return has_quants_32(type) || takes_vector_q8k(type);
}

static void vector_rounded_avx512(float *out, const matrix *m, const block_q8_K *x, const void *ahead) {
  if (has_quants_32(m->type))
    vector_32_avx512(out, m, x, (const char *)(ahead ? ahead : m->data));
  else
    vector_q8k_avx512(out, m, x, ahead);
}
