// blocks: names and sizes of the stored types, which numbers of theirs are finite, and dequantisation for any
// caller.
//
// Owns: the table of types. Refuses to know: files, instruction sets.
#include "kernels/formats/blocks.h"
#include "kernels/formats/dequantize.h"
#include "kernels/formats/half.h"
#include <stdbool.h>
#include <stdio.h>

static const type_info types[] = {
    {TYPE_F32, "F32", 1, 4, 0},
    {TYPE_F16, "F16", 1, 2, 0},
    {TYPE_BF16, "BF16", 1, 2, 0},
    {TYPE_Q8_0, "Q8_0", QK8_0, sizeof(block_q8_0), 0},
    {TYPE_Q4_K, "Q4_K", QK_K, sizeof(block_q4_K), 1},
    {TYPE_Q5_K, "Q5_K", QK_K, sizeof(block_q5_K), 1},
    {TYPE_Q6_K, "Q6_K", QK_K, sizeof(block_q6_K), 1},
};

// Every number that ggml's enum ggml_type has given out; the gaps (Q4_2, Q4_3, the interleaved Q4_0 and
// IQ4_NL layouts) were withdrawn and may still stand in old files.
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

const char *type_name_any(uint32_t ggml_type) {
  static _Thread_local char unknown[24];
  if (ggml_type < sizeof names / sizeof *names) return names[ggml_type];
  snprintf(unknown, sizeof unknown, "type %u", (unsigned)ggml_type);
  return unknown;
}

void dequantize_row(float *out, weight_type type, const void *row, size_t n) {
  dequantize(out, type, row, n);
}

static bool half_is_finite(uint16_t h) {
  return (h & 0x7c00u) != 0x7c00u;
}

// Block (or value) b of a row. With finite scales every weight of a block is finite: 65504 * 127 * 32 fits
// f32.
static bool block_is_finite(weight_type type, const void *row, size_t b) {
  switch (type) {
  case TYPE_F32:
    return (num_bits_f32(((const float *)row)[b]) & 0x7f800000u) != 0x7f800000u;
  case TYPE_F16:
    return half_is_finite(((const uint16_t *)row)[b]);
  case TYPE_BF16:
    return (((const uint16_t *)row)[b] & 0x7f80u) != 0x7f80u;
  case TYPE_Q8_0:
    return half_is_finite(((const block_q8_0 *)row)[b].d);
  case TYPE_Q4_K: {
    const block_q4_K *block = (const block_q4_K *)row + b;
    return half_is_finite(block->d) && half_is_finite(block->dmin);
  }
  case TYPE_Q5_K: {
    const block_q5_K *block = (const block_q5_K *)row + b;
    return half_is_finite(block->d) && half_is_finite(block->dmin);
  }
  case TYPE_Q6_K:
    return half_is_finite(((const block_q6_K *)row)[b].d);
  }
  return false;
}

int64_t row_first_not_finite(weight_type type, const void *row, size_t n) {
  size_t blocks = n / type_find(type)->elements;
  for (size_t b = 0; b < blocks; b++)
    if (!block_is_finite(type, row, b)) return (int64_t)b;
  return -1;
}
