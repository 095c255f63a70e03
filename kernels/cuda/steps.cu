// steps: the cuda backend's table, and its steps but for attention (step_attention.cu) and the experts
// (step_moe.cu) and the head (step_head.cu): embedding, rows that cross ranks, probes, digests, captured
// graphs.
//
// Independent of: how the state came to be (state.cu), how rows cross ranks.
#include "base/memory.h"
#include "kernels/cuda/exp2_approx.cuh"
#include "kernels/cuda/steps.cuh"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- the start of a batch ----

// Without a bound the host would fill the driver's queue, and then block in a launch, where params.watch is
// not called.
static status keep_pace(cuda_backend *b) {
  cudaEvent_t mark = b->batch_end[b->n_batches % AHEAD];
  if (b->n_batches >= AHEAD) TRY(device_wait_event(mark, &b->params));
  TRY(peers_check(b));
  CUDA_TRY(cudaEventRecord(mark, b->stream));
  b->n_batches++;
  return 0;
}

static status load_batch(cuda_backend *b, const token_batch *batch) {
  size_t bytes = (size_t)batch->n * sizeof(int);
  TRY(keep_pace(b));
  b->batch = dev_batch{b->token, b->sequence, b->position, (int)batch->n};
  b->max_keys = 0;
  b->distinct = batch->n <= APART_TOKENS;
  for (int64_t t = 0; t < batch->n; t++) {
    if (batch->position[t] >= b->max_keys) b->max_keys = batch->position[t] + 1;
    for (int64_t u = 0; u < t && b->distinct; u++) b->distinct = batch->sequence[u] != batch->sequence[t];
  }
  // from pageable memory: the driver has made a copy when the call returns
  CUDA_TRY(cudaMemcpyAsync(b->token, batch->token, bytes, cudaMemcpyHostToDevice, b->stream));
  CUDA_TRY(cudaMemcpyAsync(b->sequence, batch->sequence, bytes, cudaMemcpyHostToDevice, b->stream));
  CUDA_TRY(cudaMemcpyAsync(b->position, batch->position, bytes, cudaMemcpyHostToDevice, b->stream));
  return 0;
}

static status cuda_embed(backend *base, const token_batch *rows) {
  cuda_backend *b = self(base);
  b->routing = ROUTING_NONE;
  b->routing_gathered = false;
  if (!b->is_capturing) TRY(load_batch(b, rows));
  TRY(phase_start(b));
  TRY(embed_launch(b->x, &b->weights->embedding, &b->batch, b->stream));
  TRY(phase_mark(b, PHASE_EMBED));
  return show(b, PROBE_INP_EMBD, -1, b->x, 0, rows->n);
}

status read_device(cuda_backend *b, void *out, const void *from, size_t bytes) {
  TRY(device_wait(b->stream, &b->params));
  TRY(peers_check(b));
  CUDA_TRY(cudaMemcpyAsync(out, from, bytes, cudaMemcpyDeviceToHost, b->stream));
  CUDA_TRY(cudaStreamSynchronize(b->stream));
  return 0;
}

// ---- rows that cross ranks ----

static void *cuda_rows_host(backend *base, row_kind) {
  return self(base)->host_rows;
}

kind_of_rows device_rows(const cuda_backend *b, row_kind kind) {
  const model_shape *s = &b->shape;
  size_t wide = (size_t)s->hidden * sizeof(float);
  size_t kv = (size_t)(s->n_kv_heads * s->head_dim) * sizeof(float);
  switch (kind) {
  case ROWS_RESIDUAL:
    return {b->x, wide};
  case ROWS_KEYS:
    return {b->k, kv};
  case ROWS_VALUES:
    return {b->v, kv};
  case ROWS_NORMED:
    return {b->normed.x, wide};
  case ROWS_EXPERTS:
    return {b->expert, (size_t)s->top_k * sizeof(int)};
  case ROWS_SLOTS:
    return {b->slots, wide};
  case PARTS_LOGITS:
    return {b->logit_parts, sizeof(float)};
  case PARTS_HEADS: // not divided here
  case PARTS_OUTPUT:
    break;
  }
  return {};
}

static void *cuda_rows_device(backend *base, row_kind kind) {
  return device_rows(self(base), kind).at;
}

static void *cuda_stream(backend *base) {
  return self(base)->stream;
}

static status cuda_rows_read(backend *base, row_kind kind, int64_t first, int64_t count) {
  cuda_backend *b = self(base);
  kind_of_rows rows = device_rows(b, kind);
  size_t at = (size_t)first * rows.bytes, n = (size_t)count * rows.bytes;
  if (n)
    CUDA_TRY(cudaMemcpyAsync(b->host_rows + at, (const uint8_t *)rows.at + at, n, cudaMemcpyDeviceToHost,
                             b->stream));
  return device_wait(b->stream, &b->params); // also for writes before: the host buffer is free then
}

static status cuda_rows_write(backend *base, row_kind kind, int64_t first, int64_t count) {
  cuda_backend *b = self(base);
  kind_of_rows rows = device_rows(b, kind);
  size_t at = (size_t)first * rows.bytes, n = (size_t)count * rows.bytes;
  if (n)
    CUDA_TRY(
        cudaMemcpyAsync((uint8_t *)rows.at + at, b->host_rows + at, n, cudaMemcpyHostToDevice, b->stream));
  return 0;
}

// ---- the residual stream and probes ----

static status cuda_stream_read(backend *base, int64_t first, int64_t count, double *out) {
  cuda_backend *b = self(base);
  size_t n = (size_t)(count * b->shape.hidden);
  float *narrow;
  TRY(TAKE(&narrow, n, "the residual stream"));
  status result = read_device(b, narrow, b->x + first * b->shape.hidden, n * sizeof *narrow);
  for (size_t i = 0; i < n && !result; i++) out[i] = (double)narrow[i];
  free(narrow);
  return result;
}

static status cuda_stream_write(backend *base, int64_t first, int64_t count, const double *in) {
  cuda_backend *b = self(base);
  size_t n = (size_t)(count * b->shape.hidden);
  float *narrow;
  TRY(TAKE(&narrow, n, "the residual stream"));
  for (size_t i = 0; i < n; i++) narrow[i] = (float)in[i];
  cudaError_t error = cudaMemcpyAsync(b->x + first * b->shape.hidden, narrow, n * sizeof *narrow,
                                      cudaMemcpyHostToDevice, b->stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(b->stream);
  free(narrow);
  CUDA_TRY(error);
  return 0;
}

static status cuda_probes_watch(backend *base, const probe_watch *watch) {
  cuda_backend *b = self(base);
  b->watch = *watch;
  return watch->wanted && !b->shown ? cuda_take_shown(b) : 0;
}

// Numbers of a probe on the host, all of 4 bytes; released by the caller.
static status fetch(cuda_backend *b, char **out, const void *numbers, int64_t rows, int64_t width) {
  size_t bytes = (size_t)(rows * width) * sizeof(float);
  TRY(memory_take((void **)out, bytes, 1, "a probe"));
  status result = read_device(b, *out, numbers, bytes);
  if (result) free(*out);
  return result;
}

status show(cuda_backend *b, probe_point point, int64_t layer, const void *numbers, int64_t first,
            int64_t count) {
  int64_t width = probe_width(point, &b->shape);
  char *host;
  if (!probe_is_watched(&b->watch, point)) return 0;
  TRY(fetch(b, &host, numbers, count, width));
  for (int64_t i = 0; i < count; i++)
    b->watch.show(b->watch.context, point, layer, first + i, host + (size_t)(i * width) * sizeof(float),
                  sizeof(float));
  free(host);
  return 0;
}

// row[n_slots]: where each slot of an owned expert lies, -1 for the others; released by the caller.
static status find_slots(cuda_backend *b, int64_t **row, const int64_t *place, int64_t n_slots) {
  char *members = nullptr, *places = nullptr;
  status result;
  TRY(TAKE(row, (size_t)n_slots, "a probe"));
  TRY_DONE(result, fetch(b, &members, b->member, n_slots, 1));
  if (place) TRY_DONE(result, fetch(b, &places, place, n_slots, 2)); // of 8 bytes
  for (int64_t i = 0; i < n_slots; i++) {
    bool is_owned = ((const int *)(const void *)members)[i] >= 0;
    (*row)[i] = !is_owned ? -1 : place ? ((const int64_t *)(const void *)places)[i] : i;
  }
done:
  free(members);
  free(places);
  if (result) free(*row);
  return result;
}

status show_slots(cuda_backend *b, probe_point point, int64_t layer, const float *numbers,
                  const int64_t *place, int64_t n_slots) {
  int64_t width = probe_width(point, &b->shape), *row;
  size_t bytes = (size_t)width * sizeof(float);
  char *one = nullptr;
  status result;
  if (!probe_is_watched(&b->watch, point)) return 0;
  TRY(find_slots(b, &row, place, n_slots));
  TRY_DONE(result, memory_take((void **)&one, bytes, 1, "a probe"));
  for (int64_t i = 0; i < n_slots; i++) {
    if (row[i] < 0) continue;
    TRY_DONE(result, read_device(b, one, numbers + row[i] * width, bytes));
    b->watch.show(b->watch.context, point, layer, i, one, sizeof(float));
  }
done:
  free(row);
  free(one);
  return result;
}

// Row `row` of a probe to the device; `room` holds one. The driver may copy from it after the call returns.
static status impose_row(cuda_backend *b, probe_point point, float *to, int64_t row, float *room) {
  size_t bytes = (size_t)probe_width(point, &b->shape) * sizeof *room;
  b->watch.impose(b->watch.impose_context, point, row, room, sizeof *room);
  CUDA_TRY(cudaMemcpyAsync(to, room, bytes, cudaMemcpyHostToDevice, b->stream));
  CUDA_TRY(cudaStreamSynchronize(b->stream));
  return 0;
}

status impose(cuda_backend *b, probe_point point, float *numbers, int64_t first, int64_t count) {
  int64_t width = probe_width(point, &b->shape);
  status result = 0;
  float *room;
  if (!probe_is_imposed(&b->watch, point)) return 0;
  TRY(TAKE(&room, (size_t)width, "a probe"));
  for (int64_t i = 0; i < count && !result; i++)
    result = impose_row(b, point, numbers + i * width, first + i, room);
  free(room);
  return result;
}

status impose_slots(cuda_backend *b, probe_point point, float *numbers, const int64_t *place,
                    int64_t n_slots) {
  int64_t width = probe_width(point, &b->shape), *row;
  float *room = nullptr;
  status result;
  if (!probe_is_imposed(&b->watch, point)) return 0;
  TRY(find_slots(b, &row, place, n_slots));
  TRY_DONE(result, TAKE(&room, (size_t)width, "a probe"));
  for (int64_t i = 0; i < n_slots; i++)
    if (row[i] >= 0) TRY_DONE(result, impose_row(b, point, numbers + row[i] * width, i, room));
done:
  free(row);
  free(room);
  return result;
}

// ---- digests ----

// combine has added to the digest already; here only where the sum goes.
static status cuda_digest(backend *base, int64_t layer, const token_batch *rows, int64_t, int64_t count,
                          uint64_t *sums) {
  cuda_backend *b = self(base);
  b->sums_to[sums_row(b, layer, rows, count)] = sums;
  return 0;
}

// Waits for all that was enqueued and adds the digests to the host's sums.
static status cuda_finish(backend *base) {
  cuda_backend *b = self(base);
  size_t rows = sums_rows(b), each = (size_t)b->params.n_sequences;
  uint64_t *sums;
  TRY(device_wait(b->stream, &b->params));
  TRY(peers_check(b));
  TRY(phase_collect(b));
  TRY(TAKE(&sums, rows * each, "digests"));
  cudaError_t error =
      cudaMemcpyAsync(sums, b->sums, rows * each * sizeof *sums, cudaMemcpyDeviceToHost, b->stream);
  if (error == cudaSuccess) error = cudaMemsetAsync(b->sums, 0, rows * each * sizeof *sums, b->stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(b->stream);
  for (size_t r = 0; r < rows && error == cudaSuccess; r++)
    for (size_t s = 0; s < each && b->sums_to[r]; s++) b->sums_to[r][s] += sums[r * each + s];
  free(sums);
  CUDA_TRY(error);
  return 0;
}

// ---- captured graphs: one launch for all the steps of a small batch ----

// The steps of one token, or of so many, on a rank that has every expert, or of one token on ranks that are
// linked, are known: embed and whole layers, with nothing read in between. Then a token's layers are one
// launch. (One H200, model full: two take 2.36 ms, as a batch 3.14; three 3.52 and 4.35; four as a batch
// 4.57.)
static constexpr int64_t FUSED_TOKENS = 3;

static bool fuses(const cuda_backend *b, const token_batch *batch, bool whole) {
  if (!whole || !b->has_fused || is_observed(b)) return false;
  return b->params.n_ranks == 1 ? batch->n <= FUSED_TOKENS : b->peers.n && batch->n == 1;
}

static status capture(cuda_backend *b, const token_batch *batch, bool whole,
                      status (*steps)(void *, const token_batch *), void *context, captured_graph *out) {
  cudaGraph_t graph = nullptr;
  CUDA_TRY(cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeThreadLocal));
  b->is_capturing = true;
  b->fuses = fuses(b, batch, whole);
  status result = steps(context, batch);
  b->is_capturing = b->fuses = false;
  cudaError_t error = cudaStreamEndCapture(b->stream, &graph);
  if (!result && error == cudaSuccess) error = cudaGraphInstantiate(&out->graph, graph, 0);
  if (graph) cudaGraphDestroy(graph);
  if (result) return result;
  CUDA_TRY(error);
  return 0;
}

// The positions for which attention is laid out: a power of two of chunks, so that a long run
// needs few graphs.
static int captured_keys(int keys) {
  int chunks = 1;
  while (chunks * CHUNK < keys) chunks *= 2;
  return chunks * CHUNK;
}

static status cuda_captured(backend *base, const token_batch *batch, int way, bool whole,
                            status (*steps)(void *, const token_batch *), void *context) {
  cuda_backend *b = self(base);
  if (batch->n > CAPTURED_TOKENS || b->phases.to) return steps(context, batch);
  TRY(load_batch(b, batch));
  b->max_keys = captured_keys(b->max_keys);
  captured_graph *found = nullptr;
  for (int i = 0; i < b->n_graphs && !found; i++)
    if (b->graphs[i].n == batch->n && b->graphs[i].way == way && b->graphs[i].max_keys == b->max_keys &&
        b->graphs[i].distinct == b->distinct)
      found = &b->graphs[i];
  if (!found) {
    if (b->n_graphs == MAX_GRAPHS) return steps(context, batch);
    found = &b->graphs[b->n_graphs];
    found->n = (int)batch->n;
    found->way = way;
    found->max_keys = b->max_keys;
    found->distinct = b->distinct;
    TRY(capture(b, batch, whole, steps, context, found));
    b->n_graphs++;
  }
  CUDA_TRY(cudaGraphLaunch(found->graph, b->stream));
  return 0;
}

extern "C" const backend_ops cuda_backend_ops = {
    .kind = BACKEND_CUDA,
    .rows = cuda_rows,
    .has_path = cuda_has_path,
    .devices = cuda_devices,
    .device = device_take,
    .link = device_link_between,
    .exp2_approx = cuda_exp2_approx,
    .prompt_chunk = 2048, // 512 gives a prompt of 2,048 tokens 0.55 of the rate (docs/measurements.md)
    .batch_that_fits = cuda_batch_that_fits,
    .open = cuda_open,
    .close = cuda_close,
    .row = cuda_row,
    .state_bytes = cuda_state_bytes,
    .embed = cuda_embed,
    .attention = cuda_attention,
    .moe = cuda_moe,
    .project = cuda_project,
    .attend = cuda_attend,
    .route = cuda_route,
    .experts_up = cuda_experts_up,
    .experts_down = cuda_experts_down,
    .combine = cuda_combine,
    .head = cuda_head,
    .logits_read = cuda_logits_read,
    .logits_digest = cuda_logits_digest,
    .routing_fetch = cuda_routing_fetch,
    .routing_wait = cuda_routing_wait,
    .routing_write = cuda_routing_write,
    .routing_arrived = cuda_routing_arrived,
    .rows_host = cuda_rows_host,
    .rows_read = cuda_rows_read,
    .rows_write = cuda_rows_write,
    .stream_read = cuda_stream_read,
    .stream_write = cuda_stream_write,
    .settable = 1u << PROBE_QCUR | 1u << PROBE_KCUR | 1u << PROBE_VCUR | 1u << PROBE_KQV_OUT |
                1u << PROBE_FFN_INP | 1u << PROBE_FFN_MOE_GATE | 1u << PROBE_FFN_MOE_UP |
                1u << PROBE_FFN_MOE_SWIGLU | 1u << PROBE_FFN_MOE_DOWN,
    .probes_watch = cuda_probes_watch,
    .digest = cuda_digest,
    .phases_watch = cuda_phases_watch,
    .peaks = cuda_peaks,
    .threads = nullptr, // none compute
    .finish = cuda_finish,
    .rows_device = cuda_rows_device,
    .stream = cuda_stream,
    .captured = cuda_captured,
    .peers_export = cuda_peers_export,
    .peers_open = cuda_peers_open,
    .peers_try = cuda_peers_try,
    .peers_leave = cuda_peers_leave,
    .peers_gather = cuda_peers_gather,
    .peers_row_bytes = cuda_peers_row_bytes,
    .attend_apart = cuda_attend_apart,
    .cache_others = cuda_cache_others,
    .heads_part = nullptr, // attention is divided by tokens (docs/running.md)
    .output_part = nullptr,
    .output_add = nullptr,
    .head_part = cuda_head_part,
    .logits_part_digest = cuda_logits_part_digest,
    .logits_join = cuda_logits_join,
};
