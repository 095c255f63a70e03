// round_q8k: 256 floats to a Q8_K block by one warp, as docs/paths.md writes it.
#pragma once
#include "kernels/cuda/device.cuh"

// The lane's eight elements of what down reads, a block of 256 at `gate` and `up`.
__device__ __forceinline__ void gate_lane(float v[8], const float *gate, const float *up) {
  const float4 *from = (const float4 *)gate + 2 * (threadIdx.x % WARP),
               *by = (const float4 *)up + 2 * (threadIdx.x % WARP);
  float4 g0 = from[0], g1 = from[1], u0 = by[0], u1 = by[1];
  const float g[8] = {g0.x, g0.y, g0.z, g0.w, g1.x, g1.y, g1.z, g1.w},
              u[8] = {u0.x, u0.y, u0.z, u0.w, u1.x, u1.y, u1.z, u1.w};
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] = num_silu_f32(g[i]) * u[i];
}

// The magnitude of rank MOST_OUTLIERS + 1 of the warp's 256.
__device__ __forceinline__ float ordinary_magnitude(const float v[8]) {
  int lane = threadIdx.x % WARP;
  uint32_t taken = 0, level = 0; // a bit an element
  for (int rank = 0; rank <= MOST_OUTLIERS; rank++) {
    uint32_t mine = 0, which = 0;
#pragma unroll
    for (int i = 0; i < 8; i++)
      if (!(taken >> i & 1) && fabsf(v[i]) > __uint_as_float(mine)) {
        mine = __float_as_uint(fabsf(v[i]));
        which = 1u << i;
      }
    level = __reduce_max_sync(~0u, mine);
    int owner = __ffs(__ballot_sync(~0u, mine == level)) - 1; // of equals one at a time
    if (lane == owner) taken |= which;
  }
  return __uint_as_float(level);
}

// Takes the outliers of a block (docs/paths.md) out of v, which lies as in round_block. Most blocks have
// none, and the first test says so.
__device__ __forceinline__ void take_outliers(block_outliers *out, float v[8]) {
  int lane = threadIdx.x % WARP, within = 0, count = 0;
  uint32_t most = 0, mine = 0; // mine: a bit an outlier
#pragma unroll
  for (int i = 0; i < 8; i++)
    if (fabsf(v[i]) > __uint_as_float(most)) most = __float_as_uint(fabsf(v[i]));
  float all = __uint_as_float(__reduce_max_sync(~0u, most));
#pragma unroll
  for (int i = 0; i < 8; i++) within += num_outlier_limit(fabsf(v[i])) >= all;
  if (warp_sum(within) <= MOST_OUTLIERS) {
    float limit = num_outlier_limit(ordinary_magnitude(v));
    int before = 0; // outliers of lower lanes
#pragma unroll
    for (int i = 0; i < 8; i++) {
      bool is_out = fabsf(v[i]) > limit;
      uint32_t lanes = __ballot_sync(~0u, is_out);
      if (is_out) mine |= 1u << i;
      before += __popc(lanes & ((1u << lane) - 1));
      count += __popc(lanes);
    }
#pragma unroll
    for (int i = 0; i < 8; i++) {
      if (!(mine >> i & 1)) continue;
      int place = before + __popc(mine & ((1u << i) - 1));
      out->at[place] = (uint8_t)(8 * lane + i);
      out->x[place] = v[i];
      v[i] = 0;
    }
  }
  if (lane == 0) out->count = count;
}

struct rounded_lane { // of a block of 256, the lane's eight
  uint2 quants;
  int sum;
  float d; // of the block
};

// Lane l holds elements 8 l .. 8 l + 7.
__device__ __forceinline__ rounded_lane round_lane(const float v[8]) {
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
  rounded_lane out = {make_uint2(0, 0), 0, all ? 1.0f / inverse : 0.0f};
  uint32_t low = 0, high = 0;
#pragma unroll
  for (int i = 0; i < 8; i++) {
    int q = all ? num_q8k_round(inverse, v[i]) : 0;
    out.sum += q;
    uint32_t byte = (uint32_t)(uint8_t)q << 8 * (i % 4);
    if (i < 4)
      low |= byte;
    else
      high |= byte;
  }
  out.quants = make_uint2(low, high);
  return out;
}

// The 8 sums of 32 (dev_inputs) of a block, of whose lanes each has the sum of its own and its neighbour's.
__device__ __forceinline__ void store_sums32(int8_t *sums32, int sum) {
  int lane = threadIdx.x % WARP;
  sum += __shfl_xor_sync(~0u, sum, 2);
  if (lane % 4 == 0) sums32[lane / 4] = (int8_t)(sum & 127);
  if (lane % 4 == 1) sums32[8 + lane / 4] = (int8_t)(sum >> 7);
}

// Lane l holds elements 8 l .. 8 l + 7. Writes 256 quants, the scale, 16 sums and, unless
// NULL, the 8 sums of 32 (dev_inputs); global or shared memory.
__device__ __forceinline__ void round_block(const float v[8], int8_t *qs, float *d, int16_t *bsums,
                                            int8_t *sums32) {
  int lane = threadIdx.x % WARP;
  rounded_lane r = round_lane(v);
  int sum = r.sum;
  *(uint2 *)(qs + 8 * lane) = r.quants;
  sum += __shfl_xor_sync(~0u, sum, 1);
  if (lane % 2 == 0) bsums[lane / 2] = (int16_t)sum;
  if (sums32) store_sums32(sums32, sum);
  if (lane == 0) *d = r.d;
}
