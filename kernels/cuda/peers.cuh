// peers: the GPUs of the other ranks of this host, into whose memory this one stores.
//
// Owns: the links to them, rows that are stored there, and the waits for what they store here. Independent
// of: what the rows are, MPI (the ranks' handles are exchanged in src/run/peer_links.c). Invariant: what
// other GPUs store into lies in one block of memory, the window, at the same offsets on every rank. Rows are
// copied, never added. Every wait ends: past its limit it sets `failed`, which the host reads.
//
// Two ways to know that rows have come:
//   epochs    a rank tells the others, in order, that its stream has come to its e-th meeting
//             (peer_meeting). What it enqueued before has been stored then.
//   sentinel  a word of the inbox is NOT_WRITTEN until its value comes, and again once it has been read. Two
//             sets, by the parity of the epoch, so that a peer that is ahead writes the other one.
#pragma once
#include "kernels/cuda/device.cuh"

static constexpr int MAX_PEERS = MOST_PEERS; // ranks, this one counted
static constexpr uint32_t NOT_WRITTEN = ~0u;

struct peer_links {         // as kernels take them
  int rank, n;              // n ranks; 0: not linked
  int64_t delta[MAX_PEERS]; // bytes from an address in this rank's window to the same of rank r's
  uint32_t *arrived;        // window [MAX_PEERS]: the epoch that each rank has come to
  uint32_t *epoch;          // this rank's
  uint32_t *inbox;          // window [2][top_k][hidden]: slots of one token, as bits
  int set_words;            // of one of the two sets
  uint32_t *failed;         // host memory: not 0: a wait has passed its limit
  uint64_t limit;           // of a wait, nanoseconds
};

struct row_owners { // rows first[r] .. first[r + 1] - 1 are rank r's; n 0: every rank has all rows
  int n, first[MAX_PEERS + 1];
};

template <typename T> __device__ __forceinline__ T *at_peer(const peer_links &p, T *own, int rank) {
  return (T *)((uint8_t *)own + p.delta[rank]);
}

// Polls until done(). Past the limit, or once any wait has passed it, what comes is not used: the host ends
// the job.
template <typename Done> __device__ __forceinline__ void wait_for_peer(const peer_links &p, Done done) {
  static constexpr unsigned POLLS = 1024; // between two looks at the clock and the host's memory
  if (done()) return;
  uint64_t start = clock_nanoseconds();
  for (unsigned polls = 1; !done(); polls++) {
    pause_between_polls();
    if (polls % POLLS) continue;
    if (!load_relaxed_system(p.failed) && clock_nanoseconds() - start < p.limit) continue;
    store_relaxed_system(p.failed, 1);
    return;
  }
}

// By one warp: tells the others that this rank has come to epoch e.
__device__ __forceinline__ void tell_peers(const peer_links &p, uint32_t e) {
  int peer = threadIdx.x % WARP;
  if (peer < p.n && peer != p.rank) store_release_system(at_peer(p, p.arrived + p.rank, peer), e);
}

// By one warp: waits until all others have come to epoch e.
__device__ __forceinline__ void await_peers(const peer_links &p, uint32_t e) {
  int peer = threadIdx.x % WARP;
  if (peer < p.n && peer != p.rank)
    wait_for_peer(p, [&] { return (int32_t)(load_acquire_system(p.arrived + peer) - e) >= 0; });
}

// By one warp: this rank's next epoch, which no other part of the launch reads.
__device__ __forceinline__ uint32_t next_epoch(const peer_links &p) {
  uint32_t e = *p.epoch + 1;
  __syncwarp();
  if (threadIdx.x % WARP == 0) *p.epoch = e;
  return e;
}

// By one warp, in a launch between the last read of this layer's inbox and the first store to the next one's:
// once this rank has come to e, the others have read what it sent at e - 2 and before.
__device__ __forceinline__ void advance_inbox(const peer_links &p) {
  uint32_t e = next_epoch(p);
  tell_peers(p, e);
  await_peers(p, e - 1);
}

__device__ __forceinline__ uint32_t *inbox_of(const peer_links &p) { // the set of the current epoch
  return p.inbox + (size_t)(*p.epoch & 1) * p.set_words;
}

// Stores a value to the same word of every other rank's inbox. No value of a product has the bits of
// NOT_WRITTEN but a NaN that was handed through, which any other NaN stands for as well.
__device__ __forceinline__ void send_value(const peer_links &p, uint32_t *own, float value) {
  uint32_t bits = __float_as_uint(value);
  if (bits == NOT_WRITTEN) bits = 0x7fffffffu;
  for (int r = 0; r < p.n; r++)
    if (r != p.rank) store_relaxed_system(at_peer(p, own, r), bits);
}

// Waits for a word of the inbox and leaves it as it was before.
__device__ __forceinline__ float take_value(const peer_links &p, uint32_t *own) {
  uint32_t bits = NOT_WRITTEN;
  wait_for_peer(p, [&] { return (bits = load_relaxed_system(own)) != NOT_WRITTEN; });
  *own = NOT_WRITTEN;
  return __uint_as_float(bits);
}

// ---- launches ----

// All that every rank has enqueued before has been stored, for what is enqueued afterwards.
status peer_meeting(const peer_links &p, cudaStream_t stream);

static constexpr int PEER_SPANS = 7; // of one launch: four kinds of rows, of which one may be four planes
struct peer_span { // in the window, to the same place on the other ranks; a multiple of 4 bytes
  void *at;
  size_t bytes;
};
status peer_send(const peer_links &p, const peer_span *spans, int count, cudaStream_t stream);

// What follows from a routing that comes with the rows, of n_slots slots; 0: nothing comes.
struct peer_routing {
  int n_slots, top_k, hidden;
  row_owners owners; // of the tokens
  int *member;       // [n_slots] local_of_expert[expert]
  const int *expert, *local_of_expert;
  int64_t *offset; // [n_slots] as peer_slot_offsets
};
static constexpr int GATHERED_SLOTS = 1024; // more have launches of their own
// peer_send, peer_meeting and, in their wake, what follows from the routing, as one launch. done: a counter
// at 0, left so.
status peer_gather(const peer_links &p, const peer_span *spans, int count, const peer_routing &routing,
                   unsigned *done, cudaStream_t stream);

// Stores the rows of the slots of owned experts, slot i in row place[i] (NULL: i), to the same rows of their
// tokens' owners; then the meeting, in the same launch. done: as for peer_gather.
status peer_send_slots(const peer_links &p, float *slots, const int *member, const int64_t *place,
                       const row_owners &owners, int n_slots, int top_k, int hidden, unsigned *done,
                       cudaStream_t stream);
// offset[i]: where slot i's row starts for product.offset, in the memory of its token's owner.
status peer_slot_offsets(int64_t *offset, const peer_links &p, const row_owners &owners, int n_slots,
                         int top_k, int hidden, cudaStream_t stream);
