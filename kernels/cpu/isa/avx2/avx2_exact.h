// avx2_exact: attention in integers (docs/paths.md) with products of 16-bit integers, two to a lane, for two
// rows of queries at a time.
//
// Owns: the order of the work. Invariant: sums of integers are exact (in 32 bits, modulo 2^32 on the way);
// each float operation is that of formats/attention_exact.h, in each lane. A head wider than EXACT_WIDE_HEAD
// is left to the portable kernel.
//
// Where a limb stands alone: 256 hh + lh of two integers x = 256 h + l is the product x h', so a score takes
// two products in place of three, x h' + h l', and an output two in place of four, w h' and w l'.
#pragma once
#include "kernels/cpu/isa/each_row/generic.h"
#include <immintrin.h>

enum { EXACT_PAIR = 2, EIGHT = 8 };

// Four channels of four keys, or four keys of four channels, as 16-bit integers.
static inline __m256i sixteen_limbs(const uint8_t *at) {
  return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)at));
}

static inline __m256i four_shorts(const int16_t *at) {
  int64_t four;
  memcpy(&four, at, sizeof four);
  return _mm256_set1_epi64x(four);
}

static inline __m256i add_products(__m256i sum, __m256i a, __m256i b) {
  return _mm256_add_epi32(sum, _mm256_madd_epi16(a, b));
}

// Neighbouring lanes of a and of b added: four sums of a, then four of b.
static inline __m256i join_halves(__m256i a, __m256i b) {
  return _mm256_permute4x64_epi64(_mm256_hadd_epi32(a, b), 0xd8);
}

typedef struct { // two rows of queries over a chunk
  float score[EXACT_PAIR][EXACT_CHUNK];
  int16_t weight[EXACT_PAIR][EXACT_CHUNK];
  int32_t bias[EXACT_PAIR]; // LIMB_BIAS times the sum of the weights
  float weight_unit[EXACT_PAIR];
} exact_work_avx2;

typedef struct { // their integers
  int16_t whole[EXACT_PAIR][EXACT_WIDE_HEAD], high[EXACT_PAIR][EXACT_WIDE_HEAD];
} exact_pair;

static void widen_queries(exact_pair *out, const exact_queries *q, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; r++)
    for (int64_t d = 0; d < width; d++) {
      out->high[r][d] = q->high[r * width + d];
      out->whole[r][d] = (int16_t)(256 * q->high[r * width + d] + q->low[r * width + d]);
    }
}

// The integers of the scores of the 16 keys from `key` on, as floats.
static inline __attribute__((always_inline)) void score_tile_avx2(exact_work_avx2 *w, const exact_pair *p,
                                                                  const exact_queries *q,
                                                                  const exact_chunk *c, int key,
                                                                  int64_t width, const int rows) {
  __m256i sum[EXACT_PAIR][4];
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < 4; i++) sum[r][i] = _mm256_setzero_si256();
  for (int64_t d = 0; d < width; d += 4) {
    const uint8_t *high = c->key_high + (key * width + 16 * d), *low = c->key_low + (key * width + 16 * d);
    __m256i whole[EXACT_PAIR], top[EXACT_PAIR];
    for (int r = 0; r < rows; r++) {
      whole[r] = four_shorts(p->whole[r] + d);
      top[r] = four_shorts(p->high[r] + d);
    }
    for (int i = 0; i < 4; i++) {
      __m256i h = sixteen_limbs(high + 16 * i), l = sixteen_limbs(low + 16 * i);
      for (int r = 0; r < rows; r++)
        sum[r][i] = add_products(add_products(sum[r][i], h, whole[r]), l, top[r]);
    }
  }
  for (int r = 0; r < rows; r++) {
    __m256i bias = _mm256_set1_epi32(257 * q->high_sum[r] + q->low_sum[r]); // of sums of x and of h
    for (int i = 0; i < 4; i += 2) {
      __m256i score = _mm256_sub_epi32(join_halves(sum[r][i], sum[r][i + 1]), bias);
      _mm256_storeu_ps(w->score[r] + key + 4 * i, _mm256_cvtepi32_ps(score));
    }
  }
}

// exact_exp in each lane.
static inline __m256 exact_exp_avx2(__m256 z) {
  const __m256 magic = _mm256_set1_ps(12582880.0f), scale = _mm256_set1_ps(32.0f);
  __m256 shifted = _mm256_fmadd_ps(z, scale, magic), n = _mm256_sub_ps(shifted, magic);
  __m256 r = _mm256_fmsub_ps(z, scale, n), p = _mm256_set1_ps(0x1.3a02ccp-7f);
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.c9fc46p-5f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.ec0378p-3f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(0x1.62e12cp-1f));
  p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
  return _mm256_castsi256_ps(
      _mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(shifted), 23)));
}

static inline __m256i first_lanes(int32_t n) { // all bits in lanes below n
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

static inline float max_lanes(__m256 x) {
  __m128 y = _mm_max_ps(_mm256_castps256_ps128(x), _mm256_extractf128_ps(x, 1));
  y = _mm_max_ps(y, _mm_movehl_ps(y, y));
  return _mm_cvtss_f32(_mm_max_ss(y, _mm_movehdup_ps(y)));
}

static inline uint32_t largest_lane(__m256i x) {
  __m128i y = _mm_max_epu32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  y = _mm_max_epu32(y, _mm_shuffle_epi32(y, _MM_SHUFFLE(1, 0, 3, 2)));
  return (uint32_t)_mm_cvtsi128_si32(_mm_max_epu32(y, _mm_shuffle_epi32(y, _MM_SHUFFLE(2, 3, 0, 1))));
}

static inline int32_t add_lanes(__m256i x) {
  __m128i y = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
  y = _mm_add_epi32(y, _mm_shuffle_epi32(y, _MM_SHUFFLE(1, 0, 3, 2)));
  return _mm_cvtsi128_si32(_mm_add_epi32(y, _mm_shuffle_epi32(y, _MM_SHUFFLE(2, 3, 0, 1))));
}

// score[n] in their units. Returns the greatest.
static inline float scale_scores_avx2(float score[EXACT_CHUNK], float query_unit, const float *key_unit,
                                      int32_t n) {
  const __m256 factor = _mm256_set1_ps(256.0f * query_unit);
  __m256 most = _mm256_set1_ps(-__builtin_inff());
  for (int i = 0; i < n; i += EIGHT) {
    __m256 s =
        _mm256_mul_ps(_mm256_loadu_ps(score + i), _mm256_mul_ps(_mm256_loadu_ps(key_unit + i), factor));
    _mm256_storeu_ps(score + i, s);
    s = _mm256_blendv_ps(most, s, _mm256_castsi256_ps(first_lanes(n - i)));
    most = _mm256_max_ps(s, most); // NaN: the second
  }
  return max_lanes(most);
}

// Weights as floats in place of the scores. Returns their scale.
static inline exact_scale float_weights_avx2(float score[EXACT_CHUNK], float most, float *sum,
                                             const float *value_unit, int32_t n) {
  const __m256 bias = _mm256_set1_ps(exact_bias(most)), magic = _mm256_set1_ps(12582912.0f);
  __m256i count = _mm256_setzero_si256(), largest = count;
  for (int i = 0; i < n; i += EIGHT) {
    __m256i has = first_lanes(n - i);
    __m256 z = _mm256_fmadd_ps(_mm256_loadu_ps(score + i), _mm256_set1_ps(EXACT_LOG2E_32), bias);
    z = _mm256_min_ps(_mm256_max_ps(z, _mm256_setzero_ps()), _mm256_set1_ps(1.0f)); // NaN: 0
    __m256 e = exact_exp_avx2(z);
    __m256i units = _mm256_castps_si256(_mm256_add_ps(_mm256_mul_ps(e, _mm256_set1_ps(0x1p21f)), magic));
    units = _mm256_sub_epi32(units, _mm256_castps_si256(magic));
    count = _mm256_add_epi32(count, _mm256_and_si256(has, units));
    __m256 weight =
        _mm256_and_ps(_mm256_mul_ps(e, _mm256_loadu_ps(value_unit + i)), _mm256_castsi256_ps(has));
    _mm256_storeu_ps(score + i, weight);
    largest = _mm256_max_epu32(largest, _mm256_castps_si256(weight));
  }
  *sum = exact_sum(add_lanes(count));
  return exact_weight_scale(largest_lane(largest) & 0x7fffffffu);
}

static inline void exact_weights_avx2(exact_work_avx2 *w, int r, float *max, float *sum, float query_unit,
                                      const exact_chunk *c, int32_t n) {
  const __m256 magic = _mm256_set1_ps(12582912.0f);
  *max = scale_scores_avx2(w->score[r], query_unit, c->key_unit, n);
  exact_scale s = float_weights_avx2(w->score[r], *max, sum, c->value_unit, n);
  __m256i total = _mm256_setzero_si256();
  memset(w->weight[r], 0, sizeof w->weight[r]);
  for (int i = 0; i < n && s.scale > 0; i += EIGHT) {
    __m256 shifted =
        _mm256_add_ps(_mm256_mul_ps(_mm256_loadu_ps(w->score[r] + i), _mm256_set1_ps(s.scale)), magic);
    __m256i x = _mm256_sub_epi32(_mm256_castps_si256(shifted), _mm256_castps_si256(magic));
    total = _mm256_add_epi32(total, x);
    __m256i packed = _mm256_permute4x64_epi64(_mm256_packs_epi32(x, x), 0x08);
    _mm_storeu_si128((__m128i *)(w->weight[r] + i), _mm256_castsi256_si128(packed));
  }
  w->bias[r] = LIMB_BIAS * add_lanes(total);
  w->weight_unit[r] = s.unit;
}

// out[r][8 channels from d on] over the first `fours` fours of keys; a row without keys is left alone.
static inline __attribute__((always_inline)) void output_tile_avx2(float *out, const exact_work_avx2 *w,
                                                                   const exact_chunk *c,
                                                                   const int32_t *n_keys, int fours,
                                                                   int64_t d, int64_t width, const int rows) {
  __m256i by_high[EXACT_PAIR][2], by_low[EXACT_PAIR][2];
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < 2; i++) by_high[r][i] = by_low[r][i] = _mm256_setzero_si256();
  const uint8_t *high = c->value_high + exact_value_at(0, d), *low = c->value_low + exact_value_at(0, d);
  for (int k = 0; k < fours; k++, high += 64, low += 64) {
    __m256i weight[EXACT_PAIR];
    for (int r = 0; r < rows; r++) weight[r] = four_shorts(w->weight[r] + 4 * k);
    for (int i = 0; i < 2; i++) {
      __m256i h = sixteen_limbs(high + 16 * i), l = sixteen_limbs(low + 16 * i);
      for (int r = 0; r < rows; r++) {
        by_high[r][i] = add_products(by_high[r][i], h, weight[r]);
        by_low[r][i] = add_products(by_low[r][i], l, weight[r]);
      }
    }
  }
  for (int r = 0; r < rows; r++) {
    if (!n_keys[r]) continue;
    const __m256i bias = _mm256_set1_epi32(w->bias[r]), to_round = _mm256_set1_epi32(128 - w->bias[r]);
    __m256i h = _mm256_sub_epi32(join_halves(by_high[r][0], by_high[r][1]), bias);
    __m256i l = _mm256_add_epi32(join_halves(by_low[r][0], by_low[r][1]), to_round);
    __m256 sum = _mm256_cvtepi32_ps(_mm256_add_epi32(h, _mm256_srai_epi32(l, 8)));
    _mm256_storeu_ps(out + r * width + d, _mm256_mul_ps(sum, _mm256_set1_ps(256.0f * w->weight_unit[r])));
  }
}

static inline __attribute__((always_inline)) void chunk_rows_avx2(const exact_rows *to,
                                                                  const exact_queries *q,
                                                                  const exact_chunk *c, const int32_t *n_keys,
                                                                  int64_t width, const int rows) {
  exact_work_avx2 w;
  exact_pair pair;
  int32_t most = 0;
  for (int r = 0; r < rows; r++) most = n_keys[r] > most ? n_keys[r] : most;
  if (!most) return;
  widen_queries(&pair, q, rows, width);
  for (int key = 0; key < most; key += 16) score_tile_avx2(&w, &pair, q, c, key, width, rows);
  for (int r = 0; r < rows; r++) {
    float max, sum;
    exact_weights_avx2(&w, r, &max, &sum, q->unit[r], c, n_keys[r]);
    if (!n_keys[r]) continue;
    to->max[r] = max;
    to->sum[r] = sum;
  }
  for (int64_t d = 0; d < width; d += EIGHT)
    output_tile_avx2(to->out, &w, c, n_keys, (most + 3) / 4, d, width, rows);
}

static void exact_chunk_avx2(const exact_rows *to, const exact_queries *q, const exact_chunk *c,
                             const int32_t *n_keys, int64_t n, int64_t width) {
  if (width > EXACT_WIDE_HEAD) {
    exact_chunk_generic(to, q, c, n_keys, n, width);
    return;
  }
  for (int64_t r = 0; r < n; r += EXACT_PAIR) {
    const exact_rows rows = exact_rows_from(to, r, width);
    const exact_queries queries = exact_queries_from(q, r, width);
    if (n - r == 1)
      chunk_rows_avx2(&rows, &queries, c, n_keys + r, width, 1);
    else
      chunk_rows_avx2(&rows, &queries, c, n_keys + r, width, EXACT_PAIR);
  }
}

static const exact_ops exact_ops_avx2 = {
    .store = exact_store_generic,
    .query = exact_query_generic,
    .chunk = exact_chunk_avx2,
    .fold = exact_fold_generic,
    .finish = exact_finish_generic,
    .attend = exact_attend,
};
