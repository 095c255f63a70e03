// numerics_base: what every header of scalar arithmetic is built on: how such a function is declared, and
// the bits of a float.
//
// Owns: NUM_FN and the bit casts. Independent of: any arithmetic.
// Invariant: the C compiler, the C++ compiler and nvcc (host and device) compile the same text to the same
// bits.
#pragma once
#include <float.h>
#include <stdint.h>
#include <string.h>

#if defined __FAST_MATH__ || defined __USE_FAST_MATH__
#error "the law forbids fast math: docs/paths.md says what is computed"
#endif
#if FLT_EVAL_METHOD != 0
#error "a float must be computed as a float, a double as a double"
#endif

#ifdef __CUDACC__
#define NUM_FN static __host__ __device__ __forceinline__ // which says inline already
#else
#define NUM_FN static inline
#endif

// memcpy is the one cast that C, C++ and CUDA all define; each compiler turns it into a register move.
NUM_FN uint32_t num_bits_f32(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

NUM_FN float num_from_bits_f32(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

NUM_FN uint64_t num_bits_f64(double value) {
  uint64_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

NUM_FN double num_from_bits_f64(uint64_t bits) {
  double value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
