// step_peers: the window of a rank's memory that its peers store into, its handle, and rows that are gathered
// through it (peers.cuh).
#include "kernels/cuda/steps.cuh"
#include <string.h>

// The driver shares whole pages of so many bytes, so that a window has its own.
static constexpr size_t PAGE = (size_t)2 << 20, ALIGNMENT = 256;

static const double TRIAL_SECONDS = 10; // at most, where ranks may differ in how long they take to open
static const double CLOSE_SECONDS = 5;

static size_t aligned(size_t bytes) {
  return (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

size_t peers_window_bytes(const cuda_backend *b) {
  size_t bytes = 0;
  for (int i = 0; i < b->n_linked; i++) bytes += aligned(b->linked[i].bytes);
  return (bytes + PAGE - 1) / PAGE * PAGE;
}

void peers_lay_out(cuda_backend *b) {
  uint8_t *at = b->window;
  for (int i = 0; i < b->n_linked; at += aligned(b->linked[i++].bytes)) *b->linked[i].at = at;
}

static_assert(sizeof(peer_handle::bytes) == sizeof(cudaIpcMemHandle_t), "a handle is CUDA's");

// Where no product of experts reads floats, and all ranks round alike, rounded rows are sent: a third of the
// bytes.
static bool experts_read_rounded(const cuda_backend *b) {
  bool all = b->normed.qs && b->shared->kind == b->experts->kind && !path_splits_outliers(b->experts->kind);
  for (int64_t l = 0; l < b->shape.n_layers && all; l++) {
    const dev_layer *w = &b->weights->layers[l];
    all = takes_q8k(b->experts, &w->gate) && takes_q8k(b->experts, &w->up);
  }
  return all;
}

status cuda_peers_export(backend *base, peer_handle *out) {
  cuda_backend *b = self(base);
  cudaIpcMemHandle_t handle;
  b->gathers_rounded = experts_read_rounded(b);
  out->offers_fused = b->has_fused;
  out->layout = peers_window_bytes(b) * 16 + (uint64_t)b->experts->kind * 2 + b->gathers_rounded;
  CUDA_TRY(cudaIpcGetMemHandle(&handle, b->window));
  memcpy(out->bytes, &handle, sizeof handle);
  return 0;
}

static uint64_t nanoseconds_of(double seconds) {
  return seconds < 1e9 ? (uint64_t)(seconds * 1e9) : (uint64_t)1e18;
}

status cuda_peers_open(backend *base, const peer_handle *all, double seconds) {
  cuda_backend *b = self(base);
  peer_links *p = &b->peers;
  p->rank = b->params.rank;
  p->set_words = (int)(b->shape.top_k * b->shape.hidden);
  p->limit = nanoseconds_of(seconds);
  for (int r = 0; r < b->params.n_ranks; r++) {
    cudaIpcMemHandle_t handle;
    if (r == p->rank) continue;
    if (all[r].layout != all[p->rank].layout) return FAIL("rank %d computes its experts on another path", r);
    memcpy(&handle, all[r].bytes, sizeof handle);
    cudaError_t error = cudaIpcOpenMemHandle(&b->peer_window[r], handle, cudaIpcMemLazyEnablePeerAccess);
    if (error != cudaSuccess) {
      cudaGetLastError(); // handled by the caller
      return FAIL("the memory of rank %d's GPU: CUDA: %s", r, cudaGetErrorString(error));
    }
    p->delta[r] = (uint8_t *)b->peer_window[r] - b->window;
    b->has_fused = b->has_fused && all[r].offers_fused;
  }
  p->n = b->params.n_ranks;
  return 0;
}

// Each rank's word goes to all others.
static status send_trial(cuda_backend *b, uint32_t *found) {
  uint32_t mine = (uint32_t)b->peers.rank + 1;
  peer_span word = {b->trial + b->peers.rank, sizeof mine};
  CUDA_TRY(cudaMemcpyAsync(word.at, &mine, sizeof mine, cudaMemcpyHostToDevice, b->stream));
  TRY(peer_send(b->peers, &word, 1, b->stream));
  TRY(peer_meeting(b->peers, b->stream));
  TRY(device_wait(b->stream, &b->params));
  CUDA_TRY(cudaMemcpy(found, b->trial, MOST_PEERS * sizeof *found, cudaMemcpyDeviceToHost));
  return 0;
}

status cuda_peers_try(backend *base) {
  cuda_backend *b = self(base);
  uint32_t found[MOST_PEERS] = {};
  uint64_t limit = b->peers.limit, trial = nanoseconds_of(TRIAL_SECONDS);
  b->peers.limit = limit < trial ? limit : trial;
  status result = send_trial(b, found);
  b->peers.limit = limit;
  if (result) return result;
  for (int r = 0; r < b->peers.n; r++)
    if (found[r] != (uint32_t)r + 1)
      return FAIL("the trial of peers: rank %d's word: expected %d, found %u", r, r + 1, found[r]);
  return *b->peers.failed ? FAIL("the trial of peers: not all of them came in time") : 0;
}

void cuda_peers_leave(backend *base) {
  cuda_backend *b = self(base);
  for (int r = 0; r < MOST_PEERS; r++) {
    if (b->peer_window[r]) cudaIpcCloseMemHandle(b->peer_window[r]);
    b->peer_window[r] = nullptr;
  }
  b->peers.n = 0;
  cudaGetLastError();
}

// The others may still be on their way to this rank's memory, which is about to be freed.
void peers_close(cuda_backend *b) {
  if (b->peers.n && !*b->peers.failed) {
    b->peers.limit = nanoseconds_of(CLOSE_SECONDS);
    if (!peer_meeting(b->peers, b->stream)) cudaStreamSynchronize(b->stream);
  }
  cuda_peers_leave(&b->base);
}

status peers_check(const cuda_backend *b) {
  if (!b->peers.n || !*(volatile uint32_t *)b->peers.failed) return 0;
  static const double LONG_AGO = 1e12; // past every deadline: who is missing is to be named
  if (b->params.watch) TRY(b->params.watch(b->params.watch_context, LONG_AGO));
  return FAIL("the exchange between GPUs: a peer did not come in time");
}

// Rows first .. of one kind, as one span or several; returns how many.
static int spans_of(cuda_backend *b, peer_span *out, row_kind kind, int64_t first, int64_t count) {
  size_t width = (size_t)b->shape.hidden;
  const dev_inputs &in = b->normed;
  kind_of_rows rows = device_rows(b, kind), planes[] = {{in.qs, width},
                                                        {in.d, width / QK_K * sizeof *in.d},
                                                        {in.bsums, width / 16 * sizeof *in.bsums},
                                                        {in.sums32, width / 16}};
  bool rounded = kind == ROWS_NORMED && b->gathers_rounded;
  int n = rounded ? 4 : 1;
  if (kind == ROWS_NORMED) b->rounded_gathered = rounded;
  for (int i = 0; i < n; i++) {
    kind_of_rows r = rounded ? planes[i] : rows;
    out[i] = {(uint8_t *)r.at + (size_t)first * r.bytes, (size_t)count * r.bytes};
  }
  return n;
}

size_t cuda_peers_row_bytes(backend *base, row_kind kind) {
  peer_span spans[PEER_SPANS];
  size_t bytes = 0;
  bool before = self(base)->rounded_gathered;
  for (int i = spans_of(self(base), spans, kind, 0, 1); i-- > 0;) bytes += spans[i].bytes;
  self(base)->rounded_gathered = before;
  return bytes;
}

row_owners owners_of(const cuda_backend *b, const int64_t *tokens_of_rank) {
  row_owners o = {};
  o.n = b->peers.n;
  for (int r = 0; r < o.n; r++) o.first[r + 1] = o.first[r] + (int)tokens_of_rank[r];
  return o;
}

// Of a small batch whose experts are among what is gathered.
static peer_routing routing_of(cuda_backend *b, const row_kind *kinds, int count,
                               const int64_t *tokens_of_rank) {
  peer_routing r = {};
  bool comes = false;
  for (int i = 0; i < count; i++) comes = comes || kinds[i] == ROWS_EXPERTS;
  if (!comes) return r;
  r.owners = owners_of(b, tokens_of_rank);
  int64_t n_slots = r.owners.first[r.owners.n] * b->shape.top_k;
  b->routing_gathered = n_slots <= GATHERED_SLOTS;
  r.n_slots = b->routing_gathered ? (int)n_slots : 0;
  r.top_k = (int)b->shape.top_k;
  r.hidden = (int)b->shape.hidden;
  r.member = b->member;
  r.expert = b->expert;
  r.local_of_expert = b->weights->local_of_expert;
  r.offset = b->place;
  return r;
}

status cuda_peers_gather(backend *base, const row_kind *kinds, int count, const int64_t *tokens_of_rank) {
  cuda_backend *b = self(base);
  peer_span spans[PEER_SPANS];
  int64_t first = 0;
  int n = 0;
  for (int r = 0; r < b->peers.rank; r++) first += tokens_of_rank[r];
  for (int i = 0; i < count; i++) n += spans_of(b, spans + n, kinds[i], first, tokens_of_rank[b->peers.rank]);
  return peer_gather(b->peers, spans, n, routing_of(b, kinds, count, tokens_of_rank), b->meeting_count,
                     b->stream);
}
