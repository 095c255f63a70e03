// cuda_numerics: the scalar functions under test as one function of (case, index), which nvcc compiles for
// the GPU and the C compiler for the CPU. tests/gpu/test_cuda_numerics.cu runs both and asks for equal bits.
//
// Owns: each case's inputs, which follow from seed and index alone, so that nothing but sums crosses the bus.
// Invariant: a result is compared by its bits, except that all NaN are one: which payload an operation gives
// is the device's own affair, and a path refuses numbers that are not finite.
#pragma once
#include "kernels/formats/half.h"
#include "kernels/formats/numerics.h"
#ifdef __CUDACC__
#include <cmath>
#else
#include <math.h>
#endif

// name, and how many indices: SWEEP takes the index as a float's bits, all 2^32 of them
#define SWEEP  ((uint64_t)1 << 32)
#define RANDOM ((uint64_t)1 << 25)
#define NUMERIC_CASES(X)                                                                                     \
  X(EXP_F32, SWEEP)                                                                                          \
  X(SILU_F32, SWEEP)                                                                                         \
  X(F32_TO_HALF, SWEEP)                                                                                      \
  X(Q8K_INVERSE_SCALE, SWEEP)                                                                                \
  X(SQRT_F32, SWEEP)                                                                                         \
  X(HALF_TO_F32, 65536)                                                                                      \
  X(BF16_TO_F32, 65536)                                                                                      \
  X(DIVIDE_F32, RANDOM)                                                                                      \
  X(FMA_F32, RANDOM)                                                                                         \
  X(FMA_F64, RANDOM)                                                                                         \
  X(DIVIDE_F64, RANDOM)                                                                                      \
  X(SQRT_F64, RANDOM)                                                                                        \
  X(NARROW_F64, RANDOM)                                                                                      \
  X(EXP_F64, RANDOM)                                                                                         \
  X(SILU_F64, RANDOM)                                                                                        \
  X(LOG_F64, RANDOM)                                                                                         \
  X(COS_F64, RANDOM)                                                                                         \
  X(SIN_F64, RANDOM)                                                                                         \
  X(Q8K_ROUND, 2 * RANDOM)                                                                                   \
  X(ROPE_FREQUENCY, RANDOM)                                                                                  \
  X(ROPE_TABLE, RANDOM)                                                                                      \
  X(TREE_F32, RANDOM / 8)                                                                                    \
  X(TREE_F64, RANDOM / 8)                                                                                    \
  X(MIX64, RANDOM)                                                                                           \
  X(DIGEST, RANDOM)                                                                                          \
  X(PLANTED, 65536)

typedef enum {
#define NUMERIC_NAME(name, count) NUMERIC_##name,
  NUMERIC_CASES(NUMERIC_NAME)
#undef NUMERIC_NAME
} numeric_case;
#define NUMERIC_ONE(name, count) +1
enum { NUMERIC_COUNT = 0 NUMERIC_CASES(NUMERIC_ONE) };
#undef NUMERIC_ONE

// The sum over first .. first + n - 1 of a mix of index and result; and the results themselves.
#ifdef __cplusplus
extern "C" {
#endif
uint64_t numeric_sum_cpu(numeric_case which, uint64_t seed, uint64_t first, uint64_t n);
uint64_t numeric_value_cpu(numeric_case which, uint64_t seed, uint64_t index);
#ifdef __cplusplus
}
#endif

// ---- inputs ----

NUM_FN uint64_t numeric_random(uint64_t seed, uint64_t index, uint64_t draw) {
  return num_mix64(num_mix64(seed + index * 0x9e3779b97f4a7c15u) + draw * 0xd1342543de82ef95u);
}

// Where functions change their ways: zero, one, the ends of exp, of the normal numbers and of the integers.
NUM_FN double numeric_special(uint64_t i) {
  switch (i % 20) {
  case 0:
    return 0.0;
  case 1:
    return 1.0;
  case 2:
    return 0.34657359027997264; // ln 2 / 2
  case 3:
    return 0.6931471805599453;
  case 4:
    return 709.782712893384;
  case 5:
    return 745.1332191019412;
  case 6:
    return 708.3964185322641; // e^-x is the smallest normal
  case 7:
    return 88.72283905206835;
  case 8:
    return 103.97207708399179;
  case 9:
    return 2.2250738585072014e-308;
  case 10:
    return 4.9406564584124654e-324;
  case 11:
    return 1.7976931348623157e308;
  case 12:
    return 1.4142135623730951;
  case 13:
    return 0.7853981633974483; // pi / 4
  case 14:
    return 1.5707963267948966;
  case 15:
    return 1073741823.0;
  case 16:
    return 4503599627370496.0;
  case 17:
    return 65504.0;
  case 18:
    return 1e6; // a RoPE base
  default:
    return 127.0;
  }
}

// Any sign: raw bits, a special value and its neighbours, or an exponent of everyday use.
NUM_FN double numeric_f64(uint64_t seed, uint64_t index, uint64_t draw) {
  uint64_t h = numeric_random(seed, index, draw), more = num_mix64(h + 1);
  uint64_t sign = more & (uint64_t)1 << 63;
  if ((h & 7) == 0) return num_from_bits_f64(more);
  if ((h & 7) == 1) {
    uint64_t bits = num_bits_f64(numeric_special(h >> 8)), off = (h >> 20) & 15;
    return num_from_bits_f64((bits < 8 ? bits + off : bits - 8 + off) | sign);
  }
  uint64_t exponent = 1023 - 40 + (h >> 8) % 52;
  return num_from_bits_f64(sign | exponent << 52 | (more & 0x000fffffffffffffu));
}

NUM_FN float numeric_f32(uint64_t seed, uint64_t index, uint64_t draw) {
  uint64_t h = numeric_random(seed, index, draw);
  if ((h & 3) == 0) return num_from_bits_f32((uint32_t)(h >> 32));
  uint32_t exponent = 127 - 20 + (uint32_t)(h >> 8) % 40;
  return num_from_bits_f32((uint32_t)(h >> 32 & 0x807fffffu) | exponent << 23);
}

NUM_FN double numeric_angle(uint64_t seed, uint64_t index) { // |a| < 2^30
  uint64_t h = numeric_random(seed, index, 0), more = num_mix64(h + 1);
  uint64_t exponent = 1023 - 30 + h % 60;
  return num_from_bits_f64((more & 0x800fffffffffffffu) | exponent << 52);
}

NUM_FN double numeric_base(uint64_t h) {
  return h & 1 ? 1e6 : h & 2 ? 1e7 : 1.0 + (double)(h >> 40);
}

// ---- results ----

NUM_FN uint64_t numeric_bits_f32(float x) {
  return x != x ? 0x7fc00000u : num_bits_f32(x);
}

NUM_FN uint64_t numeric_bits_f64(double x) {
  return x != x ? 0x7ff8000000000000u : num_bits_f64(x);
}

// An element and an extreme of at least its magnitude, as a block has them; a third are ties and ends.
NUM_FN uint64_t numeric_q8k_round(uint64_t seed, uint64_t index) {
  float a = numeric_f32(seed, index, 0), b = numeric_f32(seed, index, 1);
  uint32_t x = num_bits_f32(a), y = num_bits_f32(b);
  if ((x & 0x7f800000u) == 0x7f800000u) x ^= 0x40000000u; // not finite: another exponent
  if ((y & 0x7f800000u) == 0x7f800000u) y ^= 0x40000000u;
  if ((x & 0x7fffffffu) > (y & 0x7fffffffu)) {
    uint32_t t = x;
    x = y;
    y = t;
  }
  if (!(y & 0x7fffffffu)) return 0; // a block of zeros has no scale
  float extreme = num_from_bits_f32(y), element = num_from_bits_f32(x);
  uint64_t h = numeric_random(seed, index, 2);
  if (h % 3 == 0) element = extreme * ((float)(int)(h >> 8 & 255) - 127.5f) / 127.0f;
  return (uint64_t)num_q8k_round(num_q8k_inverse_scale(extreme), element);
}

NUM_FN uint64_t numeric_tree_f32(uint64_t seed, uint64_t index) {
  float lane[LANES];
  for (int l = 0; l < LANES; l++) lane[l] = numeric_f32(seed, index, (uint64_t)l);
  return numeric_bits_f32(num_tree_f32(lane));
}

NUM_FN uint64_t numeric_tree_f64(uint64_t seed, uint64_t index) {
  double lane[LANES];
  for (int l = 0; l < LANES; l++) lane[l] = numeric_f64(seed, index, (uint64_t)l);
  return numeric_bits_f64(num_tree_f64(lane));
}

NUM_FN double numeric_cos_sin(double a, int wants_sin) {
  double c, s;
  num_cos_sin_f64(&c, &s, a);
  return wants_sin ? s : c;
}

// As the backends fill their tables: cos and sin of position times frequency, as floats.
NUM_FN uint64_t numeric_rope_table(uint64_t seed, uint64_t index) {
  uint64_t h = numeric_random(seed, index, 0), pairs = 1 + h % 256, i = (h >> 16) % pairs;
  double frequency = num_rope_frequency(numeric_base(h >> 20), (int64_t)i, (int64_t)pairs), c, s;
  num_cos_sin_f64(&c, &s, (double)(h >> 45) * frequency); // up to 2^19 positions
  return (uint64_t)num_bits_f32((float)c) << 32 | num_bits_f32((float)s);
}

// What must be caught: the library's exp in place of our own.
NUM_FN float numeric_planted(float x) {
#ifdef __CUDA_ARCH__
  return expf(x);
#else
  return num_exp_f32(x);
#endif
}

NUM_FN uint64_t numeric_value(numeric_case which, uint64_t seed, uint64_t i) {
  float x = num_from_bits_f32((uint32_t)i);
  uint64_t h = numeric_random(seed, i, 0);
  switch (which) {
  case NUMERIC_EXP_F32:
    return numeric_bits_f32(num_exp_f32(x));
  case NUMERIC_SILU_F32:
    return numeric_bits_f32(num_silu_f32(x));
  case NUMERIC_F32_TO_HALF:
    return f32_to_half(x); // a NaN too: it is integer arithmetic
  case NUMERIC_Q8K_INVERSE_SCALE:
    return numeric_bits_f32(num_q8k_inverse_scale(x));
  case NUMERIC_SQRT_F32:
    return numeric_bits_f32(sqrtf(x));
  case NUMERIC_HALF_TO_F32:
    return num_bits_f32(half_to_f32((uint16_t)i));
  case NUMERIC_BF16_TO_F32:
    return num_bits_f32(bf16_to_f32((uint16_t)i));
  case NUMERIC_DIVIDE_F32:
    return numeric_bits_f32(numeric_f32(seed, i, 0) / numeric_f32(seed, i, 1));
  case NUMERIC_FMA_F32:
    return numeric_bits_f32(
        num_fma_f32(numeric_f32(seed, i, 0), numeric_f32(seed, i, 1), numeric_f32(seed, i, 2)));
  case NUMERIC_FMA_F64:
    return numeric_bits_f64(
        num_fma_f64(numeric_f64(seed, i, 0), numeric_f64(seed, i, 1), numeric_f64(seed, i, 2)));
  case NUMERIC_DIVIDE_F64:
    return numeric_bits_f64(numeric_f64(seed, i, 0) / numeric_f64(seed, i, 1));
  case NUMERIC_SQRT_F64:
    return numeric_bits_f64(sqrt(numeric_f64(seed, i, 0)));
  case NUMERIC_NARROW_F64:
    return numeric_bits_f32((float)numeric_f64(seed, i, 0));
  case NUMERIC_EXP_F64:
    return numeric_bits_f64(num_exp_f64(numeric_f64(seed, i, 0)));
  case NUMERIC_SILU_F64:
    return numeric_bits_f64(num_silu_f64(numeric_f64(seed, i, 0)));
  case NUMERIC_LOG_F64: // of every positive normal
    return numeric_bits_f64(
        num_log_f64(num_from_bits_f64((1 + (h >> 52) % 2046) << 52 | (h & 0x000fffffffffffffu))));
  case NUMERIC_COS_F64:
    return numeric_bits_f64(numeric_cos_sin(numeric_angle(seed, i), 0));
  case NUMERIC_SIN_F64:
    return numeric_bits_f64(numeric_cos_sin(numeric_angle(seed, i), 1));
  case NUMERIC_Q8K_ROUND:
    return numeric_q8k_round(seed, i);
  case NUMERIC_ROPE_FREQUENCY:
    return numeric_bits_f64(num_rope_frequency(numeric_base(h >> 20), (int64_t)((h >> 10) % (1 + h % 1024)),
                                               (int64_t)(1 + h % 1024)));
  case NUMERIC_ROPE_TABLE:
    return numeric_rope_table(seed, i);
  case NUMERIC_TREE_F32:
    return numeric_tree_f32(seed, i);
  case NUMERIC_TREE_F64:
    return numeric_tree_f64(seed, i);
  case NUMERIC_MIX64:
    return num_mix64(h);
  case NUMERIC_DIGEST:
    return num_digest_element(num_digest_row(h, (int64_t)(i % 97) - 1, (int64_t)(i % 1013)), (int64_t)i,
                              num_mix64(h));
  case NUMERIC_PLANTED:
    return numeric_bits_f32(numeric_planted((float)i / 1024.0f - 32.0f));
  default:
    return 0;
  }
}

NUM_FN uint64_t numeric_term(uint64_t index, uint64_t value) { // a sum of these tells any single difference
  return num_mix64(value ^ num_mix64(index + 0x9e3779b97f4a7c15u));
}
