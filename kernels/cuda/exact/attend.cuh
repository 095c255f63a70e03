// attend: what every kernel of exact attention has and does.
#pragma once
#include "kernels/cuda/exact/exact.cuh"

struct exact_args {
  float *out; // [n][n_heads][head_dim]
  exact_work work;
  limb_cache cache;
  dev_batch batch; // of the queries
  int layer;
};

// Running values of chunks, or of groups of them: relative to `max`.
struct exact_sums {
  float max = -INFINITY, sum = 0;

  // Takes in the next chunk or group, or is it, where it is the first: o = fma(its o, fresh, o * old).
  __device__ __forceinline__ void fold(float its_max, float its_sum, float *old, float *fresh) {
    float both = fmaxf(max, its_max);
    *old = exact_rescale(max, both);
    *fresh = exact_rescale(its_max, both);
    sum = num_fma_f32(its_sum, *fresh, sum * *old);
    max = both;
  }
};
