// routing: the choice of experts, and the grouping of slots by this rank's experts (routing.cu), a launch
// each.
#pragma once
#include "kernels/cuda/products/product.cuh"

// The top k of n tokens' logits[n][n_experts] into expert and weight, in slot order, and unless NULL the
// margin. Also the member of each slot's expert among this rank's, -1 for others; and with `place` the fixed
// place of each slot's row: in the part of the rank that owns its expert, or with `epoch`, for peers, in one
// of two parts in turn.
status route_launch(int *expert, float *weight, int *member, int64_t *place, double *margin,
                    const float *logits, const int *local_of_expert, const int *rank_of_expert,
                    const uint32_t *epoch, int n, int n_experts, int k, cudaStream_t stream);
// The members alone, where another rank or the host has routed.
status members_launch(int *member, const int *expert, const int *local_of_expert, int n_slots,
                      cudaStream_t stream);
// first, order and tiles as struct product has them.
status group_launch(int *first, int *order, int *tiles, const int *member, int n_items, int n_members,
                    cudaStream_t stream);
