// row_avx512_vnni: AVX-512 F, BW, DQ, VL and VNNI (Zen 4 and 5, Ice Lake and later Xeons).
#include "kernels/cpu/isa/avx512/avx512_attention.h"
#include "kernels/cpu/isa/avx512/avx512_blocks_32.h"
#include "kernels/cpu/isa/avx512/avx512_exact.h"
#include "kernels/cpu/isa/avx512/avx512_f32.h"
#include "kernels/cpu/isa/avx512/avx512_outliers.h"
#include "kernels/cpu/isa/avx512/avx512_q8k.h"
#include "kernels/cpu/isa/avx512/avx512_vector_32.h"

bool usable_avx512_vnni(void) {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("fma") &&
         __builtin_cpu_supports("f16c");
}

const real_ops ops_avx512 = {
    .bytes = sizeof(float),
    .embed = embed_f32,
    .rms_norm = rms_norm_avx512,
    .rope = rope_avx512,
    .rope_table = rope_table_f32,
    .kv_store = kv_store_avx512,
    .attend = attend_f32,
    .attend_span = attend_span_avx512,
    .route = route_f32,
    .swiglu = swiglu_avx512,
    .add = add_f32,
    .combine = combine_avx512,
    .product = product_f32_avx512,
    .product_tile = product_tile_avx512,
    .vector_takes = vector_takes_avx512,
    .vector_rounded = vector_rounded_avx512,
};

static const exact_ops exact_ops_avx512 = {
    .store = exact_store_avx512,
    .query = exact_query_avx512,
    .chunk = exact_chunk_avx512,
    .fold = exact_fold_avx512,
    .finish = exact_finish_generic,
    .attend = exact_attend,
};

static double int8_peak_vnni(int64_t rounds) {
  enum { SUMS = 12 }; // more than two units times the latency
  __m512i sum[SUMS], x = _mm512_set1_epi8(1);
  for (int i = 0; i < SUMS; i++) sum[i] = _mm512_setzero_si512();
  for (int64_t r = 0; r < rounds; r++) {
#pragma GCC unroll 12
    for (int i = 0; i < SUMS; i++) {
      sum[i] = _mm512_dpbusd_epi32(sum[i], x, x);
      __asm__ volatile("" : "+v"(sum[i])); // each is computed
    }
  }
  return 2.0 * SUMS * 64 * (double)rounds;
}

const cpu_row cpu_row_avx512_vnni = {
    .name = "avx512_vnni",
    .usable = usable_avx512_vnni,
    .f32 = &ops_avx512,
    .f64 = &ops_f64,
    .exact = &exact_ops_avx512,
    .quantize_q8k = quantize_q8k_avx512,
    .product_q8k = product_q8k_avx512,
    .split_q8k = split_q8k_avx512,
    .add_outliers = add_outliers_avx512,
    .product_unpacked = product_q8k_avx512,
    .round_q8_0 = round_q8_0_generic,
    .product_q8_0 = product_q8_0_avx512,
    .add_outliers_few_bits = add_outliers_few_bits,
    .int8_peak = int8_peak_vnni,
};
