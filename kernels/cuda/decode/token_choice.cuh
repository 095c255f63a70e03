// token_choice: the experts of a token from its router's logits, by one warp, for token.cu. The choice of
// decode_experts.cu.
#pragma once
#include "kernels/cuda/decode/token_exchange.cuh"
#include "kernels/cuda/decode/token_rows.cuh"

// Four of each lane; behind the last expert -INFINITY.
__device__ __forceinline__ void wait_logits(float (&x)[4], const float *logits, int n_experts) {
  int lane = threadIdx.x % WARP, n = n_experts - 4 * lane;
  const float *at = logits + 4 * lane;
  float4 v = make_float4(0, 0, 0, 0);
  unsigned turns = 0;
  auto are_there = [&] {
    return (n < 1 || is_written(v.x)) && (n < 2 || is_written(v.y)) && (n < 3 || is_written(v.z)) &&
           (n < 4 || is_written(v.w));
  };
  for (v = load_relaxed_4(at); !are_there(); v = load_relaxed_4(at)) spin(&turns);
  x[0] = n < 1 ? -INFINITY : v.x, x[1] = n < 2 ? -INFINITY : v.y;
  x[2] = n < 3 ? -INFINITY : v.z, x[3] = n < 4 ? -INFINITY : v.w;
}

template <typename T> __device__ __forceinline__ void rotate(T (&x)[4]) {
  T first = x[0];
  x[0] = x[1], x[1] = x[2], x[2] = x[3], x[3] = first;
}

// Into keys that fall, behind its equals; the last one is lost.
__device__ __forceinline__ void insert(uint32_t (&key)[4], int (&member)[4], uint32_t k, int of) {
  bool moves = false;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    moves = moves || k > key[i];
    uint32_t next_key = moves ? key[i] : k;
    int next_member = moves ? member[i] : of;
    key[i] = moves ? k : key[i], member[i] = moves ? of : member[i];
    k = next_key, of = next_member;
  }
}

// The slots' members and probabilities, by one warp; local: members of its experts 4 l .. 4 l + 3. As
// docs/paths.md chooses them: most probable first, of equals the lower index.
__device__ __forceinline__ void choose_slots(int *slot_member, float *slot_g, const float *logits,
                                             int n_experts, int top_k, int (&local)[4]) {
  int lane = threadIdx.x % WARP;
  constexpr int EACH = 4; // of a lane
  static_assert(EACH * WARP == TOKEN_EXPERTS);
  float x[EACH];
  uint32_t key[EACH] = {}; // of the probability; 1: not a number, chosen last; 0: no expert
  int member[EACH] = {};
  wait_logits(x, logits, n_experts);
  float largest = __shfl_sync(~0u, x[0], 0);
  for (int i = 0; i < EACH; i++) largest = x[i] > largest ? x[i] : largest;
  largest = warp_max(largest);
  // Loops that are not unrolled: what one warp runs once a layer takes longer to fetch than to run.
#pragma unroll 1
  for (int i = 0; i < EACH; i++) {
    float g = exp_straight(x[0] - largest);
    insert(key, member, EACH * lane + i >= n_experts ? 0 : g >= 0.0f ? __float_as_uint(g) + 2 : 1, local[0]);
    rotate(x);
    rotate(local);
  }
#pragma unroll 1
  for (int slot = 0; slot < top_k; slot++) {
    uint32_t best = __reduce_max_sync(~0u, key[0]);
    bool is_mine = lane == __ffs(__ballot_sync(~0u, key[0] == best)) - 1;
    if (is_mine) {
      slot_member[slot] = member[0];
      slot_g[slot] = best > 1 ? __uint_as_float(best - 2) : 0.0f;
    }
#pragma unroll
    for (int i = 0; i < EACH; i++) {
      key[i] = !is_mine ? key[i] : i + 1 < EACH ? key[i + 1] : 0;
      member[i] = is_mine && i + 1 < EACH ? member[i + 1] : member[i];
    }
  }
}
