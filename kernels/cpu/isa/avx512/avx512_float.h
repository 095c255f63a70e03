// avx512_float: the steps between the products in floats, 16 at a time.
//
// Owns: exp in lanes, norm, RoPE, SwiGLU, the sum of slots, rounding to Q8_K. Where a width is no multiple of
// what a kernel takes, the portable one is called. Invariant: each lane does the operations of numerics.h in
// their order.
#pragma once
#include "kernels/cpu/isa/avx512/avx512_row.h"
#include "kernels/cpu/isa/each_row/generic.h"
#include <immintrin.h>

// num_exp_f32 in each lane.
static inline __m512 exp_lanes(__m512 x) {
  const __m512 magic = _mm512_set1_ps(12582912.0f);
  __m512 n = _mm512_sub_ps(_mm512_fmadd_ps(x, _mm512_set1_ps(0x1.715476p+0f), magic), magic);
  __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-0x1.62e430p-1f), x);
  r = _mm512_fmadd_ps(n, _mm512_set1_ps(0x1.05c610p-29f), r);
  __m512 p = _mm512_set1_ps(0x1.6d431ap-10f);
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.120b66p-7f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.5554eap-5f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0x1.5554dcp-3f));
  p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(0.5f));
  p = _mm512_add_ps(_mm512_fmadd_ps(p, _mm512_mul_ps(r, r), r), _mm512_set1_ps(1.0f));
  const __m512i bias = _mm512_set1_epi32(127);
  __m512i i = _mm512_cvttps_epi32(n), first = _mm512_srai_epi32(i, 1), second = _mm512_sub_epi32(i, first);
  p = _mm512_mul_ps(p, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(first, bias), 23)));
  p = _mm512_mul_ps(p, _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(second, bias), 23)));
  __mmask16 over = _mm512_cmp_ps_mask(x, _mm512_set1_ps(88.72284f), _CMP_GT_OQ);
  __mmask16 under = _mm512_cmp_ps_mask(x, _mm512_set1_ps(-103.97208f), _CMP_LT_OQ);
  __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  p = _mm512_mask_mov_ps(p, over, _mm512_set1_ps(__builtin_inff()));
  p = _mm512_mask_mov_ps(p, under, _mm512_setzero_ps());
  return _mm512_mask_mov_ps(p, nan, x);
}

// num_tree_f32 of 32 lanes in two registers.
static inline float tree_lanes(__m512 low, __m512 high) {
  __m512 x = _mm512_add_ps(low, high);
  __m256 y = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
  __m128 z = _mm_add_ps(_mm256_castps256_ps128(y), _mm256_extractf128_ps(y, 1));
  z = _mm_add_ps(z, _mm_movehl_ps(z, z));
  return _mm_cvtss_f32(_mm_add_ss(z, _mm_movehdup_ps(z)));
}

static void rms_norm_avx512(void *out, const void *x, const float *weight, int64_t n, double epsilon) {
  if (n % LANES) {
    rms_norm_f32(out, x, weight, n, epsilon);
    return;
  }
  const float *in = (const float *)x;
  __m512 low = _mm512_setzero_ps(), high = low;
  for (int64_t i = 0; i < n; i += LANES) {
    __m512 a = _mm512_loadu_ps(in + i), b = _mm512_loadu_ps(in + i + FLOATS);
    low = _mm512_fmadd_ps(a, a, low);
    high = _mm512_fmadd_ps(b, b, high);
  }
  float mean = tree_lanes(low, high) / (float)n;
  __m512 inverse = _mm512_set1_ps(1.0f / __builtin_sqrtf(mean + (float)epsilon));
  for (int64_t i = 0; i < n; i += FLOATS) {
    __m512 y = _mm512_mul_ps(_mm512_mul_ps(_mm512_loadu_ps(in + i), inverse), _mm512_loadu_ps(weight + i));
    _mm512_storeu_ps((float *)out + i, y);
  }
}

static void rope_avx512(void *x, const void *table, int64_t pairs, double scale) {
  if (pairs % FLOATS) {
    rope_f32(x, table, pairs, scale);
    return;
  }
  const __m512i even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
  const __m512i odd = _mm512_or_si512(even, _mm512_set1_epi32(1));
  const __m512 z = _mm512_set1_ps((float)scale);
  float *v = (float *)x;
  const float *cs = (const float *)table;
  for (int64_t i = 0; i < pairs; i += FLOATS) {
    __m512 low = _mm512_loadu_ps(cs + 2 * i), high = _mm512_loadu_ps(cs + 2 * i + FLOATS);
    __m512 c = _mm512_permutex2var_ps(low, even, high), s = _mm512_permutex2var_ps(low, odd, high);
    __m512 a = _mm512_loadu_ps(v + i), b = _mm512_loadu_ps(v + i + pairs);
    _mm512_storeu_ps(v + i, _mm512_mul_ps(_mm512_fmsub_ps(a, c, _mm512_mul_ps(b, s)), z));
    _mm512_storeu_ps(v + i + pairs, _mm512_mul_ps(_mm512_fmadd_ps(a, s, _mm512_mul_ps(b, c)), z));
  }
}

static void swiglu_avx512(void *gate, const void *up, int64_t n) {
  float *g = (float *)gate;
  const float *u = (const float *)up;
  const __m512 one = _mm512_set1_ps(1.0f), minus = _mm512_set1_ps(-0.0f);
  int64_t i = 0;
  for (; i + FLOATS <= n; i += FLOATS) {
    __m512 z = _mm512_loadu_ps(g + i);
    __m512 silu = _mm512_div_ps(z, _mm512_add_ps(one, exp_lanes(_mm512_xor_ps(z, minus))));
    _mm512_storeu_ps(g + i, _mm512_mul_ps(silu, _mm512_loadu_ps(u + i)));
  }
  swiglu_f32(g + i, u + i, n - i);
}

static void combine_avx512(void *x, const void *const *slot, const void *weight, int64_t k, int64_t n) {
  if (n % FLOATS) {
    combine_f32(x, slot, weight, k, n);
    return;
  }
  const float *w = (const float *)weight;
  for (int64_t i = 0; i < n; i += FLOATS) {
    __m512 sum = _mm512_mul_ps(_mm512_set1_ps(w[0]), _mm512_loadu_ps((const float *)slot[0] + i));
    for (int64_t s = 1; s < k; s++)
      sum = _mm512_fmadd_ps(_mm512_set1_ps(w[s]), _mm512_loadu_ps((const float *)slot[s] + i), sum);
    float *at = (float *)x + i;
    _mm512_storeu_ps(at, _mm512_add_ps(_mm512_loadu_ps(at), sum));
  }
}

static void kv_store_avx512(kv_head *kv, int64_t position, const void *k, const void *v, int64_t head_dim) {
  if (kv->storage != KV_HALF || head_dim % FLOATS) {
    kv_store_f32(kv, position, k, v, head_dim);
    return;
  }
  int64_t chunk = position / ATTENTION_CHUNK, j = position % ATTENTION_CHUNK;
  uint16_t *keys = (uint16_t *)kv->keys + chunk * head_dim * ATTENTION_CHUNK + j;
  uint16_t *values = (uint16_t *)kv->values + position * head_dim;
  for (int64_t d = 0; d < head_dim; d += FLOATS) {
    uint16_t key[FLOATS];
    __m256i value = _mm512_cvtps_ph(_mm512_loadu_ps((const float *)v + d), _MM_FROUND_TO_NEAREST_INT);
    _mm256_storeu_si256((__m256i *)(values + d), value);
    _mm256_storeu_si256((__m256i *)key,
                        _mm512_cvtps_ph(_mm512_loadu_ps((const float *)k + d), _MM_FROUND_TO_NEAREST_INT));
    for (int64_t i = 0; i < FLOATS; i++) keys[(d + i) * ATTENTION_CHUNK] = key[i];
  }
}

// ---- rounding to Q8_K ----

// The first element of largest magnitude.
static inline float extreme_of(const float *x) {
  __m512 most = _mm512_setzero_ps();
  for (int i = 0; i < QK_K; i += FLOATS) most = _mm512_max_ps(_mm512_abs_ps(_mm512_loadu_ps(x + i)), most);
  __m512 all = _mm512_set1_ps(_mm512_reduce_max_ps(most));
  for (int i = 0; i < QK_K; i += FLOATS) {
    __mmask16 here = _mm512_cmp_ps_mask(_mm512_abs_ps(_mm512_loadu_ps(x + i)), all, _CMP_EQ_OQ);
    if (here) return x[i + __builtin_ctz(here)];
  }
  return 0; // only where all are NaN
}

// Sums of 16 neighbours each: of the 64 bytes, into bsums[4].
static inline void sums_of_16(int16_t *bsums, __m512i bytes) {
  __m512i four = _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8(1), bytes);
  four = _mm512_add_epi32(four, _mm512_shuffle_epi32(four, _MM_PERM_BADC));
  four = _mm512_add_epi32(four, _mm512_shuffle_epi32(four, _MM_PERM_CDAB));
  for (int i = 0; i < 4; i++) {
    int32_t sum[4][4];
    _mm512_storeu_si512(sum, four);
    bsums[i] = (int16_t)sum[i][0];
  }
}

void quantize_q8k_avx512(block_q8_K *out, const float *x, int64_t n) {
  const __m512 magic = _mm512_set1_ps(12582912.0f);
  const __m512i mantissa = _mm512_set1_epi32(0x007fffff), middle = _mm512_set1_epi32(0x00400000);
  for (int64_t b = 0; b < n / QK_K; b++, x += QK_K, out++) {
    float extreme = extreme_of(x);
    if (extreme == 0) {
      memset(out, 0, sizeof *out);
      continue;
    }
    float inverse = num_q8k_inverse_scale(extreme);
    const __m512 scale = _mm512_set1_ps(inverse);
    for (int i = 0; i < QK_K; i += FLOATS) {
      __m512 shifted = _mm512_add_ps(_mm512_mul_ps(scale, _mm512_loadu_ps(x + i)), magic);
      __m512i q = _mm512_sub_epi32(_mm512_and_si512(_mm512_castps_si512(shifted), mantissa), middle);
      q = _mm512_min_epi32(q, _mm512_set1_epi32(127));
      _mm_storeu_si128((__m128i *)(out->qs + i), _mm512_cvtepi32_epi8(q));
    }
    for (int i = 0; i < 4; i++) sums_of_16(out->bsums + 4 * i, _mm512_loadu_si512(out->qs + 64 * i));
    out->d = 1.0f / inverse;
  }
}
