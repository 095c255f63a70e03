// amx_weights: a block of 16 rows of a matrix as operands of tiles. The rows are the left operand, whose
// bytes lie as in the file, 64 neighbours of a row side by side: nothing is transposed but the heads of
// blocks.
//
// Owns: how each block type is unpacked into row_operand. A scale times a quant takes more than a byte, so it
// is two bytes, low + 2^shift * high, and a block of 256 is two plain int8 products with no scaling inside:
// exact, in any order. Independent of: activations, floats' order.
#pragma once
#include "kernels/cpu/isa/avx512/avx512_panel.h"

enum {
  TILE_ROWS = 16,
  TILE_COLS = 64,           // of a block, a step
  STEPS = QK_K / TILE_COLS, // products of tiles to a block
  ROWS_A_PART = 4,          // that are unpacked at a time
  SHIFT_UNSIGNED = 3,       // types with minimums: three bits of the scale times a quant, at most 217
  SHIFT_SIGNED = 8,         // others: scale * (quant - offset), at most 4,096 in magnitude, as 16 bits
};

typedef struct {
  int8_t byte[TILE_ROWS][TILE_COLS];
} __attribute__((aligned(64))) tile_bytes;

typedef struct {                      // a block of 16 rows
  tile_bytes low[STEPS], high[STEPS]; // low unsigned; high as well, or signed where there are no minimums
} row_operand;

typedef struct {
  float d[TILE_ROWS], dmin[TILE_ROWS];
  int16_t min[TILE_ROWS][4][2]; // of pairs of sub-blocks
} __attribute__((aligned(64))) row_factors;

// A byte for each sub-block: 16 scales, or of the eight of a type with minimums their low three bits and then
// the rest.
typedef struct {
  int8_t of[TILE_ROWS][16];
} __attribute__((aligned(64))) row_scales;

// Labels for a switch over the types: those that no tiles multiply. Q2_K has 16 minimums a block.
#define CASES_WITHOUT_TILES                                                                                  \
  CASES_OF_32                                                                                                \
  case TYPE_Q2_K:                                                                                            \
  case TYPE_F32:                                                                                             \
  case TYPE_F16:                                                                                             \
  case TYPE_BF16:

// ---- quants of 64 neighbours, unsigned ----

// The same 32 bytes twice, bits from `first` on in the lower half, from `second` on in the upper half, in the
// low bits of each byte.
static inline __m512i halves_shifted(const uint8_t *bytes, int first, int second) {
  __m512i x = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)bytes));
  const __m512i by =
      _mm512_inserti64x4(_mm512_set1_epi16((int16_t)first), _mm256_set1_epi16((int16_t)second), 1);
  return _mm512_srlv_epi16(x, by);
}

static inline __m512i nibbles(const uint8_t *bytes) {
  return _mm512_and_si512(halves_shifted(bytes, 0, 4), _mm512_set1_epi8(15));
}

// quants and `bit` where a bit of the 32 bytes is set: `first` in the lower half, `second` in the upper one.
static inline __m512i with_bit(__m512i quants, const uint8_t *bytes, int first, int second, int bit) {
  __m512i bits = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)bytes));
  const __m512i wanted =
      _mm512_inserti64x4(_mm512_set1_epi8((char)(1 << first)), _mm256_set1_epi8((char)(1 << second)), 1);
  return _mm512_mask_add_epi8(quants, _mm512_test_epi8_mask(bits, wanted), quants,
                              _mm512_set1_epi8((char)bit));
}

static inline __m512i quants_q5k(const block_q5_K *w, int step) {
  return with_bit(nibbles(w->qs + 32 * step), w->qh, 2 * step, 2 * step + 1, 16);
}

static inline __m512i quants_q3k(const block_q3_K *w, int step) {
  int half = step / 2, group = step % 2 * 2;
  __m512i two = halves_shifted(w->qs + 32 * half, 2 * group, 2 * group + 2);
  two = _mm512_and_si512(two, _mm512_set1_epi8(3));
  return with_bit(two, w->hmask, 2 * step, 2 * step + 1, 4);
}

// The values plus 128.
static inline __m512i quants_iq4xs(const block_iq4_xs *w, int step) {
  __m512i x = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(w->qs + 32 * step)));
  const __m512i by =
      _mm512_set_epi64(0x4000400040004, 0x4000400040004, 0, 0, 0x4000400040004, 0x4000400040004, 0, 0);
  x = _mm512_srlv_epi16(_mm512_shuffle_i64x2(x, x, 0x50), by); // a sub-block's 16 bytes twice
  return _mm512_shuffle_epi8(nibble_values(IQ4_VALUES_LOW, IQ4_VALUES_HIGH),
                             _mm512_and_si512(x, _mm512_set1_epi8(15)));
}

static inline __m512i quants_q6k(const block_q6_K *w, int step) {
  int half = step / 2, odd = step % 2;
  __m512i low = _mm512_loadu_si512(w->ql + 64 * half);
  if (odd) low = _mm512_srli_epi16(low, 4);
  __m512i bits = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(w->qh + 32 * half)));
  // rotations that move the two bits of either half to bits 4 and 5
  const __m512i by = _mm512_inserti64x4(_mm512_set1_epi32(4 * odd - 4), _mm256_set1_epi32(4 * odd - 2), 1);
  bits = _mm512_and_si512(_mm512_rorv_epi32(bits, by), _mm512_set1_epi8(48));
  return _mm512_or_si512(_mm512_and_si512(low, _mm512_set1_epi8(15)), bits);
}

static inline __attribute__((always_inline)) __m512i quants_of(const weight_type type, const char *block,
                                                               int step) {
  switch (type) {
  case TYPE_Q4_K:
    return nibbles(((const block_q4_K *)(const void *)block)->qs + 32 * step);
  case TYPE_Q5_K:
    return quants_q5k((const block_q5_K *)(const void *)block, step);
  case TYPE_Q6_K:
    return quants_q6k((const block_q6_K *)(const void *)block, step);
  case TYPE_Q3_K:
    return quants_q3k((const block_q3_K *)(const void *)block, step);
  case TYPE_IQ4_XS:
    return quants_iq4xs((const block_iq4_xs *)(const void *)block, step);
    CASES_WITHOUT_TILES
    break;
  }
  __builtin_trap(); // units_of (amx_q8k.h) says which types come here
}

// What is taken off a quant of a type without minimums, as a power of two.
static inline __attribute__((always_inline)) int offset_bits(const weight_type type) {
  switch (type) {
  case TYPE_Q6_K:
    return 5;
  case TYPE_Q3_K:
    return 2;
  case TYPE_IQ4_XS:
    return 7;
  case TYPE_Q4_K:
  case TYPE_Q5_K:
    CASES_WITHOUT_TILES
    break;
  }
  __builtin_trap();
}

// ---- 64 neighbours of some rows ----

// A shuffle that gives each 16 bits of a lane one of 16 bytes, as their low byte or with `high` as their high
// one.
static inline __attribute__((always_inline)) __m512i byte_index(const int8_t of_lane[4], bool high) {
  __m512i x = _mm512_setzero_si512();
  for (int lane = 0; lane < 4; lane++) {
    __m128i wide = _mm_set1_epi16((int16_t)(high ? of_lane[lane] << 8 | 0x80 : of_lane[lane] | 0x80 << 8));
    x = lane == 0   ? _mm512_inserti32x4(x, wide, 0)
        : lane == 1 ? _mm512_inserti32x4(x, wide, 1)
        : lane == 2 ? _mm512_inserti32x4(x, wide, 2)
                    : _mm512_inserti32x4(x, wide, 3);
  }
  return x;
}

static inline __m512i scales_of(const row_scales *s, int r) {
  return _mm512_broadcast_i32x4(_mm_load_si128((const __m128i *)(const void *)s->of[r]));
}

// Three bits of a scale times a byte are a byte, so one product of 16 bits is two of 8.
static inline __attribute__((always_inline)) void rows_unsigned(row_operand *o, const row_scales *s,
                                                                const weight_type type,
                                                                const char *const row[TILE_ROWS], int step,
                                                                int first) {
  const int8_t a = (int8_t)(2 * step), b = (int8_t)(2 * step + 1), c = (int8_t)(a + 8), d = (int8_t)(b + 8);
  const __m512i low = byte_index((const int8_t[4]){a, a, b, b}, false),
                high = byte_index((const int8_t[4]){c, c, d, d}, false);
#pragma GCC unroll 4
  for (int r = first; r < first + ROWS_A_PART; r++) {
    __m512i q = quants_of(type, row[r], step), scale = scales_of(s, r);
    _mm512_store_si512(o->low[step].byte[r], _mm512_mullo_epi16(q, _mm512_shuffle_epi8(scale, low)));
    _mm512_store_si512(o->high[step].byte[r], _mm512_mullo_epi16(q, _mm512_shuffle_epi8(scale, high)));
  }
}

static inline __attribute__((always_inline)) void rows_signed(row_operand *o, const row_scales *s,
                                                              const weight_type type,
                                                              const char *const row[TILE_ROWS], int step,
                                                              int first) {
  const int8_t a = (int8_t)(4 * step);
  const int8_t lanes[4] = {a, (int8_t)(a + 1), (int8_t)(a + 2), (int8_t)(a + 3)};
  const __m512i even_index = byte_index(lanes, false), odd_index = byte_index(lanes, true),
                even_bytes = _mm512_set1_epi16(0x00ff);
#pragma GCC unroll 4
  for (int r = first; r < first + ROWS_A_PART; r++) {
    __m512i q = quants_of(type, row[r], step), scale = scales_of(s, r);
    __m512i of_even = _mm512_shuffle_epi8(scale, even_index), of_odd = _mm512_shuffle_epi8(scale, odd_index);
    __m512i offset = _mm512_srai_epi16(of_odd, (unsigned)(8 - offset_bits(type)));
    __m512i even = _mm512_sub_epi16(_mm512_maddubs_epi16(q, of_even), offset);
    __m512i odd = _mm512_sub_epi16(_mm512_maddubs_epi16(q, of_odd), offset);
    // 0xca: where the first operand has ones the second, else the third
    _mm512_store_si512(o->low[step].byte[r],
                       _mm512_ternarylogic_epi32(even_bytes, even, _mm512_slli_epi16(odd, 8), 0xca));
    _mm512_store_si512(o->high[step].byte[r],
                       _mm512_ternarylogic_epi32(even_bytes, _mm512_srli_epi16(even, 8), odd, 0xca));
  }
}

// Rows first .. first + ROWS_A_PART - 1 of step `step`.
static inline __attribute__((always_inline)) void unpack_rows(row_operand *o, const row_scales *s,
                                                              const weight_type type,
                                                              const char *const row[TILE_ROWS], int step,
                                                              int first) {
  if (block_has_minimums(type))
    rows_unsigned(o, s, type, row, step, first);
  else
    rows_signed(o, s, type, row, step, first);
}

// ---- heads of blocks ----

// Q4_K and Q5_K.
static inline void rows_heads_with_mins(row_factors *f, row_scales *s, const char *const row[TILE_ROWS]) {
  const __m512i three = _mm512_set1_epi8((1 << SHIFT_UNSIGNED) - 1);
  __m512i word[4];
  row_heads h;
  static_assert(offsetof(block_q5_K, scales) == offsetof(block_q4_K, scales), "the same head");
  transpose_words(word, row, offsetof(block_q4_K, d));
  heads_of(&h, word);
  for (int k = 0; k < 2; k++) {
    word[k] = _mm512_and_si512(h.scale[k], three);
    word[2 + k] = _mm512_and_si512(_mm512_srli_epi16(h.scale[k], SHIFT_UNSIGNED), three);
  }
  store_rows(s->of, word);
  store_rows(f->min, h.min);
  _mm512_store_ps(f->d, h.d);
  _mm512_store_ps(f->dmin, h.dmin);
}

static inline void rows_heads_q6k(row_factors *f, row_scales *s, const char *const row[TILE_ROWS]) {
  uint16_t d[TILE_ROWS];
  for (int r = 0; r < TILE_ROWS; r++) {
    memcpy(s->of[r], row[r] + offsetof(block_q6_K, scales), sizeof s->of[r]);
    memcpy(&d[r], row[r] + offsetof(block_q6_K, d), sizeof d[r]);
  }
  _mm512_store_ps(f->d, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)d)));
}

static inline void rows_heads_q3k(row_factors *f, row_scales *s, const char *const row[TILE_ROWS]) {
  __m512i scale[4];
  _mm512_store_ps(f->d, heads_q3k(scale, row));
  store_rows(s->of, scale);
}

static inline void rows_heads_iq4xs(row_factors *f, row_scales *s, const char *const row[TILE_ROWS]) {
  const __m512i twice = dup4(_mm_setr_epi8(0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14));
  __m512i scale[8], word[4];
  _mm512_store_ps(f->d, heads_iq4xs(scale, row));
  for (int k = 0; k < 4; k++) {
    word[k] = _mm512_shuffle_epi8(scale_pair(scale + 2 * k), twice);
  }
  store_rows(s->of, word);
}

static inline __attribute__((always_inline)) void
row_heads_of(row_factors *f, row_scales *s, const weight_type type, const char *const row[TILE_ROWS]) {
  switch (type) {
  case TYPE_Q4_K:
  case TYPE_Q5_K:
    rows_heads_with_mins(f, s, row);
    return;
  case TYPE_Q6_K:
    rows_heads_q6k(f, s, row);
    return;
  case TYPE_Q3_K:
    rows_heads_q3k(f, s, row);
    return;
  case TYPE_IQ4_XS:
    rows_heads_iq4xs(f, s, row);
    return;
    CASES_WITHOUT_TILES
    break;
  }
  __builtin_trap();
}
