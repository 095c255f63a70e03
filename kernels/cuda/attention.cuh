// attention: what every attention kernel does with the scores of a chunk, and how chunks are folded.
#pragma once
#include "kernels/cuda/device.cuh"

// Scores of one row's n keys become weights relative to their maximum; the warp's lanes are sum32's lanes.
// Keys beyond n get weight 0 and no lane.
__device__ __forceinline__ void chunk_weights(float *score, int n, float *max_out, float *sum_out) {
  int lane = threadIdx.x % WARP;
  float max = score[0];
  for (int j = lane; j < n; j += WARP) max = score[j] > max ? score[j] : max;
  for (int half = WARP / 2; half; half /= 2) {
    float other = __shfl_xor_sync(~0u, max, half);
    max = other > max ? other : max;
  }
  float sum = 0;
  for (int j = lane; j < CHUNK; j += WARP) {
    float e = j < n ? num_exp_f32(score[j] - max) : 0.0f;
    score[j] = e;
    if (j < n) sum = sum + e;
  }
  *max_out = max;
  *sum_out = warp_tree(sum);
}

// Factors by which the running values and the chunk's are multiplied; updates the running max and sum.
__device__ __forceinline__ void fold(float *run_max, float *run_sum, float max, float sum, float *old,
                                     float *fresh) {
  float both = *run_max > max ? *run_max : max;
  *old = num_exp_f32(*run_max - both);
  *fresh = num_exp_f32(max - both);
  *run_sum = num_fma_f32(sum, *fresh, *run_sum * *old);
  *run_max = both;
}
