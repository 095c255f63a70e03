// nccl: rows go from device to device, on the stream that computes them.
//
// Owns: NCCL (nccl.h is included here and nowhere else), one communicator for all transports of a process,
// the staging of rows that lie in host memory, the events that time an exchange.
// Independent of: what the rows are; which rank is late (comm_name_missing finds it).
// Invariant: the communicator is non-blocking: every call returns, and every wait here checks for errors and
// comm.deadline. It is destroyed when the ranks end in order, never by one of them alone. All streams share
// it, so that NCCL keeps its collectives in the order of their calls, which is the same on every rank.
#include "base/clock.h"
#include "base/cuda_try.h"
#include "base/memory.h"
#include "dist/transport_ops.h"
#include <cuda_runtime_api.h>
#include <nccl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { TIMED = 64 }; // exchanges that are timed by events at the same time

static const size_t trial_bytes = (size_t)2 << 20; // of a rank in the largest trial

typedef struct {
  cudaEvent_t start, end;
  char what[64];
} timed_exchange;

typedef struct {
  cudaStream_t stream; // for rows in host memory
  char *staging;       // their copy on the device
  size_t staging_bytes;
  timed_exchange timed[TIMED];
  int64_t started, counted; // exchanges so far; those whose seconds are in `seconds`
  double seconds;
} nccl_state;

static struct {
  ncclComm_t handle;
  comm *ranks;
  bool open, abandoned;
} world;

// ---- waiting ----

static const char *world_error(void) {
  ncclResult_t now = ncclSuccess;
  if (world.abandoned) return "abandoned";
  ncclResult_t asked = ncclCommGetAsyncError(world.handle, &now);
  if (asked != ncclSuccess) now = asked;
  return now == ncclSuccess || now == ncclInProgress ? NULL : ncclGetErrorString(now);
}

static status not_in_time(const char *what) {
  TRY(comm_name_missing(world.ranks, what));
  return FAIL("%s: NCCL: not done after comm.deadline = %g s, though every rank is there", what,
              comm_deadline(world.ranks));
}

// Waits until the host's part of a call is done: its work is then on its stream.
static status settle(ncclResult_t result, const char *what) {
  double limit = clock_seconds() + comm_patience(world.ranks);
  if (result == ncclSuccess) result = ncclInProgress; // the communicator's state decides
  for (unsigned polls = 1; result == ncclInProgress; polls++) {
    ncclResult_t asked = ncclCommGetAsyncError(world.handle, &result);
    if (asked != ncclSuccess) result = asked;
    if (result != ncclInProgress) break;
    if (clock_seconds() > limit) return not_in_time(what);
    if (polls % 1024 == 0) comm_answer(world.ranks);
    sched_yield();
  }
  if (result == ncclSuccess) return 0;
  const char *detail = ncclGetLastError(world.handle);
  return FAIL("%s: NCCL: %s%s%s", what, ncclGetErrorString(result), detail && *detail ? ": " : "",
              detail ? detail : "");
}

static status wait_event(cudaEvent_t event, const char *what) {
  double limit = clock_seconds() + comm_patience(world.ranks);
  for (unsigned polls = 1;; polls++) {
    cudaError_t error = cudaEventQuery(event);
    if (error == cudaSuccess) return 0;
    cudaGetLastError(); // clears cudaErrorNotReady, which a later call would return otherwise
    if (error != cudaErrorNotReady) return FAIL("%s: CUDA: %s", what, cudaGetErrorString(error));
    if (polls % 1024 == 0) comm_answer(world.ranks);
    const char *broken = polls % 64 ? NULL : world_error();
    if (broken) return FAIL("%s: NCCL: %s", what, broken);
    if (clock_seconds() > limit) return not_in_time(what);
    sched_yield();
  }
}

// ---- the communicator ----

static void *abort_world(void *done) {
  ncclCommAbort(world.handle);
  *(volatile bool *)done = true;
  return NULL;
}

// ncclCommAbort may itself wait for a device that does not answer: the job then ends without it.
static void nccl_abandon(void *state) {
  (void)state;
  static volatile bool done;
  pthread_t helper;
  if (world.abandoned) return;
  world.abandoned = true;
  if (pthread_create(&helper, NULL, abort_world, (void *)&done)) return;
  pthread_detach(helper);
  const struct timespec pause = {0, 1000000};
  for (double limit = clock_seconds() + 3; !done && clock_seconds() < limit;) nanosleep(&pause, NULL);
}

static void world_close(void *context) {
  (void)context;
  if (!world.open || world.abandoned) return;
  world.open = false;
  ncclResult_t now = ncclCommFinalize(world.handle);
  double limit = clock_seconds() + 10;
  while ((now == ncclSuccess || now == ncclInProgress) && clock_seconds() < limit) {
    if (ncclCommGetAsyncError(world.handle, &now) != ncclSuccess || now == ncclSuccess) break;
    sched_yield();
  }
  if (now == ncclSuccess) ncclCommDestroy(world.handle);
}

static status start_world(comm *c) {
  ncclUniqueId mine = {{0}}, *all;
  ncclResult_t got = comm_rank(c) == 0 ? ncclGetUniqueId(&mine) : ncclSuccess;
  TRY(comm_agree(c, got == ncclSuccess ? 0 : FAIL("NCCL: %s", ncclGetErrorString(got)), "NCCL's id"));
  TRY(TAKE(&all, (size_t)comm_size(c), "NCCL's id"));
  status result = comm_allgather(c, all, &mine, sizeof mine, "NCCL's id");
  if (!result) {
    ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
    config.blocking = 0;
    world.ranks = c;
    result = settle(ncclCommInitRankConfig(&world.handle, comm_size(c), all[0], comm_rank(c), &config),
                    "the start of NCCL");
  }
  free(all);
  return result;
}

// ---- exchanges ----

// Every rank sends one part to all others, and the parts are of one size and contiguous in rank order.
static bool is_all_gather(const comm_part *part, int size) {
  size_t bytes = part[size > 1].bytes;
  for (int i = 0; i < size * size; i++)
    if (i / size != i % size && (part[i].bytes != bytes || part[i].offset != (size_t)(i / size) * bytes))
      return false;
  return true;
}

static void keep_first_error(ncclResult_t *result, ncclResult_t one) {
  if (*result == ncclSuccess && one != ncclInProgress) *result = one;
}

static ncclResult_t send_parts(char *rows, cudaStream_t stream, const comm_part *part) {
  int size = comm_size(world.ranks), rank = comm_rank(world.ranks);
  size_t each = part[size > 1].bytes;
  if (is_all_gather(part, size))
    return each ? ncclAllGather(rows + (size_t)rank * each, rows, each, ncclInt8, world.handle, stream)
                : ncclSuccess;
  ncclResult_t result = ncclGroupStart();
  for (int step = 1; step < size; step++) {
    int to = (rank + step) % size, from = (rank + size - step) % size;
    const comm_part *out = &part[rank * size + to], *in = &part[from * size + rank];
    if (out->bytes)
      keep_first_error(&result, ncclSend(rows + out->offset, out->bytes, ncclInt8, to, world.handle, stream));
    if (in->bytes)
      keep_first_error(&result, ncclRecv(rows + in->offset, in->bytes, ncclInt8, from, world.handle, stream));
  }
  ncclResult_t ended = ncclGroupEnd();
  return result == ncclSuccess ? ended : result;
}

// Adds the seconds of exchanges that have ended, in their order.
static void count_ended(nccl_state *s) {
  for (; s->counted < s->started; s->counted++) {
    const timed_exchange *t = &s->timed[s->counted % TIMED];
    float milliseconds;
    if (cudaEventElapsedTime(&milliseconds, t->start, t->end) != cudaSuccess) break;
    s->seconds += (double)milliseconds * 1e-3;
  }
  cudaGetLastError(); // clears cudaErrorNotReady of one that has not ended
}

static status transfer_timed(nccl_state *s, char *rows, cudaStream_t stream, const comm_part *part,
                             const char *what) {
  if (s->started - s->counted == TIMED) {
    TRY(wait_event(s->timed[s->counted % TIMED].end, what));
    count_ended(s);
  }
  timed_exchange *t = &s->timed[s->started % TIMED];
  snprintf(t->what, sizeof t->what, "%s", what);
  CUDA_TRY(cudaEventRecord(t->start, stream));
  TRY(settle(send_parts(rows, stream, part), what));
  CUDA_TRY(cudaEventRecord(t->end, stream));
  s->started++;
  return 0;
}

// Through staging memory on the device, where the parts have the offsets that they have on the host.
static status transfer_staged(nccl_state *s, char *rows, const comm_part *part, const char *what) {
  int size = comm_size(world.ranks), rank = comm_rank(world.ranks);
  const comm_part *out = part + rank * size;
  size_t first = SIZE_MAX, end = 0; // of all that this rank sends: parts to several ranks are often the same
  for (int r = 0; r < size; r++) {
    const comm_part *in = &part[r * size + rank];
    if (r == rank) continue;
    if (out[r].bytes && out[r].offset < first) first = out[r].offset;
    if (out[r].bytes && out[r].offset + out[r].bytes > end) end = out[r].offset + out[r].bytes;
    if (in->bytes && in->offset + in->bytes > s->staging_bytes)
      return FAIL("%s: expected at most %zu bytes, found %zu", what, s->staging_bytes,
                  in->offset + in->bytes);
  }
  if (end > s->staging_bytes)
    return FAIL("%s: expected at most %zu bytes, found %zu", what, s->staging_bytes, end);
  if (end)
    CUDA_TRY(
        cudaMemcpyAsync(s->staging + first, rows + first, end - first, cudaMemcpyHostToDevice, s->stream));
  TRY(transfer_timed(s, s->staging, s->stream, part, what));
  TRY(wait_event(s->timed[(s->started - 1) % TIMED].end, what));
  for (int r = 0; r < size; r++) {
    const comm_part *in = &part[r * size + rank];
    if (r != rank && in->bytes)
      CUDA_TRY(cudaMemcpy(rows + in->offset, s->staging + in->offset, in->bytes, cudaMemcpyDeviceToHost));
  }
  return 0;
}

static status transfer(nccl_state *s, char *rows, void *stream, const comm_part *part, const char *what) {
  enum cudaStreamCaptureStatus capture;
  if (!stream) return transfer_staged(s, rows, part, what);
  CUDA_TRY(cudaStreamIsCapturing((cudaStream_t)stream, &capture));
  if (capture == cudaStreamCaptureStatusNone)
    return transfer_timed(s, rows, (cudaStream_t)stream, part, what);
  return settle(send_parts(rows, (cudaStream_t)stream, part), what);
}

static status nccl_transfer(void *state, char *rows, void *stream, const comm_part *part, const char *what) {
  status result = transfer(state, rows, stream, part, what);
  if (result) nccl_abandon(state); // a half-done exchange would delay the end of the job
  return result;
}

static double nccl_seconds(void *state) {
  nccl_state *s = state;
  count_ended(s);
  return s->seconds;
}

// ---- an all-gather alone ----

enum { GATHERS_IN_GRAPH = 48, LAUNCHES = 20 };

static status time_launches(nccl_state *s, double *seconds, cudaGraphExec_t gathers, const char *what) {
  timed_exchange *t = &s->timed[s->started % TIMED]; // unused between two exchanges
  float milliseconds = 0;
  for (int round = 0; round < 2; round++) { // the first warms up
    CUDA_TRY(cudaEventRecord(t->start, s->stream));
    for (int i = 0; i < LAUNCHES; i++) CUDA_TRY(cudaGraphLaunch(gathers, s->stream));
    CUDA_TRY(cudaEventRecord(t->end, s->stream));
    TRY(wait_event(t->end, what));
  }
  CUDA_TRY(cudaEventElapsedTime(&milliseconds, t->start, t->end));
  *seconds = (double)milliseconds * 1e-3 / (LAUNCHES * GATHERS_IN_GRAPH);
  return 0;
}

static status measure_in(nccl_state *s, double *seconds, char *rows, size_t bytes) {
  static const char what[] = "the measured exchange";
  cudaGraph_t graph = NULL;
  cudaGraphExec_t gathers = NULL;
  status result = 0;
  CUDA_TRY(cudaStreamBeginCapture(s->stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < GATHERS_IN_GRAPH && !result; i++)
    result = settle(ncclAllGather(rows + (size_t)comm_rank(world.ranks) * bytes, rows, bytes, ncclInt8,
                                  world.handle, s->stream),
                    what);
  cudaError_t error = cudaStreamEndCapture(s->stream, &graph);
  if (!result && error == cudaSuccess) error = cudaGraphInstantiate(&gathers, graph, 0);
  if (graph) cudaGraphDestroy(graph);
  if (!result && error == cudaSuccess) result = time_launches(s, seconds, gathers, what);
  if (result) return result; // the job ends
  if (gathers) cudaGraphExecDestroy(gathers);
  CUDA_TRY(error);
  return 0;
}

static status nccl_measure(void *state, double *seconds, size_t bytes) {
  char *rows;
  CUDA_TRY(cudaMalloc((void **)&rows, (size_t)comm_size(world.ranks) * bytes));
  if (measure_in(state, seconds, rows, bytes)) {
    nccl_abandon(state);
    return 1;
  }
  CUDA_TRY(cudaFree(rows));
  return 0;
}

static const char *nccl_broken(void *state) {
  (void)state;
  return world_error();
}

static const char *nccl_under_way(void *state) {
  nccl_state *s = state;
  for (int64_t i = s->counted; i < s->started; i++)
    if (cudaEventQuery(s->timed[i % TIMED].end) == cudaErrorNotReady) return s->timed[i % TIMED].what;
  return NULL;
}

// ---- start and stop ----

// Exchanges known bytes, in parts of one size or of two, so that NCCL's channels are connected before
// anything is captured or timed, and a transport that corrupts data is found now.
static status try_out(nccl_state *s, comm_part *parts, size_t bytes, bool equal) {
  static const char what[] = "the trial of NCCL";
  int size = comm_size(world.ranks), rank = comm_rank(world.ranks);
  for (int i = 0; i < size * size; i++)
    parts[i] = (comm_part){(size_t)(i / size) * bytes, equal || i / size ? bytes : bytes / 2};
  const comm_part *mine = &parts[rank * size];
  CUDA_TRY(cudaMemsetAsync(s->staging + mine->offset, rank + 1, mine->bytes, s->stream));
  TRY(transfer_timed(s, s->staging, s->stream, parts, what));
  TRY(wait_event(s->timed[(s->started - 1) % TIMED].end, what));
  for (int r = 0; r < size; r++) {
    const comm_part *last = &parts[r * size];
    char found;
    CUDA_TRY(cudaMemcpy(&found, s->staging + last->offset + last->bytes - 1, 1, cudaMemcpyDeviceToHost));
    if (found != (char)(r + 1))
      return FAIL("%s: rank %d's bytes: expected %d, found %d", what, r, (char)(r + 1), found);
  }
  return 0;
}

static status try_world(nccl_state *s) {
  size_t n = (size_t)comm_size(world.ranks);
  comm_part *parts;
  CUDA_TRY(cudaMalloc((void **)&s->staging, n * trial_bytes));
  status result = TAKE(&parts, n * n, "message sizes");
  for (size_t bytes = trial_bytes / 256; bytes <= trial_bytes && !result; bytes *= 16) {
    result = try_out(s, parts, bytes, true);
    if (!result && n > 1) result = try_out(s, parts, bytes, false);
  }
  free(parts);
  if (result) return result;
  CUDA_TRY(cudaFree(s->staging));
  s->staging = NULL;
  count_ended(s);
  s->seconds = 0;
  world.open = true;
  comm_at_close(world.ranks, world_close, NULL);
  return 0;
}

static void nccl_stop(void *state) {
  nccl_state *s = state;
  if (!s) return;
  for (int i = 0; i < TIMED && !world.abandoned; i++) { // destroying may wait for the device
    if (s->timed[i].start) cudaEventDestroy(s->timed[i].start);
    if (s->timed[i].end) cudaEventDestroy(s->timed[i].end);
  }
  if (s->staging && !world.abandoned) cudaFree(s->staging);
  if (s->stream && !world.abandoned) cudaStreamDestroy(s->stream);
  free(s);
}

static status open_state(nccl_state *s, comm *c, const device_id *device, size_t host_bytes) {
  CUDA_TRY(cudaSetDevice(device->index));
  CUDA_TRY(cudaStreamCreateWithFlags(&s->stream, cudaStreamNonBlocking));
  for (int i = 0; i < TIMED; i++) {
    CUDA_TRY(cudaEventCreate(&s->timed[i].start));
    CUDA_TRY(cudaEventCreate(&s->timed[i].end));
  }
  if (!world.open) {
    TRY(start_world(c));
    TRY(try_world(s));
  }
  if (!host_bytes) return 0;
  CUDA_TRY(cudaMalloc((void **)&s->staging, host_bytes));
  s->staging_bytes = host_bytes;
  return 0;
}

static status nccl_start(void **out, comm *c, const device_id *device, size_t host_bytes) {
  nccl_state *s;
  TRY(memory_take((void **)&s, 1, sizeof *s, "the transport"));
  if (open_state(s, c, device, host_bytes)) {
    size_t left, all;
    if (cudaMemGetInfo(&left, &all) == cudaSuccess)
      status_within("GPU %d with %zu of %zu MiB free", device->index, left >> 20, all >> 20);
    if (world.handle && !world.open) nccl_abandon(s);
    nccl_stop(s);
    return 1;
  }
  *out = s;
  return 0;
}

const transport_ops nccl_transport_ops = {
    .kind = TRANSPORT_NCCL,
    .on_device = true,
    .start = nccl_start,
    .stop = nccl_stop,
    .transfer = nccl_transfer,
    .seconds = nccl_seconds,
    .measure = nccl_measure,
    .broken = nccl_broken,
    .under_way = nccl_under_way,
    .abandon = nccl_abandon,
};
