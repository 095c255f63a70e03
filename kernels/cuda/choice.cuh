// choice: a token's experts in slot order, by one warp that holds the router's probabilities in registers.
// The same choice as route_tokens (vectors.cu), for kernels that need it at once and cannot wait for another
// launch.
#pragma once
#include "kernels/cuda/device.cuh"

// Lane l has experts EACH l .. EACH l + EACH - 1. key: bits of the probability plus 1, 0 for what cannot be
// chosen.
template <int EACH> struct router_choice {
  uint32_t key[EACH];
  uint32_t taken; // bit i: expert i of this lane is chosen already, or there is no such expert
};

template <int EACH>
__device__ __forceinline__ router_choice<EACH> choice_begin(const float *logits, int n_experts) {
  router_choice<EACH> c;
  int first = EACH * (threadIdx.x % WARP);
  float logit[EACH], max = logits[0];
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    logit[i] = first + i < n_experts ? logits[first + i] : max;
    max = logit[i] > max ? logit[i] : max;
  }
  for (int half = WARP / 2; half; half /= 2) {
    float other = __shfl_xor_sync(~0u, max, half);
    max = other > max ? other : max;
  }
  c.taken = 0;
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    float g = num_exp_f32(logit[i] - max);
    bool exists = first + i < n_experts;
    c.key[i] = exists && g >= 0.0f ? __float_as_uint(g) + 1 : 0;
    c.taken |= exists ? 0u : 1u << i;
  }
  return c;
}

// The next slot's expert, the same on all lanes; *g: its probability before the slots' sum divides it.
template <int EACH> __device__ __forceinline__ int choice_next(router_choice<EACH> *c, float *g) {
  uint32_t best = 0;
  int at = 0, lane = threadIdx.x % WARP;
#pragma unroll
  for (int i = 0; i < EACH; i++)
    if (c->key[i] > best) {
      best = c->key[i];
      at = i;
    }
  uint32_t all = __reduce_max_sync(~0u, best);
  unsigned holders = __ballot_sync(~0u, best == all);
  if (!all) { // logits that are not finite: the first expert that is left, as the C code has it
    constexpr uint32_t every = EACH == 32 ? ~0u : (1u << EACH) - 1;
    holders = __ballot_sync(~0u, c->taken != every);
    at = __ffs(~c->taken) - 1;
  }
  int owner = __ffs(holders) - 1;
  int local = __shfl_sync(~0u, at, owner);
#pragma unroll
  for (int i = 0; i < EACH; i++)
    if (lane == owner && i == local) {
      c->key[i] = 0;
      c->taken |= 1u << i;
    }
  *g = all ? __uint_as_float(all - 1) : 0.0f;
  return owner * EACH + local;
}
