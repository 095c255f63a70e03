// avx2_vector: products of K-quant rows with one token's rounded activations, which memory bandwidth bounds:
// blocks are read once, in place, 8 rows one after the other; the sibling of avx512_vector.h.
//
// Owns: the order of the work. Invariant: a row's block is summed in integers across a register, in any
// order; the sums of 8 rows are then in 8 lanes, whose floats are those of docs/paths.md.
#pragma once
#include "kernels/cpu/isa/avx2/avx2_q8k.h"
#include "kernels/cpu/isa/each_row/vector_types.h"

// Lane i of the result is the sum of all lanes of v[i].
static inline __m256i sum_rows(const __m256i v[PANEL_ROWS]) {
  __m256i four[2];
  for (int h = 0; h < 2; h++)
    four[h] = _mm256_hadd_epi32(_mm256_hadd_epi32(v[4 * h], v[4 * h + 1]),
                                _mm256_hadd_epi32(v[4 * h + 2], v[4 * h + 3]));
  return _mm256_add_epi32(_mm256_permute2x128_si256(four[0], four[1], 0x20),
                          _mm256_permute2x128_si256(four[0], four[1], 0x31));
}

// sum + scale times quants times activations; scale: as words of 16 bits.
static inline __m256i plus_scaled(__m256i sum, __m256i q, const int8_t *x, __m256i scale,
                                  const quant_kind kind) {
  __m256i pairs = pairs_of(q, _mm256_loadu_si256((const __m256i *)x), kind);
  return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, scale));
}

// ---- one row's block: sums of scale times quant times activation, spread over the lanes. p: the heads of
// the rows' blocks; r: which row ----

// Q4_K and Q5_K: 32 bytes of quants are two sub-blocks, one in the low and one in the high nibbles.
static inline __attribute__((always_inline)) __m256i sums_with_mins(const char *block, const panel *p, int r,
                                                                    const int8_t *x, const bool five) {
  const __m256i four = _mm256_set1_epi8(15), fifth = _mm256_set1_epi8(16);
  const char *quants = block + (five ? offsetof(block_q5_K, qs) : offsetof(block_q4_K, qs));
  __m256i sum = _mm256_setzero_si256(), high = sum;
  if (five) high = _mm256_loadu_si256((const __m256i *)(block + offsetof(block_q5_K, qh)));
#pragma GCC unroll 4
  for (int j = 0; j < 8; j += 2) {
    __m256i bytes = _mm256_loadu_si256((const __m256i *)(quants + 16 * j));
    __m256i q0 = _mm256_and_si256(bytes, four), q1 = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), four);
    if (five) {
      q0 = _mm256_or_si256(q0, _mm256_and_si256(shifted(high, 4 - j), fifth));
      q1 = _mm256_or_si256(q1, _mm256_and_si256(shifted(high, 3 - j), fifth));
    }
    sum = plus_scaled(sum, q0, x + 32 * j, word_of(p->scale[j][r]), WITH_MINS);
    sum = plus_scaled(sum, q1, x + 32 * j + 32, word_of(p->scale[j + 1][r]), WITH_MINS);
  }
  return sum;
}

// 16 words: word 2 k in the lower half and word 2 k + 1 in the upper, of 8 words that both halves hold.
static inline __m256i two_scales(__m256i words, int k) {
  __m128i lower = _mm_set1_epi16((int16_t)(0x0100 + 0x0404 * k));
  return _mm256_shuffle_epi8(words, _mm256_set_m128i(_mm_add_epi16(lower, _mm_set1_epi16(0x0202)), lower));
}

// Q6_K: half a register is a sub-block of 16. Quants are unsigned; the sums of activations take their offset
// of 32 off.
static inline __m256i sums_q6k(const block_q6_K *w, const block_q8_K *x) {
  const __m256i four = _mm256_set1_epi8(15), two = _mm256_set1_epi8(48);
  __m256i scales = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)w->scales));
  __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 2
  for (int h = 0; h < 2; h++) {
    __m256i a = _mm256_loadu_si256((const __m256i *)(w->ql + 64 * h)),
            b = _mm256_loadu_si256((const __m256i *)(w->ql + 64 * h + 32)),
            high = _mm256_loadu_si256((const __m256i *)(w->qh + 32 * h));
    __m256i q[4] = {_mm256_and_si256(a, four), _mm256_and_si256(b, four),
                    _mm256_and_si256(_mm256_srli_epi16(a, 4), four),
                    _mm256_and_si256(_mm256_srli_epi16(b, 4), four)};
    __m256i of_half = h ? _mm256_permute4x64_epi64(scales, 0xee) : _mm256_permute4x64_epi64(scales, 0x44);
#pragma GCC unroll 4
    for (int k = 0; k < 4; k++) {
      q[k] = _mm256_or_si256(q[k], _mm256_and_si256(shifted(high, 4 - 2 * k), two));
      sum = plus_scaled(sum, q[k], x->qs + 128 * h + 32 * k, two_scales(of_half, k), WITH_OFFSET);
    }
  }
  __m256i offset = _mm256_madd_epi16(scales, _mm256_loadu_si256((const __m256i *)x->bsums));
  return _mm256_sub_epi32(sum, _mm256_slli_epi32(offset, 5));
}

// IQ4_XS: 16 bytes of quants are a sub-block, its first half in the low nibbles.
static inline __m256i sums_iq4xs(const block_iq4_xs *w, const panel *p, int r, const int8_t *x) {
  const __m256i four = _mm256_set1_epi8(15), values = nibble_values(IQ4_VALUES_LOW, IQ4_VALUES_HIGH);
  __m256i sum = _mm256_setzero_si256();
#pragma GCC unroll 8
  for (int j = 0; j < 8; j++) {
    __m256i bytes = dup2(_mm_loadu_si128((const __m128i *)(w->qs + 16 * j)));
    __m256i nibbles = _mm256_blend_epi32(bytes, _mm256_srli_epi16(bytes, 4), 0xf0);
    __m256i q = _mm256_shuffle_epi8(values, _mm256_and_si256(nibbles, four));
    sum = plus_scaled(sum, q, x + 32 * j, word_of(p->scale[j][r]), SIGNED);
  }
  return sum;
}

// ---- 8 rows' block: its terms ----

static inline __attribute__((always_inline)) __m256 terms_with_mins(const char *const row[PANEL_ROWS],
                                                                    const block_q8_K *x, const bool five) {
  panel p;
  __m256i v[PANEL_ROWS];
  panel_heads(&p, row);
#pragma GCC unroll 8
  for (int r = 0; r < PANEL_ROWS; r++) v[r] = sums_with_mins(row[r], &p, r, x->qs, five);
  return term_of(&p, sum_rows(v), x, FORM_Q4K);
}

static inline __m256 terms_q6k(const char *const row[PANEL_ROWS], const block_q8_K *x) {
  uint16_t d[PANEL_ROWS];
  __m256i v[PANEL_ROWS];
  for (int r = 0; r < PANEL_ROWS; r++) {
    memcpy(&d[r], row[r] + offsetof(block_q6_K, d), sizeof d[r]);
    v[r] = sums_q6k((const block_q6_K *)row[r], x);
  }
  return _mm256_mul_ps(_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)d)), _mm256_cvtepi32_ps(sum_rows(v)));
}

static inline __m256 terms_iq4xs(const char *const row[PANEL_ROWS], const block_q8_K *x) {
  panel p;
  __m256i v[PANEL_ROWS];
  panel_heads_iq4xs(&p, row);
  for (int r = 0; r < PANEL_ROWS; r++) v[r] = sums_iq4xs((const block_iq4_xs *)row[r], &p, r, x->qs);
  return term_of(&p, sum_rows(v), x, FORM_IQ4XS);
}

// ---- rows ----

static inline __attribute__((always_inline)) __m256
terms_of(const weight_type type, const char *const row[PANEL_ROWS], const block_q8_K *x) {
  switch (type) {
  case TYPE_Q4_K:
    return terms_with_mins(row, x, false);
  case TYPE_Q5_K:
    return terms_with_mins(row, x, true);
  case TYPE_Q6_K:
    return terms_q6k(row, x);
  case TYPE_IQ4_XS:
    return terms_iq4xs(row, x);
    CASES_WITHOUT_VECTOR
    __builtin_trap(); // takes_vector_q8k
  }
  return _mm256_setzero_ps();
}

// ahead: what is prefetched during the last 8 rows.
static inline __attribute__((always_inline)) void
vector_of_type(float *out, const matrix *m, const block_q8_K *x, const char *ahead, const weight_type type) {
  const size_t bytes = type_find(type)->bytes, row_bytes = (size_t)(m->cols / QK_K) * bytes;
  const char *data = (const char *)m->data;
  for (int64_t first = 0; first < m->rows; first += PANEL_ROWS) {
    int64_t n = m->rows - first < PANEL_ROWS ? m->rows - first : PANEL_ROWS;
    const char *row[PANEL_ROWS]; // those beyond the matrix repeat the last
    for (int64_t r = 0; r < PANEL_ROWS; r++)
      row[r] = data + (size_t)(first + (r < n ? r : n - 1)) * row_bytes;
    const char *fetch = first + n < m->rows ? data + (size_t)(first + n) * row_bytes : ahead;
    float y[PANEL_ROWS];
    __m256 sum = _mm256_setzero_ps();
    for (int64_t b = 0; b < m->cols / QK_K; b++) {
      prefetch_rows(&fetch, bytes);
      sum = _mm256_fmadd_ps(_mm256_set1_ps(x[b].d), terms_of(type, row, x + b), sum);
      for (int64_t r = 0; r < PANEL_ROWS; r++) row[r] += bytes;
    }
    _mm256_storeu_ps(y, sum);
    memcpy(out + first, y, (size_t)n * sizeof *out);
  }
}

static void vector_rounded_avx2(float *out, const matrix *m, const block_q8_K *x, const void *ahead) {
  const char *next = (const char *)(ahead ? ahead : m->data);
  switch (m->type) { // each with its type known to the compiler
  case TYPE_Q4_K:
    vector_of_type(out, m, x, next, TYPE_Q4_K);
    return;
  case TYPE_Q5_K:
    vector_of_type(out, m, x, next, TYPE_Q5_K);
    return;
  case TYPE_Q6_K:
    vector_of_type(out, m, x, next, TYPE_Q6_K);
    return;
  case TYPE_IQ4_XS:
    vector_of_type(out, m, x, next, TYPE_IQ4_XS);
    return;
    CASES_WITHOUT_VECTOR
    break;
  }
  __builtin_trap(); // takes_vector_q8k
}
