// few_bits: the weights of a block of few bits, one element at a time, for the C compiler and for nvcc. From
// these come dequantisation (each_row/dequantize.h), the products of each ISA row that has none of its own
// for a type (each_row/unpacked.h, each_row/blocks_32.h), and those of CUDA.
//
// Owns: the order of a block's bits, once. Independent of: who computes with them.
// Invariant: the weight is ggml's dequantize_row_*, bit for bit.
//
// Of a block of 256, the type says UNPACKED (blocks.h):
//   factors_<block>(b)   d and dmin (0: the type has no minimums)
//   parts_<block>(b, i)  scale, min and q of element i: w = d * scale * q - dmin * min
// Of a block of 32:
//   factors_<block>(b)   d and m (-0, which adds nothing: the type has none)
//   quant_<block>(b, i)  w = d * q + m
#pragma once
#include "kernels/formats/blocks.h"
#include "kernels/formats/half.h"

typedef struct {
  float d, second; // dmin or m
} block_factors;

typedef struct {
  int scale, min, q;
} weight_parts;

// The values of a nibble: IQ4_XS and IQ4_NL have those nearest to a normal distribution (ggml's
// kvalues_iq4nl), MXFP4 twice the numbers of E2M1, so that they are integers; its scale is half of E8M0's.
// Eight to a word, the first in the lowest byte: an instruction's table as well.
#define VALUE_BYTES(a, b, c, d, e, f, g, h)                                                                  \
  ((uint64_t)(uint8_t)(a) | (uint64_t)(uint8_t)(b) << 8 | (uint64_t)(uint8_t)(c) << 16 |                     \
   (uint64_t)(uint8_t)(d) << 24 | (uint64_t)(uint8_t)(e) << 32 | (uint64_t)(uint8_t)(f) << 40 |              \
   (uint64_t)(uint8_t)(g) << 48 | (uint64_t)(uint8_t)(h) << 56)
#define IQ4_VALUES_LOW  VALUE_BYTES(-127, -104, -83, -65, -49, -35, -22, -10)
#define IQ4_VALUES_HIGH VALUE_BYTES(1, 13, 25, 38, 53, 69, 89, 113)
#define FP4_VALUES_LOW  VALUE_BYTES(0, 1, 2, 3, 4, 6, 8, 12)
#define FP4_VALUES_HIGH VALUE_BYTES(0, -1, -2, -3, -4, -6, -8, -12)

NUM_FN int iq4_value(int nibble) {
  return (int8_t)((nibble < 8 ? IQ4_VALUES_LOW : IQ4_VALUES_HIGH) >> (nibble & 7) * 8);
}

NUM_FN int fp4_value(int nibble) {
  return (int8_t)((nibble < 8 ? FP4_VALUES_LOW : FP4_VALUES_HIGH) >> (nibble & 7) * 8);
}

// Element i of Q2_K and Q3_K: two bits, by halves of 128, groups of 32 in them, bytes in these.
NUM_FN int two_bits(const uint8_t *qs, int i) {
  return qs[i / 128 * 32 + i % 32] >> (i / 32 % 4 * 2) & 3;
}

// Nibble i of a block or sub-block of 32: low ones of 16 bytes, then high ones.
NUM_FN int nibble(const uint8_t *qs, int i) {
  return qs[i % 16] >> (i / 16 * 4) & 15;
}

NUM_FN int fifth_bit(const uint8_t *qh, int i) {
  return (qh[i / 8] >> (i % 8) & 1) << 4;
}

// ---- blocks of 256 ----

NUM_FN block_factors factors_q2_K(const block_q2_K *b) {
  block_factors f = {half_to_f32(b->d), half_to_f32(b->dmin)};
  return f;
}

NUM_FN weight_parts parts_q2_K(const block_q2_K *b, int i) {
  weight_parts p = {b->scales[i / 16] & 15, b->scales[i / 16] >> 4, two_bits(b->qs, i)};
  return p;
}

NUM_FN block_factors factors_q3_K(const block_q3_K *b) {
  block_factors f = {half_to_f32(b->d), 0};
  return f;
}

NUM_FN weight_parts parts_q3_K(const block_q3_K *b, int i) {
  int j = i / 16, low = b->scales[j % 8] >> (j / 8 * 4) & 15, high = b->scales[8 + j % 4] >> (j / 4 * 2) & 3;
  int third = b->hmask[i % 32] >> (i / 32) & 1;
  weight_parts p = {(low | high << 4) - 32, 0, two_bits(b->qs, i) - (third ? 0 : 4)};
  return p;
}

NUM_FN block_factors factors_iq4_xs(const block_iq4_xs *b) {
  block_factors f = {half_to_f32(b->d), 0};
  return f;
}

NUM_FN weight_parts parts_iq4_xs(const block_iq4_xs *b, int i) {
  int j = i / 32, low = b->scales_l[j / 2] >> (j % 2 * 4) & 15, high = b->scales_h >> (j * 2) & 3;
  weight_parts p = {(low | high << 4) - 32, 0, iq4_value(nibble(b->qs + j * 16, i % 32))};
  return p;
}

// ---- blocks of 32 ----

NUM_FN block_factors factors_q8_0(const block_q8_0 *b) {
  block_factors f = {half_to_f32(b->d), -0.0f};
  return f;
}

NUM_FN int quant_q8_0(const block_q8_0 *b, int i) {
  return b->qs[i];
}

NUM_FN block_factors factors_iq4_nl(const block_iq4_nl *b) {
  block_factors f = {half_to_f32(b->d), -0.0f};
  return f;
}

NUM_FN int quant_iq4_nl(const block_iq4_nl *b, int i) {
  return iq4_value(nibble(b->qs, i));
}

NUM_FN block_factors factors_q4_0(const block_q4_0 *b) {
  block_factors f = {half_to_f32(b->d), -0.0f};
  return f;
}

NUM_FN int quant_q4_0(const block_q4_0 *b, int i) {
  return nibble(b->qs, i) - 8;
}

NUM_FN block_factors factors_q4_1(const block_q4_1 *b) {
  block_factors f = {half_to_f32(b->d), half_to_f32(b->m)};
  return f;
}

NUM_FN int quant_q4_1(const block_q4_1 *b, int i) {
  return nibble(b->qs, i);
}

NUM_FN block_factors factors_q5_0(const block_q5_0 *b) {
  block_factors f = {half_to_f32(b->d), -0.0f};
  return f;
}

NUM_FN int quant_q5_0(const block_q5_0 *b, int i) {
  return (nibble(b->qs, i) | fifth_bit(b->qh, i)) - 16;
}

NUM_FN block_factors factors_q5_1(const block_q5_1 *b) {
  block_factors f = {half_to_f32(b->d), half_to_f32(b->m)};
  return f;
}

NUM_FN int quant_q5_1(const block_q5_1 *b, int i) {
  return nibble(b->qs, i) | fifth_bit(b->qh, i);
}

// 2^(e - 128): e of 0 and 1 are subnormal floats.
NUM_FN block_factors factors_mxfp4(const block_mxfp4 *b) {
  uint32_t bits = b->e < 2 ? 0x00200000u << b->e : (uint32_t)(b->e - 1) << 23;
  block_factors f = {num_from_bits_f32(bits), -0.0f};
  return f;
}

NUM_FN int quant_mxfp4(const block_mxfp4 *b, int i) {
  return fp4_value(nibble(b->qs, i));
}

// Whether the type says Q8_1: its products also read the activations' sum.
NUM_FN int type_has_m(weight_type type) {
#define HAS_M_REAL(name)
#define HAS_M_Q8K(name)
#define HAS_M_UNPACKED(name)
#define HAS_M_BYTES(name)
#define HAS_M_Q8_0(name)
#define HAS_M_Q8_1(name)                             || type == TYPE_##name
#define HAS_M(name, number, block, elements, on_q8k) HAS_M_##on_q8k(name)
  return 0 WEIGHT_TYPES(HAS_M);
#undef HAS_M
#undef HAS_M_Q8_1
#undef HAS_M_Q8_0
#undef HAS_M_BYTES
#undef HAS_M_UNPACKED
#undef HAS_M_Q8K
#undef HAS_M_REAL
}

// ---- a weight of either kind ----

NUM_FN float weight_of_parts(block_factors f, weight_parts p) {
  return f.d * (float)p.scale * (float)p.q - f.second * (float)p.min;
}

NUM_FN float weight_of_quant(block_factors f, int q) {
  return f.d * (float)q + f.second;
}
