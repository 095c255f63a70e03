// blocks: names and sizes of the stored types, and the plain C dequantisation of each.
//
// Owns: the table of types; the order of float operations in a dequantised weight.
// Refuses to know: files, instruction sets.
// Invariant: each weight is computed by the float operations that ggml's dequantize_row_* does, in its order,
// each rounded once. Built with contraction off: a fused d * q - m would be another weight.
#include "kernels/blocks.h"
#include "kernels/half.h"
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

static void dequantize_q8_0(float *out, const block_q8_0 *block) {
  float d = half_to_f32(block->d);
  for (int i = 0; i < QK8_0; i++) out[i] = (float)block->qs[i] * d;
}

// Scale and minimum of sub-block j. The first four of each are the low 6 bits of bytes j and j + 4; the last
// four have their low nibbles in bytes 8 to 11 and their top two bits above those of the first four.
static void unpack_scale_min(int *scale, int *min, const uint8_t *packed, int j) {
  if (j < 4) {
    *scale = packed[j] & 63;
    *min = packed[j + 4] & 63;
  } else {
    *scale = (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4;
    *min = (packed[j + 4] >> 4) | (packed[j] >> 6) << 4;
  }
}

static void dequantize_q4_K(float *out, const block_q4_K *block) {
  float d = half_to_f32(block->d), dmin = half_to_f32(block->dmin);
  for (int j = 0; j < QK_K / 32; j++) {
    int scale, min;
    unpack_scale_min(&scale, &min, block->scales, j);
    float step = d * (float)scale, base = dmin * (float)min;
    const uint8_t *q = block->qs + j / 2 * 32;
    for (int i = 0; i < 32; i++) out[j * 32 + i] = step * (float)((q[i] >> (j % 2 * 4)) & 15) - base;
  }
}

static void dequantize_q5_K(float *out, const block_q5_K *block) {
  float d = half_to_f32(block->d), dmin = half_to_f32(block->dmin);
  for (int j = 0; j < QK_K / 32; j++) {
    int scale, min;
    unpack_scale_min(&scale, &min, block->scales, j);
    float step = d * (float)scale, base = dmin * (float)min;
    const uint8_t *q = block->qs + j / 2 * 32;
    for (int i = 0; i < 32; i++) {
      int low = (q[i] >> (j % 2 * 4)) & 15, high = (block->qh[i] >> j) & 1;
      out[j * 32 + i] = step * (float)(low + 16 * high) - base;
    }
  }
}

// Each half of 128 elements has 64 bytes ql and 32 bytes qh; its four groups of 32 take the low then the high
// nibbles of ql (two groups each) and successive bit pairs of qh.
static void dequantize_q6_K(float *out, const block_q6_K *block) {
  float d = half_to_f32(block->d);
  for (int group = 0; group < QK_K / 32; group++) {
    int half = group / 4, g = group % 4;
    const uint8_t *ql = block->ql + half * 64 + g % 2 * 32, *qh = block->qh + half * 32;
    for (int i = 0; i < 32; i++) {
      int low = (ql[i] >> (g / 2 * 4)) & 15, high = (qh[i] >> (g * 2)) & 3;
      float step = d * (float)block->scales[group * 2 + i / 16];
      out[group * 32 + i] = step * (float)((low | high << 4) - 32);
    }
  }
}

void dequantize_row(float *out, weight_type type, const void *row, size_t n) {
  switch (type) {
  case TYPE_F32:
    memcpy(out, row, n * sizeof *out);
    break;
  case TYPE_F16:
    for (size_t i = 0; i < n; i++) out[i] = half_to_f32(((const uint16_t *)row)[i]);
    break;
  case TYPE_BF16:
    for (size_t i = 0; i < n; i++) out[i] = bf16_to_f32(((const uint16_t *)row)[i]);
    break;
  case TYPE_Q8_0:
    for (size_t b = 0; b < n / QK8_0; b++) dequantize_q8_0(out + b * QK8_0, (const block_q8_0 *)row + b);
    break;
  case TYPE_Q4_K:
    for (size_t b = 0; b < n / QK_K; b++) dequantize_q4_K(out + b * QK_K, (const block_q4_K *)row + b);
    break;
  case TYPE_Q5_K:
    for (size_t b = 0; b < n / QK_K; b++) dequantize_q5_K(out + b * QK_K, (const block_q5_K *)row + b);
    break;
  case TYPE_Q6_K:
    for (size_t b = 0; b < n / QK_K; b++) dequantize_q6_K(out + b * QK_K, (const block_q6_K *)row + b);
    break;
  }
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
