// step_moe: x += the chosen experts' outputs, whole or as route, experts_up, experts_down and combine.
//
// Owns: the order of the phases, the routing and the grouping of slots by expert. Independent of: arithmetic
// (ISA rows), other ranks.
#include "kernels/cpu/steps.h"
#include <string.h>

// ---- route: normed = norm(x), the router's logits, the choice ----

typedef struct {
  const layer_weights *w;
  int64_t layer, first, count;
  product_list logits;
} route_part;

static route_part route_of(cpu_backend *b, int64_t layer, int64_t first, int64_t count) {
  const layer_weights *w = &b->params.weights->layers[layer];
  route_part p = {.w = w, .layer = layer, .first = first, .count = count};
  product_list_add(&p.logits, product_shared(b, b->router_logits.rows, &w->router, &b->normed, first, count));
  return p;
}

static void choose_phase(cpu_backend *b, int64_t first, int64_t count) {
  const model_shape *s = &b->shape;
#pragma omp for
  for (int64_t t = first; t < first + count; t++)
    b->shared.ops->route(b->chosen + t * s->top_k, row_at(b, b->slot_weights, t, s->top_k), &b->margin[t],
                         b->router_logits.rows[t], s->n_experts, s->top_k);
}

static void route_phases(cpu_backend *b, route_part *p) {
  const model_shape *s = &b->shape;
  size_t real = b->shared.ops->bytes;
  int64_t first = p->first, count = p->count;
  norm_phase(b, p->w->ffn_norm, first, count, WITHOUT_REMAINDER);
  show_phase(b, PROBE_FFN_NORM, p->layer, b->normed.real_rows + first, first, count, real);
  products_phase(b, &p->logits);
  show_phase(b, PROBE_FFN_MOE_LOGITS, p->layer, b->router_logits.rows + first, first, count, real);
  choose_phase(b, first, count);
  show_rows_phase(b, PROBE_FFN_MOE_TOPK, p->layer, b->chosen + first * s->top_k, first, count,
                  (size_t)s->top_k * sizeof *b->chosen, sizeof *b->chosen);
  show_rows_phase(b, PROBE_FFN_MOE_WEIGHTS_NORM, p->layer, row_at(b, b->slot_weights, first, s->top_k), first,
                  count, (size_t)s->top_k * real, real);
}

status cpu_route(backend *base, int64_t layer, const token_batch *rows, int64_t first, int64_t count,
                 unsigned parts) {
  cpu_backend *b = (cpu_backend *)base;
  route_part p = route_of(b, layer, first, count);
  (void)rows, (void)parts;
#pragma omp parallel num_threads(b->params.threads)
  route_phases(b, &p);
  return 0;
}

// ---- the routing to the host and back: it lies there anyway ----

status cpu_routing_fetch(backend *base, int64_t first, int64_t count, unsigned parts) {
  cpu_backend *b = (cpu_backend *)base;
  b->fetch = (routing_range){first, count, parts};
  return 0;
}

status cpu_routing_wait(backend *base, routing *out) {
  cpu_backend *b = (cpu_backend *)base;
  int64_t first = b->fetch.first, k = b->shape.top_k, slot = first * k;
  size_t n = (size_t)b->fetch.count, slots = n * (size_t)k;
  if (b->fetch.parts & ROUTING_EXPERTS)
    memcpy(out->expert + slot, b->chosen + slot, slots * sizeof *out->expert);
  if (b->fetch.parts & ROUTING_MARGINS)
    memcpy(out->margin + first, b->margin + first, n * sizeof *out->margin);
  if (b->fetch.parts & ROUTING_WEIGHTS)
    convert_reals(out->weight + slot, sizeof *out->weight, row_at(b, b->slot_weights, first, k),
                  b->shared.ops->bytes, (int64_t)slots);
  return 0;
}

status cpu_routing_write(backend *base, int64_t first, int64_t count, unsigned parts, const routing *in) {
  cpu_backend *b = (cpu_backend *)base;
  int64_t k = b->shape.top_k, slot = first * k;
  if (parts & ROUTING_EXPERTS)
    memcpy(b->chosen + slot, in->expert + slot, (size_t)(count * k) * sizeof *b->chosen);
  if (parts & ROUTING_WEIGHTS)
    convert_reals(row_at(b, b->slot_weights, first, k), b->shared.ops->bytes, in->weight + slot,
                  sizeof *in->weight, count * k);
  return 0;
}

status cpu_routing_arrived(backend *base, const token_batch *rows) {
  (void)base, (void)rows;
  return 0; // rows_write and routing_write have put all where experts_up reads it
}

// ---- experts ----

// Groups the batch's slots by owned expert; returns the number of active experts.
static int64_t group_slots(cpu_backend *b, int64_t n_slots) {
  const expert_global *expert = b->chosen;
  const expert_local *local = b->params.local;
  memset(b->first, 0, (size_t)(b->n_owned + 1) * sizeof *b->first);
  for (int64_t i = 0; i < n_slots; i++) {
    expert_local e = local[expert[i].id];
    if (expert_is_owned(e)) b->first[e.index + 1]++;
  }
  int64_t n_active = 0;
  for (int64_t e = 0; e < b->n_owned; e++) {
    if (b->first[e + 1]) b->active[n_active++] = (int32_t)e;
    b->first[e + 1] += b->first[e];
  }
  for (int64_t i = 0; i < n_slots; i++) { // fill, moving each start to its end ...
    expert_local e = local[expert[i].id];
    if (expert_is_owned(e)) b->slots[b->first[e.index]++] = (int32_t)i;
  }
  for (int64_t e = b->n_owned; e > 0; e--) b->first[e] = b->first[e - 1]; // ... and back
  b->first[0] = 0;
  return n_active;
}

// expert_in = normed in the experts' real, rounded where their path rounds
static void expert_inputs_phase(cpu_backend *b, int64_t n) {
#pragma omp for
  for (int64_t t = 0; t < n; t++) {
    convert_reals(b->expert_in.real_rows[t], b->experts.ops->bytes, b->normed.real_rows[t],
                  b->shared.ops->bytes, b->shape.hidden);
    quantize(b, &b->experts, &b->expert_in, t, WITHOUT_REMAINDER);
  }
}

typedef struct { // a stacked matrix times the inputs of each active expert's slots
  const matrix *m;
  void *const *out, *const *reals;
  const block_q8_K *const *q8k;
} expert_product;

typedef struct { // every (active expert, tile of its matrices) is one task
  expert_product part[2];
  int64_t tiles; // of one expert, of one matrix after the other
  task_queue tasks;
} expert_list;

static void expert_list_add(expert_list *l, int64_t index, expert_product p, int64_t n_active,
                            int64_t n_tokens) {
  l->part[index] = p;
  l->tiles += matrix_tiles(p.m);
  l->tasks.count = l->tiles * n_active;
  l->tasks.ahead = n_tokens <= FEW_TOKENS;
}

// The product that task `task` is a tile of; `room` holds the expert's matrix.
static product expert_part(const cpu_backend *b, const expert_list *l, int64_t task, int64_t *tile,
                           matrix *room) {
  const expert_product *part = l->part;
  int64_t e = b->active[task / l->tiles], first = b->first[e];
  *tile = task % l->tiles;
  if (*tile >= matrix_tiles(part->m)) *tile -= matrix_tiles(part++->m);
  *room = matrix_rows(part->m, b->owned[e].id * part->m->rows, part->m->rows);
  return (product){&b->experts,       room, part->out + first,      part->reals + first,
                   part->q8k + first, NULL, b->first[e + 1] - first};
}

static void expert_task(cpu_backend *b, const void *what, int64_t task, int64_t after) {
  const expert_list *l = (const expert_list *)what;
  int64_t tile, next;
  matrix m, ahead;
  product p = expert_part(b, l, task, &tile, &m);
  if (after >= 0) expert_part(b, l, after, &next, &ahead);
  product_tile(b, &p, tile, after >= 0 ? matrix_tile_data(&ahead, next) : NULL);
}

static void expert_list_phase(cpu_backend *b, expert_list *l) {
  tasks_phase(b, &l->tasks, expert_task, l);
}

static void swiglu_phase(cpu_backend *b, int64_t n_slots) {
#pragma omp for
  for (int64_t i = 0; i < n_slots; i++) {
    b->experts.ops->swiglu(b->gate_out[i], b->up_out[i], b->shape.expert_width);
    impose_row(b, PROBE_FFN_MOE_SWIGLU, b->slots[i], b->gate_out[i], b->experts.ops->bytes);
    quantize(b, &b->experts, &b->hidden_in, i, WITHOUT_REMAINDER);
  }
}

// Rows of owned slots, in the order of b->slots.
static void show_slots_phase(cpu_backend *b, probe_point point, int64_t layer, void *const *numbers,
                             int64_t n_slots) {
  if (!probe_is_watched(&b->watch, point)) return;
#pragma omp single
  for (int64_t i = 0; i < n_slots; i++)
    b->watch.show(b->watch.context, point, layer, b->slots[i], numbers[i], b->experts.ops->bytes);
}

// Groups the slots and points at what each reads and writes; every owned slot of the batch is in b->slots
// then.
static expert_list up_list(cpu_backend *b, const layer_weights *w, const token_batch *rows) {
  const model_shape *s = &b->shape;
  size_t real = b->experts.ops->bytes;
  expert_list up = {0};
  b->n_active = group_slots(b, rows->n * s->top_k);
  for (int64_t i = 0; i < b->first[b->n_owned]; i++) {
    int64_t token = b->slots[i] / s->top_k;
    b->in_rows[i] = b->expert_in.real_rows[token];
    b->in_q8k[i] = b->expert_in.q8k_rows[token];
    b->gate_out[i] = b->hidden_in.real_rows[i];
    b->up_out[i] = b->up + (size_t)(i * s->expert_width) * real;
  }
  expert_list_add(&up, 0, (expert_product){&w->gate, b->gate_out, b->in_rows, b->in_q8k}, b->n_active,
                  rows->n);
  expert_list_add(&up, 1, (expert_product){&w->up, b->up_out, b->in_rows, b->in_q8k}, b->n_active, rows->n);
  return up;
}

static void impose_slots_phase(cpu_backend *b, probe_point point, void *const *numbers, int64_t n_slots) {
  if (!probe_is_imposed(&b->watch, point)) return;
#pragma omp for
  for (int64_t i = 0; i < n_slots; i++) impose_row(b, point, b->slots[i], numbers[i], b->experts.ops->bytes);
}

static void up_phases(cpu_backend *b, int64_t layer, const token_batch *rows, expert_list *up) {
  int64_t n_slots = b->first[b->n_owned];
  expert_inputs_phase(b, rows->n);
  expert_list_phase(b, up);
  impose_slots_phase(b, PROBE_FFN_MOE_GATE, b->gate_out, n_slots);
  impose_slots_phase(b, PROBE_FFN_MOE_UP, b->up_out, n_slots);
  show_slots_phase(b, PROBE_FFN_MOE_GATE, layer, b->gate_out, n_slots);
  show_slots_phase(b, PROBE_FFN_MOE_UP, layer, b->up_out, n_slots);
  swiglu_phase(b, n_slots);
  show_slots_phase(b, PROBE_FFN_MOE_SWIGLU, layer, b->gate_out, n_slots);
}

status cpu_experts_up(backend *base, int64_t layer, const token_batch *rows) {
  cpu_backend *b = (cpu_backend *)base;
  expert_list up = up_list(b, &b->params.weights->layers[layer], rows);
  if (!b->n_active) return 0;
#pragma omp parallel num_threads(b->params.threads)
  up_phases(b, layer, rows, &up);
  return 0;
}

static int64_t slot_row(const slot_places *places, int64_t slot) {
  return places->order == SLOTS_PLACED ? places->row_of_slot[slot] : slot;
}

static expert_list down_list(cpu_backend *b, const layer_weights *w, const token_batch *rows,
                             const slot_places *places) {
  const model_shape *s = &b->shape;
  expert_list down = {0};
  for (int64_t i = 0; i < b->first[b->n_owned]; i++)
    b->down_out[i] = b->narrow ? (void *)(b->narrow + (size_t)(i * s->hidden) * b->experts.ops->bytes)
                               : row_at(b, b->slot_rows, slot_row(places, b->slots[i]), s->hidden);
  expert_list_add(&down, 0,
                  (expert_product){&w->down, b->down_out, b->hidden_in.real_rows, b->hidden_in.q8k_rows},
                  b->n_active, rows->n);
  return down;
}

// The experts' reals in the shared path's, where these differ.
static void widen_phase(cpu_backend *b, int64_t n_slots, const slot_places *places) {
  if (!b->narrow) return;
#pragma omp for
  for (int64_t i = 0; i < n_slots; i++)
    convert_reals(row_at(b, b->slot_rows, slot_row(places, b->slots[i]), b->shape.hidden),
                  b->shared.ops->bytes, b->down_out[i], b->experts.ops->bytes, b->shape.hidden);
}

static void down_phases(cpu_backend *b, int64_t layer, expert_list *down, const slot_places *places) {
  int64_t n_slots = b->first[b->n_owned];
  expert_list_phase(b, down);
  impose_slots_phase(b, PROBE_FFN_MOE_DOWN, b->down_out, n_slots);
  show_slots_phase(b, PROBE_FFN_MOE_DOWN, layer, b->down_out, n_slots);
  widen_phase(b, n_slots, places);
}

static status check_places(const slot_places *places) {
  return places->order == SLOTS_AT_FIXED ? FAIL("backend cpu: slots have no fixed places there") : 0;
}

status cpu_experts_down(backend *base, int64_t layer, const token_batch *rows, const slot_places *places) {
  cpu_backend *b = (cpu_backend *)base;
  TRY(check_places(places));
  if (!b->n_active) return 0;
  expert_list down = down_list(b, &b->params.weights->layers[layer], rows, places);
#pragma omp parallel num_threads(b->params.threads)
  down_phases(b, layer, &down, places);
  return 0;
}

// ---- combine: x += the slots' weighted sum, in slot order ----

static void combine_row(cpu_backend *b, void *x, int64_t t, const slot_places *places) {
  const model_shape *s = &b->shape;
  const void *slot[MAX_TOP_K];
  for (int64_t k = 0; k < s->top_k; k++)
    slot[k] = row_at(b, b->slot_rows, slot_row(places, t * s->top_k + k), s->hidden);
  b->shared.ops->combine(x, slot, row_at(b, b->slot_weights, t, s->top_k), s->top_k, s->hidden);
}

// The sum alone, as 0 + sum, in a row that nothing else needs now.
static void show_sums_phase(cpu_backend *b, int64_t layer, int64_t first, int64_t count,
                            const slot_places *places) {
  size_t real = b->shared.ops->bytes;
  if (!probe_is_watched(&b->watch, PROBE_FFN_MOE_OUT)) return;
#pragma omp single
  for (int64_t t = first; t < first + count; t++) {
    void *sum = b->projected.rows[t];
    memset(sum, 0, (size_t)b->shape.hidden * real);
    combine_row(b, sum, t, places);
    b->watch.show(b->watch.context, PROBE_FFN_MOE_OUT, layer, t, sum, real);
  }
}

static void combine_phases(cpu_backend *b, int64_t layer, int64_t first, int64_t count,
                           const slot_places *places) {
  show_sums_phase(b, layer, first, count, places);
#pragma omp for
  for (int64_t t = first; t < first + count; t++)
    combine_row(b, row_at(b, b->x, t, b->shape.hidden), t, places);
  show_stream_phase(b, PROBE_L_OUT, layer, first, count);
}

status cpu_combine(backend *base, int64_t layer, const token_batch *rows, int64_t first, int64_t count,
                   const slot_places *places) {
  cpu_backend *b = (cpu_backend *)base;
  (void)rows;
  TRY(check_places(places));
#pragma omp parallel num_threads(b->params.threads)
  combine_phases(b, layer, first, count, places);
  return 0;
}

// ---- the whole step ----

status cpu_moe(backend *base, int64_t layer, const token_batch *rows) {
  static const slot_places in_order = {SLOTS_IN_ORDER, NULL};
  cpu_backend *b = (cpu_backend *)base;
  const layer_weights *w = &b->params.weights->layers[layer];
  route_part route = route_of(b, layer, 0, rows->n);
  expert_list up, down;
#pragma omp parallel num_threads(b->params.threads)
  {
    route_phases(b, &route);
#pragma omp single
    {
      up = up_list(b, w, rows);
      down = down_list(b, w, rows, &in_order);
    }
    up_phases(b, layer, rows, &up);
    down_phases(b, layer, &down, &in_order);
    combine_phases(b, layer, 0, rows->n, &in_order);
  }
  return 0;
}
