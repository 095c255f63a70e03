// token_kernel: what token_plan.cu and token.cu agree on.
#pragma once
#include "kernels/cuda/decode/token.cuh"

// Bytes that the plan sets aside; token.cu asserts that they are enough.
static constexpr int TOKEN_SMALL_BYTES = 2560, TOKEN_SCRATCH_BYTES = 18432, TOKEN_FOLDED_BYTES = 288;

struct token_args {
  token_plan p;
  token_work w;
  const token_layer *layers;
  float *sets[2];
  unsigned *epoch;
  tagged_pair *parts;  // [n_heads][chunks] maximum and sum, then [n_heads][chunks][head_dim / 2]
  tagged_pair *groups; // window, with peers: of most_groups groups a head and layer (token_attention.cuh)
  int most_groups;
  peer_links peers;   // n not 0: slots of other ranks' experts come from them
  uint32_t *inbox[2]; // then: token_peers.cuh
  float scale;        // 1 / sqrt(head_dim)
  uint32_t pace; // cycles between two rows of weights that a thread block asks for: token_weights.cuh; 0:
                 // nothing is guessed
};

typedef void token_kernel(token_args);

token_kernel *token_kernel_for(const token_plan *p, bool linked); // linked: with peers; NULL: there is none
