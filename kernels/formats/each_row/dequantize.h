// dequantize: blocks to floats in plain C, static, so that each ISA row of the cpu backend compiles it for
// its instruction set; dequantize_row of types.h is this one for any caller.
//
// Owns: the order of a block's bits (of few bits: few_bits.h) and of the float operations in a weight.
// Invariant: they are those of ggml's dequantize_row_*, each rounded once. Built with contraction off: a
// fused d * q - m would be another weight.
#pragma once
#include "kernels/formats/blocks.h"
#include "kernels/formats/few_bits.h"
#include "kernels/formats/half.h"

static inline void dequantize_f32(float *restrict out, const block_f32 *restrict block) {
  *out = *block;
}

static inline void dequantize_f16(float *restrict out, const block_f16 *restrict block) {
  *out = half_to_f32(*block);
}

static inline void dequantize_bf16(float *restrict out, const block_bf16 *restrict block) {
  *out = bf16_to_f32(*block);
}

// fifth: the fifth bits of Q5_K's quants; NULL: Q4_K.
static inline void dequantize_with_minimums(float *restrict out, float d, float dmin, const uint8_t *scales,
                                            const uint8_t *qs, const uint8_t *fifth) {
  for (int j = 0; j < QK_K / 32; j++) {
    int scale, min;
    block_scale_min(&scale, &min, scales, j);
    float step = d * (float)scale, base = dmin * (float)min;
    const uint8_t *q = qs + j / 2 * 32;
    for (int i = 0; i < 32; i++) {
      int low = (q[i] >> (j % 2 * 4)) & 15, high = fifth ? (fifth[i] >> j) & 1 : 0;
      out[j * 32 + i] = step * (float)(low + 16 * high) - base;
    }
  }
}

static inline void dequantize_q4_K(float *restrict out, const block_q4_K *restrict block) {
  dequantize_with_minimums(out, half_to_f32(block->d), half_to_f32(block->dmin), block->scales, block->qs,
                           NULL);
}

static inline void dequantize_q5_K(float *restrict out, const block_q5_K *restrict block) {
  dequantize_with_minimums(out, half_to_f32(block->d), half_to_f32(block->dmin), block->scales, block->qs,
                           block->qh);
}

// Each half of 128 elements has 64 bytes ql and 32 bytes qh; its four groups of 32 take the low then the high
// nibbles of ql (two groups each) and successive bit pairs of qh. A sub-block j is half of a group.
static inline void dequantize_q6_K(float *restrict out, const block_q6_K *restrict block) {
  float d = half_to_f32(block->d);
  for (int j = 0; j < QK_K / 16; j++) {
    int half = j / 8, g = j / 2 % 4;
    const uint8_t *ql = block->ql + half * 64 + g % 2 * 32 + j % 2 * 16,
                  *qh = block->qh + half * 32 + j % 2 * 16;
    float step = d * (float)block->scales[j];
    for (int i = 0; i < 16; i++) {
      int low = (ql[i] >> (g / 2 * 4)) & 15, high = (qh[i] >> (g * 2)) & 3;
      out[j * 16 + i] = step * (float)((low | high << 4) - 32);
    }
  }
}

// ---- types of few bits: a loop over what few_bits.h says of an element ----

#define DEQUANTIZE_REAL(name)
#define DEQUANTIZE_Q8K(name)
#define DEQUANTIZE_UNPACKED(name)                                                                            \
  static inline void dequantize_##name(float *restrict out, const block_##name *restrict block) {            \
    block_factors f = factors_##name(block);                                                                 \
    for (int i = 0; i < QK_K; i++) out[i] = weight_of_parts(f, parts_##name(block, i));                      \
  }
#define DEQUANTIZE_BYTES(name)                                                                               \
  static inline void dequantize_##name(float *restrict out, const block_##name *restrict block) {            \
    block_factors f = factors_##name(block);                                                                 \
    for (int i = 0; i < QK_32; i++) out[i] = weight_of_quant(f, quant_##name(block, i));                     \
  }
#define DEQUANTIZE_Q8_0                                            DEQUANTIZE_BYTES
#define DEQUANTIZE_Q8_1                                            DEQUANTIZE_BYTES
#define DEQUANTIZE_FEW_BITS(name, number, block, elements, on_q8k) DEQUANTIZE_##on_q8k(block)
WEIGHT_TYPES(DEQUANTIZE_FEW_BITS)
#undef DEQUANTIZE_FEW_BITS
#undef DEQUANTIZE_Q8_1
#undef DEQUANTIZE_Q8_0
#undef DEQUANTIZE_BYTES
#undef DEQUANTIZE_UNPACKED
#undef DEQUANTIZE_Q8K
#undef DEQUANTIZE_REAL

static inline void dequantize(float *restrict out, weight_type type, const void *restrict row, size_t n) {
#define DEQUANTIZE(name, number, block, elements, on_q8k)                                                    \
  case TYPE_##name:                                                                                          \
    for (size_t b = 0; b < n / elements; b++)                                                                \
      dequantize_##block(out + b * elements, (const block_##block *)row + b);                                \
    break;
  switch (type) { WEIGHT_TYPES(DEQUANTIZE) }
#undef DEQUANTIZE
}
