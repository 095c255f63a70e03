// device: what every CUDA source of the backend uses: the device and its limits, allocation, launches, sums
// over a warp, views of what lies in device memory.
//
// Invariant: nothing here decides arithmetic; docs/paths.md and kernels/formats/numerics.h do.
#pragma once
#include "base/cuda_try.h"
#include "base/status.h"
#include "kernels/backend.h"
#include "kernels/cuda/instructions.cuh"
#include "kernels/cuda/memory_plan.h"
#include "kernels/formats/half.h"
#include "kernels/formats/numerics.h"
#include <cuda_fp16.h>
#include <cuda_runtime.h>

// ---- the device: device.cu ----

// The one that the rank with this place on its host takes; false: this host has none.
bool device_take(device_id *out, int host_rank);
device_link device_link_between(int32_t a, int32_t b);
// Wait for all that was enqueued on the stream, or before the event, and call p->watch meanwhile.
status device_wait(cudaStream_t stream, const backend_params *p);
status device_wait_event(cudaEvent_t event, const backend_params *p);
// A watch ended a wait: the device may never answer again, so nothing that waits for it may be called.
bool device_is_stuck();
// Of the current device.
int device_attribute(cudaDeviceAttr attribute); // 0 where it cannot be read
int device_multiprocessors();
size_t device_shared_bytes(); // that a thread block may have
bool device_overlaps_launches();

static constexpr size_t DEFAULT_SHARED_BYTES =
    48 << 10; // that a thread block has without an attribute of its kernel

// Allocates device memory and enters it in the owner's `blocks` and `bytes`; with `plan` only adds it up
// there, as the part `what`.
template <typename Owner>
static status device_take_bytes(Owner *owner, void **out, size_t bytes, const char *what) {
  if (owner->plan) {
    memory_plan_add(owner->plan, what, bytes);
    return 0;
  }
  size_t free_bytes = 0, total = 0;
  CUDA_TRY(cudaMemGetInfo(&free_bytes, &total));
  if (owner->n_blocks == (int)(sizeof owner->blocks / sizeof *owner->blocks))
    return FAIL("GPU memory: %s: more than %d allocations", what, owner->n_blocks);
  if (bytes > free_bytes)
    return FAIL("GPU memory: %s need %zu MiB, but %zu of %zu MiB are free", what, bytes >> 20,
                free_bytes >> 20, total >> 20);
  CUDA_TRY(cudaMalloc(out, bytes ? bytes : 16));
  owner->blocks[owner->n_blocks++] = *out;
  owner->bytes += bytes;
  return 0;
}

// ---- launches ----
//
// Each kernel may be set up while the one before it still runs (programmatic dependent launch, Hopper and
// later): it starts with wait_for_inputs, before which it may touch nothing that an earlier kernel writes or
// reads but weights. A kernel's completion includes that of all before it, so the chain is as strict as
// without.

__device__ __forceinline__ void wait_for_inputs() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion(); // the next kernel may be set up now; it waits here until this
                                             // one has ended
  cudaGridDependencySynchronize();
#endif
}

template <typename... Parameters, typename... Arguments>
static status launch(void (*kernel)(Parameters...), dim3 grid, int threads, size_t shared,
                     cudaStream_t stream, Arguments... arguments) {
  cudaLaunchAttribute overlap = {};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t how = {};
  how.gridDim = grid;
  how.blockDim = dim3((unsigned)threads);
  how.dynamicSmemBytes = shared;
  how.stream = stream;
  how.attrs = &overlap;
  how.numAttrs = device_overlaps_launches() ? 1 : 0;
  CUDA_TRY(cudaLaunchKernelEx(&how, kernel, Parameters(arguments)...));
  return 0;
}

// launch, for a kernel whose shared memory may pass what it has by default.
template <typename... Parameters, typename... Arguments>
static status launch_shared(void (*kernel)(Parameters...), dim3 grid, int threads, size_t bytes,
                            cudaStream_t stream, const Arguments &...arguments) {
  if (bytes > DEFAULT_SHARED_BYTES)
    CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
  return launch(kernel, grid, threads, bytes, stream, arguments...);
}

// A launch whose thread blocks may wait for each other: all of them run at once, or the launch is an error.
// It starts when the one before it has ended.
template <typename... Parameters, typename... Arguments>
static status launch_resident(void (*kernel)(Parameters...), int blocks, int threads, size_t bytes,
                              cudaStream_t stream, const Arguments &...arguments) {
  CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
  cudaLaunchAttribute resident = {};
  resident.id = cudaLaunchAttributeCooperative;
  resident.val.cooperative = 1;
  cudaLaunchConfig_t how = {};
  how.gridDim = dim3((unsigned)blocks);
  how.blockDim = dim3((unsigned)threads);
  how.dynamicSmemBytes = bytes;
  how.stream = stream;
  how.attrs = &resident;
  how.numAttrs = 1;
  CUDA_TRY(cudaLaunchKernelEx(&how, kernel, Parameters(arguments)...));
  return 0;
}

static constexpr int WARP = 32;
static constexpr int CHUNK = ATTENTION_CHUNK;

static inline int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}

// Every lane gets the sum of docs/paths.md's tree: lane l with l + 16, then + 8, 4, 2, 1 (addition commutes,
// so the lanes above the half add the same two numbers).
__device__ __forceinline__ float warp_tree(float lane) {
  for (int half = WARP / 2; half; half /= 2) lane = lane + __shfl_xor_sync(~0u, lane, half);
  return lane;
}

__device__ __forceinline__ float half_bits_to_f32(uint16_t bits) { // exact, as half_to_f32
  return __half2float(__ushort_as_half(bits));
}

__device__ __forceinline__ float warp_max(float max) {
  for (int half = WARP / 2; half; half /= 2) {
    float other = __shfl_xor_sync(~0u, max, half);
    max = other > max ? other : max;
  }
  return max;
}

template <typename Integer> __device__ __forceinline__ Integer warp_sum(Integer sum) { // exact in any order
  for (int half = WARP / 2; half; half /= 2) sum += __shfl_xor_sync(~0u, sum, half);
  return sum;
}

// sum32 of squares by one warp, on all its lanes
__device__ __forceinline__ float sum_of_squares(const float *x, int n) {
  float sum = 0;
#pragma unroll 16
  for (int i = threadIdx.x % WARP; i < n; i += WARP) sum = num_fma_f32(x[i], x[i], sum);
  return warp_tree(sum);
}

__device__ __forceinline__ float inverse_rms(float sum, int n, float epsilon) {
  return 1.0f / sqrtf(sum / (float)n + epsilon);
}

__device__ __forceinline__ uint32_t word_at(const uint8_t *at) {
  return *(const uint32_t *)at;
}

// Adds the warp's sums to a digest.
__device__ __forceinline__ void add_digest(unsigned long long *to, unsigned long long sum) {
  sum = warp_sum(sum);
  if (threadIdx.x % WARP == 0) atomicAdd(to, sum);
}

// A matrix, or a stack of them (one an expert of this rank), in device memory. Blocks keep their bits;
// rows of Q6_K lie as four planes (planes_q6k.cuh).
struct dev_matrix {
  const uint8_t *data;
  weight_type type;
  int rows, cols;
  size_t row_bytes, member_bytes; // member: one expert's matrix
};

// What q8k_split takes out of a block of activations.
struct block_outliers {
  int count;
  uint8_t at[MOST_OUTLIERS]; // places in the block, ascending
  float x[MOST_OUTLIERS];
};

// Activations of up to `rows` rows: floats, and on q8k their Q8_K blocks as planes.
struct dev_inputs {
  float *x;       // [rows][width]
  int8_t *qs;     // [rows][width]
  float *d;       // [rows][width / 256]
  int16_t *bsums; // [rows][width / 16]
  int8_t *sums32; // [rows][width / 256][16]: sums of 32, s = low + 128 * high: 8 low (0..127), then 8 high
  block_outliers *outliers; // [rows][width / 256]; not NULL: they are taken out when a row is rounded
  int width;
};

struct dev_batch { // device arrays of a batch
  const int *token, *sequence, *position;
  int n;
};
