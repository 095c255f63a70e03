// avx2_panel: a block of 8 rows of a K-quant matrix, unpacked so that each of a register's 8 lanes is a row;
// the sibling of avx512_panel.h.
//
// Owns: the layout `panel` and how each block type is unpacked into it. Independent of: activations, floats'
// order. Invariant: a panel holds the integers of the blocks and nothing rounded.
#pragma once
#include "kernels/cpu/row.h"
#include "kernels/formats/few_bits.h"
#include <immintrin.h>
#include <stddef.h>
#include <string.h>

enum { PANEL_ROWS = 8 };

typedef struct {
  uint8_t q[QK_K / 4][PANEL_ROWS][4]; // the quants: four neighbours of a row to a lane; of IQ4_XS signed
  int16_t scale[16][PANEL_ROWS][2];   // of the 8 (Q4_K, Q5_K, IQ4_XS) or 16 sub-blocks, twice
  int16_t weight[8][PANEL_ROWS]
                [2]; // of pairs of sub-blocks, 4 or 8: minimums, or scales where the quants have an offset
  float d[PANEL_ROWS], dmin[PANEL_ROWS];
} __attribute__((aligned(32))) panel;

static inline __m256i dup2(__m128i x) {
  return _mm256_broadcastsi128_si256(x);
}

// 16 bytes of the rows `first` and `first + 4`, side by side.
static inline __m256i two_rows(const char *const *row, size_t offset, int first) {
  __m128i a = _mm_loadu_si128((const __m128i *)(row[first] + offset));
  return _mm256_inserti128_si256(_mm256_castsi128_si256(a),
                                 _mm_loadu_si128((const __m128i *)(row[first + 4] + offset)), 1);
}

// out[k] = 4-byte word k of the 16 bytes at `offset` of each of 8 rows, a row a lane.
static inline void transpose_words(__m256i out[4], const char *const *row, size_t offset) {
  __m256i a = two_rows(row, offset, 0), b = two_rows(row, offset, 1), c = two_rows(row, offset, 2),
          d = two_rows(row, offset, 3);
  __m256i ab_low = _mm256_unpacklo_epi32(a, b), cd_low = _mm256_unpacklo_epi32(c, d);
  __m256i ab_high = _mm256_unpackhi_epi32(a, b), cd_high = _mm256_unpackhi_epi32(c, d);
  out[0] = _mm256_unpacklo_epi64(ab_low, cd_low);
  out[1] = _mm256_unpackhi_epi64(ab_low, cd_low);
  out[2] = _mm256_unpacklo_epi64(ab_high, cd_high);
  out[3] = _mm256_unpackhi_epi64(ab_high, cd_high);
}

static inline void store_words(void *to, __m256i x) {
  _mm256_store_si256((__m256i *)to, x);
}

// Words to the left, or by a negative count to the right.
static inline __m256i shifted(__m256i x, int left) {
  return left < 0 ? _mm256_srli_epi16(x, -left) : _mm256_slli_epi16(x, left);
}

// 8 f16 in the low words of the lanes.
static inline __m256 floats_of_halves(__m256i words) {
  __m256i low = _mm256_and_si256(words, _mm256_set1_epi32(0xffff));
  __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(low, low), 0x08);
  return _mm256_cvtph_ps(_mm256_castsi256_si128(packed));
}

// d and dmin, then the 12 bytes of scales and minimums; see block_scale_min for their layout.
static inline void panel_heads(panel *p, const char *const *row) {
  const __m256i six = _mm256_set1_epi8(63), four = _mm256_set1_epi8(15), top = _mm256_set1_epi8(48);
  const __m256i low = dup2(_mm_setr_epi8(0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13, -1));
  const __m256i high = dup2(_mm_setr_epi8(2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15, -1));
  const __m256i twice =
      dup2(_mm_setr_epi8(0, -128, 0, -128, 4, -128, 4, -128, 8, -128, 8, -128, 12, -128, 12, -128));
  __m256i word[4], scale[2], min[2];
  transpose_words(word, row, offsetof(block_q4_K, d));
  static_assert(offsetof(block_q4_K, d) == offsetof(block_q5_K, d), "both types have one head");
  scale[0] = _mm256_and_si256(word[1], six);
  min[0] = _mm256_and_si256(word[2], six);
  scale[1] =
      _mm256_or_si256(_mm256_and_si256(word[3], four), _mm256_and_si256(_mm256_srli_epi16(word[1], 2), top));
  min[1] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(word[3], 4), four),
                           _mm256_and_si256(_mm256_srli_epi16(word[2], 2), top));
  for (int j = 0; j < 8; j++) // -128 + j % 4 is negative too: a zero
    store_words(p->scale[j],
                _mm256_shuffle_epi8(scale[j / 4], _mm256_add_epi8(twice, _mm256_set1_epi8((char)(j % 4)))));
  for (int k = 0; k < 2; k++) {
    store_words(p->weight[2 * k], _mm256_shuffle_epi8(min[k], low));
    store_words(p->weight[2 * k + 1], _mm256_shuffle_epi8(min[k], high));
  }
  _mm256_store_ps(p->d, floats_of_halves(word[0]));
  _mm256_store_ps(p->dmin, floats_of_halves(_mm256_srli_epi32(word[0], 16)));
}

// The nibbles of `bytes` as groups `low` and `high`, with bits from above.
static inline void store_nibbles(panel *p, int low, __m256i low_top, int high, __m256i high_top,
                                 __m256i bytes) {
  const __m256i four = _mm256_set1_epi8(15);
  store_words(p->q[low], _mm256_or_si256(_mm256_and_si256(bytes, four), low_top));
  store_words(p->q[high], _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(bytes, 4), four), high_top));
}

static inline void panel_q4k(panel *p, const char *const row[PANEL_ROWS]) {
  const __m256i none = _mm256_setzero_si256();
  __m256i word[4];
  panel_heads(p, row);
  for (int piece = 0; piece < 8; piece++) { // 16 bytes: half a pair of sub-blocks
    transpose_words(word, row, offsetof(block_q4_K, qs) + (size_t)(16 * piece));
    int group = piece / 2 * 16 + piece % 2 * 4;
    for (int k = 0; k < 4; k++) store_nibbles(p, group + k, none, group + 8 + k, none, word[k]);
  }
}

static inline void panel_q5k(panel *p, const char *const row[PANEL_ROWS]) {
  const __m256i fifth = _mm256_set1_epi8(16);
  __m256i word[4], high[8];
  panel_heads(p, row);
  transpose_words(high, row, offsetof(block_q5_K, qh));
  transpose_words(high + 4, row, offsetof(block_q5_K, qh) + 16);
  for (int piece = 0; piece < 8; piece++) {
    transpose_words(word, row, offsetof(block_q5_K, qs) + (size_t)(16 * piece));
    int group = piece / 2 * 16 + piece % 2 * 4, j = piece / 2 * 2; // sub-blocks j and j + 1
    for (int k = 0; k < 4; k++) {
      __m256i h = high[piece % 2 * 4 + k];
      store_nibbles(p, group + k, _mm256_and_si256(shifted(h, 4 - j), fifth), group + 8 + k,
                    _mm256_and_si256(shifted(h, 3 - j), fifth), word[k]);
    }
  }
}

// 16 scales, signed bytes, in 4 words of 4: each twice; and in pairs what is weighted with the activations'
// sums.
static inline void panel_scales(panel *p, const __m256i word[4], const __m256i weight[4]) {
  const __m256i low = dup2(_mm_setr_epi8(-1, 0, -1, 1, -1, 4, -1, 5, -1, 8, -1, 9, -1, 12, -1, 13));
  const __m256i high = dup2(_mm_setr_epi8(-1, 2, -1, 3, -1, 6, -1, 7, -1, 10, -1, 11, -1, 14, -1, 15));
  const __m256i twice =
      dup2(_mm_setr_epi8(-128, 0, -128, 0, -128, 4, -128, 4, -128, 8, -128, 8, -128, 12, -128, 12));
  for (int k = 0; k < 4; k++) {
    for (int j = 0; j < 4; j++) {
      __m256i at = _mm256_add_epi8(twice, _mm256_set1_epi8((char)j));
      store_words(p->scale[4 * k + j], _mm256_srai_epi16(_mm256_shuffle_epi8(word[k], at), 8));
    }
    store_words(p->weight[2 * k], _mm256_srai_epi16(_mm256_shuffle_epi8(weight[k], low), 8));
    store_words(p->weight[2 * k + 1], _mm256_srai_epi16(_mm256_shuffle_epi8(weight[k], high), 8));
  }
}

static inline void panel_q6k(panel *p, const char *const row[PANEL_ROWS]) {
  const __m256i two = _mm256_set1_epi8(48);
  __m256i word[4], high[4];
  uint16_t d[PANEL_ROWS];
  transpose_words(word, row, offsetof(block_q6_K, scales));
  panel_scales(p, word, word);
  for (int r = 0; r < PANEL_ROWS; r++) memcpy(&d[r], row[r] + offsetof(block_q6_K, d), sizeof d[r]);
  _mm256_store_ps(p->d, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)d)));
  for (int piece = 0; piece < 4; piece++) { // 16 bytes of high bits: 64 elements of half the block
    int half = piece / 2, at = piece % 2;
    transpose_words(high, row, offsetof(block_q6_K, qh) + (size_t)(16 * piece));
    for (int pair = 0; pair < 2; pair++) { // low nibbles are elements of group `pair`, high ones of pair + 2
      transpose_words(word, row, offsetof(block_q6_K, ql) + (size_t)(64 * half + 32 * pair + 16 * at));
      int group = half * 32 + pair * 8 + at * 4;
      for (int k = 0; k < 4; k++)
        store_nibbles(p, group + k, _mm256_and_si256(shifted(high[k], 4 - 2 * pair), two), group + 16 + k,
                      _mm256_and_si256(shifted(high[k], -2 * pair), two), word[k]);
    }
  }
}

// ---- types of few bits ----

// 32-bit words at `offset` of each row.
static inline __m256i words_of_rows(const char *const *row, size_t offset) {
  int32_t word[PANEL_ROWS];
  for (int r = 0; r < PANEL_ROWS; r++) memcpy(&word[r], row[r] + offset, sizeof word[r]);
  return _mm256_loadu_si256((const __m256i *)word);
}

// Bit pairs of 64 bytes at `offset`; third: 32 bytes with a third bit for each, or NULL.
static inline void panel_two_bits(panel *p, const char *const *row, size_t offset, const __m256i *third) {
  const __m256i two = _mm256_set1_epi8(3), bit = _mm256_set1_epi8(4);
  __m256i word[4];
  for (int piece = 0; piece < 4; piece++) { // 16 bytes: 64 elements of half the block
    int half = piece / 2, at = piece % 2;
    transpose_words(word, row, offset + (size_t)(16 * piece));
    for (int g = 0; g < 4; g++)
      for (int k = 0; k < 4; k++) {
        __m256i q = _mm256_and_si256(_mm256_srli_epi16(word[k], 2 * g), two);
        if (third) {
          __m256i high = shifted(third[at * 4 + k], 2 - (half * 4 + g));
          q = _mm256_or_si256(q, _mm256_and_si256(high, bit));
        }
        store_words(p->q[half * 32 + g * 8 + at * 4 + k], q);
      }
  }
}

static inline void panel_q2k(panel *p, const char *const row[PANEL_ROWS]) {
  const __m256i four = _mm256_set1_epi8(15);
  __m256i scale[4], min[4], both = words_of_rows(row, offsetof(block_q2_K, d));
  static_assert(offsetof(block_q2_K, dmin) == offsetof(block_q2_K, d) + 2, "one word");
  transpose_words(scale, row, offsetof(block_q2_K, scales));
  for (int k = 0; k < 4; k++) {
    min[k] = _mm256_and_si256(_mm256_srli_epi16(scale[k], 4), four);
    scale[k] = _mm256_and_si256(scale[k], four);
  }
  panel_scales(p, scale, min);
  _mm256_store_ps(p->d, floats_of_halves(both));
  _mm256_store_ps(p->dmin, floats_of_halves(_mm256_srli_epi32(both, 16)));
  panel_two_bits(p, row, offsetof(block_q2_K, qs), NULL);
}

// The words from two bytes into one to two bytes into the next.
static inline __m256i straddling(__m256i a, __m256i b) {
  return _mm256_or_si256(_mm256_srli_epi32(a, 16), _mm256_slli_epi32(b, 16));
}

static inline void panel_q3k(panel *p, const char *const row[PANEL_ROWS]) {
  const __m256i four = _mm256_set1_epi8(15), top = _mm256_set1_epi8(48), offset = _mm256_set1_epi8(32);
  __m256i word[4], third[8], scale[4];
  static_assert(sizeof(block_q3_K) == offsetof(block_q3_K, scales) + 14, "its last 16 bytes end with it");
  transpose_words(word, row, offsetof(block_q3_K, scales) - 2);
  __m256i a = straddling(word[0], word[1]), b = straddling(word[1], word[2]),
          c = straddling(word[2], word[3]); // 4, 4 and 4 bytes of scales
  scale[0] = _mm256_or_si256(_mm256_and_si256(a, four), _mm256_and_si256(_mm256_slli_epi16(c, 4), top));
  scale[1] = _mm256_or_si256(_mm256_and_si256(b, four), _mm256_and_si256(_mm256_slli_epi16(c, 2), top));
  scale[2] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(a, 4), four), _mm256_and_si256(c, top));
  scale[3] = _mm256_or_si256(_mm256_and_si256(_mm256_srli_epi16(b, 4), four),
                             _mm256_and_si256(_mm256_srli_epi16(c, 2), top));
  for (int k = 0; k < 4; k++) scale[k] = _mm256_sub_epi8(scale[k], offset);
  panel_scales(p, scale, scale);
  _mm256_store_ps(p->d, floats_of_halves(_mm256_srli_epi32(word[3], 16)));
  transpose_words(third, row, offsetof(block_q3_K, hmask));
  transpose_words(third + 4, row, offsetof(block_q3_K, hmask) + 16);
  panel_two_bits(p, row, offsetof(block_q3_K, qs), third);
}

static inline __m256i nibble_values(uint64_t low, uint64_t high) {
  return dup2(_mm_set_epi64x((int64_t)high, (int64_t)low));
}

// Scales, twice in each word, and d.
static inline void panel_heads_iq4xs(panel *p, const char *const row[PANEL_ROWS]) {
  const __m256i low = _mm256_set1_epi32(15), top = _mm256_set1_epi32(48), offset = _mm256_set1_epi32(32);
  __m256i word[4];
  static_assert(offsetof(block_iq4_xs, scales_h) == 2 && offsetof(block_iq4_xs, scales_l) == 4, "two words");
  transpose_words(word, row, 0);
  for (int j = 0; j < 8; j++) {
    __m256i s = _mm256_and_si256(_mm256_srli_epi32(word[1], 4 * j), low);
    __m256i h = _mm256_and_si256(_mm256_srli_epi32(word[0], 12 + 2 * j), top);
    s = _mm256_sub_epi32(_mm256_or_si256(s, h), offset);
    store_words(p->scale[j], _mm256_blend_epi16(s, _mm256_slli_epi32(s, 16), 0xaa));
  }
  _mm256_store_ps(p->d, floats_of_halves(word[0]));
}

static inline void panel_iq4xs(panel *p, const char *const row[PANEL_ROWS]) {
  const __m256i four = _mm256_set1_epi8(15), values = nibble_values(IQ4_VALUES_LOW, IQ4_VALUES_HIGH);
  __m256i word[4];
  panel_heads_iq4xs(p, row);
  for (int j = 0; j < 8; j++) {
    transpose_words(word, row, offsetof(block_iq4_xs, qs) + (size_t)(16 * j));
    for (int k = 0; k < 4; k++) {
      store_words(p->q[8 * j + k], _mm256_shuffle_epi8(values, _mm256_and_si256(word[k], four)));
      store_words(p->q[8 * j + 4 + k],
                  _mm256_shuffle_epi8(values, _mm256_and_si256(_mm256_srli_epi16(word[k], 4), four)));
    }
  }
}
