// cuda_runtime: CUDA C++ for a C++ compiler: its words, types, intrinsics and the launch, for the emulation.
//
// A __shared__ variable is a thread_local one: the only storage that C++ allows both in a function and behind
// extern. Its names are defined in machine.cc.
#pragma once
#include "cuda_runtime_api.h"
#include "machine.h"
#include <math.h>
#include <stdint.h>
#include <string.h>
#include <tuple>
#include <type_traits>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __shared__      thread_local
#define __align__(n)    __attribute__((aligned(n)))
#define __grid_constant__
#define __launch_bounds__(...)

#define EMULATION_VECTOR(name, type)                                                                         \
  struct alignas(2 * sizeof(type)) name##2 {                                                                 \
    type x, y;                                                                                               \
  };                                                                                                         \
  struct alignas(4 * sizeof(type)) name##4 {                                                                 \
    type x, y, z, w;                                                                                         \
  };                                                                                                         \
  static inline name##2 make_##name##2(type x, type y) {                                                     \
    return {x, y};                                                                                           \
  }                                                                                                          \
  static inline name##4 make_##name##4(type x, type y, type z, type w) {                                     \
    return {x, y, z, w};                                                                                     \
  }
EMULATION_VECTOR(float, float)
EMULATION_VECTOR(int, int)
EMULATION_VECTOR(uint, unsigned)
#undef EMULATION_VECTOR

static inline int min(int a, int b) {
  return a < b ? a : b;
}
static inline int max(int a, int b) {
  return a > b ? a : b;
}
static inline unsigned max(unsigned a, unsigned b) {
  return a > b ? a : b;
}

template <typename To, typename From> static inline To emulation_bits(From from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  memcpy(&to, &from, sizeof to);
  return to;
}
static inline float __uint_as_float(unsigned x) {
  return emulation_bits<float>(x);
}
static inline unsigned __float_as_uint(float x) {
  return emulation_bits<unsigned>(x);
}
static inline int __popc(unsigned x) {
  return __builtin_popcount(x);
}
static inline int __dp4a(int a, int b, int sum) { // bytes signed
  for (int i = 0; i < 4; i++) sum += (int8_t)((unsigned)a >> 8 * i) * (int8_t)((unsigned)b >> 8 * i);
  return sum;
}
static inline int __ffs(unsigned x) {
  return __builtin_ffs((int)x);
}
static inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) { // selectors without bit 3
  uint64_t bytes = (uint64_t)y << 32 | x;
  unsigned out = 0;
  for (int i = 0; i < 4; i++) out |= (unsigned)(bytes >> 8 * (selector >> 4 * i & 7) & 255) << 8 * i;
  return out;
}
template <typename T> static inline T __ldcg(const T *at) {
  return *at;
}
template <typename T> static inline T __ldcs(const T *at) {
  return *at;
}
template <typename T> static inline T atomicAdd(T *to, std::type_identity_t<T> more) {
  return __atomic_fetch_add(to, more, __ATOMIC_RELAXED);
}
static inline void __threadfence() {} // blocks run one after another, or take turns
static inline void __threadfence_system() {
  __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

// ---- where threads meet ----

static inline void __syncthreads() {
  emulation::meet_block();
}

static inline void __syncwarp(unsigned mask = ~0u) {
  emulation::meet_warp([](void **, uint32_t) {}, nullptr, mask);
}

template <typename T> struct emulation_exchange { // a lane's part in a shuffle
  T value;
  int with;
};

template <typename T> static void emulation_shuffle(void **lanes, uint32_t mask) {
  T values[32];
  for (int l = 0; l < 32; l++)
    if (mask >> l & 1) values[l] = ((emulation_exchange<T> *)lanes[l])->value;
  for (int l = 0; l < 32; l++) {
    if (!(mask >> l & 1)) continue;
    auto *mine = (emulation_exchange<T> *)lanes[l];
    if (!(mask >> mine->with & 1)) emulation::stop("a shuffle asks a lane that is not there");
    mine->value = values[mine->with];
  }
}

template <typename T> static inline T emulation_shuffled(unsigned mask, T value, int with) {
  emulation_exchange<T> mine = {value, with};
  emulation::meet_warp(emulation_shuffle<T>, &mine, mask);
  return mine.value;
}
template <typename T> static inline T __shfl_sync(unsigned mask, T value, int lane) {
  return emulation_shuffled(mask, value, lane & 31);
}
template <typename T> static inline T __shfl_xor_sync(unsigned mask, T value, int other) {
  return emulation_shuffled(mask, value, emulation::current_lane ^ other);
}
template <typename T> static inline T __shfl_up_sync(unsigned mask, T value, int step) {
  int lane = emulation::current_lane;
  return emulation_shuffled(mask, value, lane < step ? lane : lane - step);
}
template <typename T> static inline T __shfl_down_sync(unsigned mask, T value, int step) {
  int lane = emulation::current_lane;
  return emulation_shuffled(mask, value, lane + step > 31 ? lane : lane + step);
}

static inline unsigned __ballot_sync(unsigned mask, int vote) {
  unsigned mine = vote != 0;
  emulation::meet_warp(
      [](void **lanes, uint32_t there) {
        unsigned all = 0;
        for (int l = 0; l < 32; l++)
          if (there >> l & 1) all |= *(unsigned *)lanes[l] << l;
        for (int l = 0; l < 32; l++)
          if (there >> l & 1) *(unsigned *)lanes[l] = all;
      },
      &mine, mask);
  return mine;
}

static inline unsigned __reduce_add_sync(unsigned mask, unsigned mine) {
  unsigned sum = 0;
  for (int l = 0; l < 32; l++)
    if (mask >> l & 1) sum += __shfl_sync(mask, mine, l);
  return sum;
}
static inline unsigned __reduce_max_sync(unsigned mask, unsigned mine) {
  emulation::meet_warp(
      [](void **lanes, uint32_t there) {
        unsigned most = 0;
        for (int l = 0; l < 32; l++)
          if (there >> l & 1 && *(unsigned *)lanes[l] > most) most = *(unsigned *)lanes[l];
        for (int l = 0; l < 32; l++)
          if (there >> l & 1) *(unsigned *)lanes[l] = most;
      },
      &mine, mask);
  return mine;
}

static inline unsigned __reduce_min_sync(unsigned mask, unsigned mine) {
  return ~__reduce_max_sync(mask, ~mine);
}

// ---- the host's side that takes templates ----

enum cudaLaunchAttributeID {
  cudaLaunchAttributeCooperative = 2,
  cudaLaunchAttributeProgrammaticStreamSerialization = 6
};
struct cudaLaunchAttribute { // launches never overlap here
  cudaLaunchAttributeID id;
  union {
    int programmaticStreamSerializationAllowed, cooperative;
  } val;
};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes;
  cudaStream_t stream;
  cudaLaunchAttribute *attrs;
  unsigned numAttrs;
};

template <typename... P, typename... A>
static cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t *how, void (*kernel)(P...), A &&...arguments) {
  std::tuple<P...> held(static_cast<P>(arguments)...); // as they are now
  bool resident = false;
  for (unsigned i = 0; i < how->numAttrs; i++)
    resident =
        resident || (how->attrs[i].id == cudaLaunchAttributeCooperative && how->attrs[i].val.cooperative);
  return emulation::launch({how->gridDim, how->blockDim, how->dynamicSmemBytes, resident,
                            (const void *)kernel, [=] { std::apply(kernel, held); }},
                           how->stream);
}

template <typename T> static cudaError_t cudaMalloc(T **out, size_t bytes) {
  return cudaMalloc((void **)out, bytes);
}
template <typename... P>
static cudaError_t cudaFuncSetAttribute(void (*kernel)(P...), cudaFuncAttribute attribute, int value) {
  return cudaFuncSetAttribute((const void *)kernel, attribute, value);
}

struct cudaFuncAttributes {
  int numRegs;
};
template <typename... P> static cudaError_t cudaFuncGetAttributes(cudaFuncAttributes *out, void (*)(P...)) {
  out->numRegs = 255;
  return cudaSuccess;
}
