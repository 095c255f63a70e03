// decode_launch: how the kernels of decode/ start and are launched.
//
// Invariant: a kernel lets the next one be set up only when its inputs are complete. So what runs before
// wait_for_previous may read weights and what was written two launches ago or earlier, and nothing else.
#pragma once
#include "kernels/cuda/device.cuh"

__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

// launch, for a kernel whose shared memory may pass what it has by default.
template <typename... P, typename A>
static status launch_shared(void (*kernel)(P...), dim3 grid, int threads, size_t bytes, cudaStream_t stream,
                            const A &args) {
  if (bytes > DEFAULT_SHARED_BYTES)
    CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
  return launch(kernel, grid, threads, bytes, stream, args);
}
