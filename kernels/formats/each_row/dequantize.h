// dequantize: blocks to floats in plain C, static, so that each ISA row of the cpu backend compiles it for
// its instruction set; dequantize_row of types.h is this one for any caller.
//
// Owns: the order of a block's bits and of the float operations in a weight. Invariant: they are those of
// ggml's dequantize_row_*, each rounded once. Built with contraction off: a fused d * q - m would be another
// weight.
#pragma once
#include "kernels/formats/blocks.h"
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

static inline void dequantize_q8_0(float *restrict out, const block_q8_0 *restrict block) {
  float d = half_to_f32(block->d);
  for (int i = 0; i < QK8_0; i++) out[i] = (float)block->qs[i] * d;
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

// ---- types of few bits ----

// The values of a nibble: IQ4_XS and IQ4_NL have those nearest to a normal distribution (ggml's
// kvalues_iq4nl).
static const int8_t iq4_values[16] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                      1,    13,   25,  38,  53,  69,  89,  113};
// Twice the numbers of E2M1, so that they are integers; the scale is half of E8M0's.
static const int8_t fp4_values[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};

// Element i of Q2_K and Q3_K: two bits, by halves of 128, groups of 32 in them, bytes in these.
static inline int two_bits(const uint8_t *qs, int i) {
  return qs[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
}

static inline int q3k_scale(const block_q3_K *block, int j) {
  int low = block->scales[j % 8] >> (j / 8 * 4) & 15, high = block->scales[8 + j % 4] >> (j / 4 * 2) & 3;
  return (low | high << 4) - 32;
}

static inline int q3k_quant(const block_q3_K *block, int i) {
  return two_bits(block->qs, i) - (block->hmask[i % 32] >> (i / 32) & 1 ? 0 : 4);
}

static inline int iq4_xs_scale(const block_iq4_xs *block, int j) {
  int low = block->scales_l[j / 2] >> (j % 2 * 4) & 15, high = block->scales_h >> (j * 2) & 3;
  return (low | high << 4) - 32;
}

// Nibble i of a sub-block of 32: low ones of 16 bytes, then high ones.
static inline int nibble(const uint8_t *qs, int i) {
  return qs[i % 16] >> (i / 16 * 4) & 15;
}

static inline int fifth_bit(const uint8_t *qh, int i) {
  return (qh[i / 8] >> (i % 8) & 1) << 4;
}

static inline void dequantize_q2_K(float *restrict out, const block_q2_K *restrict block) {
  float d = half_to_f32(block->d), dmin = half_to_f32(block->dmin);
  for (int i = 0; i < QK_K; i++) {
    uint8_t s = block->scales[i / 16];
    out[i] = d * (float)(s & 15) * (float)two_bits(block->qs, i) - dmin * (float)(s >> 4);
  }
}

static inline void dequantize_q3_K(float *restrict out, const block_q3_K *restrict block) {
  float d = half_to_f32(block->d);
  for (int j = 0; j < QK_K / 16; j++) {
    float step = d * (float)q3k_scale(block, j);
    for (int i = j * 16; i < j * 16 + 16; i++) out[i] = step * (float)q3k_quant(block, i);
  }
}

static inline void dequantize_iq4_xs(float *restrict out, const block_iq4_xs *restrict block) {
  float d = half_to_f32(block->d);
  for (int j = 0; j < QK_K / 32; j++) {
    float step = d * (float)iq4_xs_scale(block, j);
    for (int i = 0; i < 32; i++) out[j * 32 + i] = step * (float)iq4_values[nibble(block->qs + j * 16, i)];
  }
}

static inline void dequantize_iq4_nl(float *restrict out, const block_iq4_nl *restrict block) {
  float d = half_to_f32(block->d);
  for (int i = 0; i < QK_32; i++) out[i] = d * (float)iq4_values[nibble(block->qs, i)];
}

static inline void dequantize_q4_0(float *restrict out, const block_q4_0 *restrict block) {
  float d = half_to_f32(block->d);
  for (int i = 0; i < QK_32; i++) out[i] = (float)(nibble(block->qs, i) - 8) * d;
}

static inline void dequantize_q4_1(float *restrict out, const block_q4_1 *restrict block) {
  float d = half_to_f32(block->d), m = half_to_f32(block->m);
  for (int i = 0; i < QK_32; i++) out[i] = (float)nibble(block->qs, i) * d + m;
}

static inline void dequantize_q5_0(float *restrict out, const block_q5_0 *restrict block) {
  float d = half_to_f32(block->d);
  for (int i = 0; i < QK_32; i++) out[i] = (float)((nibble(block->qs, i) | fifth_bit(block->qh, i)) - 16) * d;
}

static inline void dequantize_q5_1(float *restrict out, const block_q5_1 *restrict block) {
  float d = half_to_f32(block->d), m = half_to_f32(block->m);
  for (int i = 0; i < QK_32; i++) out[i] = (float)(nibble(block->qs, i) | fifth_bit(block->qh, i)) * d + m;
}

// 2^(e - 128): e of 0 and 1 are subnormal floats.
static inline void dequantize_mxfp4(float *restrict out, const block_mxfp4 *restrict block) {
  float d = num_from_bits_f32(block->e < 2 ? 0x00200000u << block->e : (uint32_t)(block->e - 1) << 23);
  for (int i = 0; i < QK_32; i++) out[i] = (float)fp4_values[nibble(block->qs, i)] * d;
}

static inline void dequantize(float *restrict out, weight_type type, const void *restrict row, size_t n) {
#define DEQUANTIZE(name, number, block, elements, on_q8k)                                                    \
  case TYPE_##name:                                                                                          \
    for (size_t b = 0; b < n / elements; b++)                                                                \
      dequantize_##block(out + b * elements, (const block_##block *)row + b);                                \
    break;
  switch (type) { WEIGHT_TYPES(DEQUANTIZE) }
#undef DEQUANTIZE
}
