// row_avx2: compiled with AVX2, FMA and F16C; the portable kernels, vectorised by the compiler lane by lane,
// but for products and attention in integers.
#include "kernels/cpu/isa/avx2/avx2_blocks_32.h"
#include "kernels/cpu/isa/avx2/avx2_exact.h"
#include "kernels/cpu/isa/avx2/avx2_f32.h"
#include "kernels/cpu/isa/avx2/avx2_q8k.h"
#include "kernels/cpu/isa/avx2/avx2_vector.h"
#include "kernels/cpu/isa/each_row/generic.h"

static bool usable_avx2(void) {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

static const real_ops ops_avx2 = {
    .bytes = sizeof(float),
    .embed = embed_f32,
    .rms_norm = rms_norm_f32,
    .rope = rope_f32,
    .rope_table = rope_table_f32,
    .kv_store = kv_store_f32,
    .attend = attend_f32,
    .route = route_f32,
    .swiglu = swiglu_f32,
    .add = add_f32,
    .combine = combine_f32,
    .product = product_f32,
    .product_tile = product_tile_avx2,
    .vector_takes = takes_vector_q8k,
    .vector_rounded = vector_rounded_avx2,
};

static double int8_peak_avx2(int64_t rounds) {
  enum { SUMS = 8 };
  __m256i sum[SUMS], x = _mm256_set1_epi8(1), ones = _mm256_set1_epi16(1);
  for (int i = 0; i < SUMS; i++) sum[i] = _mm256_setzero_si256();
  for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 8
    for (int i = 0; i < SUMS; i++) {
      __asm__ volatile("" : "+x"(x)); // each is computed
      sum[i] = _mm256_add_epi32(sum[i], _mm256_madd_epi16(_mm256_maddubs_epi16(x, x), ones));
      __asm__ volatile("" : "+x"(sum[i]));
    }
  }
  return 2.0 * SUMS * 32 * (double)rounds;
}

const cpu_row cpu_row_avx2 = {
    .name = "avx2",
    .usable = usable_avx2,
    .f32 = &ops_avx2,
    .f64 = &ops_f64,
    .exact = &exact_ops_avx2,
    .quantize_q8k = quantize_q8k_generic,
    .product_q8k = product_q8k_avx2,
    .split_q8k = split_q8k_generic,
    .add_outliers = add_outliers_generic,
    .product_unpacked = product_q8k_avx2,
    .round_q8_0 = round_q8_0_generic,
    .product_q8_0 = product_q8_0_avx2,
    .add_outliers_few_bits = add_outliers_few_bits,
    .int8_peak = int8_peak_avx2,
};
