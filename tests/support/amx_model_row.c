// amx_model_row: a table of rows with one more, the products of the row amx_int8 on modelled tiles, so that
// the tests of rows and products see that kernel on a machine without tiles. Linked into them before the
// library, whose table (kernels/cpu/rows.c) is then not linked.
#include "tests/support/amx_model.h"
#include "kernels/cpu/isa/amx_int8/amx_blocks_32.h"
#include "kernels/cpu/isa/amx_int8/amx_exact.h"
#include "kernels/cpu/isa/amx_int8/amx_q8k.h"
#include "kernels/cpu/isa/avx512/avx512_row.h"
#include "kernels/cpu/isa/each_row/generic.h"
#include "kernels/table.h"
#include "tests/support/packed_product.h"

// For few tokens too, which the steps leave to another row's kernel.
static void product_q8k_amx_model(float *const *out, const matrix *m, const block_q8_K *const *x, int64_t n) {
  product_packing(&packed_ops_amx, out, m, x, n);
}

static void product_unpacked_amx_model(float *const *out, const matrix *m, const block_q8_K *const *x,
                                       int64_t n) {
  if (packed_ops_amx.takes(m->type))
    product_q8k_amx_model(out, m, x, n);
  else
    product_unpacked_generic(out, m, x, n);
}

static void product_q8_0_amx_model(float *const *out, const matrix *m, const block_q8_K *const *x,
                                   int64_t n) {
  if (packed_ops_32_amx.takes(m->type))
    product_packing(&packed_ops_32_amx, out, m, x, n);
  else
    product_q8_0_generic(out, m, x, n);
}

static const cpu_row amx_model = {
    .name = "amx_model",
    .usable = usable_avx512_vnni,
    .f32 = &ops_avx512,
    .f64 = &ops_f64,
    .exact = &exact_ops_amx,
    .quantize_q8k = quantize_q8k_avx512,
    .product_q8k = product_q8k_amx_model,
    .packed = &packed_ops_amx,
    .split_q8k = split_q8k_avx512,
    .add_outliers = add_outliers_avx512,
    .product_unpacked = product_unpacked_amx_model,
    .round_q8_0 = round_q8_0_generic,
    .product_q8_0 = product_q8_0_amx_model,
    .packed_32 = &packed_ops_32_amx,
    .add_outliers_few_bits = add_outliers_few_bits,
};

const cpu_row *const *cpu_row_table(void) {
  static const cpu_row *const table[] = {&amx_model, CPU_ROW_TABLE_ROWS NULL};
  return table;
}

const cpu_row *cpu_row_find(const char *name) {
  for (const cpu_row *const *row = cpu_row_table(); *row; row++)
    if (!strcmp(name, (*row)->name) && (*row)->usable()) return *row;
  return NULL;
}
