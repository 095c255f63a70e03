// avx512_vector: products of K-quant rows with one token's rounded activations, which memory bandwidth
// bounds: blocks are read once, in place, 16 rows side by side.
//
// Owns: the order of the work and what is prefetched. Invariant: a row's block is summed in integers
// across a register, in any order; the sums of 16 rows are then in 16 lanes, whose floats are those of
// docs/paths.md.
#pragma once
#include "kernels/cpu/isa/avx512/avx512_panel.h"
#include "kernels/cpu/isa/each_row/vector_types.h"

// Lane 4 g + i of the result is the sum of all lanes of v[g][i].
static inline __m512i sum_four(const __m512i v[4]) { // to 4 partial sums each, in the four quarters
  __m512i ab = _mm512_add_epi32(_mm512_unpacklo_epi32(v[0], v[1]), _mm512_unpackhi_epi32(v[0], v[1]));
  __m512i cd = _mm512_add_epi32(_mm512_unpacklo_epi32(v[2], v[3]), _mm512_unpackhi_epi32(v[2], v[3]));
  return _mm512_add_epi32(_mm512_unpacklo_epi64(ab, cd), _mm512_unpackhi_epi64(ab, cd));
}

static inline __m512i sum_quarters(const __m512i v[4]) {
  __m512i ab =
      _mm512_add_epi32(_mm512_shuffle_i32x4(v[0], v[1], 0x44), _mm512_shuffle_i32x4(v[0], v[1], 0xee));
  __m512i cd =
      _mm512_add_epi32(_mm512_shuffle_i32x4(v[2], v[3], 0x44), _mm512_shuffle_i32x4(v[2], v[3], 0xee));
  return _mm512_add_epi32(_mm512_shuffle_i32x4(ab, cd, 0x88), _mm512_shuffle_i32x4(ab, cd, 0xdd));
}

typedef struct { // a block of activations in the order in which a type's quants come out of the registers
  __m512i q[4];
} block_in_order;

// ---- Q4_K and Q5_K: 64 bytes of quants are four sub-blocks, two of them in the low and two in the
// high nibbles

static inline block_in_order order_by_nibbles(const block_q8_K *x) {
  block_in_order o;
  for (int h = 0; h < 2; h++) {
    __m512i first = _mm512_loadu_si512(x->qs + 128 * h), second = _mm512_loadu_si512(x->qs + 128 * h + 64);
    o.q[2 * h] = _mm512_shuffle_i64x2(first, second, 0x44);
    o.q[2 * h + 1] = _mm512_shuffle_i64x2(first, second, 0xee);
  }
  return o;
}

// The words of a register as scale j in the lower and scale j + 2 in the upper half; from 8 scale bytes
// everywhere.
static inline __m512i scale_words(__m512i scales, int j) {
  __m256i lower = _mm256_set1_epi16((int16_t)(0x8000 | j)),
          upper = _mm256_set1_epi16((int16_t)(0x8000 | (j + 2)));
  return _mm512_shuffle_epi8(scales, _mm512_inserti64x4(_mm512_castsi256_si512(lower), upper, 1));
}

// The fifth bits of sub-blocks j and j + 2 as 16 in each byte.
static inline __m512i fifth_bits(__m512i high, int j) {
  const __m512i rotate = _mm512_inserti64x4(_mm512_set1_epi32(j - 4), _mm256_set1_epi32(j - 2), 1);
  return _mm512_and_si512(_mm512_rorv_epi32(high, rotate), _mm512_set1_epi8(16));
}

// One row's block: sums of scale times quant times activation, spread over the lanes.
static inline __attribute__((always_inline)) __m512i
sums_with_mins(const char *block, const uint8_t scale[8], const block_in_order *x, const bool five) {
  const __m512i four = _mm512_set1_epi8(15);
  int64_t eight;
  memcpy(&eight, scale, sizeof eight);
  __m512i scales = _mm512_set1_epi64(eight), sum = _mm512_setzero_si512(), high = sum;
  if (five) {
    __m256i bits = _mm256_loadu_si256((const __m256i *)(block + offsetof(block_q5_K, qh)));
    high = _mm512_broadcast_i64x4(bits);
  }
  const char *quants = block + (five ? offsetof(block_q5_K, qs) : offsetof(block_q4_K, qs));
  for (int h = 0; h < 2; h++) {
    __m512i bytes = _mm512_loadu_si512(quants + 64 * h);
    __m512i q0 = _mm512_and_si512(bytes, four), q1 = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), four);
    if (five) {
      q0 = _mm512_or_si512(q0, fifth_bits(high, 4 * h));
      q1 = _mm512_or_si512(q1, fifth_bits(high, 4 * h + 1));
    }
    sum = _mm512_dpwssd_epi32(sum, _mm512_maddubs_epi16(q0, x->q[2 * h]), scale_words(scales, 4 * h));
    sum = _mm512_dpwssd_epi32(sum, _mm512_maddubs_epi16(q1, x->q[2 * h + 1]), scale_words(scales, 4 * h + 1));
  }
  return sum;
}

// 16 rows' block: y += its term.
static inline __attribute__((always_inline)) __m512
term_with_mins(__m512 y, const char *const row[PANEL_ROWS], const block_q8_K *x, const bool five) {
  row_heads heads;
  __m512i words[4], fours[4];
  transpose_words(words, row, 0); // d, dmin and scales come first in both types
  static_assert(offsetof(block_q4_K, d) == 0 && offsetof(block_q5_K, d) == 0, "scales come first");
  heads_of(&heads, words);
  uint8_t scale[2][4][2][8]; // [row / 2 % 2][row / 4][row % 2]
  _mm512_storeu_si512(scale[0], _mm512_unpacklo_epi32(heads.scale[0], heads.scale[1]));
  _mm512_storeu_si512(scale[1], _mm512_unpackhi_epi32(heads.scale[0], heads.scale[1]));
  const block_in_order q = order_by_nibbles(x);
#pragma GCC unroll 4
  for (int g = 0; g < 4; g++) {
    __m512i v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) v[i] = sums_with_mins(row[4 * g + i], scale[i / 2][g][i % 2], &q, five);
    fours[g] = sum_four(v);
  }
  min_sums sums;
  min_sums_of(&sums, x);
  __m512i msum = _mm512_setzero_si512();
  for (int k = 0; k < 4; k++) msum = _mm512_dpwssd_epi32(msum, heads.min[k], word_of(sums.pair[k]));
  __m512 base = _mm512_mul_ps(heads.dmin, _mm512_cvtepi32_ps(msum));
  __m512 term = _mm512_fmsub_ps(heads.d, _mm512_cvtepi32_ps(sum_quarters(fours)), base);
  return _mm512_fmadd_ps(_mm512_set1_ps(x->d), term, y);
}

// ---- Q6_K: a quarter of a register is a sub-block of 16 ----

// One row's block, as above; quants are unsigned and the scales' sums take the offset of 32 off.
static inline __m512i sums_q6k(const block_q6_K *w, const block_q8_K *x) {
  const __m512i low = _mm512_set1_epi8(15), six = _mm512_set1_epi8(63);
  const __m512i rotate0 =
      _mm512_inserti64x4(_mm512_set1_epi32(4), _mm256_set1_epi32(2), 1); // left, to bits 4 and 5:
  const __m512i rotate1 =
      _mm512_inserti64x4(_mm512_set1_epi32(0), _mm256_set1_epi32(30), 1); // groups 0, 1 and 2, 3
  const __m512i quarter =
      _mm512_inserti64x4(_mm512_inserti32x4(_mm512_setzero_si512(), _mm_set1_epi16(1), 1),
                         _mm256_inserti128_si256(_mm256_set1_epi16(2), _mm_set1_epi16(3), 1), 1);
  __m256i scales = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)w->scales));
  __m512i wide = _mm512_castsi256_si512(scales), sum = _mm512_setzero_si512();
  for (int h = 0; h < 2; h++) {
    __m512i bytes = _mm512_loadu_si512(w->ql + 64 * h);
    __m512i high = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(w->qh + 32 * h)));
    // 0xca: where the first operand has ones the second, else the third
    __m512i q0 = _mm512_ternarylogic_epi32(low, bytes, _mm512_rolv_epi32(high, rotate0), 0xca);
    __m512i q1 =
        _mm512_ternarylogic_epi32(low, _mm512_srli_epi16(bytes, 4), _mm512_rolv_epi32(high, rotate1), 0xca);
    q0 = _mm512_maddubs_epi16(_mm512_and_si512(q0, six), _mm512_loadu_si512(x->qs + 128 * h));
    q1 = _mm512_maddubs_epi16(_mm512_and_si512(q1, six), _mm512_loadu_si512(x->qs + 128 * h + 64));
    __m512i s0 =
        _mm512_permutexvar_epi16(_mm512_add_epi16(quarter, _mm512_set1_epi16((int16_t)(8 * h))), wide);
    __m512i s1 =
        _mm512_permutexvar_epi16(_mm512_add_epi16(quarter, _mm512_set1_epi16((int16_t)(8 * h + 4))), wide);
    sum = _mm512_dpwssd_epi32(_mm512_dpwssd_epi32(sum, q0, s0), q1, s1);
  }
  __m256i offset = _mm256_madd_epi16(scales, _mm256_loadu_si256((const __m256i *)x->bsums));
  return _mm512_sub_epi32(sum, _mm512_zextsi256_si512(_mm256_slli_epi32(offset, 5)));
}

static inline __m512 term_q6k(__m512 y, const char *const row[PANEL_ROWS], const block_q8_K *x) {
  __m512i fours[4];
  uint16_t d[PANEL_ROWS];
  for (int r = 0; r < PANEL_ROWS; r++) memcpy(&d[r], row[r] + offsetof(block_q6_K, d), sizeof d[r]);
#pragma GCC unroll 4
  for (int g = 0; g < 4; g++) {
    __m512i v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) v[i] = sums_q6k((const block_q6_K *)row[4 * g + i], x);
    fours[g] = sum_four(v);
  }
  __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)d));
  __m512 term = _mm512_mul_ps(scale, _mm512_cvtepi32_ps(sum_quarters(fours)));
  return _mm512_fmadd_ps(_mm512_set1_ps(x->d), term, y);
}

// ---- IQ4_XS: a quarter of a register is the first or the second half of a sub-block of 32 ----

static inline block_in_order order_by_halves(const block_q8_K *x) {
  block_in_order o;
  for (int h = 0; h < 2; h++) {
    __m512i first = _mm512_loadu_si512(x->qs + 128 * h), second = _mm512_loadu_si512(x->qs + 128 * h + 64);
    o.q[2 * h] = _mm512_shuffle_i64x2(first, second, 0x88);
    o.q[2 * h + 1] = _mm512_shuffle_i64x2(first, second, 0xdd);
  }
  return o;
}

// One row's block, as above, of the values plus 128; scale: of four sub-blocks and of the other four.
static inline __m512i sums_iq4xs(const block_iq4_xs *w, const int32_t *const scale[2],
                                 const block_in_order *x) {
  const __m512i four = _mm512_set1_epi8(15), values = nibble_values(IQ4_VALUES_LOW, IQ4_VALUES_HIGH);
  const __m512i quarter = _mm512_set_epi32(3, 3, 3, 3, 2, 2, 2, 2, 1, 1, 1, 1, 0, 0, 0, 0);
  __m512i sum = _mm512_setzero_si512();
  for (int h = 0; h < 2; h++) {
    __m512i bytes = _mm512_loadu_si512(w->qs + 64 * h);
    __m512i low = _mm512_shuffle_epi8(values, _mm512_and_si512(bytes, four));
    __m512i high = _mm512_shuffle_epi8(values, _mm512_and_si512(_mm512_srli_epi16(bytes, 4), four));
    __m512i part = _mm512_dpbusd_epi32(_mm512_setzero_si512(), low, x->q[2 * h]);
    part = _mm512_dpbusd_epi32(part, high, x->q[2 * h + 1]);
    __m512i scales = _mm512_castsi128_si512(_mm_load_si128((const __m128i *)(const void *)scale[h]));
    sum = _mm512_add_epi32(sum, _mm512_mullo_epi32(part, _mm512_permutexvar_epi32(quarter, scales)));
  }
  return sum;
}

static inline __m512 term_iq4xs(__m512 y, const char *const row[PANEL_ROWS], const block_q8_K *x) {
  int32_t scale[2][PANEL_ROWS][4] __attribute__((aligned(64)));
  __m512i scales[8], fours[4], msum = _mm512_setzero_si512();
  const __m512 d = heads_iq4xs(scales, row);
  const block_in_order q = order_by_halves(x);
  min_sums sums;
  min_sums_of(&sums, x);
  for (int h = 0; h < 2; h++) store_rows(scale[h], scales + 4 * h);
  for (int k = 0; k < 4; k++)
    msum = _mm512_dpwssd_epi32(msum, scale_pair(scales + 2 * k), word_of(sums.pair[k]));
#pragma GCC unroll 4
  for (int g = 0; g < 4; g++) {
    __m512i v[4];
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
      const int32_t *const of[2] = {scale[0][4 * g + i], scale[1][4 * g + i]};
      v[i] = sums_iq4xs((const block_iq4_xs *)row[4 * g + i], of, &q);
    }
    fours[g] = sum_four(v);
  }
  __m512i isum = _mm512_sub_epi32(sum_quarters(fours), _mm512_slli_epi32(msum, 7));
  return _mm512_fmadd_ps(_mm512_set1_ps(x->d), _mm512_mul_ps(d, _mm512_cvtepi32_ps(isum)), y);
}

// 16 rows' block of a type: y += its term.
static inline __attribute__((always_inline)) __m512
term_of(__m512 y, const weight_type type, const char *const row[PANEL_ROWS], const block_q8_K *x) {
  switch (type) {
  case TYPE_Q4_K:
    return term_with_mins(y, row, x, false);
  case TYPE_Q5_K:
    return term_with_mins(y, row, x, true);
  case TYPE_Q6_K:
    return term_q6k(y, row, x);
  case TYPE_IQ4_XS:
    return term_iq4xs(y, row, x);
    CASES_WITHOUT_VECTOR
    __builtin_trap(); // the arm was refused
  }
  return y;
}

// 16 rows at `rows`, of which the last may repeat. ahead: bytes to prefetch meanwhile, as many as the rows
// have.
static inline __attribute__((always_inline)) __m512 vector_rows(const char *const *rows,
                                                                const type_info *type, const block_q8_K *x,
                                                                int64_t blocks, const char *ahead,
                                                                const weight_type kind) {
  const char *row[PANEL_ROWS];
  memcpy(row, rows, sizeof row);
  __m512 y = _mm512_setzero_ps();
  for (int64_t b = 0; b < blocks; b++) {
    for (size_t i = 0; i < PANEL_ROWS * type->bytes; i += 64) _mm_prefetch(ahead + i, _MM_HINT_T0);
    ahead += PANEL_ROWS * type->bytes;
    y = term_of(y, kind, row, x + b);
    for (int r = 0; r < PANEL_ROWS; r++) row[r] += type->bytes;
  }
  return y;
}

// ahead: what is prefetched during the last 16 rows
static void vector_side_by_side(float *out, const matrix *m, const block_q8_K *x, const char *ahead) {
  const type_info *type = type_find(m->type);
  int64_t blocks = m->cols / QK_K;
  size_t row_bytes = type_row_bytes(type, (size_t)m->cols);
  for (int64_t first = 0; first < m->rows; first += PANEL_ROWS) {
    const char *row[PANEL_ROWS], *data = (const char *)m->data;
    int64_t n = m->rows - first < PANEL_ROWS ? m->rows - first : PANEL_ROWS;
    for (int64_t r = 0; r < PANEL_ROWS; r++)
      row[r] = data + (size_t)(first + (r < n ? r : n - 1)) * row_bytes;
    // 16 rows ahead and no further: the L1 cache would evict what was prefetched
    bool last = first + PANEL_ROWS >= m->rows;
    const char *fetch = last ? ahead : data + (size_t)(first + PANEL_ROWS) * row_bytes;
    __m512 y = _mm512_setzero_ps();
    switch (m->type) { // each with its type known to the compiler
    case TYPE_Q4_K:
      y = vector_rows(row, type, x, blocks, fetch, TYPE_Q4_K);
      break;
    case TYPE_Q5_K:
      y = vector_rows(row, type, x, blocks, fetch, TYPE_Q5_K);
      break;
    case TYPE_Q6_K:
      y = vector_rows(row, type, x, blocks, fetch, TYPE_Q6_K);
      break;
    case TYPE_IQ4_XS:
      y = vector_rows(row, type, x, blocks, fetch, TYPE_IQ4_XS);
      break;
      CASES_WITHOUT_VECTOR
      __builtin_trap(); // the arm was refused
    }
    _mm512_mask_storeu_ps(out + first, (__mmask16)((1u << n) - 1), y);
  }
}
