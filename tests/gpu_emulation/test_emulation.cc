// The emulated GPU itself: a warp's matrix products against plain loops, and that what a kernel or a host may
// not rely on (an order without a barrier, a copy without a wait, a read before its stream) does not give
// right bytes.
#include "tests/support/seed.h"
#include <cuda_runtime.h>
#include <kernels/cuda/instructions.cuh>
#include <kernels/cuda/instructions_hopper.cuh>
#include <stdio.h>
#include <stdlib.h>
#include <vector>

static int faults;

static void check(bool good, const char *what) {
  printf("%s: %s\n", what, good ? "as it must be" : "WRONG");
  faults += !good;
}

template <typename... P, typename... A>
static void start(void (*kernel)(P...), unsigned blocks, unsigned threads, cudaStream_t stream,
                  A... arguments) {
  cudaLaunchConfig_t how = {dim3(blocks), dim3(threads), 16384, stream, nullptr, 0};
  check(cudaLaunchKernelEx(&how, kernel, arguments...) == cudaSuccess, "a launch");
}

template <typename... P, typename... A>
static void start_resident(void (*kernel)(P...), unsigned blocks, unsigned threads, A... arguments) {
  cudaLaunchAttribute resident = {cudaLaunchAttributeCooperative, {1}};
  cudaLaunchConfig_t how = {dim3(blocks), dim3(threads), 16384, nullptr, &resident, 1};
  check(cudaLaunchKernelEx(&how, kernel, arguments...) == cudaSuccess, "a launch of blocks that stay");
}

static std::vector<void *> blocks; // given back at the end

template <typename T> static T *device(size_t count) {
  T *at = nullptr;
  if (cudaMalloc(&at, count * sizeof(T)) != cudaSuccess) abort();
  blocks.push_back(at);
  return at;
}

// c = c + a b^T of [16][K] and [8][K], as kernels do it: tiles from shared memory, or each lane's registers.
template <int K> __global__ void multiply(int *c, const int8_t *a, const int8_t *b) {
  extern __shared__ __align__(16) uint8_t memory[];
  int8_t *tile = (int8_t *)memory;
  int lane = threadIdx.x;
  for (int i = lane; i < 16 * K; i += 32) tile[i] = a[i];
  for (int i = lane; i < 8 * K; i += 32) tile[16 * K + i] = b[i];
  __syncwarp();
  int sum[4];
  for (int i = 0; i < 4; i++) sum[i] = c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2];
  if constexpr (K == 32) {
    uint32_t rows[4], columns[4];
    ldmatrix_x4(rows, tile + lane % 16 * K + lane / 16 * 16);
    ldmatrix_x4(columns, tile + 16 * K + lane % 8 * K + lane / 8 % 2 * 16);
    mma_k32(sum, rows, columns[0], columns[1]);
  } else {
    const uint32_t *words = (const uint32_t *)memory;
    uint32_t rows[2] = {words[lane], words[32 + lane]};
    mma_k16(sum, rows, words[64 + lane]);
  }
  for (int i = 0; i < 4; i++) c[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}

template <int K> static void check_product() {
  std::vector<int8_t> a(16 * K), b(8 * K);
  std::vector<int> c(128), expected;
  for (int8_t &x : a) x = (int8_t)rand();
  for (int8_t &x : b) x = (int8_t)rand();
  for (int &x : c) x = rand();
  expected = c;
  for (int i = 0; i < 128; i++)
    for (int k = 0; k < K; k++) expected[i] += a[i / 8 * K + k] * b[i % 8 * K + k];
  int8_t *dev_a = device<int8_t>(16 * K), *dev_b = device<int8_t>(8 * K);
  int *dev_c = device<int>(128);
  cudaMemcpy(dev_a, a.data(), a.size(), cudaMemcpyHostToDevice);
  cudaMemcpy(dev_b, b.data(), b.size(), cudaMemcpyHostToDevice);
  cudaMemcpy(dev_c, c.data(), 512, cudaMemcpyHostToDevice);
  start(multiply<K>, 1, 32, nullptr, dev_c, dev_a, dev_b);
  cudaMemcpy(c.data(), dev_c, 512, cudaMemcpyDeviceToHost);
  check(c == expected, K == 32 ? "ldmatrix, mma m16n8k32" : "mma m16n8k16");
}

enum flaw { NONE, NO_BARRIER, NO_WAIT };

// Each thread reads what its neighbour copied.
template <flaw FLAW> __global__ void turn(float *out, const float *in) {
  extern __shared__ __align__(16) uint8_t memory[];
  float *held = (float *)memory;
  copy_async_4(held + threadIdx.x, in + blockIdx.x * blockDim.x + threadIdx.x);
  if (FLAW != NO_WAIT) copy_async_wait_all();
  if (FLAW != NO_BARRIER) __syncthreads();
  out[blockIdx.x * blockDim.x + threadIdx.x] = held[(threadIdx.x + 1) % blockDim.x];
}

template <flaw FLAW> static bool stages() {
  std::vector<float> in(1024), out(1024);
  for (int i = 0; i < 1024; i++) in[(size_t)i] = (float)i;
  float *dev_in = device<float>(1024), *dev_out = device<float>(1024);
  cudaMemcpy(dev_in, in.data(), 4096, cudaMemcpyHostToDevice);
  start(turn<FLAW>, 8, 128, nullptr, dev_out, dev_in);
  cudaMemcpy(out.data(), dev_out, 4096, cudaMemcpyDeviceToHost);
  for (int i = 0; i < 1024; i++)
    if (out[(size_t)i] != (float)(i / 128 * 128 + (i + 1) % 128)) return false;
  return true;
}

// Each block adds what a bulk copy brings to what the block before it, or the last one, passes on: whatever
// the order of blocks, half of them wait.
template <flaw FLAW> __global__ void chain(float *out, const float *in, bool falls) {
  extern __shared__ __align__(16) uint8_t memory[];
  uint64_t *landed = (uint64_t *)memory;
  float *held = (float *)(memory + 16), before = 0;
  unsigned turns = 0, b = falls ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
  if (threadIdx.x == 0) {
    mbarrier_init(landed, 1);
    fence_mbarrier_init();
    mbarrier_arrive_expect(landed, 128);
    copy_bulk(held, in + b * 32, 128, landed);
  }
  __syncthreads();
  while (FLAW != NO_WAIT && !mbarrier_try_wait(landed, 0)) spin(&turns);
  while (b && (before = load_relaxed(out + (b - 1) * 32 + threadIdx.x)) < 0) spin(&turns);
  store_relaxed(out + b * 32 + threadIdx.x, before + held[threadIdx.x]);
}

template <flaw FLAW> static bool chains(bool falls) {
  constexpr int BLOCKS = 12, ALL = 32 * BLOCKS;
  std::vector<float> in(ALL), out(ALL, -1.0f);
  for (int i = 0; i < ALL; i++) in[(size_t)i] = (float)i;
  float *dev_in = device<float>(ALL), *dev_out = device<float>(ALL);
  cudaMemcpy(dev_in, in.data(), 4 * ALL, cudaMemcpyHostToDevice);
  cudaMemcpy(dev_out, out.data(), 4 * ALL, cudaMemcpyHostToDevice);
  start_resident(chain<FLAW>, BLOCKS, 32, dev_out, dev_in, falls);
  cudaMemcpy(out.data(), dev_out, 4 * ALL, cudaMemcpyDeviceToHost);
  float sum[32] = {};
  for (int i = 0; i < ALL; i++) {
    sum[i % 32] += (float)i;
    if (!(out[(size_t)i] == sum[i % 32])) return false;
  }
  return true;
}

__global__ void add_one(int *to) {
  atomicAdd(to, 1);
}

static void check_streams() {
  int *pinned, mine = 5, *dev = device<int>(1);
  cudaStream_t s, other;
  cudaEvent_t event;
  cudaGraph_t graph;
  cudaGraphExec_t ready;
  cudaMallocHost((void **)&pinned, sizeof *pinned);
  cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking);
  cudaStreamCreateWithFlags(&other, cudaStreamNonBlocking);
  cudaEventCreate(&event);
  cudaMemcpyAsync(dev, &mine, sizeof mine, cudaMemcpyHostToDevice, s); // taken at once
  mine = 6;
  start(add_one, 2, 64, s, dev);
  cudaEventRecord(event, s);
  cudaStreamWaitEvent(other, event, 0);
  cudaMemcpyAsync(pinned, dev, sizeof *dev, cudaMemcpyDeviceToHost, other);
  check(*pinned != 133, "nothing is read before the host waits");
  while (cudaStreamQuery(other) == cudaErrorNotReady) {
  }
  check(*pinned == 133, "a stream that waits for another");
  cudaMemcpyAsync(dev, pinned, sizeof *dev, cudaMemcpyHostToDevice, s);
  *pinned = 7; // before it is read
  cudaStreamBeginCapture(s, cudaStreamCaptureModeThreadLocal);
  start(add_one, 1, 1, s, dev);
  check(cudaStreamSynchronize(s) == cudaErrorStreamCaptureUnsupported, "no wait in a captured graph");
  cudaStreamEndCapture(s, &graph);
  cudaGraphInstantiate(&ready, graph, 0);
  for (int i = 0; i < 3; i++) cudaGraphLaunch(ready, s);
  cudaMemcpyAsync(&mine, dev, sizeof *dev, cudaMemcpyDeviceToHost, s); // waits
  check(mine == 10, "pinned memory is read late, a graph runs as often as it is launched");
  check(cudaMemcpy(dev + 1, &mine, 4, cudaMemcpyHostToDevice) == cudaErrorInvalidValue,
        "no copy behind a block");
  cudaGraphExecDestroy(ready);
  cudaGraphDestroy(graph);
  cudaEventDestroy(event);
  cudaStreamDestroy(other);
  cudaStreamDestroy(s);
  cudaFreeHost(pinned);
}

int main() {
  srand((unsigned)test_seed());
  check_product<32>();
  check_product<16>();
  check(stages<NONE>(), "a copy, its wait and a barrier");
  check(!stages<NO_BARRIER>(), "without the barrier it is caught");
  check(!stages<NO_WAIT>(), "without the wait it is caught");
  check(chains<NONE>(false) && chains<NONE>(true), "blocks that wait for each other, bulk copies");
  check(!chains<NO_WAIT>(false) || !chains<NO_WAIT>(true), "without the wait for a bulk copy it is caught");
  check_streams();
  for (void *block : blocks) cudaFree(block);
  return faults != 0;
}
