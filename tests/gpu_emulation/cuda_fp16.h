// cuda_fp16: halves as the kernels read them, for the emulation.
#pragma once
#include "kernels/formats/half.h"
#include <cuda_runtime.h>

struct __half {
  uint16_t bits;
};
struct alignas(4) __half2 {
  __half x, y;
};

static inline __half __ushort_as_half(uint16_t bits) {
  return {bits};
}
static inline float __half2float(__half h) {
  return half_to_f32(h.bits);
}
static inline float2 __half22float2(__half2 h) {
  return {half_to_f32(h.x.bits), half_to_f32(h.y.bits)};
}
