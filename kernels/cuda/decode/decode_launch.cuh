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
