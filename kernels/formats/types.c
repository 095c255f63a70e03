#include "kernels/formats/types.h"
#include "kernels/formats/each_row/dequantize.h"
#include <stdbool.h>
#include <stdio.h>

enum {
  FEW_BITS_REAL,
  FEW_BITS_Q8K = 0,
  FEW_BITS_BYTES = 0,
  FEW_BITS_UNPACKED,
  FEW_BITS_Q8_0 = 1,
  FEW_BITS_Q8_1 = 1
};
#define TYPE_INFO(name, number, block, elements, on_q8k)                                                     \
  {TYPE_##name, #name, elements, sizeof(block_##block), ACTIVATION_##on_q8k, FEW_BITS_##on_q8k},
static const type_info types[] = {WEIGHT_TYPES(TYPE_INFO)};
#undef TYPE_INFO

// Every number that ggml's enum ggml_type has given out; the gaps (Q4_2, Q4_3, the interleaved Q4_0 and
// IQ4_NL layouts) were withdrawn and may still be found in old files.
static const char *const names[] = {
    [0] = "F32",     [1] = "F16",         [2] = "Q4_0",        [3] = "Q4_1",        [4] = "Q4_2",
    [5] = "Q4_3",    [6] = "Q5_0",        [7] = "Q5_1",        [8] = "Q8_0",        [9] = "Q8_1",
    [10] = "Q2_K",   [11] = "Q3_K",       [12] = "Q4_K",       [13] = "Q5_K",       [14] = "Q6_K",
    [15] = "Q8_K",   [16] = "IQ2_XXS",    [17] = "IQ2_XS",     [18] = "IQ3_XXS",    [19] = "IQ1_S",
    [20] = "IQ4_NL", [21] = "IQ3_S",      [22] = "IQ2_S",      [23] = "IQ4_XS",     [24] = "I8",
    [25] = "I16",    [26] = "I32",        [27] = "I64",        [28] = "F64",        [29] = "IQ1_M",
    [30] = "BF16",   [31] = "Q4_0_4_4",   [32] = "Q4_0_4_8",   [33] = "Q4_0_8_8",   [34] = "TQ1_0",
    [35] = "TQ2_0",  [36] = "IQ4_NL_4_4", [37] = "IQ4_NL_4_8", [38] = "IQ4_NL_8_8", [39] = "MXFP4",
    [40] = "NVFP4",  [41] = "Q1_0",
};

const type_info *type_find(uint32_t ggml_type) {
  for (size_t i = 0; i < sizeof types / sizeof *types; i++)
    if (types[i].type == (weight_type)ggml_type) return &types[i];
  return NULL;
}

bool type_has_q8k_kernels(weight_type type) {
  const type_info *info = type_find(type);
  return info->on_q8k == ACTIVATION_Q8K && !info->few_bits;
}

const char *type_name_any(uint32_t ggml_type) {
  static _Thread_local char unknown[24];
  if (ggml_type < sizeof names / sizeof *names) return names[ggml_type];
  snprintf(unknown, sizeof unknown, "type %u", (unsigned)ggml_type);
  return unknown;
}

void dequantize_row(float *out, weight_type type, const void *row, size_t n) {
  dequantize(out, type, row, n);
}

// ---- finite weights: with finite scales all of a block are, for 65504 * 127 * 32 fits f32 ----

static bool is_finite_f32(const block_f32 *block) {
  return (num_bits_f32(*block) & 0x7f800000u) != 0x7f800000u;
}

static bool is_finite_f16(const block_f16 *block) {
  return (*block & 0x7c00u) != 0x7c00u;
}

static bool is_finite_bf16(const block_bf16 *block) {
  return (*block & 0x7f80u) != 0x7f80u;
}

static bool is_finite_q8_0(const block_q8_0 *block) {
  return is_finite_f16(&block->d);
}

static bool is_finite_q4_K(const block_q4_K *block) {
  return is_finite_f16(&block->d) && is_finite_f16(&block->dmin);
}

static bool is_finite_q5_K(const block_q5_K *block) {
  return is_finite_f16(&block->d) && is_finite_f16(&block->dmin);
}

static bool is_finite_q6_K(const block_q6_K *block) {
  return is_finite_f16(&block->d);
}

static bool is_finite_q2_K(const block_q2_K *block) {
  return is_finite_f16(&block->d) && is_finite_f16(&block->dmin);
}

static bool is_finite_q3_K(const block_q3_K *block) {
  return is_finite_f16(&block->d);
}

static bool is_finite_iq4_xs(const block_iq4_xs *block) {
  return is_finite_f16(&block->d);
}

static bool is_finite_iq4_nl(const block_iq4_nl *block) {
  return is_finite_f16(&block->d);
}

static bool is_finite_q4_0(const block_q4_0 *block) {
  return is_finite_f16(&block->d);
}

static bool is_finite_q4_1(const block_q4_1 *block) {
  return is_finite_f16(&block->d) && is_finite_f16(&block->m);
}

static bool is_finite_q5_0(const block_q5_0 *block) {
  return is_finite_f16(&block->d);
}

static bool is_finite_q5_1(const block_q5_1 *block) {
  return is_finite_f16(&block->d) && is_finite_f16(&block->m);
}

// The largest quant is 12, and 2^(253 - 128) * 12 does not fit f32; 255 is E8M0's NaN.
static bool is_finite_mxfp4(const block_mxfp4 *block) {
  return block->e <= 252;
}

int64_t row_first_not_finite(weight_type type, const void *row, size_t n) {
#define FIRST_NOT_FINITE(name, number, block, elements, on_q8k)                                              \
  case TYPE_##name:                                                                                          \
    for (size_t b = 0; b < n / elements; b++)                                                                \
      if (!is_finite_##block((const block_##block *)row + b)) return (int64_t)b;                             \
    break;
  switch (type) { WEIGHT_TYPES(FIRST_NOT_FINITE) }
#undef FIRST_NOT_FINITE
  return -1;
}
