// head_row: a head of one token in a warp's registers: norm and RoPE (docs/paths.md steps 3 and 4).
#pragma once
#include "kernels/cuda/device.cuh"

// The warp's row of q, k or v: lane l has elements l + 32 i. Norm and RoPE but for v.
template <int DIM> struct head_row {
  static constexpr int EACH = DIM / WARP, PAIRS = EACH / 2;
  float x[EACH], weight[EACH];
  float2 cos_sin[PAIRS];

  __device__ __forceinline__ void constants(const float *norm, const float *rope) {
    int lane = threadIdx.x % WARP;
    for (int i = 0; i < EACH; i++) weight[i] = norm[lane + WARP * i];
    for (int i = 0; i < PAIRS; i++) cos_sin[i] = *(const float2 *)(rope + 2 * (lane + WARP * i));
  }
  __device__ __forceinline__ void load(const float *from) {
    for (int i = 0; i < EACH; i++) x[i] = from[threadIdx.x % WARP + WARP * i];
  }
  __device__ __forceinline__ void norm_and_rotate(float epsilon, float z) {
    float sum = 0;
    for (int i = 0; i < EACH; i++) sum = num_fma_f32(x[i], x[i], sum);
    float inverse = inverse_rms(warp_tree(sum), DIM, epsilon);
    for (int i = 0; i < PAIRS; i++) {
      float a = x[i] * inverse * weight[i], b = x[i + PAIRS] * inverse * weight[i + PAIRS];
      x[i] = num_fma_f32(a, cos_sin[i].x, -(b * cos_sin[i].y)) * z;
      x[i + PAIRS] = num_fma_f32(a, cos_sin[i].y, b * cos_sin[i].x) * z;
    }
  }
};
