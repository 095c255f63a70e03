// decode: launches of a batch of one token on the path q8k (decode.cu). In this order, each in place of
// several of the steps' launches for many tokens.
#pragma once
#include "kernels/cuda/device.cuh"

// Whether the kernels hold this shape and these types of weights: K-quants but for a router of floats,
// head_dim 64 or 128, at most 256 experts.
bool decode_fits(const model_shape *s, const dev_weights *w);
// And a cache of so many positions; longer ones go to attention.cu.
bool decode_attends(const attention_work *work, int n_heads, int max_keys);

// q, k, v = products of rms_norm(x), as they come: decode_attention_launch norms and turns the heads.
status decode_qkv_launch(float *q, float *k, float *v, const float *x, const dev_layer *w, float epsilon,
                         cudaStream_t stream);
// out[n_heads][head_dim]; writes the token's key and value to the cache. arrived: [n_heads] zeros, left so.
status decode_attention_launch(float *out, const float *q, const float *k, const float *v, const dev_layer *w,
                               const model_shape *s, const float *rope, kv_cache cache, int layer,
                               const dev_batch *b, int max_keys, const attention_work *work,
                               unsigned *arrived, cudaStream_t stream);
// x = x + o(attended)
status decode_output_launch(float *x, const float *attended, const dev_layer *w, cudaStream_t stream);
// normed = rms_norm(x), rounded too; logits[n_experts] of it
status decode_router_launch(float *logits, dev_inputs normed, const float *x, const dev_layer *w,
                            float epsilon, cudaStream_t stream);

struct decode_experts {
  dev_inputs normed;
  const float *router_logits;
  float *hidden; // work space [top_k][expert_width]
  float *slots;  // own slots' outputs, rows by `place` (NULL: in slot order); NULL: combined at once:
  const int64_t *place;
  float *x; // x = x + the slots' sum, and its digest as layer `layer` added to sums[sequence]
  unsigned long long *sums;
  uint64_t tag;
  int layer;
};
// Follows decode_router_launch and repeats the choice of experts from its logits.
status decode_experts_launch(const decode_experts *e, const dev_layer *w, const model_shape *s,
                             const dev_weights *all, const dev_batch *b, cudaStream_t stream);

status decode_head_launch(float *logits, const float *x, const dev_weights *w, float epsilon,
                          cudaStream_t stream);
