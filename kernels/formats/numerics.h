// numerics: the scalar arithmetic of every path, one source for the C compiler and for nvcc.
//
// Owns: exp, silu, rounding to Q8_K, RoPE's angles, the summation tree, the digest's mix.
// Invariant: only IEEE + - * / sqrt fma and integer operations, in a written order, so every compiler and
// device gives the same bits. No libm. Contraction is off: an fma is computed where it is written.
// docs/paths.md says where each is used. Errors against exact results are measured in
// tests/unit/test_numerics.c.
#pragma once
#include "kernels/formats/numerics_base.h"
#include <stdint.h>

#ifdef __CUDACC__ // its fmaf and fma are single instructions on host and device
NUM_FN float num_fma_f32(float a, float b, float c) {
  return fmaf(a, b, c);
}
NUM_FN double num_fma_f64(double a, double b, double c) {
  return fma(a, b, c);
}
#else
NUM_FN float num_fma_f32(float a, float b, float c) {
  return __builtin_fmaf(a, b, c);
}
NUM_FN double num_fma_f64(double a, double b, double c) {
  return __builtin_fma(a, b, c);
}
#endif

enum { LANES = 32 }; // a warp; two AVX-512 registers; four AVX2 registers

// ---- float sums: LANES strided partial sums, then this tree ----

// Folds the upper half on the lower until one is left: 16, 8, 4, 2, 1. A warp does it with shuffles, a SIMD
// register by adding halves.
NUM_FN float num_tree_f32(float lane[LANES]) {
  for (int half = LANES / 2; half; half /= 2)
    for (int l = 0; l < half; l++) lane[l] = lane[l] + lane[l + half];
  return lane[0];
}

NUM_FN double num_tree_f64(double lane[LANES]) {
  for (int half = LANES / 2; half; half /= 2)
    for (int l = 0; l < half; l++) lane[l] = lane[l] + lane[l + half];
  return lane[0];
}

// ---- exp and silu ----

// e^x for x in [-104, 89]: 2^n e^r with n = round(x / ln 2), |r| <= ln 2 / 2; the polynomial's coefficients
// are a Chebyshev fit of (e^r - 1 - r) / r^2, computed for this program. No branch.
NUM_FN float num_exp_in_range_f32(float x) {
  const float round_magic = 12582912.0f; // 1.5 * 2^23: adding it rounds to an integer, ties to even
  float n = num_fma_f32(x, 0x1.715476p+0f, round_magic) - round_magic;
  float r = num_fma_f32(n, -0x1.62e430p-1f, x); // ln 2 in two floats; the fma keeps n * ln 2 exact
  r = num_fma_f32(n, 0x1.05c610p-29f, r);
  float p = 0x1.6d431ap-10f;
  p = num_fma_f32(p, r, 0x1.120b66p-7f);
  p = num_fma_f32(p, r, 0x1.5554eap-5f);
  p = num_fma_f32(p, r, 0x1.5554dcp-3f);
  p = num_fma_f32(p, r, 0.5f);
  p = num_fma_f32(p, r * r, r) + 1.0f;
  int32_t i = (int32_t)n, first = i >> 1, second = i - first; // two factors: 2^i alone may not be a float
  return p * num_from_bits_f32((uint32_t)(first + 127) << 23) *
         num_from_bits_f32((uint32_t)(second + 127) << 23);
}

// Overflows to infinity, underflows through subnormals to 0; NaN stays.
NUM_FN float num_exp_f32(float x) {
  if (x != x) return x;
  if (x > 88.72284f) return num_from_bits_f32(0x7f800000u);
  if (x < -103.97208f) return 0.0f; // below half of the smallest subnormal
  return num_exp_in_range_f32(x);
}

NUM_FN double num_exp_f64(double x) {
  const double round_magic = 6755399441055744.0; // 1.5 * 2^52
  if (x != x) return x;
  if (x > 709.782712893384) return num_from_bits_f64(0x7ff0000000000000u);
  if (x < -745.1332191019412) return 0.0;
  double n = num_fma_f64(x, 0x1.71547652b82fep+0, round_magic) - round_magic;
  double r = num_fma_f64(n, -0x1.62e42fefa39efp-1, x);
  r = num_fma_f64(n, -0x1.abc9e3b39803fp-56, r);
  double p = 1.0 / 6227020800.0; // 1/13!; the first omitted term is under 2^-57 for |r| <= ln 2 / 2
  p = num_fma_f64(p, r, 1.0 / 479001600.0);
  p = num_fma_f64(p, r, 1.0 / 39916800.0);
  p = num_fma_f64(p, r, 1.0 / 3628800.0);
  p = num_fma_f64(p, r, 1.0 / 362880.0);
  p = num_fma_f64(p, r, 1.0 / 40320.0);
  p = num_fma_f64(p, r, 1.0 / 5040.0);
  p = num_fma_f64(p, r, 1.0 / 720.0);
  p = num_fma_f64(p, r, 1.0 / 120.0);
  p = num_fma_f64(p, r, 1.0 / 24.0);
  p = num_fma_f64(p, r, 1.0 / 6.0);
  p = num_fma_f64(p, r, 0.5);
  p = num_fma_f64(p, r * r, r) + 1.0;
  int64_t i = (int64_t)n, first = i >> 1, second = i - first;
  return p * num_from_bits_f64((uint64_t)(first + 1023) << 52) *
         num_from_bits_f64((uint64_t)(second + 1023) << 52);
}

NUM_FN float num_silu_f32(float x) {
  return x / (1.0f + num_exp_f32(-x));
}

NUM_FN double num_silu_f64(double x) {
  return x / (1.0 + num_exp_f64(-x));
}

// ---- Q8_K: ggml's quantize_row_q8_K_ref ----

// The inverse scale of a block whose element of largest magnitude (the first such) is `extreme`, not 0.
NUM_FN float num_q8k_inverse_scale(float extreme) {
  return -127.0f / extreme;
}

// round(inverse_scale * x), ties to even, as ggml's nearest_int does it: the product is rounded first.
NUM_FN int32_t num_q8k_round(float inverse_scale, float x) {
  float shifted = inverse_scale * x + 12582912.0f;
  int32_t q = (int32_t)(num_bits_f32(shifted) & 0x007fffffu) - 0x00400000;
  return q < 127 ? q : 127;
}

// ---- Q8_0 and Q8_1: ggml's quantize_row_q8_0_ref, quantize_row_q8_1_ref ----

// The inverse of the scale of a block of 32 whose largest magnitude is `most`.
NUM_FN float num_q8_0_inverse_scale(float most) {
  float scale = most / 127.0f;
  return scale != 0 ? 1.0f / scale : 0.0f;
}

// round(inverse_scale * x), ties away from zero, as roundf has it: up to 127 the sum with the largest float
// below one half passes the next integer just where the fraction is one half or more. What is beyond 127 (the
// inverse of a subnormal scale), and a NaN, is cut to it.
NUM_FN int32_t num_q8_0_round(float inverse_scale, float x) {
  float v = inverse_scale * x;
  v = v < 127.0f ? v : 127.0f;
  v = v > -127.0f ? v : -127.0f;
  return (int32_t)(v + (v < 0 ? -0.49999997f : 0.49999997f));
}

// On q8k_split an element of a block is an outlier if its magnitude is above this; ordinary: the magnitude of
// rank MOST_OUTLIERS + 1. Four times the rest's edge: of normal numbers none is, of SwiGLU's outputs one in
// ten blocks has one (docs/paths.md).
NUM_FN float num_outlier_limit(float ordinary) {
  return 4.0f * ordinary;
}

// ---- RoPE: everything in double, from the model's base and the absolute position ----

// Natural logarithm of x > 0, normal: x = 2^e m with m in [sqrt 1/2, sqrt 2), and
// ln m = 2 artanh((m - 1) / (m + 1)).
NUM_FN double num_log_f64(double x) {
  uint64_t bits = num_bits_f64(x);
  int64_t e = (int64_t)(bits >> 52 & 0x7ff) - 1023;
  double m = num_from_bits_f64((bits & 0x000fffffffffffffu) | 0x3ff0000000000000u);
  if (m > 1.4142135623730951) {
    m = m * 0.5;
    e = e + 1;
  }
  double s = (m - 1.0) / (m + 1.0), z = s * s, p = 0.0;
  for (int k = 25; k >= 3; k -= 2)
    p = num_fma_f64(p, z, 1.0 / (double)k); // z <= 0.0295: the rest is under 2^-64
  double ln_m = num_fma_f64(2.0 * s * z, p, 2.0 * s);
  return num_fma_f64((double)e, 0x1.62e42fefa39efp-1, num_fma_f64((double)e, 0x1.abc9e3b39803fp-56, ln_m));
}

// cos and sin of |a| < 2^31: a minus the nearest multiple of pi/2 (three doubles, with fma), then Taylor.
NUM_FN void num_cos_sin_f64(double *cos_out, double *sin_out, double a) {
  const double round_magic = 6755399441055744.0;
  double n = num_fma_f64(a, 0x1.45f306dc9c883p-1, round_magic) - round_magic;
  double r = num_fma_f64(n, -0x1.921fb54442d18p+0, a);
  r = num_fma_f64(n, -0x1.1a62633145c07p-54, r);
  r = num_fma_f64(n, 0x1.f1976b8000000p-110, r);
  double z = r * r, s = 1.0, c = 1.0; // Horner from the innermost: 1 - z/(k (k + 1)) * (...)
  for (int k = 18; k >= 2; k -= 2) s = num_fma_f64(-z / (double)(k * (k + 1)), s, 1.0);
  for (int k = 17; k >= 1; k -= 2) c = num_fma_f64(-z / (double)(k * (k + 1)), c, 1.0);
  s = s * r;
  int quarter = (int)((int64_t)n & 3);
  *cos_out = quarter == 0 ? c : quarter == 1 ? -s : quarter == 2 ? -c : s;
  *sin_out = quarter == 0 ? s : quarter == 1 ? c : quarter == 2 ? -s : -c;
}

// The angle's step of pair i of `pairs` to a position: base^(-i / pairs).
NUM_FN double num_rope_frequency(double base, int64_t i, int64_t pairs) {
  return i ? num_exp_f64(-((double)i / (double)pairs) * num_log_f64(base)) : 1.0;
}

// ---- digest: the sum modulo 2^64 of this mix over elements; any order and any cut give the same sum ----

NUM_FN uint64_t num_mix64(uint64_t z) { // the finaliser of SplitMix64 (Steele, Lea, Flood 2014)
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

// The part of the mix that a row shares. layer is -1 for logits; token is the position in its sequence;
// path_tag names the path and its version.
NUM_FN uint64_t num_digest_row(uint64_t path_tag, int64_t layer, int64_t token) {
  uint64_t h = num_mix64(path_tag + 0x9e3779b97f4a7c15u);
  h = num_mix64(h ^ (uint64_t)layer) + 0x9e3779b97f4a7c15u;
  return num_mix64(h ^ (uint64_t)token);
}

NUM_FN uint64_t num_digest_element(uint64_t row, int64_t index, uint64_t bits) {
  return num_mix64(num_mix64(row + (uint64_t)index * 0x9e3779b97f4a7c15u) ^ bits);
}
