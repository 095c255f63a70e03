// exact: the launches of attention in exact integers (docs/paths.md, version 2 of q8k).
//
// Where to find what: heads.cu writes queries, keys and values as limbs (limbs.cuh); attend.cu is attention
// of any shape; attend_wgmma.cu of many queries on Hopper; decode_exact.cu of one token of each sequence. All
// have the same bits.
#pragma once
#include "kernels/cuda/exact/limbs.cuh"
#include "kernels/cuda/weights.cuh"

struct exact_work {
  query_limbs queries;    // of a batch
  float *max, *sum, *out; // [items] and [items][dims]: results of chunks, and of groups, of split attention
  size_t capacity;        // items
};

// Norm, RoPE and rounding: keys and values of the whole batch into the cache, queries of n tokens from
// `first` on into work->queries as tokens 0 .. n - 1. rotated: norm and RoPE have been taken already. q_out,
// k_out: where the rotated queries and keys go as well, as in b->q and [batch][n_kv_heads][head_dim], or
// NULL.
status exact_heads_launch(exact_work *work, limb_cache cache, const float *q, const float *k, const float *v,
                          const dev_layer *w, const model_shape *s, const float *rope, int layer,
                          const dev_batch *b, int first, int n, bool rotated, float *q_out, float *k_out,
                          cudaStream_t stream);
// out[n][n_heads][head_dim] of the queries of exact_heads_launch; b: their n tokens.
status exact_attention_launch(float *out, const exact_work *work, limb_cache cache, int layer,
                              const dev_batch *b, cudaStream_t stream);
bool exact_wgmma_serves(const exact_work *work, limb_cache cache, const dev_batch *b);
status exact_wgmma_launch(float *out, const exact_work *work, limb_cache cache, int layer, const dev_batch *b,
                          cudaStream_t stream);
