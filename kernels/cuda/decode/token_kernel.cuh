// token_kernel: what token_plan.cu and token.cu agree on.
#pragma once
#include "kernels/cuda/decode/token.cuh"

enum { TOKEN_STAMPS = 16 }; // of a layer
// Bytes that the plan sets aside; token.cu asserts that they are enough.
static constexpr int TOKEN_SMALL_BYTES = 2560, TOKEN_SCRATCH_BYTES = 9216, TOKEN_FOLDED_BYTES = 136;

struct token_args {
  token_plan p;
  token_work w;
  const token_layer *layers;
  float *sets[2];
  unsigned *epoch;
  float scale; // 1 / sqrt(head_dim)
  long long
      *stamps; // [n_layers][TOKEN_STAMPS][blocks] clocks of each block's first thread; NULL: none are kept
};

typedef void token_kernel(token_args);

token_kernel *token_kernel_for(const token_plan *p); // NULL: there is none
