// routing: the choice of experts, and the grouping of slots by this rank's experts (routing.cu), a launch
// each.
#pragma once
#include "kernels/cuda/products/product.cuh"
#include "kernels/expert_map.h"

struct layer_map {           // of a layer, on the device (expert_map.h)
  const int *local;          // [n_experts]
  const int *first, *holder; // where slots have fixed places, or there are replicas
  bool has_replicas;
  int rank; // this one
};

// The top k of n tokens' logits[n][n_experts] into expert and weight, in slot order, and unless NULL the
// margin. Also the member of each slot's expert among this rank's, -1 where another rank computes the slot;
// and with `place` the fixed place of each slot's row: in the part of the rank that computes it, or with
// `epoch`, for peers, in one of two parts in turn.
status route_launch(int *expert, float *weight, int *member, int64_t *place, double *margin,
                    const float *logits, const layer_map &map, const dev_batch &rows, const uint32_t *epoch,
                    int n_experts, int k, cudaStream_t stream);
// The members alone, where another rank or the host has routed.
status members_launch(int *member, const int *expert, const layer_map &map, const dev_batch &rows, int k,
                      cudaStream_t stream);
// first, order and tiles as struct product has them.
status group_launch(int *first, int *order, int *tiles, const int *member, int n_items, int n_members,
                    cudaStream_t stream);
