// steps: the cuda backend for the paths f32 and q8k. The whole forward pass lives on the device: token ids go
// in, logits (or their digest) come out. Steps are enqueued on one stream and return; `finish` and every read
// wait.
//
// Owns: which launches make a step, and what was recorded of them. Refuses to know: how the state came to be
// (state.cu), how rows travel; the exchange moves them, or the host's copy.
#include "base/memory.h"
#include "kernels/cuda/decode.cuh"
#include "kernels/cuda/state.cuh"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- products ----

static bool takes_q8k(const path_info *path, const dev_matrix *m) {
  return path->kind == PATH_Q8K && type_find(m->type)->is_k_quant;
}

static status multiply(cuda_backend *b, const path_info *path, product_set *set) {
  bool all_q8k = true;
  for (int i = 0; i < set->count; i++) all_q8k = all_q8k && takes_q8k(path, &set->p[i].w);
  if (all_q8k) return product_q8k_launch(set, b->stream);
  for (int i = 0; i < set->count; i++) {
    product_set one = {{set->p[i]}, {0}, 1};
    TRY(takes_q8k(path, &one.p[0].w) ? product_q8k_launch(&one, b->stream)
                                     : product_f32_launch(&one.p[0], b->stream));
  }
  return 0;
}

// Rows first .. of inputs.
static dev_inputs rows_from(dev_inputs in, int64_t first) {
  size_t elements = (size_t)first * (size_t)in.width;
  in.x += elements;
  if (!in.qs) return in;
  in.qs += elements;
  in.d += elements / QK_K;
  in.bsums += elements / 16;
  in.halves += elements / 16;
  return in;
}

static product shared_product(float *out, const dev_matrix *m, const dev_inputs *in, int n) {
  product p = {};
  p.w = *m;
  p.in = *in;
  p.n_items = n;
  p.input_divisor = 1;
  p.out = out;
  return p;
}

static status product_shared(cuda_backend *b, float *out, const dev_matrix *m, const dev_inputs *in, int n,
                             bool adds) {
  product_set set = {{shared_product(out, m, in, n)}, {0}, 1};
  set.p[0].adds = adds;
  return multiply(b, b->shared, &set);
}

static bool rounds(const cuda_backend *b) {
  return b->shared->kind == PATH_Q8K && b->shape.hidden % QK_K == 0;
}

// ---- the steps ----

// Without a bound the host would fill the driver's queue, and then wait in a launch, where nobody watches.
static status keep_pace(cuda_backend *b) {
  cudaEvent_t mark = b->batch_end[b->n_batches % AHEAD];
  if (b->n_batches >= AHEAD) TRY(device_wait_event(mark, &b->params));
  CUDA_TRY(cudaEventRecord(mark, b->stream));
  b->n_batches++;
  return 0;
}

static status load_batch(cuda_backend *b, const token_batch *batch) {
  size_t bytes = (size_t)batch->n * sizeof(int);
  TRY(keep_pace(b));
  b->batch = dev_batch{b->token, b->sequence, b->position, (int)batch->n};
  b->max_keys = 0;
  b->distinct = batch->n <= RECORDED_TOKENS;
  for (int64_t t = 0; t < batch->n; t++) {
    if (batch->position[t] >= b->max_keys) b->max_keys = batch->position[t] + 1;
    for (int64_t u = 0; u < t && b->distinct; u++) b->distinct = batch->sequence[u] != batch->sequence[t];
  }
  // from pageable memory: the driver has its own copy when the call returns
  CUDA_TRY(cudaMemcpyAsync(b->token, batch->token, bytes, cudaMemcpyHostToDevice, b->stream));
  CUDA_TRY(cudaMemcpyAsync(b->sequence, batch->sequence, bytes, cudaMemcpyHostToDevice, b->stream));
  CUDA_TRY(cudaMemcpyAsync(b->position, batch->position, bytes, cudaMemcpyHostToDevice, b->stream));
  return 0;
}

static status cuda_embed(backend *base, const token_batch *batch) {
  cuda_backend *b = self(base);
  if (!b->is_recording) TRY(load_batch(b, batch));
  return embed_launch(b->x, &b->weights->embedding, &b->batch, b->stream);
}

// One token on q8k: decode.cu's launches in place of the steps' own. The same bits.
static bool decodes(const cuda_backend *b, const token_batch *batch) {
  return b->decodes && batch->n == 1;
}

static dev_batch batch_from(const dev_batch &b, int first, int n) {
  return dev_batch{b.token + first, b.sequence + first, b.position + first, n};
}

static status cuda_project(backend *base, int64_t layer, const token_batch *batch, int64_t first,
                           int64_t count) {
  cuda_backend *b = self(base);
  const model_shape *s = &b->shape;
  const dev_layer *w = &b->weights->layers[layer];
  int64_t q_width = s->n_heads * s->head_dim, kv_width = s->n_kv_heads * s->head_dim;
  float *x = b->x + first * s->hidden, epsilon = (float)s->rms_epsilon;
  int n = (int)count;
  if (decodes(b, batch)) return decode_qkv_launch(b->q, b->k, b->v, b->x, w, epsilon, b->stream);
  dev_inputs normed = rows_from(b->normed, first);
  TRY(norm_launch(normed, x, w->attn_norm, n, epsilon, rounds(b), b->stream));
  product_set qkv = {{shared_product(b->q + first * q_width, &w->q, &normed, n),
                      shared_product(b->k + first * kv_width, &w->k, &normed, n),
                      shared_product(b->v + first * kv_width, &w->v, &normed, n)},
                     {0},
                     3};
  return multiply(b, b->shared, &qkv);
}

// Norms and turns the heads, keeps keys and values of the whole batch; attends with n queries.
static status attend_heads(cuda_backend *b, int64_t layer, int first, int n, bool early) {
  const model_shape *s = &b->shape;
  const dev_layer *w = &b->weights->layers[layer];
  size_t at = (size_t)(first * s->n_heads * s->head_dim);
  if (n == b->batch.n && b->distinct && decode_attends(&b->work, s, n, b->max_keys))
    return decode_attention_launch(b->attended.x, b->q, b->k, b->v, w, s, b->rope, b->cache, (int)layer,
                                   &b->batch, b->max_keys, &b->work, b->arrived, early, b->stream);
  TRY(heads_launch(b->q, b->k, b->v, w, s, b->rope, b->cache, (int)layer, &b->batch, first, n, b->stream));
  dev_batch queries = batch_from(b->batch, first, n);
  return attention_launch(b->attended.x + at, b->q + at, b->cache, (int)layer, &queries, (int)s->n_heads,
                          b->max_keys, &b->work, b->stream);
}

static status cuda_attend(backend *base, int64_t layer, const token_batch *batch, int64_t first,
                          int64_t count) {
  cuda_backend *b = self(base);
  const dev_layer *w = &b->weights->layers[layer];
  bool one = decodes(b, batch);
  int n = (int)count;
  TRY(attend_heads(b, layer, (int)first, n, one));
  if (one) return decode_output_launch(b->x, b->attended.x, w, b->stream);
  dev_inputs attended = rows_from(b->attended, first);
  if (attended.qs) TRY(round_launch(attended, n, b->stream));
  return product_shared(b, b->x + first * b->shape.hidden, &w->o, &attended, n, true); // x += o(attention)
}

static status cuda_attention(backend *base, int64_t layer, const token_batch *batch) {
  TRY(cuda_project(base, layer, batch, 0, batch->n));
  return cuda_attend(base, layer, batch, 0, batch->n);
}

// A stack's product over all slots of the batch. Few slots each read their expert alone; many are grouped by
// expert.
static product slot_product(const cuda_backend *b, float *out, const dev_matrix *m, const dev_inputs *in,
                            int n_slots, int divisor, bool grouped) {
  product p = {};
  p.w = *m;
  p.in = *in;
  p.member = b->member;
  p.first = grouped ? b->first : nullptr;
  p.order = grouped ? b->order : nullptr;
  p.tiles = b->tiles;
  p.n_members = b->weights->n_local;
  p.n_items = n_slots;
  p.input_divisor = divisor;
  p.out = out;
  return p;
}

// Where the digest of a layer adds up, of the whole batch or of part of it.
static int64_t sums_row(const cuda_backend *b, int64_t layer, const token_batch *batch, int64_t count) {
  return count == batch->n ? layer : b->shape.n_layers + 1 + layer;
}

static status decode_own_experts(cuda_backend *b, int64_t layer, const dev_layer *w) {
  decode_experts e = {};
  e.normed = b->normed;
  e.router_logits = b->router_logits;
  e.hidden = b->gate.x;
  e.slots = b->placed ? b->slots : nullptr;
  e.place = b->placed ? b->place : nullptr;
  e.x = b->x;
  e.sums = b->sums + layer * b->params.n_sequences;
  e.tag = b->shared->tag;
  e.layer = (int)layer;
  return decode_experts_launch(&e, w, &b->shape, b->weights, &b->batch, b->stream);
}

// `expert` and what the experts read have come from other ranks: what follows from them.
static status complete_routing(cuda_backend *b, int n_tokens) {
  int n_slots = n_tokens * (int)b->shape.top_k;
  TRY(members_launch(b->member, b->expert, b->weights->local_of_expert, n_slots, b->stream));
  return b->normed.qs ? round_launch(b->normed, n_tokens, b->stream) : 0;
}

// The routing is on the host.
static status take_routing(cuda_backend *b, const routing *route, int n_tokens) {
  size_t n_slots = (size_t)(n_tokens * b->shape.top_k);
  CUDA_TRY(
      cudaMemcpyAsync(b->expert, route->expert, n_slots * sizeof(int), cudaMemcpyHostToDevice, b->stream));
  return complete_routing(b, n_tokens);
}

// The experts' step up to the hidden rows, which do not depend on where slots' outputs go.
static status begin_experts(cuda_backend *b, int64_t layer, int n_tokens) {
  const model_shape *s = &b->shape;
  const dev_layer *w = &b->weights->layers[layer];
  int n_slots = n_tokens * (int)s->top_k;
  bool grouped = n_slots > 2 * s->top_k;
  if (grouped)
    TRY(group_launch(b->first, b->order, b->tiles, b->member, n_slots, b->weights->n_local, b->stream));
  product_set in = {{slot_product(b, b->gate.x, &w->gate, &b->normed, n_slots, (int)s->top_k, grouped),
                     slot_product(b, b->up, &w->up, &b->normed, n_slots, (int)s->top_k, grouped)},
                    {0},
                    2};
  TRY(multiply(b, b->experts, &in));
  TRY(swiglu_launch(b->gate, b->up, b->member, n_slots, b->gate.qs != nullptr,
                    !takes_q8k(b->experts, &w->down), b->stream));
  b->begun = true;
  return 0;
}

// The host waits for them at b->routed.
static status read_experts(cuda_backend *b, int64_t first, int64_t count) {
  size_t slot = (size_t)(first * b->shape.top_k), bytes = (size_t)(count * b->shape.top_k) * sizeof(int);
  CUDA_TRY(
      cudaMemcpyAsync(b->host_expert + slot, b->expert + slot, bytes, cudaMemcpyDeviceToHost, b->stream));
  CUDA_TRY(cudaEventRecord(b->routed, b->stream));
  return 0;
}

static status cuda_route(backend *base, int64_t layer, const token_batch *batch, int64_t first, int64_t count,
                         routing *out) {
  cuda_backend *b = self(base);
  const model_shape *s = &b->shape;
  const dev_layer *w = &b->weights->layers[layer];
  int n = (int)count;
  int64_t slot = first * s->top_k, slots = count * s->top_k;
  bool round = b->normed.qs != nullptr; // for the experts; the router itself may be of any type
  bool whole = count == batch->n, places = whole && !out && !b->alone;
  float *logits = b->router_logits + first * s->n_experts;
  b->begun = false;
  b->has_routing = whole;
  if (decodes(b, batch)) {
    TRY(decode_router_launch(b->router_logits, b->normed, b->x, w, (float)s->rms_epsilon, b->stream));
    if (!out && b->alone) return 0; // the experts' step chooses from the logits
  } else {
    dev_inputs normed = rows_from(b->normed, first);
    const float *x = b->x + first * s->hidden;
    TRY(norm_launch(normed, x, w->ffn_norm, n, (float)s->rms_epsilon, round, b->stream));
    TRY(product_shared(b, logits, &w->router, &normed, n, false));
  }
  TRY(route_launch(b->expert + slot, b->slot_weights + slot, b->member + slot, places ? b->place : nullptr,
                   out ? b->margin + first : nullptr, logits, b->weights->local_of_expert, b->rank_of_expert,
                   n, (int)s->n_experts, (int)s->top_k, b->stream));
  if (!out) return 0;
  CUDA_TRY(cudaMemcpyAsync(b->host_margin + first, b->margin + first, (size_t)n * sizeof(double),
                           cudaMemcpyDeviceToHost, b->stream));
  TRY(read_experts(b, first, count));
  if (whole && n > RECORDED_TOKENS)
    TRY(begin_experts(b, layer, n)); // the device works on while the host places the slots
  TRY(device_wait_event(b->routed, &b->params));
  memcpy(out->expert + slot, b->host_expert + slot, (size_t)slots * sizeof(int));
  memcpy(out->margin + first, b->host_margin + first, (size_t)n * sizeof(double));
  return 0;
}

static status cuda_routed(backend *base, int64_t layer, const token_batch *batch, routing *out) {
  cuda_backend *b = self(base);
  TRY(read_experts(b, 0, batch->n));
  TRY(complete_routing(b, (int)batch->n));
  TRY(begin_experts(b, layer, (int)batch->n));
  b->has_routing = true;
  TRY(device_wait_event(b->routed, &b->params));
  memcpy(out->expert, b->host_expert, (size_t)(batch->n * b->shape.top_k) * sizeof(int));
  return 0;
}

static status cuda_experts(backend *base, int64_t layer, const token_batch *batch, const routing *route,
                           const int64_t *row_of_slot) {
  cuda_backend *b = self(base);
  const model_shape *s = &b->shape;
  const dev_layer *w = &b->weights->layers[layer];
  int n_slots = (int)(batch->n * s->top_k);
  if (!b->has_routing) TRY(take_routing(b, route, (int)batch->n));
  b->has_routing = false;
  b->placed = !b->alone;
  if (b->placed && row_of_slot) { // else route wrote the fixed places
    const void *from = row_of_slot;
    if (b->params.computes_shared) // the last copy from there is done: route or routed has waited since
      from = memcpy(b->host_place, row_of_slot, (size_t)n_slots * sizeof(int64_t));
    CUDA_TRY(cudaMemcpyAsync(b->place, from, (size_t)n_slots * sizeof(int64_t), cudaMemcpyHostToDevice,
                             b->stream));
  }
  if (decodes(b, batch)) return decode_own_experts(b, layer, w);
  if (!b->begun) TRY(begin_experts(b, layer, (int)batch->n));
  b->begun = false;
  bool grouped = n_slots > 2 * s->top_k;
  product_set down = {{slot_product(b, b->slots, &w->down, &b->gate, n_slots, 1, grouped)}, {0}, 1};
  down.p[0].place = b->placed ? b->place : nullptr;
  return multiply(b, b->experts, &down);
}

// ---- rows that cross ranks ----

static void *cuda_rows_host(backend *base, row_kind) {
  return self(base)->host_rows;
}

struct kind_of_rows {
  void *at;
  size_t bytes; // of a row
};

static kind_of_rows device_rows(const cuda_backend *b, row_kind kind) {
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
  return device_wait(b->stream, &b->params); // also for writes before: the buffer is free after it
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

static status cuda_combine(backend *base, int64_t layer, const token_batch *batch, int64_t first,
                           int64_t count, const int64_t *) {
  cuda_backend *b = self(base);
  const model_shape *s = &b->shape;
  if (decodes(b, batch) && b->alone) return 0; // the experts' last kernel had every slot at hand
  int64_t slot = first * s->top_k;
  const float *slots = b->placed ? b->slots : b->slots + slot * s->hidden; // else in slot order
  dev_batch rows = batch_from(b->batch, (int)first, (int)count);
  unsigned long long *sums = b->sums + sums_row(b, layer, batch, count) * b->params.n_sequences;
  return combine_launch(b->x + first * s->hidden, slots, b->slot_weights + slot,
                        b->placed ? b->place + slot : nullptr, &rows, (int)s->top_k, (int)s->hidden, sums,
                        b->shared->tag, (int)layer, b->stream);
}

static status cuda_logits_read(backend *base, int64_t first, int64_t count, void *out) {
  cuda_backend *b = self(base);
  size_t row = (size_t)b->shape.vocabulary;
  TRY(device_wait(b->stream,
                  &b->params)); // a copy to memory that is not pinned would wait as well, unwatched
  CUDA_TRY(cudaMemcpyAsync(out, b->logits + (size_t)first * row, (size_t)count * row * sizeof(float),
                           cudaMemcpyDeviceToHost, b->stream));
  CUDA_TRY(cudaStreamSynchronize(b->stream));
  return 0;
}

// How many of rows[count] from `from` on are neighbours: blocks of dealt tokens are, and small batches.
static int64_t neighbours(const int64_t *rows, int64_t from, int64_t count) {
  int64_t n = 1;
  while (from + n < count && rows[from + n] == rows[from] + n) n++;
  return n;
}

static status cuda_head(backend *base, const int64_t *rows, int64_t count, void *logits) {
  cuda_backend *b = self(base);
  float epsilon = (float)b->shape.rms_epsilon;
  if (b->decodes && count == 1) {
    TRY(decode_head_launch(b->logits, b->x + rows[0] * b->shape.hidden, b->weights, epsilon, b->stream));
    return logits ? cuda_logits_read(base, 0, count, logits) : 0;
  }
  for (int64_t i = 0, n; i < count; i += n) {
    n = neighbours(rows, i, count);
    TRY(norm_launch(rows_from(b->head_in, i), b->x + rows[i] * b->shape.hidden, b->weights->output_norm,
                    (int)n, epsilon, b->head_in.qs != nullptr, b->stream));
  }
  TRY(product_shared(b, b->logits, &b->weights->output, &b->head_in, (int)count, false));
  return logits ? cuda_logits_read(base, 0, count, logits) : 0;
}

// ---- probes and digests ----

static status cuda_probe(backend *base, probe_point point, int64_t n, double *out) {
  cuda_backend *b = self(base);
  const float *from = point == PROBE_LAYER_INPUT ? b->x : b->normed.x;
  size_t count = (size_t)(n * b->shape.hidden);
  float *narrow;
  TRY(device_wait(b->stream, &b->params));
  TRY(TAKE(&narrow, count, "a probe"));
  cudaError_t error = cudaMemcpyAsync(narrow, from, count * sizeof(float), cudaMemcpyDeviceToHost, b->stream);
  if (error == cudaSuccess) error = cudaStreamSynchronize(b->stream);
  for (size_t i = 0; i < count && error == cudaSuccess; i++) out[i] = (double)narrow[i];
  free(narrow);
  CUDA_TRY(error);
  return 0;
}

// The digest itself was taken by combine, where the rows were at hand.
static status cuda_digest(backend *base, int64_t layer, const token_batch *batch, int64_t, int64_t count,
                          uint64_t *sums) {
  cuda_backend *b = self(base);
  b->sums_to[sums_row(b, layer, batch, count)] = sums;
  return 0;
}

static status cuda_logits_digest(backend *base, const int64_t *rows, int64_t count, uint64_t *sums) {
  cuda_backend *b = self(base);
  int64_t row = b->shape.n_layers, vocabulary = b->shape.vocabulary;
  b->sums_to[row] = sums;
  for (int64_t i = 0, n; i < count; i += n) {
    n = neighbours(rows, i, count);
    TRY(digest_launch(b->sums + row * b->params.n_sequences, b->logits + i * vocabulary, &b->batch,
                      (int)rows[i], (int)n, (int)vocabulary, b->shared->tag, -1, b->stream));
  }
  return 0;
}

// Waits for everything enqueued and hands over the digests.
static status cuda_finish(backend *base) {
  cuda_backend *b = self(base);
  size_t rows = 2 * (size_t)b->shape.n_layers + 1, each = (size_t)b->params.n_sequences;
  uint64_t *sums;
  TRY(device_wait(b->stream, &b->params));
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

// ---- recording: one launch for all the steps of a small batch ----

static status record(cuda_backend *b, const token_batch *batch, status (*steps)(void *, const token_batch *),
                     void *context, recording *out) {
  cudaGraph_t graph = nullptr;
  CUDA_TRY(cudaStreamBeginCapture(b->stream, cudaStreamCaptureModeThreadLocal));
  b->is_recording = true;
  status result = steps(context, batch);
  b->is_recording = false;
  cudaError_t error = cudaStreamEndCapture(b->stream, &graph);
  if (!result && error == cudaSuccess) error = cudaGraphInstantiate(&out->graph, graph, 0);
  if (graph) cudaGraphDestroy(graph);
  if (result) return result;
  CUDA_TRY(error);
  return 0;
}

// The positions for which attention is laid out: a power of two of chunks, so that few recordings serve a
// long run.
static int recorded_keys(int keys) {
  int chunks = 1;
  while (chunks * CHUNK < keys) chunks *= 2;
  return chunks * CHUNK;
}

static status cuda_recorded(backend *base, const token_batch *batch,
                            status (*steps)(void *, const token_batch *), void *context) {
  cuda_backend *b = self(base);
  if (batch->n > RECORDED_TOKENS) return steps(context, batch);
  TRY(load_batch(b, batch));
  b->max_keys = recorded_keys(b->max_keys);
  recording *found = nullptr;
  for (int i = 0; i < b->n_recordings && !found; i++)
    if (b->recordings[i].n == batch->n && b->recordings[i].max_keys == b->max_keys &&
        b->recordings[i].distinct == b->distinct)
      found = &b->recordings[i];
  if (!found) {
    if (b->n_recordings == MAX_RECORDINGS) return steps(context, batch);
    found = &b->recordings[b->n_recordings];
    found->n = (int)batch->n;
    found->max_keys = b->max_keys;
    found->distinct = b->distinct;
    TRY(record(b, batch, steps, context, found));
    b->n_recordings++;
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
    .open = cuda_open,
    .close = cuda_close,
    .row = cuda_row,
    .state_bytes = cuda_state_bytes,
    .embed = cuda_embed,
    .attention = cuda_attention,
    .project = cuda_project,
    .attend = cuda_attend,
    .route = cuda_route,
    .experts = cuda_experts,
    .rows_host = cuda_rows_host,
    .rows_read = cuda_rows_read,
    .rows_write = cuda_rows_write,
    .combine = cuda_combine,
    .head = cuda_head,
    .finish = cuda_finish,
    .logits_read = cuda_logits_read,
    .logits_digest = cuda_logits_digest,
    .routed = cuda_routed,
    .rows_device = cuda_rows_device,
    .stream = cuda_stream,
    .recorded = cuda_recorded,
    .probe = cuda_probe,
    .digest = cuda_digest,
};
