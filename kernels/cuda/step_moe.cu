// step_moe: x += the chosen experts' outputs, whole or as route, experts_up, experts_down and combine.
//
// Owns: which launches make a step, and the progress of the routing (routing_state). Independent of: how the
// state came to be (state.cu), how rows cross ranks.
#include "base/memory.h"
#include "kernels/cuda/steps.cuh"
#include <string.h>

// A step that comes before what it needs is an error of the caller, and never computes with old rows.
static status expect(const cuda_backend *b, bool good, const char *step) {
  static const char *const NAMES[] = {"nothing routed",  "some rows routed", "all rows routed",
                                      "a routing given", "gate and up done", "gate and up of one token done"};
  return good ? 0 : FAIL("backend cuda: %s comes out of order: %s", step, NAMES[b->routing]);
}

static int slots_of(const cuda_backend *b, int64_t n_tokens) {
  return (int)(n_tokens * b->shape.top_k);
}

// ---- route: normed = norm(x), the router's logits, the choice ----

// The kernels of one token take every slot of an expert that this rank holds.
static bool decodes_experts(const cuda_backend *b, const token_batch *rows) {
  return decodes(b, rows) && !b->params.map.has_replicas;
}

// Of the layer, on the device.
static layer_map map_of(const cuda_backend *b, int64_t layer) {
  const expert_map *map = &b->params.map;
  int64_t at = expert_map_at(map, layer, b->shape.n_experts);
  return {weights_local(b->weights, layer), b->first_holder ? b->first_holder + at : nullptr, b->holder,
          map->has_replicas, b->params.rank};
}

static status choose(cuda_backend *b, int64_t layer, int64_t first, int n, bool whole, unsigned parts) {
  const model_shape *s = &b->shape;
  int64_t slot = first * s->top_k;
  bool places = whole && n <= b->params.fixed_tokens;
  return route_launch(b->expert + slot, b->slot_weights + slot, b->member + slot, places ? b->place : nullptr,
                      parts & ROUTING_MARGINS ? b->margin + first : nullptr,
                      b->router_logits + first * s->n_experts, map_of(b, layer),
                      batch_from(b->batch, (int)first, n), b->at_peers ? b->peers.epoch : nullptr,
                      (int)s->n_experts, (int)s->top_k, b->stream);
}

static status route_rows(cuda_backend *b, int64_t layer, int64_t first, int n) {
  const model_shape *s = &b->shape;
  const dev_layer *w = &b->weights->layers[layer];
  float *logits = b->router_logits + first * s->n_experts;
  bool round = b->normed.qs != nullptr; // for the experts; the router itself may be of any type
  dev_inputs normed = rows_from(b->normed, first);
  TRY(norm_launch(rounded_for(normed, b->shared), b->x + first * s->hidden, w->ffn_norm, n,
                  (float)s->rms_epsilon, round, true, b->stream));
  TRY(phase_mark(b, PHASE_FFN_NORM));
  TRY(show(b, PROBE_FFN_NORM, layer, normed.x, first, n));
  TRY(product_shared(b, logits, &w->router, &normed, n));
  TRY(phase_mark(b, PHASE_ROUTER));
  bool other = path_splits_outliers(b->shared->kind) != path_splits_outliers(b->experts->kind);
  if (other && path_rounded_form(b->experts->kind) == ACTIVATION_Q8K &&
      normed.qs) // the router has read the rows
    TRY(round_launch(rounded_for(normed, b->experts), n, b->stream));
  return show(b, PROBE_FFN_MOE_LOGITS, layer, logits, first, n);
}

status cuda_route(backend *base, int64_t layer, const token_batch *rows, int64_t first, int64_t count,
                  unsigned parts) {
  cuda_backend *b = self(base);
  const model_shape *s = &b->shape;
  const dev_layer *w = &b->weights->layers[layer];
  int64_t slot = first * s->top_k;
  bool whole = count == rows->n;
  TRY(mark_exchange(b));
  if (b->fuses)
    return FAIL("backend cuda: a part of layer %d is asked for in a run of whole layers", (int)layer);
  if (decodes(b, rows)) {
    TRY(decode_router_launch(b->router_logits, b->normed, b->x, w, (float)s->rms_epsilon, peer_links{},
                             b->stream));
    TRY(phase_mark(b, PHASE_ROUTER));
  } else {
    TRY(route_rows(b, layer, first, (int)count));
  }
  TRY(choose(b, layer, first, (int)count, whole, parts));
  TRY(phase_mark(b, PHASE_TOP_K));
  TRY(show(b, PROBE_FFN_MOE_TOPK, layer, b->expert + slot, first, count));
  TRY(show(b, PROBE_FFN_MOE_WEIGHTS_NORM, layer, b->slot_weights + slot, first, count));
  b->routing = whole ? ROUTING_OF_ALL : ROUTING_OF_SOME;
  return 0;
}

// ---- the routing to the host and back ----

status cuda_routing_fetch(backend *base, int64_t first, int64_t count, unsigned parts) {
  cuda_backend *b = self(base);
  int64_t slot = first * b->shape.top_k;
  size_t n = (size_t)count, slots = n * (size_t)b->shape.top_k;
  b->fetch = routing_range{first, count, parts};
  if (parts & ROUTING_EXPERTS)
    CUDA_TRY(cudaMemcpyAsync(b->host_expert + slot, b->expert + slot, slots * sizeof *b->expert,
                             cudaMemcpyDeviceToHost, b->stream));
  if (parts & ROUTING_WEIGHTS)
    CUDA_TRY(cudaMemcpyAsync(b->host_weight + slot, b->slot_weights + slot, slots * sizeof *b->slot_weights,
                             cudaMemcpyDeviceToHost, b->stream));
  if (parts & ROUTING_MARGINS)
    CUDA_TRY(cudaMemcpyAsync(b->host_margin + first, b->margin + first, n * sizeof *b->margin,
                             cudaMemcpyDeviceToHost, b->stream));
  CUDA_TRY(cudaEventRecord(b->fetched, b->stream));
  return 0;
}

status cuda_routing_wait(backend *base, routing *out) {
  cuda_backend *b = self(base);
  routing_range f = b->fetch;
  int64_t slot = f.first * b->shape.top_k, slots = f.count * b->shape.top_k;
  TRY(device_wait_event(b->fetched, &b->params));
  if (f.parts & ROUTING_EXPERTS)
    memcpy(out->expert + slot, b->host_expert + slot, (size_t)slots * sizeof *b->host_expert);
  for (int64_t i = slot; i < slot + slots && f.parts & ROUTING_WEIGHTS; i++)
    out->weight[i] = (double)b->host_weight[i];
  if (f.parts & ROUTING_MARGINS)
    memcpy(out->margin + f.first, b->host_margin + f.first, (size_t)f.count * sizeof *b->host_margin);
  return 0;
}

// `expert` and normed rows have arrived from other ranks: what is derived from the rows.
status cuda_routing_arrived(backend *base, const token_batch *rows) {
  cuda_backend *b = self(base);
  if (b->normed.qs && !b->rounded_gathered)
    TRY(round_launch(rounded_for(b->normed, b->experts), (int)rows->n, b->stream));
  b->rounded_gathered = false;
  b->routing = ROUTING_GIVEN;
  return 0;
}

// From pageable memory: the driver has made a copy when the call returns.
status cuda_routing_write(backend *base, int64_t first, int64_t count, unsigned parts, const routing *in) {
  cuda_backend *b = self(base);
  int64_t slot = first * b->shape.top_k;
  size_t slots = (size_t)(count * b->shape.top_k);
  if (parts & ROUTING_EXPERTS)
    CUDA_TRY(cudaMemcpyAsync(b->expert + slot, in->expert + slot, slots * sizeof *b->expert,
                             cudaMemcpyHostToDevice, b->stream));
  if (parts & ROUTING_WEIGHTS) {
    float *narrow;
    TRY(TAKE(&narrow, slots, "a given routing"));
    for (size_t i = 0; i < slots; i++) narrow[i] = (float)in->weight[slot + (int64_t)i];
    cudaError_t error = cudaMemcpyAsync(b->slot_weights + slot, narrow, slots * sizeof *narrow,
                                        cudaMemcpyHostToDevice, b->stream);
    if (error == cudaSuccess) error = cudaStreamSynchronize(b->stream);
    free(narrow);
    CUDA_TRY(error);
  }
  token_batch rows = {first + count, nullptr, nullptr, nullptr};
  return cuda_routing_arrived(base, &rows);
}

// ---- experts ----

// A stack's product over all slots of the batch. Few slots each read their expert alone; many are grouped by
// expert.
static product slot_product(const cuda_backend *b, float *out, const dev_matrix *m, const dev_inputs *in,
                            int n_slots, int divisor) {
  bool grouped = n_slots > 2 * b->shape.top_k;
  product p = {};
  p.w = *m;
  p.in = *in;
  p.member = b->member;
  p.first = grouped ? b->first : nullptr;
  p.order = grouped ? b->order : nullptr;
  p.tiles = b->tiles;
  p.n_members = b->weights->n_local;
  p.n_items = n_slots;
  p.each = (n_slots + (int)b->shape.n_experts - 1) / (int)b->shape.n_experts;
  p.input_divisor = divisor;
  p.out = out;
  return p;
}

static product down_product(const cuda_backend *b, const dev_layer *w, int n_slots) {
  product p = slot_product(b, b->slots, &w->down, &b->gate, n_slots, 1);
  p.up = b->down_gates ? b->up : nullptr;
  return p;
}

// Few slots are rounded where down reads them, which is a launch less; not where a probe wants to see them or
// outliers are taken out.
static bool gates_in_down(const cuda_backend *b, const dev_layer *w, int n_slots) {
  product down = slot_product(b, b->slots, &w->down, &b->gate, n_slots, 1);
  bool is_probed =
      probe_is_imposed(&b->watch, PROBE_FFN_MOE_SWIGLU) || probe_is_watched(&b->watch, PROBE_FFN_MOE_SWIGLU);
  return !is_probed && takes_q8k(b->experts, &w->down) && !b->gate.outliers && product_q8k_gates(&down);
}

static status swiglu(cuda_backend *b, int64_t layer, const dev_layer *w, int n_slots) {
  bool given = probe_is_imposed(&b->watch, PROBE_FFN_MOE_SWIGLU);
  bool floats =
      !takes_q8k(b->experts, &w->down) || given || probe_is_watched(&b->watch, PROBE_FFN_MOE_SWIGLU);
  TRY(swiglu_launch(b->gate, b->up, b->member, n_slots, b->gate.qs != nullptr, floats, b->stream));
  TRY(impose_slots(b, PROBE_FFN_MOE_SWIGLU, b->gate.x, nullptr, n_slots));
  if (given && b->gate.qs) TRY(round_launch(b->gate, n_slots, b->stream));
  TRY(phase_mark(b, PHASE_SWIGLU));
  return show_slots(b, PROBE_FFN_MOE_SWIGLU, layer, b->gate.x, nullptr, n_slots);
}

static decode_experts one_token(cuda_backend *b, int64_t layer) {
  decode_experts e = {};
  e.normed = b->normed;
  e.router_logits = b->router_logits;
  e.hidden = b->gate.x;
  e.x = b->x;
  e.sums = b->sums + layer * b->params.n_sequences;
  e.tag = b->shared->tag;
  e.layer = (int)layer;
  return e;
}

// Which slots of a routing that came from elsewhere are this rank's. A rank that computes only experts has no
// batch on its device but this.
static status find_members(cuda_backend *b, int64_t layer, const token_batch *rows) {
  size_t bytes = (size_t)rows->n * sizeof(int);
  dev_batch batch = {nullptr, b->sequence, b->position, (int)rows->n};
  if (!b->params.computes_shared) { // from pageable memory: the driver has made a copy when the call returns
    CUDA_TRY(cudaMemcpyAsync(b->sequence, rows->sequence, bytes, cudaMemcpyHostToDevice, b->stream));
    CUDA_TRY(cudaMemcpyAsync(b->position, rows->position, bytes, cudaMemcpyHostToDevice, b->stream));
  }
  return members_launch(b->member, b->expert, map_of(b, layer), batch, (int)b->shape.top_k, b->stream);
}

status cuda_experts_up(backend *base, int64_t layer, const token_batch *rows) {
  cuda_backend *b = self(base);
  const model_shape *s = &b->shape;
  const dev_layer *w = &b->weights->layers[layer];
  int n_slots = slots_of(b, rows->n);
  TRY(expect(b, b->routing == ROUTING_OF_ALL || b->routing == ROUTING_GIVEN, "experts_up"));
  TRY(mark_exchange(b));
  if (decodes_experts(b, rows) && b->routing == ROUTING_OF_ALL) { // repeats the choice from the logits
    decode_experts e = one_token(b, layer);
    b->routing = EXPERTS_UP_ONE;
    TRY(decode_gate_up_launch(&e, w, s, b->weights, &b->batch, b->stream));
    return phase_mark(b, PHASE_GATE_UP);
  }
  // The gather of a routing finds members too, by the one map that holds for every layer.
  bool found = b->routing_gathered && b->params.map.is_same && !b->params.map.has_replicas;
  if (b->routing == ROUTING_GIVEN && !found) TRY(find_members(b, layer, rows));
  if (n_slots > 2 * s->top_k) {
    TRY(group_launch(b->first, b->order, b->tiles, b->member, n_slots, b->weights->n_local, b->stream));
    TRY(phase_mark(b, PHASE_TOP_K));
  }
  product_set in = {{slot_product(b, b->gate.x, &w->gate, &b->normed, n_slots, (int)s->top_k),
                     slot_product(b, b->up, &w->up, &b->normed, n_slots, (int)s->top_k)},
                    {0},
                    2};
  TRY(multiply(b, b->experts, &in));
  TRY(phase_mark(b, PHASE_GATE_UP));
  TRY(impose_slots(b, PROBE_FFN_MOE_GATE, b->gate.x, nullptr, n_slots));
  TRY(impose_slots(b, PROBE_FFN_MOE_UP, b->up, nullptr, n_slots));
  TRY(show_slots(b, PROBE_FFN_MOE_GATE, layer, b->gate.x, nullptr, n_slots));
  TRY(show_slots(b, PROBE_FFN_MOE_UP, layer, b->up, nullptr, n_slots));
  b->down_gates = gates_in_down(b, w, n_slots);
  if (!b->down_gates) TRY(swiglu(b, layer, w, n_slots));
  b->routing = EXPERTS_UP;
  return 0;
}

// The device's array of slots' rows, or null where they lie in order. Fixed places were written by the
// choice.
static status place_slots(cuda_backend *b, const slot_places *places, int n_slots, const int64_t **out) {
  *out = places->order == SLOTS_IN_ORDER || places->order == SLOTS_SENT ? nullptr : b->place;
  if (places->order != SLOTS_PLACED) return 0;
  const void *from = places->row_of_slot;
  if (b->params.computes_shared) // pinned; its last copy is done: the host has waited for the routing since
    from = memcpy(b->host_place, places->row_of_slot, (size_t)n_slots * sizeof(int64_t));
  CUDA_TRY(
      cudaMemcpyAsync(b->place, from, (size_t)n_slots * sizeof(int64_t), cudaMemcpyHostToDevice, b->stream));
  return 0;
}

// Each slot's row goes to the rank of its token while the others are computed; a product that is not whole at
// once (outliers) is sent when it is.
static status down_to_owners(cuda_backend *b, const dev_layer *w, int n_slots,
                             const int64_t *tokens_of_rank) {
  row_owners owners = owners_of(b, tokens_of_rank);
  int top_k = (int)b->shape.top_k, hidden = (int)b->shape.hidden;
  bool at_once = !path_splits_outliers(b->experts->kind), has_offsets = b->routing_gathered;
  b->routing_gathered = false;
  product_set down = {{down_product(b, w, n_slots)}, {0}, 1};
  if (at_once) {
    if (!has_offsets) TRY(peer_slot_offsets(b->place, b->peers, owners, n_slots, top_k, hidden, b->stream));
    down.p[0].offset = b->place;
  }
  TRY(multiply(b, b->experts, &down));
  TRY(phase_mark(b, PHASE_DOWN));
  if (at_once) return peer_meeting(b->peers, b->stream);
  return peer_send_slots(b->peers, b->slots, b->member, nullptr, owners, n_slots, top_k, hidden,
                         b->meeting_count, b->stream);
}

status cuda_experts_down(backend *base, int64_t layer, const token_batch *rows, const slot_places *places) {
  cuda_backend *b = self(base);
  const dev_layer *w = &b->weights->layers[layer];
  const int64_t *place;
  int n_slots = slots_of(b, rows->n);
  TRY(expect(b, b->routing == EXPERTS_UP || b->routing == EXPERTS_UP_ONE, "experts_down"));
  TRY(place_slots(b, places, n_slots, &place));
  bool one = b->routing == EXPERTS_UP_ONE;
  b->routing = ROUTING_NONE;
  if (one) {
    decode_experts e = one_token(b, layer);
    e.slots = b->slots;
    e.place = place;
    TRY(decode_down_launch(&e, w, &b->shape, b->weights, &b->batch, b->stream));
    return phase_mark(b, PHASE_DOWN);
  }
  if (places->order == SLOTS_SENT) return down_to_owners(b, w, n_slots, places->tokens_of_rank);
  product_set down = {{down_product(b, w, n_slots)}, {0}, 1};
  down.p[0].place = place;
  TRY(multiply(b, b->experts, &down));
  TRY(phase_mark(b, PHASE_DOWN));
  TRY(impose_slots(b, PROBE_FFN_MOE_DOWN, b->slots, place, n_slots));
  return show_slots(b, PROBE_FFN_MOE_DOWN, layer, b->slots, place, n_slots);
}

// ---- combine: x += the slots' weighted sum, in slot order, and the layer's digest ----

typedef struct {
  const float *slots, *weight;
  const int64_t *place;
  dev_batch rows;
} combine_part;

static combine_part part_of(const cuda_backend *b, int64_t first, int64_t count, const slot_places *places) {
  int64_t slot = first * b->shape.top_k;
  bool placed = places->order != SLOTS_IN_ORDER && places->order != SLOTS_SENT;
  return {placed ? b->slots : b->slots + slot * b->shape.hidden, b->slot_weights + slot,
          placed ? b->place + slot : nullptr, batch_from(b->batch, (int)first, (int)count)};
}

// The sum alone, as 0 + sum; its digest goes nowhere.
static status show_sums(cuda_backend *b, int64_t layer, int64_t first, int64_t count, const combine_part *p) {
  const model_shape *s = &b->shape;
  if (!probe_is_watched(&b->watch, PROBE_FFN_MOE_OUT)) return 0;
  CUDA_TRY(cudaMemsetAsync(b->shown, 0, (size_t)(count * s->hidden) * sizeof(float), b->stream));
  TRY(combine_launch(b->shown, p->slots, p->weight, p->place, &p->rows, (int)s->top_k, (int)s->hidden,
                     b->unused_sums, b->shared->tag, (int)layer, b->stream));
  return show(b, PROBE_FFN_MOE_OUT, layer, b->shown, first, count);
}

status cuda_combine(backend *base, int64_t layer, const token_batch *rows, int64_t first, int64_t count,
                    const slot_places *places) {
  cuda_backend *b = self(base);
  const model_shape *s = &b->shape;
  combine_part p = part_of(b, first, count, places);
  float *x = b->x + first * s->hidden;
  unsigned long long *sums = b->sums + sums_row(b, layer, rows, count) * b->params.n_sequences;
  TRY(mark_exchange(b));
  TRY(show_sums(b, layer, first, count, &p));
  TRY(combine_launch(x, p.slots, p.weight, p.place, &p.rows, (int)s->top_k, (int)s->hidden, sums,
                     b->shared->tag, (int)layer, b->stream));
  TRY(phase_mark(b, PHASE_COMBINE));
  return show(b, PROBE_L_OUT, layer, x, first, count);
}

// ---- the whole step ----

// One token on q8k: each kernel repeats the choice, and the last one has or gets every slot and combines.
static status moe_of_one_token(cuda_backend *b, int64_t layer) {
  const dev_layer *w = &b->weights->layers[layer];
  decode_experts e = one_token(b, layer);
  e.peers = b->peers;
  TRY(decode_router_launch(b->router_logits, b->normed, b->x, w, (float)b->shape.rms_epsilon, b->peers,
                           b->stream));
  TRY(phase_mark(b, PHASE_ROUTER));
  TRY(decode_gate_up_launch(&e, w, &b->shape, b->weights, &b->batch, b->stream));
  TRY(phase_mark(b, PHASE_GATE_UP));
  TRY(decode_down_launch(&e, w, &b->shape, b->weights, &b->batch, b->stream));
  return phase_mark(b, PHASE_DOWN);
}

// Every rank stores its slots to all others. A rank that is ahead writes the other of two parts of `slots`.
static status moe_at_peers(cuda_backend *b, int64_t layer, const token_batch *rows) {
  static const slot_places placed = {SLOTS_AT_FIXED, nullptr, nullptr, nullptr};
  // Larger batches start with a meeting (forward.c); a rank that still computes one has slots where those of
  // a single token go.
  if (rows->n == 1 && layer == 0) TRY(peer_meeting(b->peers, b->stream));
  b->at_peers = true;
  status result = cuda_route(&b->base, layer, rows, 0, rows->n, ROUTING_NOTHING);
  b->at_peers = false;
  TRY(result);
  TRY(cuda_experts_up(&b->base, layer, rows));
  TRY(cuda_experts_down(&b->base, layer, rows, &placed));
  TRY(peer_send_slots(b->peers, b->slots, b->member, b->place, row_owners{}, slots_of(b, rows->n),
                      (int)b->shape.top_k, (int)b->shape.hidden, b->meeting_count, b->stream));
  return cuda_combine(&b->base, layer, rows, 0, rows->n, &placed);
}

// Every layer of one token at once; of several, of one after the other.
static status all_layers(cuda_backend *b) {
  token_work w = {};
  w.rope = b->rope;
  w.cache = b->limbs;
  w.local_of_expert = b->weights->local_of_expert;
  w.local_stride = b->params.map.is_same ? 0 : (int)b->shape.n_experts;
  w.sums = b->sums;
  w.n_sequences = (int)b->params.n_sequences;
  w.tag = b->shared->tag;
  w.epsilon = (float)b->shape.rms_epsilon;
  for (int t = 0; t < b->batch.n; t++) {
    w.x = b->x + t * b->shape.hidden;
    w.batch = batch_from(b->batch, t, 1);
    TRY(token_launch(&b->fused, &w, b->peers, b->stream));
  }
  return 0;
}

status cuda_moe(backend *base, int64_t layer, const token_batch *rows) {
  static const slot_places in_order = {SLOTS_IN_ORDER, nullptr, nullptr, nullptr};
  cuda_backend *b = self(base);
  if (b->fuses) return layer == b->shape.n_layers - 1 ? all_layers(b) : 0;
  if (decodes_experts(b, rows)) return moe_of_one_token(b, layer);
  if (b->peers.n) return moe_at_peers(b, layer, rows);
  TRY(cuda_route(base, layer, rows, 0, rows->n, ROUTING_NOTHING));
  TRY(cuda_experts_up(base, layer, rows));
  TRY(cuda_experts_down(base, layer, rows, &in_order));
  return cuda_combine(base, layer, rows, 0, rows->n, &in_order);
}
