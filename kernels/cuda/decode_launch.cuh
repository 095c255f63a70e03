// decode_launch: how the kernels of decode.cu and decode_attention.cu begin and are started.
//
// Invariant: a kernel lets the next one be set up only after its own inputs are complete. So what runs before
// wait_for_previous may read weights and what was written two launches ago or earlier, and nothing else.
#pragma once
#include "kernels/cuda/device.cuh"

__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

__device__ __forceinline__ float inverse_rms(float sum, int n, float epsilon) {
  return 1.0f / sqrtf(sum / (float)n + epsilon);
}

static inline int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}

// A kernel whose shared memory may pass 48 KiB must be told so.
template <typename... P, typename A>
static status start(void (*kernel)(P...), dim3 grid, int threads, size_t bytes, cudaStream_t stream,
                    const A &args) {
  if (bytes > 48 << 10)
    CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
  return launch(kernel, grid, threads, bytes, stream, args);
}
