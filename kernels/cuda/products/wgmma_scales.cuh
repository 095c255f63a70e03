// wgmma_scales: the float step of product_q8k_wgmma, for the rows of wgmma_rows.
#pragma once
#include "kernels/cuda/products/wgmma_rows.cuh"

// What the float step needs of the two rows: scales, and the minimums twice each as f16, beside the sums
// of 16 activations: mma_k16_f16 adds integers below 2^24, so it is exact.
template <weight_type TYPE> struct wgmma_scales {
  float d[2], dmin[2];
  uint32_t min[4];

  __device__ __forceinline__ void load(const uint8_t *row0, const uint8_t *row1, int b, int part) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const uint8_t *row = r ? row1 : row0;
      if constexpr (TYPE == TYPE_Q6_K) {
        d[r] = half_bits_to_f32(*(const uint16_t *)(row + Q6_D + b % 2 * 2));
      } else {
        uint4 head = *(const uint4 *)row;
        scales_and_mins s = block_scales_and_mins(head.y, head.z, head.w);
        d[r] = half_bits_to_f32((uint16_t)(head.x & 0xffffu));
        dmin[r] = half_bits_to_f32((uint16_t)(head.x >> 16));
#pragma unroll
        for (int i = 0; i < 2; i++) {
          uint32_t twice =
              __byte_perm(s.min[i], 0, 0x4040u | (uint32_t)part << 8 | (uint32_t)part) | 0x64006400u;
          __half2 min = __hsub2(*(__half2 *)&twice, __floats2half2_rn(1024.0f, 1024.0f)); // of 1024 + min
          this->min[2 * i + r] = *(uint32_t *)&min;
        }
      }
    }
  }
};

// y and the term of the next block, as docs/paths.md has it; Q6_K has no minimums.
template <weight_type TYPE>
__device__ __forceinline__ float add_term(float y, float dx, float d, float isum, float dmin, float msum) {
  float term = TYPE == TYPE_Q6_K ? d * isum : num_fma_f32(d, isum, -(dmin * msum));
  return num_fma_f32(dx, term, y);
}
