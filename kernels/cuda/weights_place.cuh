// weights_place: weights on their way to shared memory by bulk copies, of sm_90 and later and of the emulated
// GPU.
//
// Independent of: which rows, and who multiplies them.
#pragma once
#include "kernels/cuda/instructions_hopper.cuh"

// A place in shared memory for rows of weights, and whether they are there.
struct weights_place {
  uint8_t *at;
  uint64_t *landed;
  uint32_t parity;

  // By one lane, once every lane has read what lies there.
  __device__ __forceinline__ void expect(uint32_t bytes) const { mbarrier_arrive_expect(landed, (int)bytes); }
  __device__ __forceinline__ void copy(uint32_t offset, const uint8_t *from, uint32_t bytes) const {
    copy_bulk_once(at + offset, from, (int)bytes, landed);
  }
  // By every lane that reads.
  __device__ __forceinline__ void wait() {
    unsigned turns = 0;
    while (!mbarrier_try_wait(landed, parity)) spin(&turns);
    parity ^= 1;
  }
};
