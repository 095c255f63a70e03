// instructions_hopper: in place of the header of this name in the tree: barriers in shared memory and bulk
// copies. What warpgroups do is not emulated.
#pragma once
#include "kernels/cuda/instructions.cuh"

static inline void mbarrier_init(uint64_t *b, int arrivals) {
  emulation::barrier_init(b, arrivals);
}
static inline void fence_mbarrier_init() {}
static inline void mbarrier_arrive(uint64_t *b) {
  emulation::barrier_arrive(b);
}
static inline void mbarrier_arrive_expect(uint64_t *b, int bytes) {
  emulation::barrier_arrive_expect(b, (size_t)bytes);
}
static inline bool mbarrier_try_wait(uint64_t *b, uint32_t parity) {
  return emulation::barrier_done(b, parity);
}
static inline void copy_bulk(void *shared, const void *global, int bytes, uint64_t *b) {
  emulation::barrier_copy(b, shared, global, (size_t)bytes);
}
static inline void copy_bulk_once(void *shared, const void *global, int bytes, uint64_t *b) {
  copy_bulk(shared, global, bytes, b);
}
