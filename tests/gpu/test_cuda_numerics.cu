// Every scalar function of kernels/formats/numerics.h and kernels/formats/half.h, and the IEEE operations
// that the kernels stand on: the GPU's bits against the CPU's. Functions of one float: all 2^32. Others:
// special values, their neighbours and tens of millions of random inputs that follow from MOE_SEED.
//
// Exits with 77 where there is no GPU.
#include "tests/gpu/cuda_numerics.h"
#include "tests/support/seed.h"
#include <cstdio>
#include <cstdlib>
#include <cuda_runtime.h>
#include <vector>

static constexpr uint64_t CHUNK_ITEMS = 65536; // whose results make one sum
static constexpr int BLOCK_THREADS = 256, MOST_SHOWN = 4;

#define REQUIRE_CUDA(call)                                                                                   \
  do {                                                                                                       \
    cudaError_t error_ = (call);                                                                             \
    if (error_ != cudaSuccess) {                                                                             \
      std::printf("%s:%d: %s: %s\n", __FILE__, __LINE__, #call, cudaGetErrorString(error_));                 \
      std::exit(1);                                                                                          \
    }                                                                                                        \
  } while (0)

template <int which>
__global__ void sum_chunks(unsigned long long *sums, uint64_t seed, uint64_t first, uint64_t count) {
  uint64_t sum = 0, begin = first + blockIdx.x * CHUNK_ITEMS;
  uint64_t end = begin + CHUNK_ITEMS < first + count ? begin + CHUNK_ITEMS : first + count;
  for (uint64_t i = begin + threadIdx.x; i < end; i += BLOCK_THREADS)
    sum += numeric_term(i, numeric_value((numeric_case)which, seed, i));
  atomicAdd(&sums[blockIdx.x], (unsigned long long)sum);
}

template <int which>
__global__ void list_values(uint64_t *values, uint64_t seed, uint64_t first, uint64_t count) {
  uint64_t i = blockIdx.x * (uint64_t)BLOCK_THREADS + threadIdx.x;
  if (i < count) values[i] = numeric_value((numeric_case)which, seed, first + i);
}

// Prints where a chunk's results differ; how many do.
template <int which>
static uint64_t show(const char *name, uint64_t seed, uint64_t first, uint64_t count, bool quiet) {
  uint64_t *device, wrong = 0;
  std::vector<uint64_t> values(count);
  REQUIRE_CUDA(cudaMalloc(&device, count * sizeof *device));
  REQUIRE_CUDA(cudaMemset(device, 0x5a, count * sizeof *device));
  list_values<which><<<(unsigned)((count + BLOCK_THREADS - 1) / BLOCK_THREADS), BLOCK_THREADS>>>(
      device, seed, first, count);
  REQUIRE_CUDA(cudaGetLastError());
  REQUIRE_CUDA(cudaMemcpy(values.data(), device, count * sizeof *device, cudaMemcpyDeviceToHost));
  REQUIRE_CUDA(cudaFree(device));
  for (uint64_t i = 0; i < count; i++) {
    uint64_t expected = numeric_value_cpu((numeric_case)which, seed, first + i);
    if (values[i] == expected) continue;
    if (wrong++ < MOST_SHOWN && !quiet)
      std::printf("  %s at index %llu (0x%llx): CPU %016llx, GPU %016llx\n", name,
                  (unsigned long long)(first + i), (unsigned long long)(first + i),
                  (unsigned long long)expected, (unsigned long long)values[i]);
  }
  return wrong;
}

// One case: the chunks whose sums differ, at most a few of them looked into. True: none.
template <int which> static bool run(const char *name, uint64_t seed, uint64_t count) {
  size_t n_chunks = (size_t)((count + CHUNK_ITEMS - 1) / CHUNK_ITEMS), wrong = 0;
  unsigned long long *device;
  std::vector<unsigned long long> gpu(n_chunks), cpu(n_chunks);
  REQUIRE_CUDA(cudaMalloc(&device, n_chunks * sizeof *device));
  REQUIRE_CUDA(cudaMemset(device, 0, n_chunks * sizeof *device));
  sum_chunks<which><<<(unsigned)n_chunks, BLOCK_THREADS>>>(device, seed, 0, count);
  REQUIRE_CUDA(cudaGetLastError());
#pragma omp parallel for schedule(dynamic, 1)
  for (size_t c = 0; c < n_chunks; c++) {
    uint64_t first = c * CHUNK_ITEMS, left = count - first;
    cpu[c] = numeric_sum_cpu((numeric_case)which, seed, first, left < CHUNK_ITEMS ? left : CHUNK_ITEMS);
  }
  REQUIRE_CUDA(cudaMemcpy(gpu.data(), device, n_chunks * sizeof *device, cudaMemcpyDeviceToHost));
  REQUIRE_CUDA(cudaFree(device));
  bool planted = which == NUMERIC_PLANTED;
  for (size_t c = 0; c < n_chunks; c++) {
    if (gpu[c] == cpu[c]) continue;
    uint64_t first = c * CHUNK_ITEMS, left = count - first;
    if (wrong++ < MOST_SHOWN &&
        !show<which>(name, seed, first, left < CHUNK_ITEMS ? left : CHUNK_ITEMS, planted))
      std::printf("  %s: the sums of chunk %zu differ, its values do not\n", name, c);
  }
  bool good = planted ? wrong == n_chunks : wrong == 0;
  std::printf("%-18s %11llu inputs: %s\n", name, (unsigned long long)count,
              planted ? (good ? "caught, as it must be" : "NOT CAUGHT")
              : good  ? "equal bits"
                      : "OTHER BITS");
  std::fflush(stdout);
  return good;
}

int main() {
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || !devices) {
    std::printf("skipped: no GPU\n");
    return 77;
  }
  uint64_t seed = test_seed();
  int wrong = 0;
#define RUN_CASE(name, count) wrong += !run<NUMERIC_##name>(#name, seed, count);
  NUMERIC_CASES(RUN_CASE)
  std::printf("%d of %d cases wrong\n", wrong, (int)NUMERIC_COUNT);
  return wrong != 0;
}
