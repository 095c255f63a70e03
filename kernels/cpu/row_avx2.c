// row_avx2: compiled with AVX2, FMA and F16C; the portable kernels, vectorised by the compiler lane by lane,
// but for products with rounded activations.
#include "kernels/cpu/avx2_q8k.h"
#include "kernels/cpu/generic.h"

static bool usable_avx2(void) {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

const cpu_row cpu_row_avx2 = {
    .name = "avx2",
    .usable = usable_avx2,
    .f32 = &ops_f32,
    .f64 = &ops_f64,
    .quantize_q8k = quantize_q8k_generic,
    .product_q8k = product_q8k_avx2,
};
