// Golden data of ggml (tests/golden/ggml): Q8_K blocks and dequantised weights bit for bit in every row of
// the cpu backend, quantised weights byte for byte, and dot products closely, for their sums have another
// order there.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include "base/memory.h"
#include "kernels/cpu/row.h"
#include "kernels/formats/half.h"
#include "kernels/formats/numerics_base.h"
#include "kernels/formats/quantize.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { DOT_ROWS = 8, DOT_BLOCKS = 3 };

static void *golden(const char *name, size_t item, size_t *count) {
  char path[512];
  snprintf(path, sizeof path, "%s/tests/golden/ggml/%s", MOE_SOURCE_DIR, name);
  FILE *f = fopen(path, "rb");
  if (!f) fail_msg("%s cannot be opened", path);
  fseek(f, 0, SEEK_END);
  size_t bytes = (size_t)ftell(f);
  rewind(f);
  void *data;
  assert_int_equal(memory_take(&data, bytes, 1, path), 0);
  assert_int_equal(fread(data, 1, bytes, f), bytes);
  fclose(f);
  assert_true(bytes > 0 && bytes % item == 0);
  *count = bytes / item;
  return data;
}

static const char *only; // the row that was asked for, NULL: all

static void q8k_blocks_are_those_of_ggml(void **state) {
  (void)state;
  size_t n_floats, n_blocks;
  float *x = golden("q8_K.x.f32", sizeof *x, &n_floats);
  block_q8_K *wanted = golden("q8_K.blocks", sizeof *wanted, &n_blocks), *found;
  assert_int_equal(n_floats, n_blocks * QK_K);
  assert_true(n_blocks >= 90);
  for (const cpu_row *const *row = cpu_row_table(); *row; row++) {
    if (!(*row)->usable() || (only && strcmp(only, (*row)->name))) continue;
    assert_int_equal(TAKE(&found, n_blocks, "blocks"), 0);
    memset(found, 0xa5, n_blocks * sizeof *found);
    (*row)->quantize_q8k(found, x, (int64_t)n_floats);
    for (size_t b = 0; b < n_blocks; b++)
      if (memcmp(&found[b], &wanted[b], sizeof *found))
        fail_msg("row %s, block %zu: scale %a, expected %a; first quant %d, expected %d", (*row)->name, b,
                 (double)found[b].d, (double)wanted[b].d, found[b].qs[0], wanted[b].qs[0]);
    free(found);
  }
  free(x);
  free(wanted);
}

// Blocks in which a fused multiply-add gives another integer: without them the test above could not tell.
static void q8k_golden_data_tell_contraction(void **state) {
  (void)state;
  size_t n, differ = 0;
  float *x = golden("q8_K.x.f32", sizeof *x, &n);
  block_q8_K *wanted = golden("q8_K.blocks", sizeof *wanted, &n);
  for (size_t b = 0; b < n; b++) {
    float extreme = 0;
    for (int i = 0; i < QK_K; i++)
      if (fabsf(x[b * QK_K + i]) > fabsf(extreme)) extreme = x[b * QK_K + i];
    float inverse = -127.0f / extreme;
    if (extreme == 0 || isinf(inverse)) continue;
    for (int i = 0; i < QK_K; i++) {
      float fused = fmaf(inverse, x[b * QK_K + i], 12582912.0f) - 12582912.0f;
      differ += fminf(fused, 127) != (float)wanted[b].qs[i];
    }
  }
  print_message("contraction would change %zu quants of the golden blocks\n", differ);
  assert_true(differ > 500);
  free(x);
  free(wanted);
}

static const struct {
  weight_type type;
  const char *blocks, *floats, *dots;
} kinds[] = {
    {TYPE_Q4_K, "q4_K.blocks", "q4_K.f32", "q4_K.dots.f32"},
    {TYPE_Q5_K, "q5_K.blocks", "q5_K.f32", "q5_K.dots.f32"},
    {TYPE_Q6_K, "q6_K.blocks", "q6_K.f32", "q6_K.dots.f32"},
    {TYPE_Q2_K, "q2_K.blocks", "q2_K.f32", "q2_K.dots.f32"},
    {TYPE_Q3_K, "q3_K.blocks", "q3_K.f32", "q3_K.dots.f32"},
    {TYPE_IQ4_XS, "iq4_xs.blocks", "iq4_xs.f32", "iq4_xs.dots.f32"},
    {TYPE_Q8_0, "q8_0.blocks", "q8_0.f32", "q8_0.dots.f32"},
    {TYPE_IQ4_NL, "iq4_nl.blocks", "iq4_nl.f32", "iq4_nl.dots.f32"},
    {TYPE_Q4_0, "q4_0.blocks", "q4_0.f32", "q4_0.dots.f32"},
    {TYPE_Q4_1, "q4_1.blocks", "q4_1.f32", "q4_1.dots.f32"},
    {TYPE_Q5_0, "q5_0.blocks", "q5_0.f32", "q5_0.dots.f32"},
    {TYPE_Q5_1, "q5_1.blocks", "q5_1.f32", "q5_1.dots.f32"},
    {TYPE_MXFP4, "mxfp4.blocks", "mxfp4.f32", "mxfp4.dots.f32"},
};
enum { N_KINDS = sizeof kinds / sizeof *kinds };

static void dequantised_weights_are_those_of_ggml(void **state) {
  (void)state;
  for (int k = 0; k < N_KINDS; k++) {
    size_t n_blocks, n_floats;
    char *blocks = golden(kinds[k].blocks, type_find(kinds[k].type)->bytes, &n_blocks);
    float *wanted = golden(kinds[k].floats, sizeof *wanted, &n_floats), *found;
    assert_int_equal(n_floats, n_blocks * type_find(kinds[k].type)->elements);
    assert_int_equal(TAKE(&found, n_floats, "weights"), 0);
    dequantize_row(found, kinds[k].type, blocks, n_floats);
    for (size_t i = 0; i < n_floats; i++)
      if (num_bits_f32(found[i]) != num_bits_f32(wanted[i]))
        fail_msg("%s: weight %zu: %a, expected %a", kinds[k].floats, i, (double)found[i], (double)wanted[i]);
    free(blocks);
    free(wanted);
    free(found);
  }
}

static void quantised_weights_are_those_of_ggml(void **state) {
  (void)state;
  static const struct {
    weight_type type;
    const char *blocks;
  } quantised[] = {{TYPE_Q4_K, "q4_K.quantised"}, {TYPE_Q6_K, "q6_K.quantised"}};
  size_t n_floats;
  float *x = golden("weights.f32", sizeof *x, &n_floats);
  for (size_t k = 0; k < sizeof quantised / sizeof *quantised; k++) {
    size_t n_blocks, bytes = type_find(quantised[k].type)->bytes;
    char *wanted = golden(quantised[k].blocks, bytes, &n_blocks), *found;
    assert_int_equal(n_floats, n_blocks * QK_K);
    assert_int_equal(TAKE(&found, n_blocks * bytes, "blocks"), 0);
    assert_true(quantize_has(quantised[k].type));
    quantize_row(found, quantised[k].type, x, n_floats);
    for (size_t i = 0; i < n_blocks * bytes; i++)
      if (found[i] != wanted[i])
        fail_msg("%s: block %zu, byte %zu: %d, expected %d", quantised[k].blocks, i / bytes, i % bytes,
                 found[i], wanted[i]);
    free(wanted);
    free(found);
  }
  free(x);
}

static void q8_0_and_q8_1_blocks_are_those_of_ggml(void **state) {
  (void)state;
  typedef struct {
    uint16_t d, s;
    int8_t qs[QK_32];
  } block_q8_1;
  size_t n_floats, n;
  float *x = golden("q8_32.x.f32", sizeof *x, &n_floats);
  block_q8_0 *zero = golden("q8_0.rounded", sizeof *zero, &n);
  block_q8_1 *one = golden("q8_1.rounded", sizeof *one, &n);
  block_q8_32 *found;
  assert_int_equal(n_floats, n * QK_32);
  assert_true(n > 400);
  assert_int_equal(TAKE(&found, n, "blocks"), 0);
  for (const cpu_row *const *row = cpu_row_table(); *row; row++) {
    if (!(*row)->usable() || (only && strcmp(only, (*row)->name))) continue;
    (*row)->round_q8_0(found, NULL, x, (int64_t)n_floats);
    for (size_t b = 0; b < n; b++) {
      assert_memory_equal(found[b].qs, zero[b].qs, QK_32);
      assert_memory_equal(found[b].qs, one[b].qs, QK_32);
      assert_int_equal(num_bits_f32(found[b].d), num_bits_f32(half_to_f32(zero[b].d)));
      assert_int_equal(num_bits_f32(found[b].d), num_bits_f32(half_to_f32(one[b].d)));
      assert_int_equal(num_bits_f32(found[b].s), num_bits_f32(half_to_f32(one[b].s)));
    }
  }
  free(x);
  free(zero);
  free(one);
  free(found);
}

// The first 24 blocks of Q8_1 as 8 rows of 3; in each the scale and sum widened, as block_q8_32 has them.
static void rows_of_32(block_q8_32 *out) {
  size_t n;
  uint8_t *blocks = golden("q8_1.rounded", 36, &n);
  for (int b = 0; b < DOT_ROWS * DOT_BLOCKS; b++) {
    uint16_t half[2];
    memcpy(half, blocks + 36 * b, sizeof half);
    out[b] = (block_q8_32){.d = half_to_f32(half[0]), .s = half_to_f32(half[1])};
    memcpy(out[b].qs, blocks + 36 * b + 4, QK_32);
    for (int i = 0; i < QK_32; i++) out[b].sum += out[b].qs[i];
  }
  free(blocks);
}

static double dots_error(const cpu_row *row, int kind) {
  size_t n;
  char *weights = golden(kinds[kind].blocks, type_find(kinds[kind].type)->bytes, &n);
  float *wanted = golden(kinds[kind].dots, sizeof *wanted, &n), found[DOT_ROWS][DOT_ROWS], *out[DOT_ROWS];
  assert_int_equal(n, DOT_ROWS * DOT_ROWS);
  block_q8_K *blocks = golden("q8_K.blocks", sizeof *blocks, &n);
  block_q8_32 of_32[DOT_ROWS * DOT_BLOCKS];
  const type_info *type = type_find(kinds[kind].type);
  bool is_of_32 = type->elements == QK_32;
  const block_q8_K *x[DOT_ROWS];
  rows_of_32(of_32);
  for (int t = 0; t < DOT_ROWS; t++) {
    x[t] =
        is_of_32 ? (const block_q8_K *)(const void *)(of_32 + (t + 1) * DOT_BLOCKS) : blocks + t * DOT_BLOCKS;
    out[t] = found[t];
  }
  const matrix rows = {weights, type->type, DOT_ROWS, DOT_BLOCKS * (int64_t)type->elements};
  if (is_of_32)
    row->product_q8_0(out, &rows, x, DOT_ROWS); // which reads what lies before x
  else
    (type->few_bits ? row->product_unpacked : row->product_q8k)(out, &rows, x, DOT_ROWS);
  double error = 0, size = 0;
  for (int r = 0; r < DOT_ROWS; r++)
    for (int t = 0; t < DOT_ROWS; t++) {
      if (!isfinite(wanted[r * DOT_ROWS + t]))
        continue; // MXFP4's largest scale, for which a model is refused
      double y = (double)wanted[r * DOT_ROWS + t], difference = (double)found[t][r] - y;
      error += difference * difference;
      size += y * y;
    }
  free(weights);
  free(wanted);
  free(blocks);
  return sqrt(error / size);
}

static void dot_products_are_close_to_those_of_ggml(void **state) {
  (void)state;
  for (const cpu_row *const *row = cpu_row_table(); *row; row++)
    for (int k = 0; k < N_KINDS && (*row)->usable(); k++) {
      if (!kinds[k].dots) continue;
      double error = dots_error(*row, k);
      print_message("row %s, %s: rel_l2 %.1e\n", (*row)->name, kinds[k].dots, error);
      assert_true(error < 1e-6);
    }
}

// test_golden [ROW]: this row's blocks alone, for the planted ones (../support/planted_rows.c).
int main(int argc, char **argv) {
  if (argc > 1) only = argv[1];
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(q8k_blocks_are_those_of_ggml),
      cmocka_unit_test(q8k_golden_data_tell_contraction),
      cmocka_unit_test(q8_0_and_q8_1_blocks_are_those_of_ggml),
      cmocka_unit_test(dequantised_weights_are_those_of_ggml),
      cmocka_unit_test(quantised_weights_are_those_of_ggml),
      cmocka_unit_test(dot_products_are_close_to_those_of_ggml),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
