// round_q8k: 256 floats to a Q8_K block by one warp, as docs/paths.md writes it.
#pragma once
#include "kernels/cuda/device.cuh"

// Lane l holds elements 8 l .. 8 l + 7. Writes 256 quants, the scale, 16 sums and, unless
// NULL, the 8 sums of 32 (dev_inputs); global or shared memory.
__device__ __forceinline__ void round_block(const float v[8], int8_t *qs, float *d, int16_t *bsums,
                                            int8_t *sums32) {
  int lane = threadIdx.x % WARP;
  uint32_t most = 0; // bits of magnitudes order as the magnitudes; a NaN is none, as in the C comparison
  float extreme = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    float m = fabsf(v[i]);
    if (m > __uint_as_float(most)) {
      most = __float_as_uint(m);
      extreme = v[i];
    }
  }
  uint32_t all = __reduce_max_sync(~0u, most);
  int owner = __ffs(__ballot_sync(~0u, most == all)) - 1; // the lowest lane has the first element
  extreme = __shfl_sync(~0u, extreme, owner);
  float inverse = all ? num_q8k_inverse_scale(extreme) : 0.0f;
  int sum = 0;
  uint32_t packed[2] = {0, 0};
#pragma unroll
  for (int i = 0; i < 8; i++) {
    int q = all ? num_q8k_round(inverse, v[i]) : 0;
    sum += q;
    packed[i / 4] |= (uint32_t)(uint8_t)q << 8 * (i % 4);
  }
  *(uint2 *)(qs + 8 * lane) = make_uint2(packed[0], packed[1]);
  sum += __shfl_xor_sync(~0u, sum, 1);
  if (lane % 2 == 0) bsums[lane / 2] = (int16_t)sum;
  if (sums32) {
    sum += __shfl_xor_sync(~0u, sum, 2);
    if (lane % 4 == 0) sums32[lane / 4] = (int8_t)(sum & 127);
    if (lane % 4 == 1) sums32[8 + lane / 4] = (int8_t)(sum >> 7);
  }
  if (lane == 0) *d = all ? 1.0f / inverse : 0.0f;
}
