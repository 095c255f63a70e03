// weights: the model's tensors in device memory, one copy for all arms of a process.
#pragma once
#include "kernels/cuda/device.cuh"

struct dev_layer {
  const float *attn_norm, *q_norm, *k_norm, *ffn_norm;
  const float *q_balance, *k_balance; // powers of two [head_dim], of exact attention
  dev_matrix q, k, v, o, router, gate, up, down;
};

// This rank's experts and, if an arm wants them, the shared tensors.
struct dev_weights {
  const model_weights *source;
  expert_map map;
  int users, n_local; // n_local: experts of a layer, the most of any
  bool has_shared;
  dev_matrix embedding, output;
  const float *output_norm;
  dev_layer *layers;    // host array
  int *local_of_expert; // device: map.local
  void *blocks[4096];   // allocations
  int n_blocks;
  size_t bytes;
  memory_plan *plan; // not NULL: nothing is allocated, all is only added up
  size_t staging;    // of the largest tensor that is re-ordered
};

status weights_acquire(dev_weights **out, const model_weights *source, const expert_map *map,
                       bool wants_shared);
void weights_release(dev_weights *w);
// On the device: of a layer's experts.
static inline const int *weights_local(const dev_weights *w, int64_t layer) {
  return w->local_of_expert + expert_map_at(&w->map, layer, w->source->shape.n_experts);
}
// Adds what weights_acquire would allocate.
status weights_plan(memory_plan *out, const model_weights *source, const expert_map *map, bool wants_shared);
