// cuda_try: checked calls of the CUDA runtime, for the sources that include its header.
//
// Independent of: CUDA's headers, so that base/ builds without them.
#pragma once
#include "base/status.h"

#define CUDA_TRY(call)                                                                                       \
  do {                                                                                                       \
    cudaError_t cuda_error_ = (call);                                                                        \
    if (cuda_error_ != cudaSuccess) return FAIL("CUDA: %s: %s", #call, cudaGetErrorString(cuda_error_));     \
  } while (0)
