// instructions: in place of the header of this name in the tree, as PTX ISA defines each of them.
#pragma once
#include <cuda_runtime.h>
#include <stdint.h>

static inline int dp4a_unsigned(uint32_t w, int x, int sum) {
  for (int i = 0; i < 4; i++) sum += (int)(w >> 8 * i & 255) * (int8_t)((uint32_t)x >> 8 * i);
  return sum;
}

static inline void prefetch_l2(const uint8_t *) {}

static inline uint4 load_16_once(const uint8_t *at) {
  if ((uintptr_t)at % 16) emulation::stop("a load of 16 bytes is not aligned to them");
  return *(const uint4 *)at;
}

static inline float exp2_approx(float x) { // the nearest float; the instruction may be 2 ulp off
  return (float)__builtin_exp2((double)x);
}

// Words that other GPUs, which are other processes, and the host read and write.
static inline uint32_t load_relaxed_system(const uint32_t *at) {
  return __atomic_load_n(at, __ATOMIC_RELAXED);
}
static inline uint32_t load_acquire_system(const uint32_t *at) {
  return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}
static inline void store_relaxed_system(uint32_t *at, uint32_t value) {
  __atomic_store_n(at, value, __ATOMIC_RELAXED);
}
static inline void store_release_system(uint32_t *at, uint32_t value) {
  __atomic_store_n(at, value, __ATOMIC_RELEASE);
}
static inline uint64_t clock_nanoseconds() {
  return emulation::nanoseconds_now();
}
static inline uint32_t clock_cycles() { // an instruction each
  static thread_local uint32_t now;
  return ++now;
}
static inline uint32_t thread_number_late() {
  return threadIdx.x;
}
static inline void pause_between_polls() {
  emulation::pause();
}

// The copies are made when the thread waits for them, not before.
static inline void copy_async_16(void *shared, const void *global) {
  emulation::copy_later(shared, global, 16);
}
static inline void copy_async_4(void *shared, const void *global) {
  emulation::copy_later(shared, global, 4);
}
static inline void copy_async_commit() {
  emulation::end_copy_group();
}
static inline void copy_async_wait_all() {
  copy_async_commit();
  emulation::copy_now(0);
}
template <int LATEST> static inline void copy_async_wait_group() {
  emulation::copy_now(LATEST);
}

// Lane l: rows l / 4 and l / 4 + 8 of A and C, column l / 4 of B; of every 16 bytes of a row of A or a column
// of B the four from 4 (l % 4) on; columns 2 (l % 4) and the next of C.
template <int K> struct emulation_mma {
  int *c;
  uint32_t a[K / 8], b[K / 16]; // A: 16 bytes of the first row, of the second, then the next 16
};

template <int K, typename A> static void emulation_multiply(void **lanes, uint32_t) {
  A a[16][K];
  int8_t b[8][K];
  for (int l = 0; l < 32; l++) {
    const auto *mine = (const emulation_mma<K> *)lanes[l];
    for (int i = 0; i < K / 16; i++) {
      memcpy(&a[l / 4][16 * i + l % 4 * 4], &mine->a[2 * i], 4);
      memcpy(&a[l / 4 + 8][16 * i + l % 4 * 4], &mine->a[2 * i + 1], 4);
      memcpy(&b[l / 4][16 * i + l % 4 * 4], &mine->b[i], 4);
    }
  }
  for (int l = 0; l < 32; l++)
    for (int i = 0; i < 4; i++) {
      int sum = 0;
      for (int k = 0; k < K; k++) sum += a[l / 4 + i / 2 * 8][k] * b[l % 4 * 2 + i % 2][k];
      ((const emulation_mma<K> *)lanes[l])->c[i] += sum;
    }
}

static inline void mma_k32(int c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
  emulation_mma<32> mine = {c, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  emulation::meet_warp(emulation_multiply<32, int8_t>, &mine, ~0u);
}

static inline void mma_k32_unsigned(int c[4], const uint32_t a[4], uint32_t b0, uint32_t b1) {
  emulation_mma<32> mine = {c, {a[0], a[1], a[2], a[3]}, {b0, b1}};
  emulation::meet_warp(emulation_multiply<32, uint8_t>, &mine, ~0u);
}

static inline void mma_k16(int c[4], const uint32_t a[2], uint32_t b) {
  emulation_mma<16> mine = {c, {a[0], a[1]}, {b}};
  emulation::meet_warp(emulation_multiply<16, int8_t>, &mine, ~0u);
}

// Lane l gives row l % 8 of tile l / 8, and gets of every tile four bytes of row l / 4.
static inline void ldmatrix_x4(uint32_t out[4], const int8_t *at) {
  struct part {
    const int8_t *row;
    uint32_t *out;
  } mine = {at, out};
  if ((uintptr_t)at % 16) emulation::stop("a row of a tile is not aligned to 16 bytes");
  emulation::meet_warp(
      [](void **lanes, uint32_t) {
        for (int l = 0; l < 32; l++)
          for (int tile = 0; tile < 4; tile++)
            memcpy(&((part *)lanes[l])->out[tile], ((part *)lanes[8 * tile + l / 4])->row + l % 4 * 4, 4);
      },
      &mine, ~0u);
}

// ---- hand-over between the blocks of a resident grid ----

static inline float load_relaxed(const float *at) {
  return *(const volatile float *)at;
}
static inline float4 load_relaxed_4(const float *at) {
  if ((uintptr_t)at % 16) emulation::stop("a load of 16 bytes is not aligned to them");
  return make_float4(load_relaxed(at), load_relaxed(at + 1), load_relaxed(at + 2), load_relaxed(at + 3));
}
static inline void store_relaxed(float *at, float x) {
  *(volatile float *)at = x;
}
struct alignas(16) tagged_pair {
  float x, y;
  uint64_t tag;
};
// As one transfer, also between processes, since the tag is stored last and loaded first.
static inline tagged_pair load_tagged_system(const tagged_pair *at) {
  if ((uintptr_t)at % 16) emulation::stop("a load of 16 bytes is not aligned to them");
  uint64_t tag = __atomic_load_n(&at->tag, __ATOMIC_ACQUIRE);
  return {*(const volatile float *)&at->x, *(const volatile float *)&at->y, tag};
}
static inline void store_tagged_system(tagged_pair *at, const tagged_pair &value) {
  if ((uintptr_t)at % 16) emulation::stop("a store of 16 bytes is not aligned to them");
  *(volatile float *)&at->x = value.x;
  *(volatile float *)&at->y = value.y;
  __atomic_store_n(&at->tag, value.tag, __ATOMIC_RELEASE);
}
static inline tagged_pair load_relaxed_tagged(const tagged_pair *at) {
  return load_tagged_system(at);
}
static inline void store_relaxed_tagged(tagged_pair *at, const tagged_pair &value) {
  store_tagged_system(at, value);
}
static inline void spin(unsigned *turns) {
  if (++*turns == 1u << 16) emulation::stop("a thread waits for a number that never comes");
  emulation::pause();
}
