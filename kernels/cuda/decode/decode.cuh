// decode: launches of a batch of one token on the path q8k (decode.cu, decode_attention.cu,
// decode_experts.cu). In this order, each in place of several of the steps' launches for many tokens.
#pragma once
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/exact/exact.cuh"
#include "kernels/cuda/peers.cuh"
#include "kernels/cuda/weights.cuh"

// Whether the kernels hold this shape and these types of weights: K-quants but for a router of F32, at
// most 256 experts, widths up to 8,192.
bool decode_fits(const model_shape *s, const dev_weights *w);
// Whether decode_attention_launch serves n tokens of different sequences and so many positions (head_dim
// 64 or 128); else attention.cu does.
bool decode_attends(const attention_work *work, const model_shape *s, int n, int max_keys);

// q, k, v = products of rms_norm(x), before norm and RoPE of the heads, which decode_attention_launch does.
status decode_qkv_launch(float *q, float *k, float *v, const float *x, const dev_layer *w, float epsilon,
                         cudaStream_t stream);
// Of the batch's tokens, no two of which are of one sequence: out[n][n_heads][head_dim]; writes their keys
// and values to the cache. On any path. arrived: [n][n_heads] zeros, left so. early: the launch
// before it is decode_qkv_launch, which does not write the cache, so that the cache may be read meanwhile.
status decode_attention_launch(float *out, const float *q, const float *k, const float *v, const dev_layer *w,
                               const model_shape *s, const float *rope, kv_cache cache, int layer,
                               const dev_batch *b, int max_keys, const attention_work *work,
                               unsigned *arrived, bool early, cudaStream_t stream);
// The same two of exact attention.
bool decode_attends_exact(const exact_work *work, const model_shape *s, int n, int max_keys);
status decode_exact_launch(float *out, const float *q, const float *k, const float *v, const dev_layer *w,
                           const model_shape *s, const float *rope, limb_cache cache, int layer,
                           const dev_batch *b, int max_keys, const exact_work *work, bool early,
                           cudaStream_t stream);
// x = x + o(attended)
status decode_output_launch(float *x, const float *attended, const dev_layer *w, cudaStream_t stream);
// normed = rms_norm(x), rounded too; logits[n_experts] of it. peers.n not 0: decode_down_launch with peers
// follows.
status decode_router_launch(float *logits, dev_inputs normed, const float *x, const dev_layer *w,
                            float epsilon, const peer_links &peers, cudaStream_t stream);

struct decode_experts {
  dev_inputs normed;
  const float *router_logits;
  float *hidden; // work space [top_k][expert_width]
  float *slots;  // owned slots' outputs, rows by `place` (NULL: in slot order); NULL: combined at once:
  const int64_t *place;
  float *x; // x = x + the slots' sum, and its digest as layer `layer` added to sums[sequence]
  unsigned long long *sums;
  uint64_t tag;
  int layer;
  peer_links peers; // n not 0, with `slots` NULL: the others' slots come from them
};
// Follows decode_router_launch and repeats the choice of experts from its logits: hidden = silu(gate) * up.
status decode_gate_up_launch(const decode_experts *e, const dev_layer *w, const model_shape *s,
                             const dev_weights *all, const dev_batch *b, cudaStream_t stream);
// Follows decode_gate_up_launch: down, and with `slots` NULL combine.
status decode_down_launch(const decode_experts *e, const dev_layer *w, const model_shape *s,
                          const dev_weights *all, const dev_batch *b, cudaStream_t stream);

status decode_head_launch(float *logits, const float *x, const dev_weights *w, float epsilon,
                          cudaStream_t stream);
