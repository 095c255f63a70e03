#include "src/synth/synth_few_bits.h"
#include "kernels/formats/half.h"
#include "kernels/formats/numerics.h"
#include <math.h>
#include <stddef.h>
#include <string.h>

typedef struct {
  weight_type type;
  int codes;   // quants
  double rms;  // of weights of uniform bits over d: sqrt(E[scale^2] E[value^2]), with minimums as `base` says
  double base; // dmin, or m, over d: takes the mean to 0; 0: none
  size_t d, second; // bytes at which d, and dmin or m, lie
} few_bits;

static const few_bits kinds[] = {
    {TYPE_Q2_K, 4, 13.874437, 1.5, offsetof(block_q2_K, d), offsetof(block_q2_K, dmin)},
    {TYPE_Q3_K, 8, 43.338782, 0, offsetof(block_q3_K, d), 0},      // sqrt(341.5 * 5.5)
    {TYPE_IQ4_XS, 16, 1246.2504, 0, offsetof(block_iq4_xs, d), 0}, // sqrt(341.5 * 4548)
    {TYPE_IQ4_NL, 16, 67.438862, 0, offsetof(block_iq4_nl, d), 0},
    {TYPE_Q4_0, 16, 4.6368093, 0, offsetof(block_q4_0, d), 0},
    {TYPE_Q4_1, 16, 4.6097722, -7.5, offsetof(block_q4_1, d), offsetof(block_q4_1, m)},
    {TYPE_Q5_0, 32, 9.2466210, 0, offsetof(block_q5_0, d), 0},
    {TYPE_Q5_1, 32, 9.2330927, -15.5, offsetof(block_q5_1, d), offsetof(block_q5_1, m)},
    {TYPE_MXFP4, 16, 5.8523500, 0, 0, 0}, // its scale is a power of two
};
enum { N_KINDS = sizeof kinds / sizeof *kinds, MXFP4_BIAS = 128, MXFP4_MOST = 252 };

static const few_bits *find(weight_type type) {
  for (int i = 0; i < N_KINDS; i++)
    if (kinds[i].type == type) return &kinds[i];
  __builtin_trap(); // no mix has it
}

static void put_half(void *block, size_t at, double x) {
  uint16_t half = f32_to_half((float)x);
  memcpy((char *)block + at, &half, sizeof half);
}

static uint8_t exponent_of(double d) { // of a power of two near it
  int e = __builtin_ilogb(d);
  e += (d > 1.5 * __builtin_ldexp(1, e)) + MXFP4_BIAS;
  return (uint8_t)(e < 0 ? 0 : e > MXFP4_MOST ? MXFP4_MOST : e);
}

void synth_fill_few_bits(void *block, weight_type type, uint64_t key, double std) {
  const few_bits *k = find(type);
  size_t bytes = type_find((uint32_t)type)->bytes;
  for (size_t i = 0; i < bytes; i += 8) {
    uint64_t random = num_mix64(key + (i + 1) * 0x9e3779b97f4a7c15u);
    memcpy((char *)block + i, &random, bytes - i < 8 ? bytes - i : 8);
  }
  double d = std / k->rms * (1 + ((double)(key & 0xff) - 127.5) / 1024);
  if (type == TYPE_MXFP4) {
    ((block_mxfp4 *)block)->e = exponent_of(d);
    return;
  }
  put_half(block, k->d, !k->base && key >> 8 & 1 ? -d : d); // of either sign: values need not have the mean 0
  if (k->base) put_half(block, k->second, k->base * d);
}

static void put_bits(uint8_t *byte, int shift, int width, int bits) {
  int mask = ((1 << width) - 1) << shift;
  *byte = (uint8_t)((*byte & ~mask) | (bits << shift & mask));
}

static void put_code(void *block, weight_type type, int i, int q) {
  uint8_t *bytes = (uint8_t *)block, *last = bytes + type_find((uint32_t)type)->bytes - QK_32 / 2;
  block_q2_K *two = (block_q2_K *)block;
  block_q3_K *three = (block_q3_K *)block;
  block_iq4_xs *four = (block_iq4_xs *)block;
  if (type == TYPE_Q2_K) put_bits(&two->qs[i / 128 * 32 + i % 32], i / 32 % 4 * 2, 2, q);
  if (type == TYPE_Q3_K) {
    put_bits(&three->qs[i / 128 * 32 + i % 32], i / 32 % 4 * 2, 2, q);
    put_bits(&three->hmask[i % 32], i / 32, 1, q >> 2);
  }
  if (type == TYPE_IQ4_XS) put_bits(&four->qs[i / 32 * 16 + i % 16], i / 16 % 2 * 4, 4, q);
  if (type_find((uint32_t)type)->elements != QK_32) return;
  put_bits(&last[i % 16], i / 16 * 4, 4, q);
  if (type == TYPE_Q5_0 || type == TYPE_Q5_1) put_bits(&last[i / 8 - 4], i % 8, 1, q >> 4);
}

// Every quant is tried: which of them is nearest depends on scale, minimum and the type's values.
void synth_set_few_bits(void *block, weight_type type, int i, double wanted) {
  float w[QK_K];
  double least = INFINITY;
  int best = 0;
  for (int q = 0; q < find(type)->codes; q++) {
    put_code(block, type, i, q);
    dequantize_row(w, type, block, type_find((uint32_t)type)->elements);
    double off = fabs((double)w[i] - wanted);
    if (off < least) best = q;
    if (off < least) least = off;
  }
  put_code(block, type, i, best);
}
