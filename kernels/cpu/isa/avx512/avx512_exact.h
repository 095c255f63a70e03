// avx512_exact: attention in integers (docs/paths.md) with VNNI: products of bytes, four to a lane, of up to
// four rows of queries at a time.
//
// Owns: the order of the work. Invariant: sums of integers are exact; each float operation is that of
// formats/attention_exact.h, in each lane. A head wider than EXACT_WIDE_HEAD is left to the portable kernel.
#pragma once
#include "kernels/cpu/isa/avx512/avx512_float.h"

enum { EXACT_ROWS = 4, EXACT_BLOCKS = EXACT_CHUNK / FLOATS };

// ---- vectors ----

static inline __mmask16 lanes_below(int64_t n) {
  return n >= FLOATS ? 0xffff : n > 0 ? (__mmask16)((1u << n) - 1) : 0;
}

static exact_scale vector_scale_avx512(const float *x, const float *factor, int64_t n) {
  __m512i most = _mm512_setzero_si512();
  for (int64_t i = 0; i < n; i += FLOATS) {
    __mmask16 has = lanes_below(n - i);
    __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(has, x + i), _mm512_maskz_loadu_ps(has, factor + i));
    most = _mm512_max_epu32(most, _mm512_castps_si512(_mm512_abs_ps(v)));
  }
  return exact_vector_scale(_mm512_reduce_max_epu32(most));
}

// exact_integer of the 16 numbers from i on, each in the low half of its lane; lanes from n on are 0.
static inline __m512i integers_avx512(const float *x, const float *factor, int64_t i, int64_t n,
                                      exact_scale s) {
  __mmask16 has = s.scale > 0 ? lanes_below(n - i) : 0;
  __m512 v = _mm512_mul_ps(_mm512_maskz_loadu_ps(has, x + i), _mm512_maskz_loadu_ps(has, factor + i));
  v = _mm512_mul_ps(v, _mm512_set1_ps(s.scale));
  return _mm512_castps_si512(_mm512_add_ps(v, _mm512_set1_ps(12582912.0f)));
}

// The high limb of an integer in the low byte of its lane; the low limb is there as it is.
static inline __m512i high_limbs(__m512i x) {
  return _mm512_srli_epi32(_mm512_add_epi32(x, _mm512_set1_epi32(128)), 8);
}

// Four channels of a key are neighbours, and so are four lanes.
static inline void store_key_limbs(uint8_t *plane, int64_t j, int64_t d, int64_t width, __m512i limbs) {
  uint32_t four[4];
  _mm_storeu_si128((__m128i *)four, _mm_xor_si128(_mm512_cvtepi32_epi8(limbs), _mm_set1_epi8((char)0x80)));
  for (int i = 0; i < 4; i++) memcpy(plane + exact_key_at(j, d + 4 * i, width), &four[i], sizeof four[i]);
}

// The channels of a value are a lane apart; the bytes between are those of its neighbours.
static inline void store_value_limbs(uint8_t *plane, int64_t j, int64_t d, __m512i limbs) {
  __m512i shift = _mm512_set1_epi32((int)(j % 4 * 8));
  __m512i bytes = _mm512_sllv_epi32(_mm512_xor_si512(limbs, _mm512_set1_epi32(0x80)), shift);
  _mm512_mask_storeu_epi8(plane + exact_value_at(j / 4 * 4, d), 0x1111111111111111u << j % 4, bytes);
}

static void exact_store_avx512(const exact_cache *kv, int64_t position, const float *k, const float *v,
                               const exact_factors *factors, int64_t head_dim) {
  exact_chunk c = exact_chunk_at(kv, position / EXACT_CHUNK);
  int64_t j = position % EXACT_CHUNK;
  exact_scale key = vector_scale_avx512(k, factors->key, head_dim);
  exact_scale value = vector_scale_avx512(v, factors->value, head_dim);
  c.key_unit[j] = key.unit;
  c.value_unit[j] = key.unit == key.unit ? value.unit : key.unit;
  for (int64_t d = 0; d < kv->width; d += FLOATS) {
    __m512i x = integers_avx512(k, factors->key, d, head_dim, key);
    __m512i y = integers_avx512(v, factors->value, d, head_dim, value);
    store_key_limbs(c.key_high, j, d, kv->width, high_limbs(x));
    store_key_limbs(c.key_low, j, d, kv->width, x);
    store_value_limbs(c.value_high, j, d, high_limbs(y));
    store_value_limbs(c.value_low, j, d, y);
  }
}

// The sum of 16 signed bytes, four to a lane.
static inline __m512i sum_bytes(__m512i sum, __m128i bytes) {
  return _mm512_add_epi32(sum, _mm512_cvtepi8_epi32(bytes));
}

static void exact_query_avx512(const exact_queries *to, const float *q, const exact_factors *factors,
                               int64_t head_dim, int64_t width) {
  exact_scale s = vector_scale_avx512(q, factors->query, head_dim);
  __m512i high_sum = _mm512_setzero_si512(), low_sum = high_sum;
  for (int64_t d = 0; d < width; d += FLOATS) {
    __m512i x = integers_avx512(q, factors->query, d, head_dim, s);
    __m128i high = _mm512_cvtepi32_epi8(high_limbs(x)), low = _mm512_cvtepi32_epi8(x);
    _mm_storeu_si128((__m128i *)(to->high + d), high);
    _mm_storeu_si128((__m128i *)(to->low + d), low);
    high_sum = sum_bytes(high_sum, high);
    low_sum = sum_bytes(low_sum, low);
  }
  to->unit[0] = s.unit;
  to->high_sum[0] = LIMB_BIAS * _mm512_reduce_add_epi32(high_sum);
  to->low_sum[0] = LIMB_BIAS * _mm512_reduce_add_epi32(low_sum);
}

// ---- a chunk ----

typedef struct { // some rows of queries over a chunk
  float score[EXACT_ROWS][EXACT_CHUNK];
  int8_t high[EXACT_ROWS][EXACT_CHUNK], low[EXACT_ROWS][EXACT_CHUNK]; // limbs of the weights
  int32_t high_sum[EXACT_ROWS], low_sum[EXACT_ROWS];
  float weight_unit[EXACT_ROWS];
} exact_work_avx512;

// sum += u * s, four products of bytes to a lane. Not the intrinsic: with nearly all registers in use GCC 12
// gives its sums new registers, and the copies and spills take longer than the products.
static inline __m512i dot_bytes(__m512i sum, __m512i u, __m512i s) {
  __asm__("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(u), "v"(s));
  return sum;
}

static inline __m512i four_bytes(const int8_t *at) {
  int32_t four;
  memcpy(&four, at, sizeof four);
  return _mm512_set1_epi32(four);
}

// The integers of `rows` rows' scores for wide * 16 keys from block `block` on, as floats.
static inline __attribute__((always_inline)) void score_tile(exact_work_avx512 *w, const exact_queries *q,
                                                             const exact_chunk *c, int block, int64_t width,
                                                             const int rows, const int wide) {
  __m512i hh[EXACT_ROWS][4], hl[EXACT_ROWS][4], lh[EXACT_ROWS][4];
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < wide; i++) {
      hh[r][i] = _mm512_set1_epi32(-q->high_sum[r]);
      hl[r][i] = hh[r][i];
      lh[r][i] = _mm512_set1_epi32(-q->low_sum[r]);
    }
  const uint8_t *key_high = c->key_high + block * 16 * width, *key_low = c->key_low + block * 16 * width;
  for (int64_t d = 0; d < width; d += 4) {
    __m512i kh[4], kl[4];
    for (int i = 0; i < wide; i++) {
      kh[i] = _mm512_loadu_si512(key_high + (i * width + d) * 16);
      kl[i] = _mm512_loadu_si512(key_low + (i * width + d) * 16);
    }
    for (int r = 0; r < rows; r++) {
      __m512i high = four_bytes(q->high + r * width + d), low = four_bytes(q->low + r * width + d);
      for (int i = 0; i < wide; i++) {
        hh[r][i] = dot_bytes(hh[r][i], kh[i], high);
        hl[r][i] = dot_bytes(hl[r][i], kl[i], high);
        lh[r][i] = dot_bytes(lh[r][i], kh[i], low);
      }
    }
  }
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < wide; i++) {
      __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(hh[r][i], 8), _mm512_add_epi32(hl[r][i], lh[r][i]));
      _mm512_storeu_ps(w->score[r] + (block + i) * FLOATS, _mm512_cvtepi32_ps(sum));
    }
}

// exact_exp in each lane.
static inline __m512 exact_exp_lanes(__m512 z) {
  const __m512 magic = _mm512_set1_ps(12582880.0f), scale = _mm512_set1_ps(32.0f);
  __m512 shifted = _mm512_fmadd_ps(z, scale, magic), n = _mm512_sub_ps(shifted, magic);
  __m512 r = _mm512_fmsub_ps(z, scale, n), p = _mm512_set1_ps(0x1.3a02ccp-7f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.c9fc46p-5f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.ec0378p-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.62e12cp-1f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
  return _mm512_castsi512_ps(
      _mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(shifted), 23)));
}

// score[n] as units of their own, relative to the greatest. Returns that.
static inline float scale_scores(float score[EXACT_CHUNK], float units, const float *key_unit, int32_t n) {
  const __m512 factor = _mm512_set1_ps(256.0f * units);
  __m512 most = _mm512_set1_ps(-__builtin_inff());
  for (int i = 0; i * FLOATS < n; i++) {
    __m512 unit_of_key = _mm512_mul_ps(_mm512_loadu_ps(key_unit + i * FLOATS), factor);
    __m512 s = _mm512_mul_ps(_mm512_loadu_ps(score + i * FLOATS), unit_of_key);
    _mm512_storeu_ps(score + i * FLOATS, s);
    most = _mm512_mask_max_ps(most, lanes_below(n - i * FLOATS), s, most); // NaN: the second
  }
  return _mm512_reduce_max_ps(most);
}

// The row's scores to the limbs of its weights.
static inline void exact_weights_avx512(exact_work_avx512 *w, int r, float *max, float *sum, float query_unit,
                                        const exact_chunk *c, int32_t n) {
  float most = scale_scores(w->score[r], query_unit, c->key_unit, n);
  const __m512 bias = _mm512_set1_ps(exact_bias(most)), magic = _mm512_set1_ps(12582912.0f);
  __m512 weight[EXACT_BLOCKS];
  __m512i count = _mm512_setzero_si512(), largest = count;
  for (int i = 0; i * FLOATS < n; i++) {
    __mmask16 has = lanes_below(n - i * FLOATS);
    __m512 z =
        _mm512_fmadd_ps(_mm512_loadu_ps(w->score[r] + i * FLOATS), _mm512_set1_ps(EXACT_LOG2E_32), bias);
    z = _mm512_min_ps(_mm512_max_ps(z, _mm512_setzero_ps()), _mm512_set1_ps(1.0f)); // NaN: 0
    __m512 e = exact_exp_lanes(z);
    __m512i units = _mm512_castps_si512(_mm512_add_ps(_mm512_mul_ps(e, _mm512_set1_ps(0x1p21f)), magic));
    count = _mm512_mask_add_epi32(count, has, count, _mm512_sub_epi32(units, _mm512_castps_si512(magic)));
    weight[i] = _mm512_maskz_mul_ps(has, e, _mm512_loadu_ps(c->value_unit + i * FLOATS));
    largest = _mm512_max_epu32(largest, _mm512_castps_si512(weight[i]));
  }
  exact_scale s = exact_weight_scale(_mm512_reduce_max_epu32(largest) & 0x7fffffffu);
  __m512i high_sum = _mm512_setzero_si512(), low_sum = high_sum;
  for (int i = 0; i < EXACT_BLOCKS; i++) {
    __m128i high = _mm_setzero_si128(), low = high;
    if (i * FLOATS < n && s.scale > 0) {
      __m512i x =
          _mm512_castps_si512(_mm512_add_ps(_mm512_mul_ps(weight[i], _mm512_set1_ps(s.scale)), magic));
      high = _mm512_cvtepi32_epi8(high_limbs(x)), low = _mm512_cvtepi32_epi8(x);
      high_sum = sum_bytes(high_sum, high);
      low_sum = sum_bytes(low_sum, low);
    }
    _mm_storeu_si128((__m128i *)(w->high[r] + i * FLOATS), high);
    _mm_storeu_si128((__m128i *)(w->low[r] + i * FLOATS), low);
  }
  *max = most;
  *sum = exact_sum(_mm512_reduce_add_epi32(count));
  w->weight_unit[r] = s.unit;
  w->high_sum[r] = LIMB_BIAS * _mm512_reduce_add_epi32(high_sum);
  w->low_sum[r] = LIMB_BIAS * _mm512_reduce_add_epi32(low_sum);
}

// out[r][16 wide channels from d on] over the first `fours` fours of keys; a row without keys is left alone.
static inline __attribute__((always_inline)) void output_tile(float *out, const exact_work_avx512 *w,
                                                              const exact_chunk *c, const int32_t *n_keys,
                                                              int fours, int64_t d, int64_t width,
                                                              const int rows, const int wide) {
  __m512i hh[EXACT_ROWS][4], hl[EXACT_ROWS][4], lh[EXACT_ROWS][4], ll[EXACT_ROWS][4];
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < wide; i++) {
      hh[r][i] = _mm512_set1_epi32(-w->high_sum[r]);
      hl[r][i] = hh[r][i];
      lh[r][i] = _mm512_set1_epi32(-w->low_sum[r]);
      ll[r][i] = _mm512_set1_epi32(LIMB_BIAS - w->low_sum[r]); // and half of 256, to round
    }
  const uint8_t *value_high = c->value_high + d * EXACT_CHUNK, *value_low = c->value_low + d * EXACT_CHUNK;
  for (int k = 0; k < fours; k++) {
    __m512i vh[4], vl[4];
    for (int i = 0; i < wide; i++) {
      vh[i] = _mm512_loadu_si512(value_high + (i * EXACT_CHUNK / 4 + k) * 64);
      vl[i] = _mm512_loadu_si512(value_low + (i * EXACT_CHUNK / 4 + k) * 64);
    }
    for (int r = 0; r < rows; r++) {
      __m512i high = four_bytes(w->high[r] + 4 * k), low = four_bytes(w->low[r] + 4 * k);
      for (int i = 0; i < wide; i++) {
        hh[r][i] = dot_bytes(hh[r][i], vh[i], high);
        hl[r][i] = dot_bytes(hl[r][i], vl[i], high);
        ll[r][i] = dot_bytes(ll[r][i], vl[i], low);
        lh[r][i] = dot_bytes(lh[r][i], vh[i], low);
      }
    }
  }
  for (int r = 0; r < rows; r++)
    for (int i = 0; i < wide && n_keys[r]; i++) {
      __m512i sum = _mm512_add_epi32(_mm512_slli_epi32(hh[r][i], 8), _mm512_add_epi32(hl[r][i], lh[r][i]));
      sum = _mm512_add_epi32(sum, _mm512_srai_epi32(ll[r][i], 8));
      __m512 real = _mm512_mul_ps(_mm512_cvtepi32_ps(sum), _mm512_set1_ps(256.0f * w->weight_unit[r]));
      _mm512_storeu_ps(out + r * width + d + i * FLOATS, real);
    }
}

static inline __attribute__((always_inline)) void chunk_rows(const exact_rows *to, const exact_queries *q,
                                                             const exact_chunk *c, const int32_t *n_keys,
                                                             int64_t width, const int rows,
                                                             const int keys_wide, const int wide) {
  exact_work_avx512 w;
  int32_t most = 0;
  for (int r = 0; r < rows; r++) most = n_keys[r] > most ? n_keys[r] : most;
  if (!most) return;
  for (int block = 0; block * FLOATS < most; block += keys_wide)
    score_tile(&w, q, c, block, width, rows, keys_wide);
  for (int r = 0; r < rows; r++) {
    float none;
    bool has = n_keys[r] > 0;
    exact_weights_avx512(&w, r, has ? &to->max[r] : &none, has ? &to->sum[r] : &none, q->unit[r], c,
                         n_keys[r]);
  }
  int64_t d = 0;
  for (; d + wide * FLOATS <= width; d += wide * FLOATS)
    output_tile(to->out, &w, c, n_keys, (most + 3) / 4, d, width, rows, wide);
  for (; d < width; d += FLOATS) output_tile(to->out, &w, c, n_keys, (most + 3) / 4, d, width, rows, 1);
}

static void exact_chunk_avx512(const exact_rows *to, const exact_queries *q, const exact_chunk *c,
                               const int32_t *n_keys, int64_t n, int64_t width) {
  if (width > EXACT_WIDE_HEAD) {
    exact_chunk_generic(to, q, c, n_keys, n, width);
    return;
  }
  for (int64_t r = 0; r < n; r += EXACT_ROWS) {
    const exact_rows rows = exact_rows_from(to, r, width);
    const exact_queries queries = exact_queries_from(q, r, width);
    switch (n - r) {
    case 1:
      chunk_rows(&rows, &queries, c, n_keys + r, width, 1, 4, 4);
      break;
    case 2:
      chunk_rows(&rows, &queries, c, n_keys + r, width, 2, 2, 2);
      break;
    case 3:
      chunk_rows(&rows, &queries, c, n_keys + r, width, 3, 2, 1);
      break;
    default:
      chunk_rows(&rows, &queries, c, n_keys + r, width, EXACT_ROWS, 2, 1);
      break;
    }
  }
}

// ---- folds ----

static void exact_fold_avx512(const exact_rows *run, const exact_rows *next, int64_t width) {
  float both = run->max[0] > next->max[0] ? run->max[0] : next->max[0];
  float old = exact_rescale(run->max[0], both), fresh = exact_rescale(next->max[0], both);
  run->sum[0] = num_fma_f32(next->sum[0], fresh, run->sum[0] * old);
  run->max[0] = both;
  for (int64_t d = 0; d < width; d += FLOATS) {
    __m512 kept = _mm512_mul_ps(_mm512_loadu_ps(run->out + d), _mm512_set1_ps(old));
    _mm512_storeu_ps(run->out + d,
                     _mm512_fmadd_ps(_mm512_loadu_ps(next->out + d), _mm512_set1_ps(fresh), kept));
  }
}

const exact_ops exact_ops_avx512 = {
    .store = exact_store_avx512,
    .query = exact_query_avx512,
    .chunk = exact_chunk_avx512,
    .fold = exact_fold_avx512,
    .finish = exact_finish_generic,
    .attend = exact_attend,
};
