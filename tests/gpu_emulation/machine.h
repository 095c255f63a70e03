// machine: runs a grid of CUDA threads on one core, each thread of a block as a fiber.
//
// Owns: the order in which blocks and threads run, where they meet, shared memory. Independent of: streams,
// arithmetic. Invariant: the order is drawn anew for every launch, the same in every run of a program; shared
// memory holds garbage when a block begins. So what hangs on an order that no barrier makes gives other bits.
#pragma once
#include "cuda_runtime_api.h"
#include <functional>
#include <stddef.h>
#include <stdint.h>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

namespace emulation {

constexpr size_t MOST_SHARED = 227 << 10; // dynamic, of a block
constexpr uint32_t GARBAGE = 0xfff3fff5u; // a NaN as a float and as two halves; as an index far away

struct grid {
  dim3 blocks, threads;
  size_t shared_bytes;
  bool resident; // all blocks run at once, and may wait for each other (pause)
  const void *kernel;
  std::function<void()> thread; // the kernel with its arguments
};

cudaError_t launch(grid g, cudaStream_t stream); // runtime.cc: onto the stream
void run(const grid &g);                         // now
[[noreturn]] void stop(const char *fault);       // says where, and aborts
void fill_with_garbage(void *memory, size_t bytes);
uint64_t nanoseconds_now();
typedef std::function<bool()> work;              // false: not yet
void add_to_stream(cudaStream_t stream, work w); // runtime.cc
// From here on streams go on while the host waits for other processes, and blocks run in an order that
// follows from the grid alone: a block waits for the same one of another process.
void work_with_others();
bool works_with_others();
uint64_t draw(uint64_t below);

// ---- for the threads of a grid ----

extern int current_lane; // its lane
void meet_block();
// In a loop that waits for what another thread will write: lets every other one run first, of a resident grid
// also those of other blocks.
void pause();
// Waits for the lanes of `mask`; the last to come calls `act` with what each lane brought, by its number.
typedef void (*action)(void **lanes, uint32_t mask);
void meet_warp(action act, void *mine, uint32_t mask);
// Copies of this thread that wait: made when it asks for all groups but the latest so many.
void copy_later(void *to, const void *from, size_t bytes);
void end_copy_group();
void copy_now(int latest);

// A barrier in shared memory, and the copies that arrive at it: each is made at once or when a thread asks
// whether it is done, as it is drawn.
void barrier_init(uint64_t *b, int arrivals);
void barrier_arrive(uint64_t *b);
void barrier_arrive_expect(uint64_t *b, size_t bytes);
void barrier_copy(uint64_t *b, void *to, const void *from, size_t bytes);
bool barrier_done(uint64_t *b, uint32_t parity);

} // namespace emulation
