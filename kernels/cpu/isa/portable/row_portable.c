#include "kernels/cpu/isa/each_row/generic.h"

static bool usable_portable(void) {
  return true;
}

const cpu_row cpu_row_portable = {
    .name = "portable",
    .usable = usable_portable,
    .f32 = &ops_f32,
    .f64 = &ops_f64,
    .exact = &exact_ops_generic,
    .quantize_q8k = quantize_q8k_generic,
    .product_q8k = product_q8k_generic,
    .split_q8k = split_q8k_generic,
    .add_outliers = add_outliers_generic,
    .product_unpacked = product_unpacked_generic,
    .round_q8_0 = round_q8_0_generic,
    .product_q8_0 = product_q8_0_generic,
    .add_outliers_few_bits = add_outliers_few_bits,
};
