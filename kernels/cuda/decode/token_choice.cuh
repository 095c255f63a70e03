// token_choice: the experts of a token from its router's logits, by a thread block, for token.cu, and which
// group of thread blocks takes which slot. The choice of decode_experts.cu.
//
// The experts are chosen twice. First they are guessed: from the layer's input, before attention, with the
// router's own rows; what attention adds seldom changes more than one of eight. The weights of those that are
// guessed travel during attention, when the memory would be idle. Then they are chosen, and what was not
// guessed is asked for. No number depends on the guess.
#pragma once
#include "kernels/cuda/decode/token_exchange.cuh"
#include "kernels/cuda/decode/token_rows.cuh"

struct choice_memory { // shared
  __align__(16) uint32_t key[TOKEN_EXPERTS];
  uint32_t largest[TOKEN_EXPERTS / WARP];
  int slot_of_group[TOKEN_TOP_K]; // top_k: its guess was not chosen
  bool is_open[TOKEN_TOP_K];      // a slot of an expert of this rank that nobody guessed
};

// Numbers as integers that order alike; 0: not a number.
__device__ __forceinline__ uint32_t ordered_bits(float x) {
  uint32_t bits = __float_as_uint(x);
  return x != x ? 0 : bits >> 31 ? ~bits : bits | 1u << 31;
}
__device__ __forceinline__ float from_ordered_bits(uint32_t of) {
  return __uint_as_float(of >> 31 ? of ^ 1u << 31 : ~of);
}

// Lane c (and those with the same c = lane % 8) of warp w: how many experts come before expert 8 w + c. Each
// lane compares four keys with the warp's eight; eight counts are the bytes of two words.
__device__ __forceinline__ int count_before(const choice_memory *m) {
  int lane = threadIdx.x % WARP, w = threadIdx.x / WARP, c = lane % 8, j = lane / 8;
  const uint4 *keys = (const uint4 *)m->key;
  uint4 own[2] = {keys[2 * w], keys[2 * w + 1]}, k = keys[lane];
  uint32_t lower = lane < 2 * w; // of equals the lower index comes first
  uint32_t key[4] = {k.x + lower, k.y + lower, k.z + lower, k.w + lower}, count[2] = {};
  if (lane / 2 == w) key[0] = key[1] = key[2] = key[3] = 0; // the warp's own, below
#pragma unroll
  for (int h = 0; h < 2; h++)
#pragma unroll
    for (int i = 0; i < 4; i++)
      count[h] += (key[i] > own[h].x ? 1u : 0u) + (key[i] > own[h].y ? 1u << 8 : 0u) +
                  (key[i] > own[h].z ? 1u << 16 : 0u) + (key[i] > own[h].w ? 1u << 24 : 0u);
  count[0] = __reduce_add_sync(~0u, count[0]);
  count[1] = __reduce_add_sync(~0u, count[1]);
  uint32_t mine = m->key[8 * w + c], a = m->key[8 * w + j], b = m->key[8 * w + j + 4];
  int within = (a + (j < c) > mine) + (b + (j + 4 < c) > mine);
  within += __shfl_xor_sync(~0u, within, 8);
  within += __shfl_xor_sync(~0u, within, 16);
  return within + (int)((c < 4 ? count[0] : count[1]) >> 8 * (c % 4) & 255);
}

// The place of expert 8 w + lane % 8 among those that may be chosen, on warp w; NOT_CHOSEN: it may not. *g:
// its probability. By the whole thread block; may: thread e's of expert e. As docs/paths.md has it: most
// probable first, of equals the lower index.
static constexpr int NOT_CHOSEN = 1 << 16;
__device__ __forceinline__ int rank_expert(float *g, choice_memory *m, const float *logits, int n_experts,
                                           bool may) {
  static_assert(TOKEN_WARPS * 8 == TOKEN_EXPERTS);
  int e = threadIdx.x;
  float x = -INFINITY;
  if (e < TOKEN_EXPERTS) {
    if (e < n_experts) x = wait_one(logits + e);
    __syncwarp();
    uint32_t largest = __reduce_max_sync(~0u, ordered_bits(x));
    // where the first is not a number, the largest is none
    if (e % WARP == 0) m->largest[e / WARP] = e == 0 && x != x ? ~0u : largest;
  }
  __syncthreads();
  if (e < TOKEN_EXPERTS) {
    uint32_t largest = 0;
    for (int i = 0; i < TOKEN_EXPERTS / WARP; i++) largest = max(largest, m->largest[i]);
    float p = exp_straight(x - from_ordered_bits(largest));
    // of the probability; 1: not a number, chosen last; 0: no expert
    m->key[e] = e >= n_experts || !may ? 0 : p >= 0.0f ? __float_as_uint(p) + 2 : 1;
  }
  __syncthreads();
  uint32_t key = m->key[e / WARP * 8 + e % 8];
  *g = key > 1 ? __uint_as_float(key - 2) : 0.0f;
  int before = count_before(m);
  return key ? before : NOT_CHOSEN;
}

struct group_slot { // lane g: of group g
  int slot, member; // top_k and -1: it has none
};

// What groups that guessed no expert of this rank take: its slots that nobody guessed, both ascending. By one
// warp; *missed: those groups, a bit each.
__device__ __forceinline__ group_slot slot_of_group(uint32_t *missed, const choice_memory *m,
                                                    const int *slot_member, int top_k) {
  int lane = threadIdx.x % WARP, of = lane < top_k ? lane : 0;
  group_slot g = {lane < top_k ? m->slot_of_group[of] : top_k, -1};
  uint32_t idle = __ballot_sync(~0u, lane < top_k && g.slot == top_k),
           open = __ballot_sync(~0u, lane < top_k && m->is_open[of]);
  *missed = idle;
#pragma unroll 1
  for (; idle && open; idle &= idle - 1, open &= open - 1)
    if (lane == __ffs((int)idle) - 1) g.slot = __ffs((int)open) - 1;
  if (g.slot < top_k) g.member = slot_member[g.slot];
  return g;
}
