#include "kernels/cuda/exp2_approx.cuh"
#include "base/cuda_try.h"
#include "kernels/cuda/instructions.cuh"

static constexpr int BLOCK_THREADS = 256;

__global__ void raise_two(float *out, const float *x, int64_t n) {
  int64_t i = (int64_t)blockIdx.x * BLOCK_THREADS + threadIdx.x;
  if (i < n) out[i] = exp2_approx(x[i]);
}

static status raise_all(float *device, float *out, const float *x, int64_t n) {
  size_t bytes = (size_t)n * sizeof(float);
  unsigned blocks = (unsigned)((n + BLOCK_THREADS - 1) / BLOCK_THREADS);
  CUDA_TRY(cudaMemcpy(device, x, bytes, cudaMemcpyHostToDevice));
  TRY(launch(raise_two, dim3(blocks), BLOCK_THREADS, 0, (cudaStream_t)0, device, device, n));
  CUDA_TRY(cudaMemcpy(out, device, bytes, cudaMemcpyDeviceToHost));
  return 0;
}

status cuda_exp2_approx(float *out, const float *x, int64_t n) {
  float *device = nullptr;
  if (!n) return 0;
  CUDA_TRY(cudaMalloc(&device, (size_t)n * sizeof(float)));
  status result = raise_all(device, out, x, n);
  cudaFree(device);
  return result;
}
