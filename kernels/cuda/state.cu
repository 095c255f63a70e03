#include "kernels/cuda/state.cuh"
#include "base/memory.h"
#include "kernels/cuda/decode/decode.cuh"
#include "kernels/cuda/products/product.cuh"
#include "kernels/product_form.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static status take_bytes(cuda_backend *b, void **out, size_t bytes, const char *what) {
  TRY(device_take_bytes(b, out, bytes, what));
  if (b->plan) return 0;
  CUDA_TRY(cudaMemset(*out, 0, bytes ? bytes : 16));
  return 0;
}

template <typename T> static status take(cuda_backend *b, T **out, size_t count, const char *what) {
  return take_bytes(b, (void **)out, count * sizeof(T), what);
}

// The same of an array that other ranks' devices may store into, as work space: with peers it is laid out in
// the window at the end (open_window).
template <typename T> static status take_linked(cuda_backend *b, T **out, size_t count) {
  if (!b->params.has_peers) return take(b, out, count, PART_WORK);
  if (b->n_linked == MAX_LINKED) return FAIL("GPU memory: more than %d arrays of peers", MAX_LINKED);
  b->linked[b->n_linked++] = {(void **)out, count * sizeof(T)};
  return 0;
}

static status take_inputs(cuda_backend *b, dev_inputs *out, size_t rows, int64_t width, bool rounded,
                          bool splits, const char *what) {
  out->width = (int)width;
  TRY(take(b, &out->x, rows * (size_t)width, what));
  if (!rounded || width % QK_K) return 0;
  if (splits) TRY(take(b, &out->outliers, rows * (size_t)width / QK_K, what));
  TRY(take(b, &out->qs, rows * (size_t)width, what));
  TRY(take(b, &out->d, rows * (size_t)width / QK_K, what));
  TRY(take(b, &out->bsums, rows * (size_t)width / 16, what));
  return take(b, &out->sums32, rows * (size_t)width / 16, what);
}

// The experts' inputs: both forms may come from other ranks.
static status take_normed(cuda_backend *b, bool rounded, bool splits) {
  dev_inputs *out = &b->normed;
  size_t rows = (size_t)b->params.max_batch, width = (size_t)b->shape.hidden;
  out->width = (int)width;
  TRY(take_linked(b, &out->x, rows * width));
  if (!rounded || width % QK_K) return 0;
  if (splits) TRY(take(b, &out->outliers, rows * width / QK_K, PART_WORK));
  TRY(take_linked(b, &out->qs, rows * width));
  TRY(take_linked(b, &out->d, rows * width / QK_K));
  TRY(take_linked(b, &out->bsums, rows * width / 16));
  return take_linked(b, &out->sums32, rows * width / 16);
}

void cuda_close(backend *base) {
  cuda_backend *b = self(base);
  if (!b) return;
  if (!device_is_stuck()) { // freeing waits for the device
    peers_close(b);
    for (int i = 0; i < b->n_graphs; i++) cudaGraphExecDestroy(b->graphs[i].graph);
    for (int i = 0; i < b->n_blocks; i++) cudaFree(b->blocks[i]);
    for (int i = 0; i < AHEAD; i++)
      if (b->batch_end[i]) cudaEventDestroy(b->batch_end[i]);
    void *pinned[] = {b->host_rows,   b->host_expert, b->host_weight,
                      b->host_margin, b->host_place,  b->peers.failed};
    for (void *memory : pinned)
      if (memory) cudaFreeHost(memory);
    if (b->fetched) cudaEventDestroy(b->fetched);
    phase_events_close(&b->phases);
    if (b->stream) cudaStreamDestroy(b->stream);
  }
  weights_release(b->weights);
  free(b->sums_to);
  free(b->host_logits);
  free(b);
}

static status open_real_cache(cuda_backend *b) {
  const model_shape *s = &b->shape;
  size_t positions = ((size_t)b->params.context + CHUNK - 1) / CHUNK * CHUNK;
  b->cache.f16 = path_reads_kv(b->shared) && b->params.kv_f16;
  b->cache.head_elements = positions * (size_t)s->head_dim;
  b->cache.n_sequences = (int)b->params.n_sequences;
  b->cache.n_kv_heads = (int)s->n_kv_heads;
  b->cache.head_dim = (int)s->head_dim;
  size_t elements = (size_t)(s->n_layers * b->params.n_sequences * s->n_kv_heads) * b->cache.head_elements;
  TRY(take_bytes(b, &b->cache.keys, elements * (b->cache.f16 ? 2 : 4), PART_CACHE));
  TRY(take_bytes(b, &b->cache.values, elements * (b->cache.f16 ? 2 : 4), PART_CACHE));
  // enough for launches of fewer than SPLIT_BELOW thread blocks, with eight rows each
  size_t chunks = positions / CHUNK;
  b->work.capacity = SPLIT_BELOW * 8 * chunks;
  TRY(take(b, &b->work.max, b->work.capacity, PART_ATTENTION));
  TRY(take(b, &b->work.sum, b->work.capacity, PART_ATTENTION));
  TRY(take(b, &b->work.out, b->work.capacity * (size_t)s->head_dim, PART_ATTENTION));
  return take(b, &b->arrived, (size_t)(APART_TOKENS * s->n_heads), PART_WORK);
}

static status open_queries(cuda_backend *b, query_limbs *q) {
  const model_shape *s = &b->shape;
  size_t n = (size_t)b->params.max_batch;
  int group = (int)(s->n_heads / s->n_kv_heads);
  size_t tiles = (n + (size_t)tokens_per_tile(group) - 1) / (size_t)tokens_per_tile(group);
  q->n_heads = (int)s->n_heads;
  q->n_kv_heads = (int)s->n_kv_heads;
  q->dims = padded_dims((int)s->head_dim);
  size_t of_tile = (size_t)s->n_kv_heads * (size_t)(tile_rows(group) / GROUP_ROWS) * 2 * group_words(q->dims);
  TRY(take(b, &q->words, tiles * of_tile, PART_WORK));
  return take(b, &q->unit, n * (size_t)s->n_heads, PART_WORK);
}

static status open_limb_cache(cuda_backend *b) {
  const model_shape *s = &b->shape;
  size_t chunks = ((size_t)b->params.context + EXACT_CHUNK - 1) / EXACT_CHUNK, laid_out = 1;
  size_t heads = (size_t)(s->n_layers * b->params.n_sequences * s->n_kv_heads);
  b->limbs.head_bytes = chunks * (size_t)block_bytes(padded_dims((int)s->head_dim));
  b->limbs.n_sequences = (int)b->params.n_sequences;
  b->limbs.n_kv_heads = (int)s->n_kv_heads;
  b->limbs.head_dim = (int)s->head_dim;
  TRY(take(b, &b->limbs.blocks, heads * b->limbs.head_bytes, PART_CACHE));
  TRY(open_queries(b, &b->exact.queries));
  // one token's attention: of each sequence, and laid out for a power of two of chunks
  while (laid_out < chunks) laid_out *= 2;
  size_t tokens = (size_t)(b->params.n_sequences < APART_TOKENS ? b->params.n_sequences : APART_TOKENS);
  size_t rows = tokens * (size_t)s->n_heads;
  b->exact.capacity = rows * laid_out;
  TRY(take(b, &b->exact.max, b->exact.capacity, PART_ATTENTION));
  TRY(take(b, &b->exact.sum, b->exact.capacity, PART_ATTENTION));
  return take(b, &b->exact.out, b->exact.capacity * (size_t)s->head_dim, PART_ATTENTION);
}

static status open_cache(cuda_backend *b) {
  switch (b->shared->attention) {
  case ATTENTION_REALS: // of floats: cuda_has_path
  case ATTENTION_RUN_KV:
    return open_real_cache(b);
  case ATTENTION_EXACT:
    return open_limb_cache(b);
  }
  __builtin_unreachable();
}

static status open_rope(cuda_backend *b) {
  int64_t dim = b->shape.head_dim, n = b->params.context;
  float *table;
  TRY(take(b, &b->rope, (size_t)(n * dim), PART_WORK));
  if (b->plan) return 0;
  TRY(TAKE(&table, (size_t)(n * dim), "RoPE tables"));
  for (int64_t i = 0; i < dim / 2; i++) {
    double frequency = num_rope_frequency(b->shape.rope_base, i, dim / 2);
    for (int64_t p = 0; p < n; p++) {
      double c, s;
      num_cos_sin_f64(&c, &s, (double)p * frequency);
      table[p * dim + 2 * i] = (float)c;
      table[p * dim + 2 * i + 1] = (float)s;
    }
  }
  cudaError_t error = cudaMemcpy(b->rope, table, (size_t)(n * dim) * sizeof(float), cudaMemcpyHostToDevice);
  free(table);
  CUDA_TRY(error);
  return 0;
}

static status open_attention(cuda_backend *b) {
  const model_shape *s = &b->shape;
  size_t n = (size_t)b->params.max_batch, q_width = (size_t)(s->n_heads * s->head_dim);
  size_t kv_width = (size_t)(s->n_kv_heads * s->head_dim);
  bool rounded = path_rounded_form(b->attention->kind) == ACTIVATION_Q8K;
  TRY(take(b, &b->token, n, PART_WORK));
  TRY(take(b, &b->sequence, n, PART_WORK));
  TRY(take(b, &b->position, n, PART_WORK));
  TRY(take_linked(b, &b->x, n * (size_t)s->hidden));
  TRY(take(b, &b->q, n * q_width, PART_WORK));
  TRY(take_linked(b, &b->k, n * kv_width));
  TRY(take_linked(b, &b->v, n * kv_width));
  TRY(take_inputs(b, &b->attended, n, s->n_heads * s->head_dim, rounded, false, PART_WORK));
  TRY(open_rope(b));
  return open_cache(b);
}

// Rows of slots: as many as slots, or more where each rank has fixed places for all of a small batch's.
static size_t slot_rows(const cuda_backend *b) {
  int64_t n = b->params.max_batch, fixed = n < b->params.fixed_tokens ? n : b->params.fixed_tokens;
  int64_t places = fixed * b->params.n_ranks;
  return (size_t)((places > n ? places : n) * b->shape.top_k);
}

// Which ranks hold each expert.
static status open_holders(cuda_backend *b) {
  const expert_map *map = &b->params.map;
  size_t n = (size_t)((map->is_same ? 1 : b->shape.n_layers) * b->shape.n_experts);
  if (!map->first || (!b->params.fixed_tokens && !map->has_replicas)) return 0;
  size_t holders = (size_t)map->first[n];
  TRY(take(b, &b->first_holder, n + 1, PART_WORK));
  TRY(take(b, &b->holder, holders, PART_WORK));
  if (b->plan) return 0;
  CUDA_TRY(cudaMemcpy(b->first_holder, map->first, (n + 1) * sizeof(int), cudaMemcpyHostToDevice));
  CUDA_TRY(cudaMemcpy(b->holder, map->holder, holders * sizeof(int), cudaMemcpyHostToDevice));
  return 0;
}

static status open_experts(cuda_backend *b) {
  const model_shape *s = &b->shape;
  size_t n = (size_t)b->params.max_batch, slots = n * (size_t)s->top_k;
  bool hidden_rounded = path_rounded_form(b->experts->kind) == ACTIVATION_Q8K;
  bool rounded = hidden_rounded || path_rounded_form(b->shared->kind) == ACTIVATION_Q8K;
  bool hidden_splits = path_splits_outliers(b->experts->kind);
  bool splits = hidden_splits || path_splits_outliers(b->shared->kind);
  TRY(take_normed(b, rounded, splits));
  TRY(take_linked(b, &b->expert, slots));
  TRY(take(b, &b->member, slots, PART_WORK));
  TRY(take(b, &b->order, slots, PART_WORK));
  TRY(take(b, &b->tiles, TILE_SIZES * ((size_t)b->n_local + 1), PART_WORK));
  TRY(take(b, &b->place, slots, PART_WORK));
  TRY(take(b, &b->first, (size_t)b->n_local + 1, PART_WORK));
  TRY(take_inputs(b, &b->gate, slots, s->expert_width, hidden_rounded, hidden_splits, PART_WORK));
  TRY(take(b, &b->up, slots * (size_t)s->expert_width, PART_WORK));
  if (!b->params.computes_shared) { // else of attention
    TRY(take(b, &b->sequence, n, PART_WORK));
    TRY(take(b, &b->position, n, PART_WORK));
  }
  TRY(open_holders(b));
  TRY(take_linked(b, &b->slots, slot_rows(b) * (size_t)s->hidden));
  if (b->plan) return 0;
  CUDA_TRY(cudaMallocHost((void **)&b->host_expert, slots * sizeof(int)));
  CUDA_TRY(cudaMallocHost((void **)&b->host_weight, slots * sizeof(float)));
  CUDA_TRY(cudaMallocHost((void **)&b->host_margin, n * sizeof(double)));
  CUDA_TRY(cudaMallocHost((void **)&b->host_place, slots * sizeof(int64_t)));
  CUDA_TRY(cudaEventCreateWithFlags(&b->fetched, cudaEventDisableTiming));
  if (b->alone && b->params.computes_shared) return 0;
  size_t widest = (size_t)(s->top_k * s->hidden), kv_width = (size_t)(s->n_kv_heads * s->head_dim);
  size_t logits = b->params.parts_head ? (size_t)(b->params.max_logit_rows * s->vocabulary) : 0;
  if (kv_width > widest) widest = kv_width;
  size_t numbers = n * widest > logits ? n * widest : logits;
  CUDA_TRY(cudaMallocHost((void **)&b->host_rows, numbers * sizeof(float)));
  return 0;
}

// The shared steps but attention.
static status open_router_and_head(cuda_backend *b) {
  const model_shape *s = &b->shape;
  size_t n = (size_t)b->params.max_batch, rows = (size_t)b->params.max_logit_rows;
  TRY(take(b, &b->router_logits, n * (size_t)s->n_experts, PART_WORK));
  TRY(take(b, &b->slot_weights, n * (size_t)s->top_k, PART_WORK));
  TRY(take(b, &b->margin, n, PART_WORK));
  TRY(take_inputs(b, &b->head_in, rows, s->hidden, path_rounded_form(b->shared->kind) == ACTIVATION_Q8K,
                  path_splits_outliers(b->shared->kind), PART_LOGITS));
  TRY(take(b, &b->logits, rows * (size_t)s->vocabulary, PART_LOGITS));
  if (b->params.parts_head) TRY(take_linked(b, &b->logit_parts, rows * (size_t)s->vocabulary));
  return b->plan ? 0 : TAKE(&b->host_logits, rows * (size_t)s->vocabulary, "logits");
}

// What only peers need, and the window itself.
static status open_window(cuda_backend *b) {
  const model_shape *s = &b->shape;
  size_t inbox = 2 * (size_t)(s->top_k * s->hidden);
  if (!b->params.has_peers) return 0;
  TRY(take(b, &b->peers.epoch, 1, PART_WORK));
  TRY(take(b, &b->meeting_count, 1, PART_WORK));
  TRY(take_linked(b, &b->peers.inbox, inbox));
  TRY(take_linked(b, &b->peers.arrived, MOST_PEERS));
  TRY(take_linked(b, &b->trial, MOST_PEERS));
  TRY(take(b, &b->window, peers_window_bytes(b), PART_WORK));
  if (b->plan) return 0;
  peers_lay_out(b);
  CUDA_TRY(cudaMemset(b->peers.inbox, 0xff, inbox * sizeof *b->peers.inbox)); // NOT_WRITTEN
  for (uint32_t *set : b->fused.inbox)
    if (set) CUDA_TRY(cudaMemset(set, 0xff, (size_t)s->n_layers * inbox / 2 * sizeof *set));
  if (tagged_pair *groups = b->fused.groups) // a tag of no token
    CUDA_TRY(
        cudaMemset(groups, 0xff, (size_t)s->n_layers * token_groups(s, b->params.context) * sizeof *groups));
  CUDA_TRY(cudaMallocHost((void **)&b->peers.failed, sizeof *b->peers.failed));
  *b->peers.failed = 0;
  return 0;
}

// The kernel of all layers of a token, if it serves this model here. A memory plan, which has no weights yet,
// takes what it would take if so.
static status open_token(cuda_backend *b) {
  token_state *t = &b->fused;
  size_t layers = (size_t)b->shape.n_layers;
  bool has_slots = (b->alone && b->params.n_ranks == 1) || b->params.has_peers;
  bool may =
      b->params.computes_shared && has_slots && b->shared->kind == PATH_Q8K && b->experts->kind == PATH_Q8K;
  if (!may) return 0;
  bool fits = token_plan_size(&t->plan, &b->shape, b->params.context);
  if (!b->plan)
    b->has_fused = !b->params.map.has_replicas && // it takes every slot of an expert that it holds
                   token_plan_make(&t->plan, &b->shape, b->weights, b->params.context);
  for (uint32_t *&set : t->inbox) // also where another rank alone has the kernel: windows are alike
    if (b->params.has_peers) TRY(take_linked(b, &set, layers * (size_t)(b->shape.top_k * b->shape.hidden)));
  size_t groups = layers * token_groups(&b->shape, b->params.context);
  if (b->params.has_peers && b->params.context > EXACT_GROUP) TRY(take_linked(b, &t->groups, groups));
  if (b->plan ? !fits : !b->has_fused) return 0;
  for (float *&set : t->sets) TRY(take(b, &set, token_set_floats(&t->plan), PART_WORK));
  TRY(take(b, &t->parts, token_parts(&t->plan, b->params.context), PART_ATTENTION));
  TRY(take(b, &t->epoch, 1, PART_WORK));
  TRY(take(b, &t->layers, layers, PART_WORK));
  return b->plan ? 0 : token_state_fill(t, b->weights, b->params.context);
}

// All that is allocated on the device but the weights; with b->plan it is only added up.
static status open_memory(cuda_backend *b) {
  size_t sums = sums_rows(b) * (size_t)b->params.n_sequences;
  if (b->params.computes_shared) TRY(open_attention(b));
  if (b->params.computes_shared) TRY(open_router_and_head(b));
  TRY(open_experts(b));
  TRY(open_token(b));
  TRY(open_window(b));
  TRY(take(b, &b->unused_sums, (size_t)b->params.n_sequences, PART_WORK));
  return take(b, &b->sums, sums, PART_WORK);
}

status cuda_take_shown(cuda_backend *b) {
  TRY(take(b, &b->shown, (size_t)(b->params.max_batch * b->shape.hidden), "probes"));
  CUDA_TRY(cudaDeviceSynchronize()); // the zeros were written on the default stream
  return 0;
}

static void set_params(cuda_backend *b, const backend_params *params) {
  b->params = *params;
  b->shape = params->weights->shape;
  b->shared = path_for(params->shared, params->weights);
  b->attention = path_for(path_before_router(params->shared), params->weights);
  b->experts = path_for(params->experts, params->weights);
  int64_t layers = b->shape.n_layers, n = b->shape.n_experts;
  b->n_local = (int)expert_map_most(&params->map, layers, n);
  b->alone = b->n_local == n && !params->map.has_replicas;
}

// The code that allocates the memory also adds it up, so that a plan cannot disagree with what follows.
static void plan_for(memory_plan *out, void *with, int64_t context, int64_t chunk) {
  backend_params p = *(const backend_params *)with;
  cuda_backend b = {};
  p.context = context;
  p.max_batch = chunk;
  set_params(&b, &p);
  b.plan = out;
  // errors: planning allocates a small table only
  weights_plan(out, p.weights, &p.map, p.computes_shared);
  open_memory(&b);
  memory_plan_add(out, PART_DRIVER, (size_t)64 << 20); // graphs, and what kernels spill
}

static status use_device(device_id *out, const backend_params *params) {
  if (!device_take(out, params->host_rank)) return FAIL("backend cuda: this host has no usable GPU");
  CUDA_TRY(cudaSetDevice(out->index));
  return 0;
}

status cuda_batch_that_fits(int64_t *out, const backend_params *params) {
  size_t free_bytes = 0, total = 0;
  device_id device;
  TRY(use_device(&device, params));
  CUDA_TRY(cudaMemGetInfo(&free_bytes, &total));
  for (int64_t n = params->max_batch; n >= params->n_sequences && n > 0; n /= 2) {
    backend_params p = *params;
    memory_plan plan = {};
    plan_for(&plan, &p, p.context, n);
    *out = n;
    if (memory_plan_total(&plan) <= free_bytes) return 0;
  }
  *out = params->max_batch;
  return 0;
}

static status plan_memory(cuda_backend *b) {
  size_t free_bytes = 0, total = 0;
  memory_plan plan = {};
  device_id device;
  char name[128];
  CUDA_TRY(cudaMemGetInfo(&free_bytes, &total));
  device_take(&device, b->params.host_rank);
  snprintf(name, sizeof name, "GPU %d (%s, %s)", device.index, device.name, device.pci);
  memory_question q = {};
  q.device = name;
  q.free_bytes = free_bytes;
  q.total_bytes = total;
  q.context = b->params.context;
  q.chunk = b->params.max_batch;
  q.least_chunk = b->params.n_sequences;
  q.n_local = b->n_local;
  q.n_experts = b->shape.n_experts;
  q.plan = plan_for;
  q.with = &b->params;
  plan_for(&plan, q.with, q.context, q.chunk);
  return memory_plan_check(&plan, &q);
}

// Limits whose breach CUDA would report in mid-run as "invalid argument" and no more. norm_rows and
// route_tokens hold a row of hidden floats and of all experts' in shared memory; products have their tiles of
// 8 slots or more, and digests their tokens, on the grid's second axis.
static status check_limits(const cuda_backend *b) {
  static constexpr int64_t SHARED_FLOATS =
      DEFAULT_SHARED_BYTES / 4 - 8; // no attribute raises it; 8: for norm_rows' variables
  static constexpr int64_t GRID_Y = 65535, LEAST_TILE = 8;
  const model_shape *s = &b->shape;
  int64_t n = b->params.max_batch, tiles = n * s->top_k / LEAST_TILE + b->n_local;
  if (b->params.computes_shared && s->hidden > SHARED_FLOATS)
    return FAIL("backend cuda: expected a hidden size of at most %lld, found %lld", (long long)SHARED_FLOATS,
                (long long)s->hidden);
  if (b->params.computes_shared && s->n_experts > SHARED_FLOATS)
    return FAIL("backend cuda: expected at most %lld experts, found %lld", (long long)SHARED_FLOATS,
                (long long)s->n_experts);
  if (n > GRID_Y || tiles > GRID_Y)
    return FAIL("backend cuda: a batch of %lld tokens with %lld of its experts is too large for one launch: "
                "lower run.chunk",
                (long long)n, (long long)b->n_local);
  return 0;
}

static status open_fields(cuda_backend *b) {
  TRY(check_limits(b));
  TRY(plan_memory(b));
  CUDA_TRY(cudaStreamCreateWithFlags(&b->stream, cudaStreamNonBlocking));
  for (int i = 0; i < AHEAD; i++)
    CUDA_TRY(cudaEventCreateWithFlags(&b->batch_end[i], cudaEventDisableTiming));
  TRY(weights_acquire(&b->weights, b->params.weights, &b->params.map, b->params.computes_shared));
  b->decodes = b->params.computes_shared && b->shared->kind == PATH_Q8K && b->experts->kind == PATH_Q8K &&
               decode_fits(&b->shape, b->weights);
  TRY(open_memory(b));
  CUDA_TRY(cudaDeviceSynchronize()); // the zeros were written on the default stream
  return memory_take((void **)&b->sums_to, sums_rows(b), sizeof *b->sums_to, "digests");
}

status cuda_open(backend **out, const backend_params *params) {
  *out = nullptr;
  device_id device;
  if (!cuda_has_path(params->shared) || !cuda_has_path(params->experts))
    return FAIL("backend cuda: it does not compute the path %s",
                path_get(cuda_has_path(params->shared) ? params->experts : params->shared)->name);
  TRY(use_device(&device, params));
  cuda_backend *b;
  TRY(memory_take((void **)&b, 1, sizeof *b, "the cuda backend"));
  b->base.ops = &cuda_backend_ops;
  set_params(b, params);
  if (open_fields(b)) {
    cuda_close(&b->base);
    return 1;
  }
  *out = &b->base;
  return 0;
}

const char *cuda_rows(void) {
  static char text[128];
  int devices = 0;
  if (cudaGetDeviceCount(&devices) != cudaSuccess || !devices) return "none (no GPU here)";
  cudaDeviceProp p;
  if (cudaGetDeviceProperties(&p, 0) != cudaSuccess) return "none (the GPU does not answer)";
  snprintf(text, sizeof text, "%d x %.80s, sm_%d%d", devices, p.name, p.major, p.minor);
  return text;
}

bool cuda_has_path(path_kind kind) {
  switch (kind) {
  case PATH_F32:
  case PATH_Q8K:
  case PATH_Q8K_SPLIT:
    return true;
  case PATH_F64:
    break;
  }
  return false;
}

int cuda_devices(void) {
  int devices = 0;
  return cudaGetDeviceCount(&devices) == cudaSuccess ? devices : 0;
}

const char *cuda_row(const backend *) {
  return "cuda";
}

uint64_t cuda_state_bytes(const backend *b) {
  return ((const cuda_backend *)b)->bytes;
}
