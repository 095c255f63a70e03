// hopper: whether a kernel written for sm_90a runs here. Host code of the sources that hold such kernels; the
// emulated GPU includes it nowhere.
#pragma once
#include "kernels/cuda/device.cuh"

// Whether this device is a Hopper and the build has this kernel for it: where not built for sm_90a a kernel
// is empty, and an empty one needs few registers.
template <typename... Parameters> static bool has_hopper_kernel(void (*kernel)(Parameters...)) {
  cudaFuncAttributes of = {};
  return device_attribute(cudaDevAttrComputeCapabilityMajor) == 9 &&
         device_attribute(cudaDevAttrComputeCapabilityMinor) == 0 &&
         cudaFuncGetAttributes(&of, kernel) == cudaSuccess && of.numRegs > 100;
}
