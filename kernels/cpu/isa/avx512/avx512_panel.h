// avx512_panel: a block of 16 rows of a K-quant matrix, unpacked so that each of a register's 16 lanes is a
// row.
//
// Owns: the layout `panel` and how each block type is unpacked into it. Independent of: activations, floats'
// order. Invariant: a panel holds the integers of the blocks and nothing rounded; rows beyond the matrix
// repeat the last.
#pragma once
#include "kernels/cpu/row.h"
#include "kernels/formats/few_bits.h"
#include <immintrin.h>
#include <stddef.h>
#include <string.h>

enum { PANEL_ROWS = 16 };

typedef struct {
  uint8_t q[QK_K / 4][PANEL_ROWS][4]; // the unsigned quants: four neighbours of a row to a lane
  int32_t scale[16][PANEL_ROWS];      // of the 8 (Q4_K, Q5_K, IQ4_XS) or 16 sub-blocks
  int16_t weight[8][PANEL_ROWS]
                [2]; // of pairs of sub-blocks, 4 or 8: minimums, or scales where the quants have an offset
  float d[PANEL_ROWS], dmin[PANEL_ROWS];
} __attribute__((aligned(64))) panel;

static inline __m512i dup4(__m128i x) {
  return _mm512_broadcast_i32x4(x);
}

// The lower halves of words as floats.
static inline __m512 halves_of_words(__m512i words) {
  return _mm512_cvtph_ps(_mm512_cvtepi32_epi16(words));
}

// Four rows' 16 bytes side by side, row `first + 4 lane` in lane `lane`.
static inline __m512i four_rows(const char *const *row, size_t offset, int first) {
  const char *a = row[first] + offset, *b = row[first + 4] + offset, *c = row[first + 8] + offset,
             *d = row[first + 12] + offset;
  __m512i x = _mm512_castsi128_si512(_mm_loadu_si128((const __m128i *)a));
  x = _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i *)b), 1);
  x = _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i *)c), 2);
  return _mm512_inserti32x4(x, _mm_loadu_si128((const __m128i *)d), 3);
}

// out[k] = 4-byte word k of the 16 bytes at `offset` of each of 16 rows, a row a lane.
static inline __attribute__((always_inline)) void transpose_words(__m512i out[4], const char *const *row,
                                                                  size_t offset) {
  __m512i a = four_rows(row, offset, 0), b = four_rows(row, offset, 1), c = four_rows(row, offset, 2),
          d = four_rows(row, offset, 3);
  __m512i ab_low = _mm512_unpacklo_epi32(a, b), cd_low = _mm512_unpacklo_epi32(c, d);
  __m512i ab_high = _mm512_unpackhi_epi32(a, b), cd_high = _mm512_unpackhi_epi32(c, d);
  out[0] = _mm512_unpacklo_epi64(ab_low, cd_low);
  out[1] = _mm512_unpackhi_epi64(ab_low, cd_low);
  out[2] = _mm512_unpacklo_epi64(ab_high, cd_high);
  out[3] = _mm512_unpackhi_epi64(ab_high, cd_high);
}

// 16 bytes of each of 16 rows, which lie as four words with a row to a lane: the inverse of transpose_words.
static inline void store_rows(void *to, const __m512i word[4]) {
  __m512i low = _mm512_unpacklo_epi32(word[0], word[1]), high = _mm512_unpackhi_epi32(word[0], word[1]),
          low_2 = _mm512_unpacklo_epi32(word[2], word[3]), high_2 = _mm512_unpackhi_epi32(word[2], word[3]);
  const __m512i row[4] = {_mm512_unpacklo_epi64(low, low_2), _mm512_unpackhi_epi64(low, low_2),
                          _mm512_unpacklo_epi64(high, high_2), _mm512_unpackhi_epi64(high, high_2)};
  __m128i *at = (__m128i *)to; // lane l of row[i] is row 4 l + i
#pragma GCC unroll 4
  for (int i = 0; i < 4; i++) {
    _mm_store_si128(at + i, _mm512_castsi512_si128(row[i]));
    _mm_store_si128(at + 4 + i, _mm512_extracti32x4_epi32(row[i], 1));
    _mm_store_si128(at + 8 + i, _mm512_extracti32x4_epi32(row[i], 2));
    _mm_store_si128(at + 12 + i, _mm512_extracti32x4_epi32(row[i], 3));
  }
}

static inline void store_quants(panel *p, int group, __m512i q) {
  _mm512_store_si512(p->q[group], q);
}

typedef struct {    // of 16 rows' blocks of a type with minimums, a row a lane
  __m512i scale[2]; // bytes: sub-blocks 0 to 3 and 4 to 7
  __m512i min[4];   // pairs of words: sub-blocks 2 k and 2 k + 1
  __m512 d, dmin;
} row_heads;

// word: d and dmin, then the 12 bytes of scales and minimums; see block_scale_min for their layout.
static inline void heads_of(row_heads *h, const __m512i word[4]) {
  const __m512i six = _mm512_set1_epi8(63), four = _mm512_set1_epi8(15), top = _mm512_set1_epi8(48);
  const __m512i low = dup4(_mm_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1));
  const __m512i high = dup4(_mm_setr_epi8(2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1));
  __m512i min[2];
  h->scale[0] = _mm512_and_si512(word[1], six);
  min[0] = _mm512_and_si512(word[2], six);
  h->scale[1] =
      _mm512_or_si512(_mm512_and_si512(word[3], four), _mm512_and_si512(_mm512_srli_epi16(word[1], 2), top));
  min[1] = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(word[3], 4), four),
                           _mm512_and_si512(_mm512_srli_epi16(word[2], 2), top));
  for (int k = 0; k < 2; k++) {
    h->min[2 * k] = _mm512_shuffle_epi8(min[k], low);
    h->min[2 * k + 1] = _mm512_shuffle_epi8(min[k], high);
  }
  h->d = halves_of_words(word[0]);
  h->dmin = halves_of_words(_mm512_srli_epi32(word[0], 16));
}

static inline void panel_heads(panel *p, const __m512i word[4]) {
  row_heads h;
  heads_of(&h, word);
  for (int j = 0; j < 8; j++) {
    __m512i s = _mm512_srli_epi32(h.scale[j / 4], (unsigned)(j % 4 * 8));
    _mm512_store_si512(p->scale[j], _mm512_and_si512(s, _mm512_set1_epi32(255)));
  }
  for (int k = 0; k < 4; k++) _mm512_store_si512(p->weight[k], h.min[k]);
  _mm512_store_ps(p->d, h.d);
  _mm512_store_ps(p->dmin, h.dmin);
}

static inline void panel_q4k(panel *p, const char *const row[PANEL_ROWS]) {
  const __m512i four = _mm512_set1_epi8(15);
  __m512i word[4];
  transpose_words(word, row, offsetof(block_q4_K, d));
  panel_heads(p, word);
  for (int piece = 0; piece < 8; piece++) { // 16 bytes: half a pair of sub-blocks
    transpose_words(word, row, offsetof(block_q4_K, qs) + (size_t)(16 * piece));
    int group = piece / 2 * 16 + piece % 2 * 4;
    for (int k = 0; k < 4; k++) {
      store_quants(p, group + k, _mm512_and_si512(word[k], four));
      store_quants(p, group + 8 + k, _mm512_and_si512(_mm512_srli_epi16(word[k], 4), four));
    }
  }
}

static inline void panel_q5k(panel *p, const char *const row[PANEL_ROWS]) {
  const __m512i four = _mm512_set1_epi8(15), fifth = _mm512_set1_epi8(16);
  __m512i word[4], high[8];
  transpose_words(word, row, offsetof(block_q5_K, d));
  panel_heads(p, word);
  transpose_words(high, row, offsetof(block_q5_K, qh));
  transpose_words(high + 4, row, offsetof(block_q5_K, qh) + 16);
  for (int piece = 0; piece < 8; piece++) {
    transpose_words(word, row, offsetof(block_q5_K, qs) + (size_t)(16 * piece));
    int group = piece / 2 * 16 + piece % 2 * 4;
    const __m512i first =
        _mm512_set1_epi32(piece / 2 * 2 - 4); // rotations that move a sub-block's bit to bit 4
    const __m512i second = _mm512_set1_epi32(piece / 2 * 2 - 3);
    for (int k = 0; k < 4; k++) {
      __m512i h = high[piece % 2 * 4 + k];
      __m512i a = _mm512_and_si512(_mm512_rorv_epi32(h, first), fifth);
      __m512i b = _mm512_and_si512(_mm512_rorv_epi32(h, second), fifth);
      store_quants(p, group + k, _mm512_or_si512(_mm512_and_si512(word[k], four), a));
      store_quants(p, group + 8 + k,
                   _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(word[k], 4), four), b));
    }
  }
}

// 16 scales, signed bytes, in 4 words of 4: as 32-bit factors, and as pairs of 16 bits for the sums of the
// offset.
static inline void panel_signed_scales(panel *p, const __m512i word[4]) {
  const __m512i low = dup4(_mm_setr_epi8(-1, 0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13));
  const __m512i high = dup4(_mm_setr_epi8(-1, 2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15));
  for (int k = 0; k < 4; k++) {
    for (int j = 0; j < 4; j++) {
      __m512i top = _mm512_slli_epi32(word[k], (unsigned)(24 - 8 * j));
      _mm512_store_si512(p->scale[4 * k + j], _mm512_srai_epi32(top, 24));
    }
    _mm512_store_si512(p->weight[2 * k], _mm512_srai_epi16(_mm512_shuffle_epi8(word[k], low), 8));
    _mm512_store_si512(p->weight[2 * k + 1], _mm512_srai_epi16(_mm512_shuffle_epi8(word[k], high), 8));
  }
}

static inline void panel_q6k(panel *p, const char *const row[PANEL_ROWS]) {
  const __m512i four = _mm512_set1_epi8(15), two = _mm512_set1_epi8(48);
  __m512i word[4], high[4];
  transpose_words(word, row, offsetof(block_q6_K, scales));
  panel_signed_scales(p, word);
  uint16_t d[PANEL_ROWS];
  for (int r = 0; r < PANEL_ROWS; r++) memcpy(&d[r], row[r] + offsetof(block_q6_K, d), sizeof d[r]);
  _mm512_store_ps(p->d, _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)d)));
  for (int piece = 0; piece < 4; piece++) { // 16 bytes of high bits: 64 elements of half the block
    int half = piece / 2, at = piece % 2;
    transpose_words(high, row, offsetof(block_q6_K, qh) + (size_t)(16 * piece));
    for (int pair = 0; pair < 2; pair++) { // low nibbles are elements of group `pair`, high ones of pair + 2
      transpose_words(word, row, offsetof(block_q6_K, ql) + (size_t)(64 * half + 32 * pair + 16 * at));
      const __m512i first = _mm512_set1_epi32(2 * pair - 4), second = _mm512_set1_epi32(2 * pair);
      int group = half * 32 + pair * 8 + at * 4;
      for (int k = 0; k < 4; k++) {
        __m512i a = _mm512_and_si512(_mm512_rorv_epi32(high[k], first), two);
        __m512i b = _mm512_and_si512(_mm512_rorv_epi32(high[k], second), two);
        store_quants(p, group + k, _mm512_or_si512(_mm512_and_si512(word[k], four), a));
        store_quants(p, group + 16 + k,
                     _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(word[k], 4), four), b));
      }
    }
  }
}

// ---- types of few bits ----

// Bit pairs of 64 bytes at `offset`; third: 32 bytes with a third bit for each, or NULL.
static inline void panel_two_bits(panel *p, const char *const *row, size_t offset, const __m512i third[8]) {
  const __m512i two = _mm512_set1_epi8(3), bit = _mm512_set1_epi8(4);
  __m512i word[4];
  for (int piece = 0; piece < 4; piece++) { // 16 bytes: 64 elements of half the block
    int half = piece / 2, at = piece % 2;
    transpose_words(word, row, offset + (size_t)(16 * piece));
    for (int g = 0; g < 4; g++) {
      const __m512i rotate = _mm512_set1_epi32(half * 4 + g - 2);
      for (int k = 0; k < 4; k++) {
        __m512i q = _mm512_and_si512(_mm512_srli_epi16(word[k], (unsigned)(2 * g)), two);
        if (third)
          q = _mm512_or_si512(q, _mm512_and_si512(_mm512_rorv_epi32(third[at * 4 + k], rotate), bit));
        store_quants(p, half * 32 + g * 8 + at * 4 + k, q);
      }
    }
  }
}

static inline void panel_q2k(panel *p, const char *const row[PANEL_ROWS]) {
  const __m512i four = _mm512_set1_epi8(15);
  __m512i word[4], scale[4];
  int32_t d[PANEL_ROWS];
  transpose_words(word, row, offsetof(block_q2_K, scales));
  for (int k = 0; k < 4; k++) {
    scale[k] = _mm512_and_si512(word[k], four);
    word[k] = _mm512_and_si512(_mm512_srli_epi16(word[k], 4), four);
  }
  panel_signed_scales(p, word); // for the pairs of minimums
  for (int j = 0; j < 16; j++) {
    __m512i s = _mm512_srli_epi32(scale[j / 4], (unsigned)(j % 4 * 8));
    _mm512_store_si512(p->scale[j], _mm512_and_si512(s, _mm512_set1_epi32(255)));
  }
  static_assert(offsetof(block_q2_K, dmin) == offsetof(block_q2_K, d) + 2, "one word");
  for (int r = 0; r < PANEL_ROWS; r++) memcpy(&d[r], row[r] + offsetof(block_q2_K, d), sizeof d[r]);
  __m512i both = _mm512_loadu_si512(d);
  _mm512_store_ps(p->d, halves_of_words(both));
  _mm512_store_ps(p->dmin, halves_of_words(_mm512_srli_epi32(both, 16)));
  panel_two_bits(p, row, offsetof(block_q2_K, qs), NULL);
}

// The words from two bytes into one to two bytes into the next.
static inline __m512i straddling(__m512i a, __m512i b) {
  return _mm512_or_si512(_mm512_srli_epi32(a, 16), _mm512_slli_epi32(b, 16));
}

// 16 scales in 4 words of 4, signed bytes; and d.
static inline __m512 heads_q3k(__m512i scale[4], const char *const row[PANEL_ROWS]) {
  const __m512i four = _mm512_set1_epi8(15), top = _mm512_set1_epi8(48), offset = _mm512_set1_epi8(32);
  __m512i word[4];
  static_assert(sizeof(block_q3_K) == offsetof(block_q3_K, scales) + 14, "its last 16 bytes end with it");
  transpose_words(word, row, offsetof(block_q3_K, scales) - 2);
  __m512i a = straddling(word[0], word[1]), b = straddling(word[1], word[2]),
          c = straddling(word[2], word[3]); // 4, 4 and 4 bytes of scales
  scale[0] = _mm512_or_si512(_mm512_and_si512(a, four), _mm512_and_si512(_mm512_slli_epi16(c, 4), top));
  scale[1] = _mm512_or_si512(_mm512_and_si512(b, four), _mm512_and_si512(_mm512_slli_epi16(c, 2), top));
  scale[2] = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(a, 4), four), _mm512_and_si512(c, top));
  scale[3] = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(b, 4), four),
                             _mm512_and_si512(_mm512_srli_epi16(c, 2), top));
  for (int k = 0; k < 4; k++) scale[k] = _mm512_sub_epi8(scale[k], offset);
  return halves_of_words(_mm512_srli_epi32(word[3], 16));
}

static inline void panel_q3k(panel *p, const char *const row[PANEL_ROWS]) {
  __m512i third[8], scale[4];
  _mm512_store_ps(p->d, heads_q3k(scale, row));
  panel_signed_scales(p, scale);
  transpose_words(third, row, offsetof(block_q3_K, hmask));
  transpose_words(third + 4, row, offsetof(block_q3_K, hmask) + 16);
  panel_two_bits(p, row, offsetof(block_q3_K, qs), third);
}

// The 16 values of a nibble as a shuffle's table, each plus 128.
static inline __m512i nibble_values(uint64_t low, uint64_t high) {
  return _mm512_xor_si512(dup4(_mm_set_epi64x((int64_t)high, (int64_t)low)), _mm512_set1_epi8(-128));
}

// Two sub-blocks' scales or sums as pairs of 16 bits.
static inline __m512i scale_pair(const __m512i *scale) {
  return _mm512_mask_blend_epi16(0xaaaaaaaau, scale[0], _mm512_slli_epi32(scale[1], 16));
}

// Eight scales; and d.
static inline __m512 heads_iq4xs(__m512i scale[8], const char *const row[PANEL_ROWS]) {
  const __m512i low = _mm512_set1_epi32(15), top = _mm512_set1_epi32(48), offset = _mm512_set1_epi32(32);
  __m512i word[4];
  static_assert(offsetof(block_iq4_xs, scales_h) == 2 && offsetof(block_iq4_xs, scales_l) == 4, "two words");
  transpose_words(word, row, 0);
  for (int j = 0; j < 8; j++) {
    __m512i s = _mm512_and_si512(_mm512_srli_epi32(word[1], (unsigned)(4 * j)), low);
    __m512i h = _mm512_and_si512(_mm512_srli_epi32(word[0], (unsigned)(12 + 2 * j)), top);
    scale[j] = _mm512_sub_epi32(_mm512_or_si512(s, h), offset);
  }
  return halves_of_words(word[0]);
}

static inline void panel_iq4xs(panel *p, const char *const row[PANEL_ROWS]) {
  const __m512i four = _mm512_set1_epi8(15), values = nibble_values(IQ4_VALUES_LOW, IQ4_VALUES_HIGH);
  __m512i word[4], scale[8];
  _mm512_store_ps(p->d, heads_iq4xs(scale, row));
  for (int j = 0; j < 8; j++) _mm512_store_si512(p->scale[j], scale[j]);
  for (int k = 0; k < 4; k++) _mm512_store_si512(p->weight[k], scale_pair(scale + 2 * k));
  for (int j = 0; j < 8; j++) {
    transpose_words(word, row, offsetof(block_iq4_xs, qs) + (size_t)(16 * j));
    for (int k = 0; k < 4; k++) {
      store_quants(p, 8 * j + k, _mm512_shuffle_epi8(values, _mm512_and_si512(word[k], four)));
      store_quants(p, 8 * j + 4 + k,
                   _mm512_shuffle_epi8(values, _mm512_and_si512(_mm512_srli_epi16(word[k], 4), four)));
    }
  }
}

static inline void panel_of(panel *p, weight_type type, const char *const row[PANEL_ROWS]) {
  switch (type) {
  case TYPE_Q4_K:
    panel_q4k(p, row);
    return;
  case TYPE_Q5_K:
    panel_q5k(p, row);
    return;
  case TYPE_Q6_K:
    panel_q6k(p, row);
    return;
  case TYPE_Q2_K:
    panel_q2k(p, row);
    return;
  case TYPE_Q3_K:
    panel_q3k(p, row);
    return;
  case TYPE_IQ4_XS:
    panel_iq4xs(p, row);
    return;
    CASES_OF_32
  case TYPE_F32:
  case TYPE_F16:
  case TYPE_BF16:
    break;
  }
  __builtin_trap(); // the arm was refused
}

// ---- what the kernels over panels and over rows need of the activations ----

typedef struct { // of one token's block: sums of the sub-blocks of 32 as pairs of 16 bits
  int16_t pair[4][2];
} min_sums;

static inline void min_sums_of(min_sums *out, const block_q8_K *x) {
  __m256i pairs = _mm256_madd_epi16(_mm256_loadu_si256((const __m256i *)x->bsums), _mm256_set1_epi16(1));
  _mm_storeu_si128((__m128i *)out, _mm256_cvtepi32_epi16(pairs));
}

static inline __m512i word_of(const void *bytes) {
  int32_t w;
  memcpy(&w, bytes, sizeof w);
  return _mm512_set1_epi32(w);
}
