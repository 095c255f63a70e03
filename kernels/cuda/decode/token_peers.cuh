// token_peers: the slots of one token that other GPUs compute, in the launch of all layers (token.cu).
//
// A slot's row comes to a place of its own, [n_layers][top_k][hidden] in each of two sets; a token clears the
// other one while it uses its own. A number is the news of itself, as in token_exchange.cuh, so no store
// needs an order. Invariant: ranks meet once a token: each tells the others when its launch starts, so what
// it cleared in the launch before is cleared, and none stores to another before all have told it.
#pragma once
#include "kernels/cuda/decode/token_plan.cuh"

struct token_slots { // of one layer, in the set of this token and in the other one
  uint32_t *now, *other;
  int hidden;
};

__device__ __forceinline__ token_slots slots_of_layer(uint32_t *const sets[2], unsigned epoch, int layer,
                                                      int top_k, int hidden) {
  size_t at = (size_t)layer * (size_t)(top_k * hidden);
  return {sets[epoch % 2] + at, sets[(epoch + 1) % 2] + at, hidden};
}

// By one warp, lane l row first + l of `count`: one slot's rows, once they have come.
__device__ __forceinline__ void take_slot(float *y, const peer_links &p, const token_slots &s, int slot,
                                          int first, int count) {
  int lane = threadIdx.x % WARP;
  uint32_t bits = NOT_WRITTEN, *at = s.now + (size_t)slot * s.hidden + first + lane;
  if (lane >= count) return;
  wait_for_peer(p, [&] { return (bits = load_relaxed_system(at)) != NOT_WRITTEN; });
  y[lane] = __uint_as_float(bits);
}

// The same rows of the other set, for the next token.
__device__ __forceinline__ void clear_slot(const token_slots &s, int slot, int first, int count) {
  int lane = threadIdx.x % WARP;
  if (lane < count) s.other[(size_t)slot * s.hidden + first + lane] = NOT_WRITTEN;
}
