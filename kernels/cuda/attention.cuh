// attention: the cache, the launch of attention.cu, and what every attention kernel does with the scores of a
// chunk and in the fold of chunks.
#pragma once
#include "kernels/cuda/device.cuh"

struct kv_cache {
  void *keys, *values; // [layers][sequences][kv_heads] of [chunks][head_dim][CHUNK] and [positions][head_dim]
  bool f16;
  size_t head_elements; // of one (layer, sequence, head)
  int n_sequences, n_kv_heads, head_dim;
};

// Fewer thread blocks than this do not keep a GPU busy: then each takes one chunk, where the work space holds
// what is folded afterwards.
static constexpr int SPLIT_BELOW = 256;

struct attention_work {
  float *max, *sum, *out; // [tokens * heads][chunks] (max, sum), [..][head_dim] of split attention
  size_t capacity;        // rows * chunks
};
status attention_launch(float *out, const float *q, kv_cache cache, int layer, const dev_batch *b,
                        int n_heads, int max_keys, attention_work *work, cudaStream_t stream);

// ---- what every attention kernel does ----

// Scores of one row's n keys, `stride` apart, become weights relative to their maximum; the warp's lanes are
// sum32's lanes. Keys beyond n get weight 0 and no lane.
__device__ __forceinline__ void chunk_weights(float *score, int stride, int n, float *max_out,
                                              float *sum_out) {
  int lane = threadIdx.x % WARP;
  float max = score[0];
  for (int j = lane; j < n; j += WARP) max = score[j * stride] > max ? score[j * stride] : max;
  max = warp_max(max);
  float sum = 0;
  for (int j = lane; j < CHUNK; j += WARP) {
    float e = j < n ? num_exp_f32(score[j * stride] - max) : 0.0f;
    score[j * stride] = e;
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
