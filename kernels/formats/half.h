// half: the 16-bit floats of the GGUF formats, to and from f32, in integer arithmetic only.
//
// Owns: the conversions. Independent of: the blocks that hold such numbers.
// Invariant: the result does not depend on the compiler, on F16C or on the rounding mode. It is the one that
// IEEE 754 fixes; for a NaN it is what F16C gives (sign and payload kept, made quiet), so that a row which
// uses the instruction has the same bits.
#pragma once
#include "kernels/formats/numerics_base.h"

NUM_FN float bf16_to_f32(uint16_t h) {
  return num_from_bits_f32((uint32_t)h << 16);
}

NUM_FN float half_to_f32(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
  uint32_t exponent = (h >> 10) & 0x1fu, mantissa = h & 0x3ffu;
  if (exponent == 0x1fu) {
    uint32_t quiet = mantissa ? 0x00400000u : 0u;
    return num_from_bits_f32(sign | 0x7f800000u | quiet | (mantissa << 13));
  }
  if (exponent == 0) { // mantissa * 2^-24: both factors and the product are exact and normal in f32
    float magnitude = (float)mantissa * 5.9604644775390625e-8f;
    return num_from_bits_f32(sign | num_bits_f32(magnitude));
  }
  return num_from_bits_f32(sign | ((exponent + (127u - 15u)) << 23) | (mantissa << 13));
}

// Rounds to nearest, ties to even; from 65520 on it is infinity.
NUM_FN uint16_t f32_to_half(float value) {
  uint32_t bits = num_bits_f32(value);
  uint32_t sign = (bits >> 16) & 0x8000u, magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  if (magnitude >= 0x47800000u) return (uint16_t)(sign | 0x7c00u); // 65536 and beyond
  if (magnitude >= 0x38800000u) { // 2^-14 and beyond: normal; a carry runs into the exponent as it should
    uint32_t rebased = magnitude - ((127u - 15u) << 23);
    return (uint16_t)(sign | ((rebased + 0xfffu + ((rebased >> 13) & 1u)) >> 13));
  }
  if (magnitude <= 0x33000000u) return (uint16_t)sign; // up to 2^-25, which ties to the even 0
  uint32_t mantissa = (magnitude & 0x007fffffu) | 0x00800000u;
  uint32_t shift = 126u - (magnitude >> 23); // 14 to 24: the result counts units of 2^-24
  uint32_t half_unit = 1u << (shift - 1u), rest = mantissa & ((1u << shift) - 1u);
  uint32_t units = mantissa >> shift;
  units += rest > half_unit || (rest == half_unit && (units & 1u));
  return (uint16_t)(sign | units);
}
