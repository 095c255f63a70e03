// instructions: PTX instructions that CUDA C++ has no name for, each as one function.
//
// Owns: all inline assembly of the backend but Hopper's. Independent of: who uses it and why. A build without
// a GPU (tests/gpu_emulation) puts a header of this name in its place.
#pragma once
#include <cuda_runtime.h>
#include <stdint.h>

__device__ __forceinline__ int dp4a_unsigned(uint32_t w, int x, int sum) { // bytes of w unsigned, of x signed
  int out;
  asm("dp4a.u32.s32 %0, %1, %2, %3;" : "=r"(out) : "r"(w), "r"(x), "r"(sum));
  return out;
}

__device__ __forceinline__ void prefetch_l2(const uint8_t *global) { // to the L2 cache
  asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
}

// What is read once: it leaves the L2 cache before all that others read again, and L1 has nothing of it.
__device__ __forceinline__ uint4 load_16_once(const uint8_t *at) {
  uint4 v;
  asm volatile("{ .reg .b64 policy;\n"
               "createpolicy.fractional.L2::evict_first.b64 policy, 1.0;\n"
               "ld.global.cg.L2::cache_hint.v4.u32 {%0,%1,%2,%3}, [%4], policy; }"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(at)
               : "memory");
  return v;
}

__device__ __forceinline__ float exp2_approx(float x) { // within 2 ulp of 2^x; subnormals become 0
  float out;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(out) : "f"(x));
  return out;
}

// ---- asynchronous copies to shared memory; aligned to their length ----

__device__ __forceinline__ void copy_async_16(void *shared, const void *global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(shared)),
               "l"(global));
}

__device__ __forceinline__ void copy_async_4(void *shared, const void *global) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"((uint32_t)__cvta_generic_to_shared(shared)),
               "l"(global));
}

__device__ __forceinline__ void copy_async_wait_all() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

__device__ __forceinline__ void copy_async_commit() {
  asm volatile("cp.async.commit_group;");
}

template <int LATEST>
__device__ __forceinline__ void copy_async_wait_group() { // leaves the latest so many in flight
  asm volatile("cp.async.wait_group %0;" ::"n"(LATEST) : "memory");
}

// ---- a warp's products of matrices of bytes: C of 16 x 8, c = c + a * b ----

__device__ __forceinline__ void mma_k32(int c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_k32_unsigned(int c[4], const uint32_t a[4], uint32_t b0,
                                                 uint32_t b1) { // bytes of A unsigned
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void mma_k16(int c[4], const uint32_t a[2], uint32_t b) {
  asm("mma.sync.aligned.m16n8k16.row.col.s32.s8.s8.s32 {%0,%1,%2,%3}, {%4,%5}, {%6}, {%0,%1,%2,%3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(b));
}

// Four 8 x 16 byte tiles, as a lane of mma_k32 holds them; `at` is the lane's row.
__device__ __forceinline__ void ldmatrix_x4(uint32_t out[4], const int8_t *at) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(out[0]), "=r"(out[1]), "=r"(out[2]), "=r"(out[3])
               : "r"((uint32_t)__cvta_generic_to_shared(at)));
}

// ---- words that other GPUs and the host read and write ----

__device__ __forceinline__ uint32_t load_relaxed_system(const uint32_t *at) {
  uint32_t out;
  asm volatile("ld.relaxed.sys.global.u32 %0, [%1];" : "=r"(out) : "l"(at) : "memory");
  return out;
}

__device__ __forceinline__ uint32_t load_acquire_system(const uint32_t *at) {
  uint32_t out;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(out) : "l"(at) : "memory");
  return out;
}

__device__ __forceinline__ void store_relaxed_system(uint32_t *at, uint32_t value) {
  asm volatile("st.relaxed.sys.global.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
}

__device__ __forceinline__ void store_release_system(uint32_t *at, uint32_t value) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(at), "r"(value) : "memory");
}

__device__ __forceinline__ uint64_t clock_nanoseconds() {
  uint64_t out;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(out));
  return out;
}

__device__ __forceinline__ uint32_t clock_cycles() { // of the multiprocessor
  uint32_t out;
  asm volatile("mov.u32 %0, %%clock;" : "=r"(out));
  return out;
}

// threadIdx.x, here and not earlier: where the compiler would hold what follows from it in registers that are
// wanted.
__device__ __forceinline__ uint32_t thread_number_late() {
  uint32_t out;
  asm volatile("mov.u32 %0, %%tid.x;" : "=r"(out));
  return out;
}

__device__ __forceinline__ void pause_between_polls() {} // for an emulated GPU, whose threads take turns

// ---- hand-over between the thread blocks of a launch whose blocks all run at once ----

__device__ __forceinline__ float load_relaxed(const float *at) {
  float out;
  asm volatile("ld.relaxed.gpu.global.f32 %0, [%1];" : "=f"(out) : "l"(at) : "memory");
  return out;
}

__device__ __forceinline__ float4 load_relaxed_4(const float *at) {
  float4 out;
  asm volatile("ld.relaxed.gpu.global.v4.f32 {%0,%1,%2,%3}, [%4];"
               : "=f"(out.x), "=f"(out.y), "=f"(out.z), "=f"(out.w)
               : "l"(at)
               : "memory");
  return out;
}

__device__ __forceinline__ void store_relaxed(float *at, float x) {
  asm volatile("st.relaxed.gpu.global.f32 [%0], %1;" ::"l"(at), "f"(x) : "memory");
}

struct __align__(16) tagged_pair { // one transfer
  float x, y;
  uint64_t tag;
};

// Of the GPU's threads, and of all GPUs'.
#define TAGGED_ACCESS(load_name, store_name, scope)                                                          \
  __device__ __forceinline__ tagged_pair load_name(const tagged_pair *at) {                                  \
    uint64_t pair, tag;                                                                                      \
    asm volatile("{\n.reg .b128 both;\nld.relaxed." scope ".global.b128 both, [%2];\n"                       \
                 "mov.b128 {%0, %1}, both;\n}"                                                               \
                 : "=l"(pair), "=l"(tag)                                                                     \
                 : "l"(at)                                                                                   \
                 : "memory");                                                                                \
    return {__uint_as_float((uint32_t)pair), __uint_as_float((uint32_t)(pair >> 32)), tag};                  \
  }                                                                                                          \
  __device__ __forceinline__ void store_name(tagged_pair *at, const tagged_pair &value) {                    \
    uint64_t pair = (uint64_t)__float_as_uint(value.y) << 32 | __float_as_uint(value.x);                     \
    asm volatile("{\n.reg .b128 both;\nmov.b128 both, {%1, %2};\n"                                           \
                 "st.relaxed." scope ".global.b128 [%0], both;\n}" ::"l"(at),                                \
                 "l"(pair), "l"(value.tag)                                                                   \
                 : "memory");                                                                                \
  }
TAGGED_ACCESS(load_relaxed_tagged, store_relaxed_tagged, "gpu")
TAGGED_ACCESS(load_tagged_system, store_tagged_system, "sys")

// Once in each turn of a loop that waits for another thread; counts the turns where threads are emulated. Of
// a peer's pause that may be long: a wait that never ends is the host's to end (comm.deadline).
__device__ __forceinline__ void spin(unsigned *) {}
