// attention_exact: the scalar arithmetic of q8k's attention (version 2), one source for the C compiler and
// for nvcc: vectors of 16-bit integers under a power of two, sums of their products, weights, folds.
//
// Owns: every rounding of that definition and its constants; docs/paths.md ("Attention in integers") says
// where each is used. Independent of: layouts, tiles, the order in which integers are summed.
// Invariant: numerics.h's. A sum of integers is exact, so it is the same in any order and on any unit; it
// becomes a float once.
#pragma once
#include "kernels/formats/numerics.h"
#include <stdbool.h>

enum {
  EXACT_CHUNK = 128,  // key positions to a chunk: 0-127, 128-255, ...
  EXACT_GROUP = 4096, // key positions to a group of chunks: 0-4095, ...
  // Largest magnitude of an integer: the greatest of which both limbs are int8, as 32640 = 256 * 128 - 128.
  EXACT_LARGEST = 32639,
  EXACT_WIDE_HEAD = 512, // up to this head_dim a score's sum fits int32: 512 * (32639 * 127 + 127 * 128)
  EXACT_COUNT_BITS = 21, // a chunk's sum of weights counts units of 2^-21: 128 of them pass no int32
};

// ---- balance: what an outlier channel of the keys has is moved to the queries, exactly ----

// e for the pair (i, i + head_dim / 2), which RoPE rotates into each other, from the weights of k_norm and
// q_norm at both: keys are multiplied by 2^-e, queries by 2^e. 2^e is the square root of the weights' ratio,
// rounded to a power of two, in -16 .. 16; 0 where a weight of the pair's larger ones is 0 or not finite.
NUM_FN int32_t exact_balance(float k_low, float k_high, float q_low, float q_high) {
  float k = k_low < 0 ? -k_low : k_low, q = q_low < 0 ? -q_low : q_low;
  k_high = k_high < 0 ? -k_high : k_high;
  q_high = q_high < 0 ? -q_high : q_high;
  k = k_high > k ? k_high : k;
  q = q_high > q ? q_high : q;
  if (!(k > 0 && q > 0 && k <= FLT_MAX && q <= FLT_MAX)) return 0;
  int32_t ratio = (int32_t)(num_bits_f32(k / q) >> 23) - 127; // of the ratio's floor(log2)
  int32_t e = (ratio + 1) >> 1;                               // floor((log2 + 1) / 2)
  return e < -16 ? -16 : e > 16 ? 16 : e;
}

// ---- vectors ----

NUM_FN float exact_power(int32_t e) { // 2^e, normal
  return num_from_bits_f32((uint32_t)(e + 127) << 23);
}

NUM_FN uint32_t exact_magnitude(float x) { // as integers these have the order of |x|, NaN last
  return num_bits_f32(x) & 0x7fffffffu;
}

NUM_FN bool exact_is_finite(uint32_t magnitude) {
  return magnitude < 0x7f800000u;
}

// u such that largest * 2^-u is in [2^14, 32639], or in [2^13, 2^14) where that would pass 32639.
NUM_FN int32_t exact_unit_of(uint32_t largest) {
  int32_t u = (int32_t)(largest >> 23) - 127 - 14;
  return (largest & 0x007fffffu) > 0x007efe00u ? u + 1 : u; // 32639 = 2^14 * (1 + 0x7efe00 / 2^23)
}

typedef struct { // of a vector's integers: x = round(real * scale), and stands for x * unit
  float unit;    // 2^u; NaN: a number was not finite or too great, and then the integers are 0
  float scale;   // 2^-u; 0 there
} exact_scale;

// Of queries, keys or values whose largest magnitude this is, after balancing: u in -54 .. 26, so that no
// product of units leaves float. Beyond 32639 * 2^26 (2e12; f16 ends at 65504) a number is too great.
NUM_FN exact_scale exact_vector_scale(uint32_t largest) {
  exact_scale none = {num_from_bits_f32(0x7fc00000u), 0.0f};
  if (!exact_is_finite(largest)) return none;
  int32_t u = exact_unit_of(largest);
  if (u > 26) return none;
  u = u < -54 ? -54 : u;
  exact_scale s = {exact_power(u), exact_power(-u)};
  return s;
}

// Of a chunk's weights, whose largest is never 0.
NUM_FN exact_scale exact_weight_scale(uint32_t largest) {
  exact_scale none = {num_from_bits_f32(0x7fc00000u), 0.0f};
  if (!exact_is_finite(largest)) return none;
  int32_t u = exact_unit_of(largest);
  exact_scale s = {exact_power(u), exact_power(-u)};
  return s;
}

// round(x * scale), ties to even, |x * scale| < 2^22; scale is 2^-u, so the product is exact.
NUM_FN int32_t exact_round(float x, float scale) {
  float shifted = x * scale + 12582912.0f; // 1.5 * 2^23
  return (int32_t)(num_bits_f32(shifted) & 0x007fffffu) - 0x00400000;
}

// The integer of a number of a vector, or of a weight.
NUM_FN int32_t exact_integer(float x, exact_scale s) {
  return s.scale > 0.0f ? exact_round(x, s.scale) : 0;
}

// x = 256 high + low, |x| <= EXACT_LARGEST: high in -127 .. 127, low in -128 .. 127.
NUM_FN int32_t exact_high(int32_t x) {
  return (x + 128) >> 8;
}

NUM_FN int32_t exact_low(int32_t x) {
  return x - 256 * exact_high(x);
}

// ---- scores and weights of one chunk ----

// 256 hh + hl + lh, the products of the limbs summed over head_dim: the integer of a score, in units of
// 256 * the units of query and key. The product of the low limbs is left out.
NUM_FN int32_t exact_score_sum(int32_t high_high, int32_t crossed) {
  return 256 * high_high + crossed;
}

NUM_FN float exact_score(int32_t sum, float units) { // units = q's * k's; their product is exact
  return (float)sum * (256.0f * units);
}

NUM_FN float exact_score_wide(int64_t sum, float units) { // head_dim > EXACT_WIDE_HEAD
  return (float)sum * (256.0f * units);
}

#define EXACT_LOG2E_32 0x1.715476p-5f // log2(e) / 32

// z = 1 + log2(e^(score - max)) / 32, in 0 .. 1. NaN gives 0.
NUM_FN float exact_clamp(float z) {
  z = z > 0.0f ? z : 0.0f;
  return z < 1.0f ? z : 1.0f;
}

NUM_FN float exact_bias(float max) {
  return num_fma_f32(-max, EXACT_LOG2E_32, 1.0f);
}

NUM_FN float exact_z(float score, float bias) {
  return exact_clamp(num_fma_f32(score, EXACT_LOG2E_32, bias));
}

// 2^(32 z - 32), z in 0 .. 1: n = round(32 z), 2^n times a polynomial of the rest, |rest| <= 1/2. Relative
// error up to 2.9e-6; the coefficients are a minimax fit with constant 1, computed for this program.
NUM_FN float exact_exp(float z) {
  const float magic = 12582880.0f; // 1.5 * 2^23 - 32: the sum's low bits are n - 32
  float shifted = num_fma_f32(z, 32.0f, magic), n = shifted - magic;
  float r = num_fma_f32(z, 32.0f, -n);
  float p = 0x1.3a02ccp-7f;
  p = num_fma_f32(p, r, 0x1.c9fc46p-5f);
  p = num_fma_f32(p, r, 0x1.ec0378p-3f);
  p = num_fma_f32(p, r, 0x1.62e12cp-1f);
  p = num_fma_f32(p, r, 1.0f);
  return num_from_bits_f32(num_bits_f32(p) + (num_bits_f32(shifted) << 23));
}

// round(2^21 e), ties to even: what a weight e adds to the chunk's sum.
NUM_FN int32_t exact_count(float e) {
  return exact_round(e, 0x1p21f);
}

NUM_FN float exact_sum(int32_t count) { // of a chunk's counts
  return (float)count * 0x1p-21f;
}

// ---- output of one chunk ----

// (256 * 256 hh + 256 (hl + lh) + ll + 128) >> 8, of weights' and values' limbs summed over the chunk's keys:
// the integer of an output, in units of 256 * the weights' unit. Fits int32.
NUM_FN int32_t exact_output_sum(int32_t high_high, int32_t crossed, int32_t low_low) {
  return 256 * high_high + crossed + ((low_low + 128) >> 8);
}

NUM_FN float exact_output(int32_t sum, float unit) { // unit: of the chunk's weights
  return (float)sum * (256.0f * unit);
}

// ---- folds ----

// e^(max - both), both >= max: exactly 1 where they are equal, at least 2^-32.
NUM_FN float exact_rescale(float max, float both) {
  return exact_exp(exact_clamp(num_fma_f32(max - both, EXACT_LOG2E_32, 1.0f)));
}

// What the last running output is multiplied by. unit: of the query; where it is NaN, so is the result.
NUM_FN float exact_inverse(float sum, float unit) {
  return unit == unit ? 1.0f / sum : unit;
}
