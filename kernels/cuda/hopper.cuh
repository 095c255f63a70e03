// hopper: whether a kernel written for sm_90 or sm_90a runs here. Host code of the sources that hold such
// kernels.
#pragma once
#include "kernels/cuda/device.cuh"

// Whether the build has the code of a kernel that is empty where it is compiled for GPUs that cannot run it:
// an empty one needs few registers.
template <typename... Parameters> static inline bool has_code(void (*kernel)(Parameters...)) {
  cudaFuncAttributes of = {};
  return cudaFuncGetAttributes(&of, kernel) == cudaSuccess && of.numRegs > 60;
}

// Whether this device is a Hopper and the build has this kernel for it.
template <typename... Parameters> static bool has_hopper_kernel(void (*kernel)(Parameters...)) {
  return device_attribute(cudaDevAttrComputeCapabilityMajor) == 9 &&
         device_attribute(cudaDevAttrComputeCapabilityMinor) == 0 && has_code(kernel);
}
