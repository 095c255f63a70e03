// token_exchange: how thread blocks that run at once pass numbers on, and how weights reach shared memory.
//
// Numbers: every place is written once a token, and until then holds NOT_WRITTEN, which no number has: who
// reads it waits for something else to stand there. So a number and the news of it are one transfer. Places
// are cleared a token later: there are two sets, and a token clears the other one while it uses its own. A
// layer's places of one kind:
//
//   stream   [hidden]  x before the layer (of layer 0 it comes from the launch before)
//   qkv      [q, k, v rows]
//   att      [n_heads * head_dim]  attention's output
//   middle   [hidden]  x after attention
//   logits   [n_experts]
//   hidden   [top_k][width]  silu(gate) * up
//   guess    [n_experts]  the router's logits of x before the layer, but for a factor (token_choice.cuh)
//   guessed  [top_k]  the experts that follow from them, by their number among this rank's plus one
//
// Results of attention's chunks, which are as many as the context is long, have a tag beside them instead
// (token_attention.cuh).
//
// Weights: each warp has two places, and one mbarrier each. What it reads next is asked for as soon as its
// place is free. A token's weights are read once and are many times the L2 cache, where the numbers, norms
// and keys of all layers have room: so weights leave it first.
//
// Invariant: everyone who waits is waited for by nobody whom it waits for: phases follow each other in one
// order in every thread block.
#pragma once
#include "kernels/cuda/decode/token.cuh"
#include "kernels/cuda/instructions_hopper.cuh"
#include "kernels/cuda/peers.cuh"

__device__ __forceinline__ bool is_written(float x) {
  return __float_as_uint(x) != NOT_WRITTEN;
}

__device__ __forceinline__ float passable(float x) {
  return is_written(x) ? x : __uint_as_float(0x7fffffffu);
}

__device__ __forceinline__ void pass_on(float *to, float x) {
  store_relaxed(to, passable(x));
}

struct nothing {
  __device__ __forceinline__ void operator()() const {}
};

// meanwhile: what is done in each turn of the wait.
template <typename Meanwhile = nothing>
__device__ __forceinline__ float wait_one(const float *at, const Meanwhile &meanwhile = {}) {
  unsigned turns = 0;
  float x = load_relaxed(at);
  while (!is_written(x)) {
    spin(&turns);
    meanwhile();
    x = load_relaxed(at);
  }
  return x;
}

__device__ __forceinline__ bool are_written(const float4 &v) {
  return is_written(v.x) && is_written(v.y) && is_written(v.z) && is_written(v.w);
}

static constexpr int WATCHING_LANE = WARP - 1;

// Lane l's eight numbers from 8 l on. One lane watches: where all do, they are in the way of the numbers.
template <typename Meanwhile = nothing>
__device__ __forceinline__ void wait_block(float v[8], const float *from, const Meanwhile &meanwhile = {}) {
  const float *at = from + 8 * (threadIdx.x % WARP);
  unsigned turns = 0;
  if (threadIdx.x % WARP == WATCHING_LANE) wait_one(at + 7, meanwhile);
  __syncwarp();
  float4 a = load_relaxed_4(at), b = load_relaxed_4(at + 4);
  while (!are_written(a) || !are_written(b)) {
    spin(&turns);
    a = load_relaxed_4(at);
    b = load_relaxed_4(at + 4);
  }
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
  v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

// Lane l's numbers l + 32 i.
template <int N> __device__ __forceinline__ void wait_strided(float (&x)[N], const float *from) {
  const float *at = from + threadIdx.x % WARP;
  unsigned turns = 0;
  for (bool are_there = false; !are_there;) {
    are_there = true;
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = load_relaxed(at + WARP * i);
#pragma unroll
    for (int i = 0; i < N; i++) are_there = are_there && is_written(x[i]);
    if (!are_there) spin(&turns);
  }
}
