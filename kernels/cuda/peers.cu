// peers: kernels that store rows into other GPUs' memory, and the one in which ranks meet.
#include "kernels/cuda/peers.cuh"

// ---- meeting ----

// By one warp.
__device__ __forceinline__ void meet(const peer_links &p) {
  uint32_t e = next_epoch(p);
  __threadfence_system();
  tell_peers(p, e);
  await_peers(p, e);
}

__global__ void meet_peers(const __grid_constant__ peer_links p) {
  wait_for_inputs();
  meet(p);
}

status peer_meeting(const peer_links &p, cudaStream_t stream) {
  return launch(meet_peers, dim3(1), WARP, 0, stream, p);
}

// ---- the meeting at the end of a launch that stores rows ----

// By all threads of each thread block: the block whose stores are the last to have been made meets the other
// ranks for all of them; true: this one has. done: a counter at 0, left so.
__device__ __forceinline__ bool meet_as_last(const peer_links &p, unsigned *done) {
  __shared__ bool is_last;
  __threadfence_system();
  __syncthreads();
  if (threadIdx.x == 0) {
    is_last = atomicAdd(done, 1u) == gridDim.x - 1;
    if (is_last) *done = 0;
  }
  __syncthreads();
  if (!is_last) return false;
  if (threadIdx.x < WARP) meet(p);
  __syncthreads();
  return true;
}

// ---- rows ----

static constexpr int BLOCK = 256;

struct send_args {
  peer_links p;
  peer_span span[PEER_SPANS];
  int count;
};

template <typename T> __device__ __forceinline__ void send_span(const peer_links &p, const peer_span &s) {
  T *own = (T *)s.at;
  size_t n = s.bytes / sizeof(T), step = (size_t)gridDim.x * BLOCK;
  for (size_t i = (size_t)blockIdx.x * BLOCK + threadIdx.x; i < n; i += step) {
    T value = own[i];
    for (int k = 1; k < p.n; k++) at_peer(p, own, (p.rank + k) % p.n)[i] = value;
  }
}

static __host__ __device__ bool in_sixteens(const peer_span &s) {
  return ((uintptr_t)s.at | s.bytes) % 16 == 0;
}

__device__ __forceinline__ void send_all(const send_args &a) {
  for (int i = 0; i < a.count; i++)
    if (in_sixteens(a.span[i]))
      send_span<uint4>(a.p, a.span[i]);
    else
      send_span<uint32_t>(a.p, a.span[i]);
}

__global__ void __launch_bounds__(BLOCK) send_spans(const __grid_constant__ send_args a) {
  wait_for_inputs();
  send_all(a);
}

// The arguments of a launch and its thread blocks; 0: there is nothing to send.
static unsigned lay_out(send_args *a, const peer_links &p, const peer_span *spans, int count) {
  *a = {};
  a->p = p;
  size_t most = 0;
  for (int i = 0; i < count; i++) {
    if (!spans[i].bytes) continue;
    a->span[a->count++] = spans[i];
    size_t words = spans[i].bytes / (in_sixteens(spans[i]) ? 16 : 4);
    if (words > most) most = words;
  }
  size_t blocks = (most + BLOCK - 1) / BLOCK, all = 4 * (size_t)device_multiprocessors();
  return (unsigned)(blocks < all ? blocks : all);
}

status peer_send(const peer_links &p, const peer_span *spans, int count, cudaStream_t stream) {
  send_args a;
  unsigned blocks = lay_out(&a, p, spans, count);
  return blocks ? launch(send_spans, dim3(blocks), BLOCK, 0, stream, a) : 0;
}

// ---- slots ----

__device__ __forceinline__ int owner_of(const row_owners &o, int row) {
  int r = 0;
  while (r + 1 < o.n && row >= o.first[r + 1]) r++;
  return r;
}

struct slots_args {
  peer_links p;
  row_owners owners;
  float *slots;
  const int *member;
  const int64_t *place;
  int top_k, hidden;
};

template <typename T>
__device__ __forceinline__ void send_row(const peer_links &p, T *row, int n, int first, int end) {
  for (int i = threadIdx.x; i < n; i += BLOCK) {
    T value = row[i];
    for (int r = first; r < end; r++)
      if (r != p.rank) at_peer(p, row, r)[i] = value;
  }
}

__device__ __forceinline__ void send_slot(const slots_args &a, int slot) {
  if (a.member[slot] < 0) return;
  int owner = a.owners.n ? owner_of(a.owners, slot / a.top_k) : 0, end = a.owners.n ? owner + 1 : a.p.n;
  float *row = a.slots + (a.place ? a.place[slot] : slot) * (int64_t)a.hidden;
  if (a.hidden % 4 == 0)
    send_row(a.p, (float4 *)row, a.hidden / 4, owner, end);
  else
    send_row(a.p, row, a.hidden, owner, end);
}

__global__ void __launch_bounds__(BLOCK) send_slots(const __grid_constant__ slots_args a, unsigned *done) {
  wait_for_inputs();
  send_slot(a, blockIdx.x);
  meet_as_last(a.p, done);
}

status peer_send_slots(const peer_links &p, float *slots, const int *member, const int64_t *place,
                       const row_owners &owners, int n_slots, int top_k, int hidden, unsigned *done,
                       cudaStream_t stream) {
  slots_args a = {p, owners, slots, member, place, top_k, hidden};
  return launch(send_slots, dim3((unsigned)n_slots), BLOCK, 0, stream, a, done);
}

__device__ __forceinline__ void store_offset(int64_t *offset, const peer_links &p, const row_owners &owners,
                                             int slot, int top_k, int hidden) {
  offset[slot] = (int64_t)slot * hidden + p.delta[owner_of(owners, slot / top_k)] / (int64_t)sizeof(float);
}

__global__ void __launch_bounds__(BLOCK)
    find_offsets(int64_t *offset, const __grid_constant__ peer_links p,
                 const __grid_constant__ row_owners owners, int n_slots, int top_k, int hidden) {
  wait_for_inputs();
  int slot = blockIdx.x * BLOCK + threadIdx.x;
  if (slot < n_slots) store_offset(offset, p, owners, slot, top_k, hidden);
}

status peer_slot_offsets(int64_t *offset, const peer_links &p, const row_owners &owners, int n_slots,
                         int top_k, int hidden, cudaStream_t stream) {
  return launch(find_offsets, dim3((unsigned)ceil_div(n_slots, BLOCK)), BLOCK, 0, stream, offset, p, owners,
                n_slots, top_k, hidden);
}

// ---- rows, the meeting and the routing at once ----

__global__ void __launch_bounds__(BLOCK)
    gather_spans(const __grid_constant__ send_args a, const __grid_constant__ peer_routing r,
                 unsigned *done) {
  wait_for_inputs();
  send_all(a);
  if (!meet_as_last(a.p, done)) return;
  for (int slot = threadIdx.x; slot < r.n_slots; slot += BLOCK) {
    r.member[slot] = r.local_of_expert[r.expert[slot]];
    store_offset(r.offset, a.p, r.owners, slot, r.top_k, r.hidden);
  }
}

status peer_gather(const peer_links &p, const peer_span *spans, int count, const peer_routing &routing,
                   unsigned *done, cudaStream_t stream) {
  send_args a;
  unsigned blocks = lay_out(&a, p, spans, count);
  return launch(gather_spans, dim3(blocks ? blocks : 1), BLOCK, 0, stream, a, routing, done);
}
