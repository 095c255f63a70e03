// step_moe: x += the chosen experts' outputs, whole or as route (step_route.c), experts_up, experts_down and
// combine.
//
// Owns: the order of the phases and the grouping of slots by expert. Independent of: arithmetic (ISA rows),
// other ranks.
#include "kernels/cpu/steps.h"
#include <string.h>

// ---- experts ----

// Cuts the slots of each expert with enough of them into groups.
static void group_for_packing(cpu_backend *b) {
  b->n_groups = 0;
  for (int64_t e = 0; e < b->n_owned && b->groups; e++) {
    int32_t end = b->first[e + 1];
    b->group_of[e] = (int32_t)b->n_groups;
    if (end - b->first[e] < LEAST_PACKED) continue;
    for (int32_t i = b->first[e]; i < end; i += PACKED_TOKENS)
      b->groups[b->n_groups++] = (slot_group){i, end - i < PACKED_TOKENS ? end - i : PACKED_TOKENS};
  }
}

// Those with most slots first, so that no long task is left when the threads have done all others.
static void sort_active(cpu_backend *b, int64_t n_active) {
  for (int64_t i = 1; i < n_active; i++) {
    int32_t e = b->active[i], n = b->first[e + 1] - b->first[e];
    int64_t at = i;
    for (; at > 0 && b->first[b->active[at - 1] + 1] - b->first[b->active[at - 1]] < n; at--)
      b->active[at] = b->active[at - 1];
    b->active[at] = e;
  }
}

// Of each slot the index here of its expert; below 0: another rank computes it.
static void find_members(cpu_backend *b, int64_t layer, const token_batch *rows) {
  const expert_map *map = &b->params.map;
  int64_t k = b->shape.top_k, at = expert_map_at(map, layer, b->shape.n_experts);
  const int32_t *local = map->local + at, *expert = &b->chosen->id;
  for (int64_t t = 0; t < rows->n && map->has_replicas; t++)
    token_ranks(b->member + t * k, expert + t * k, k, map->first + at, map->holder, rows->sequence[t],
                rows->position[t]);
  for (int64_t i = 0; i < rows->n * k; i++)
    b->member[i] = map->has_replicas && b->member[i] != b->params.rank ? -1 : local[expert[i]];
}

// Groups this rank's slots of the batch by expert; returns the number of active experts.
static int64_t group_slots(cpu_backend *b, int64_t layer, const token_batch *rows) {
  int64_t n_slots = rows->n * b->shape.top_k;
  find_members(b, layer, rows);
  memset(b->first, 0, (size_t)(b->n_owned + 1) * sizeof *b->first);
  for (int64_t i = 0; i < n_slots; i++)
    if (b->member[i] >= 0) b->first[b->member[i] + 1]++;
  int64_t n_active = 0;
  for (int64_t e = 0; e < b->n_owned; e++) {
    if (b->first[e + 1]) b->active[n_active++] = (int32_t)e;
    b->first[e + 1] += b->first[e];
  }
  for (int64_t i = 0; i < n_slots; i++) // fill, moving each start to its end ...
    if (b->member[i] >= 0) b->slots[b->first[b->member[i]]++] = (int32_t)i;
  for (int64_t e = b->n_owned; e > 0; e--) b->first[e] = b->first[e - 1]; // ... and back
  b->first[0] = 0;
  return n_active;
}

// expert_in = normed in the experts' real, rounded where their path rounds
static void expert_inputs(cpu_backend *b, team_range part) {
  for (int64_t t = part.first; t < part.end; t++) {
    convert_reals(b->expert_in.real_rows[t], b->experts.ops->bytes, b->normed.real_rows[t],
                  b->shared.ops->bytes, b->shape.hidden);
    quantize(b, &b->experts, &b->expert_in, t);
  }
}

typedef struct { // a stacked matrix times the inputs of each active expert's slots
  const matrix *m;
  const expert_global *owned; // [n_owned] of the layer, by their index here
  void *const *out, *const *reals;
  const block_q8_K *const *q8k;
  const packed_rows *packed; // of b->groups
} expert_product;

static const expert_global *owned_experts(const cpu_backend *b, int64_t layer) {
  return b->owned + expert_map_at(&b->params.map, layer, b->n_owned);
}

// An active expert's part of it; `room` holds the expert's matrix.
static product product_of_expert(const cpu_backend *b, const expert_product *p, int64_t active, int64_t tile,
                                 matrix *room) {
  int64_t e = b->active[active], first = b->first[e];
  *room = matrix_rows(p->m, p->owned[e].id * p->m->rows, p->m->rows);
  product of = {.kernels = &b->experts,
                .m = room,
                .out = p->out + first,
                .reals = p->reals + first,
                .q8k = p->q8k + first,
                .n = b->first[e + 1] - first,
                .tile = tile};
  if (b->group_of) of.packed = packed_for(&b->experts, p->packed, b->group_of[e], p->m, of.n);
  return of;
}

typedef struct { // of a layer
  cpu_backend *b;
  int64_t layer;
  const token_batch *rows;
  const slot_places *places;
  bool inputs_are_normed; // what the experts read is what the router reads
  bool is_whole;          // with the combination of all slots: step `moe`
  bool combines_in_tasks; // a task of down also sums its rows over the slots
  expert_product gate, up, down;
  strip_cut up_cut, down_cut; // of an expert's matrix
  task_queue up_tasks, down_tasks;
} expert_part;

// Tiles of a product, one after the other. ahead: what the thread reads next, or NULL.
static void product_tiles(cpu_backend *b, const product *p, tile_range tiles, const void *ahead) {
  const int64_t end = tiles.first + tiles.count;
  for (int64_t i = tiles.first; i < end; i++)
    product_tile(b, p, i, i + 1 < end ? matrix_tile_data(p->m, p->tile, i + 1) : ahead);
}

enum { POINTS_OF_UP = 1u << PROBE_FFN_MOE_GATE | 1u << PROBE_FFN_MOE_UP };

// gate, up, and of these rows silu(gate) * up, unless probes want to see both before
static void up_task(cpu_backend *b, const void *what, int64_t task, int64_t after) {
  const expert_part *p = (const expert_part *)what;
  const strip_cut *cut = &p->up_cut;
  matrix gate, up, ahead;
  int64_t active = task / cut->tasks, index = task % cut->tasks;
  product g = product_of_expert(b, &p->gate, active, cut->tile, &gate),
          u = product_of_expert(b, &p->up, active, cut->tile, &up);
  tile_range tiles = strip_tiles(cut, index);
  const void *next = NULL;
  if (after >= 0) {
    product_of_expert(b, &p->gate, after / cut->tasks, cut->tile, &ahead);
    next = strip_data(cut, &ahead, after % cut->tasks);
  }
  product_tiles(b, &g, tiles, p->up_tasks.ahead ? strip_data(cut, &up, index) : NULL);
  product_tiles(b, &u, tiles, next);
  if (needs_points(b, POINTS_OF_UP)) return;
  tile_range at = strip_rows(cut, &gate, index);
  size_t skip = (size_t)at.first * b->experts.ops->bytes;
  for (int64_t i = 0; i < g.n; i++)
    b->experts.ops->swiglu((char *)g.out[i] + skip, (char *)u.out[i] + skip, at.count);
}

// What down reads.
static void hidden_rows(cpu_backend *b, team_range part) {
  for (int64_t i = part.first; i < part.end; i++) {
    if (needs_points(b, POINTS_OF_UP))
      b->experts.ops->swiglu(b->gate_out[i], b->up_out[i], b->shape.expert_width);
    impose_row(b, PROBE_FFN_MOE_SWIGLU, b->slots[i], b->gate_out[i], b->experts.ops->bytes);
    quantize(b, &b->experts, &b->hidden_in, i);
  }
}

static void hidden_alone(cpu_backend *b, void *what) {
  (void)what;
  hidden_rows(b, (team_range){0, b->first[b->n_owned]});
}

// Rows of owned slots, in the order of b->slots.
static void show_slots_phase(cpu_backend *b, probe_point point, int64_t layer, void *const *numbers) {
  if (!probe_is_watched(&b->watch, point)) return;
  for (int64_t i = 0; i < b->first[b->n_owned] && !team_thread(); i++)
    b->watch.show(b->watch.context, point, layer, b->slots[i], numbers[i], b->experts.ops->bytes);
  team_barrier(b->team);
}

static void impose_slots_phase(cpu_backend *b, probe_point point, void *const *numbers) {
  if (!probe_is_imposed(&b->watch, point)) return;
  team_range part = team_share(b->team, b->first[b->n_owned]);
  for (int64_t i = part.first; i < part.end; i++)
    impose_row(b, point, b->slots[i], numbers[i], b->experts.ops->bytes);
  team_barrier(b->team);
}

// Groups the slots and points at what each reads and writes; every owned slot of the batch is in b->slots
// then.
static void list_up(expert_part *p) {
  cpu_backend *b = p->b;
  const model_shape *s = &b->shape;
  const layer_weights *w = &b->params.weights->layers[p->layer];
  const activations *in = p->inputs_are_normed ? &b->normed : &b->expert_in;
  const expert_global *owned = owned_experts(b, p->layer);
  size_t real = b->experts.ops->bytes;
  b->n_active = group_slots(b, p->layer, p->rows);
  for (int64_t i = 0; i < b->first[b->n_owned]; i++) {
    int64_t token = b->slots[i] / s->top_k;
    b->in_rows[i] = in->real_rows[token];
    b->in_q8k[i] = in->q8k_rows[token];
    b->gate_out[i] = b->hidden_in.real_rows[i];
    b->up_out[i] = b->up + (size_t)(i * s->expert_width) * real;
  }
  group_for_packing(b);
  if (p->rows->n > FEW_TOKENS) sort_active(b, b->n_active);
  p->gate = (expert_product){&w->gate, owned, b->gate_out, b->in_rows, b->in_q8k, &b->packed_in};
  p->up = (expert_product){&w->up, owned, b->up_out, b->in_rows, b->in_q8k, &b->packed_in};
  p->up_cut = strip_cut_of(b, &b->experts, &w->gate, b->n_active, p->rows->n);
  p->up_tasks = task_queue_of(b->n_active * p->up_cut.tasks, p->rows->n <= FEW_TOKENS);
}

static void pack_slots_phase(cpu_backend *b, phase_kind phase, const packed_rows *to,
                             const block_q8_K *const *rows) {
  if (!has_packed(to) || !b->n_groups) return;
  pack_slots(b, to, rows);
  phase_end(b, phase);
}

static void up_phases(expert_part *p) {
  cpu_backend *b = p->b;
  if (!p->inputs_are_normed) {
    expert_inputs(b, team_share(b->team, p->rows->n));
    phase_end(b, PHASE_TOP_K);
  }
  pack_slots_phase(b, PHASE_TOP_K, &b->packed_in, b->in_q8k);
  tasks_run(b, &p->up_tasks, up_task, p);
  if (p->rows->n <= FEW_TOKENS && !needs_points(b, POINTS_OF_UP)) {
    phase_end_then(b, PHASE_GATE_UP, PHASE_SWIGLU, hidden_alone, p);
  } else {
    phase_end(b, PHASE_GATE_UP);
    impose_slots_phase(b, PROBE_FFN_MOE_GATE, b->gate_out);
    impose_slots_phase(b, PROBE_FFN_MOE_UP, b->up_out);
    show_slots_phase(b, PROBE_FFN_MOE_GATE, p->layer, b->gate_out);
    show_slots_phase(b, PROBE_FFN_MOE_UP, p->layer, b->up_out);
    hidden_rows(b, team_share(b->team, b->first[b->n_owned]));
    phase_end(b, PHASE_SWIGLU);
    pack_slots_phase(b, PHASE_SWIGLU, &b->hidden_in.packed, b->hidden_in.q8k_rows);
  }
  show_slots_phase(b, PROBE_FFN_MOE_SWIGLU, p->layer, b->gate_out);
}

static void run_up(void *context) {
  expert_part *p = (expert_part *)context;
  up_phases(p);
  phase_last(p->b);
}

status cpu_experts_up(backend *base, int64_t layer, const token_batch *rows) {
  cpu_backend *b = (cpu_backend *)base;
  step_start(b, rows->n);
  expert_part p = {.b = b, .layer = layer, .rows = rows};
  list_up(&p);
  if (!b->n_active) return 0;
  step_run(b, run_up, &p, PHASE_SWIGLU);
  return 0;
}

static int64_t slot_row(const slot_places *places, int64_t slot) {
  return places->order == SLOTS_PLACED ? places->row_of_slot[slot] : slot;
}

static void combine_row(cpu_backend *b, void *x, int64_t t, tile_range at, const slot_places *places) {
  const model_shape *s = &b->shape;
  const void *slot[MAX_TOP_K];
  size_t skip = (size_t)at.first * b->shared.ops->bytes;
  for (int64_t k = 0; k < s->top_k; k++)
    slot[k] = (char *)row_at(b, b->slot_rows, slot_row(places, t * s->top_k + k), s->hidden) + skip;
  b->shared.ops->combine((char *)x + skip, slot, row_at(b, b->slot_weights, t, s->top_k), s->top_k, at.count);
}

// A strip of one active expert's down.
static void down_task(cpu_backend *b, const void *what, int64_t task, int64_t after) {
  const expert_part *p = (const expert_part *)what;
  const strip_cut *cut = &p->down_cut;
  matrix m, ahead;
  product d = product_of_expert(b, &p->down, task / cut->tasks, cut->tile, &m);
  const void *next = NULL;
  if (after >= 0) {
    product_of_expert(b, &p->down, after / cut->tasks, cut->tile, &ahead);
    next = strip_data(cut, &ahead, after % cut->tasks);
  }
  product_tiles(b, &d, strip_tiles(cut, task % cut->tasks), next);
}

// A strip of down of all active experts, and of these rows the sum over the slots.
static void down_combine_task(cpu_backend *b, const void *what, int64_t task, int64_t after) {
  const expert_part *p = (const expert_part *)what;
  const strip_cut *cut = &p->down_cut;
  matrix m, ahead;
  for (int64_t e = 0; e < b->n_active; e++) {
    product d = product_of_expert(b, &p->down, e, cut->tile, &m);
    bool last = e + 1 == b->n_active;
    const void *next = NULL;
    if (!last || after >= 0) {
      product_of_expert(b, &p->down, last ? 0 : e + 1, cut->tile, &ahead);
      next = strip_data(cut, &ahead, last ? after : task);
    }
    product_tiles(b, &d, strip_tiles(cut, task), next);
  }
  tile_range at = strip_rows(cut, &m, task);
  for (int64_t t = 0; t < p->rows->n; t++)
    combine_row(b, row_at(b, b->x, t, b->shape.hidden), t, at, p->places);
}

enum { POINTS_OF_SLOTS = 1u << PROBE_FFN_MOE_DOWN | 1u << PROBE_FFN_MOE_OUT };

// Whether a task of down also sums its rows over the slots: of few tokens, where nobody wants to see the
// slots.
static bool combines_in_tasks(const cpu_backend *b, int64_t tokens) {
  return tokens <= FEW_TOKENS && !b->narrow && !needs_points(b, POINTS_OF_SLOTS);
}

static void list_down(expert_part *p) {
  cpu_backend *b = p->b;
  const model_shape *s = &b->shape;
  const layer_weights *w = &b->params.weights->layers[p->layer];
  bool few = p->rows->n <= FEW_TOKENS;
  for (int64_t i = 0; i < b->first[b->n_owned]; i++)
    b->down_out[i] = b->narrow ? (void *)(b->narrow + (size_t)(i * s->hidden) * b->experts.ops->bytes)
                               : row_at(b, b->slot_rows, slot_row(p->places, b->slots[i]), s->hidden);
  p->down = (expert_product){&w->down,
                             owned_experts(b, p->layer),
                             b->down_out,
                             b->hidden_in.real_rows,
                             b->hidden_in.q8k_rows,
                             &b->hidden_in.packed};
  p->combines_in_tasks = p->is_whole && combines_in_tasks(b, p->rows->n);
  int64_t copies = p->combines_in_tasks ? 1 : b->n_active;
  p->down_cut = strip_cut_of(b, &b->experts, &w->down, copies, p->rows->n);
  p->down_tasks = task_queue_of(copies * p->down_cut.tasks, few);
}

// The experts' reals in the shared path's, where these differ.
static void widen_slots(cpu_backend *b, const slot_places *places, team_range part) {
  for (int64_t i = part.first; i < part.end; i++)
    convert_reals(row_at(b, b->slot_rows, slot_row(places, b->slots[i]), b->shape.hidden),
                  b->shared.ops->bytes, b->down_out[i], b->experts.ops->bytes, b->shape.hidden);
}

static void down_phases(expert_part *p) {
  cpu_backend *b = p->b;
  tasks_run(b, &p->down_tasks, p->combines_in_tasks ? down_combine_task : down_task, p);
  if (!b->narrow && !needs_points(b, 1u << PROBE_FFN_MOE_DOWN)) return;
  phase_end(b, PHASE_DOWN);
  impose_slots_phase(b, PROBE_FFN_MOE_DOWN, b->down_out);
  show_slots_phase(b, PROBE_FFN_MOE_DOWN, p->layer, b->down_out);
  if (b->narrow) widen_slots(b, p->places, team_share(b->team, b->first[b->n_owned]));
}

static void run_down(void *context) {
  expert_part *p = (expert_part *)context;
  down_phases(p);
  phase_last(p->b);
}

static status check_places(const slot_places *places) {
  return places->order <= SLOTS_PLACED ? 0 : FAIL("backend cpu: slots have no fixed places, and no peers");
}

// The slots that were grouped are those that the other ranks expect from here: none would notice otherwise,
// as all of them take the same rows, right or wrong.
static status check_own(const cpu_backend *b, int64_t layer, const slot_places *places) {
  int64_t n = b->first[b->n_owned], strangers = 0;
  const slot_range *own = places->own;
  if (!own || places->order != SLOTS_PLACED) return 0;
  for (int64_t i = 0; i < n; i++) {
    int64_t row = places->row_of_slot[b->slots[i]];
    strangers += row < own->first || row >= own->first + own->count;
  }
  if (n == own->count && !strangers) return 0;
  return FAIL(
      "backend cpu: layer %lld: this rank computes %lld slots, %lld of them another rank's, and is expected "
      "to compute %lld: a fault of the map of experts",
      (long long)layer, (long long)n, (long long)strangers, (long long)own->count);
}

status cpu_experts_down(backend *base, int64_t layer, const token_batch *rows, const slot_places *places) {
  cpu_backend *b = (cpu_backend *)base;
  TRY(check_places(places));
  TRY(check_own(b, layer, places));
  if (!b->n_active) return 0;
  step_start(b, rows->n);
  expert_part p = {.b = b, .layer = layer, .rows = rows, .places = places};
  list_down(&p);
  step_run(b, run_down, &p, PHASE_DOWN);
  return 0;
}

// ---- combine: x += the slots' weighted sum, in slot order ----

typedef struct {
  cpu_backend *b;
  int64_t layer, first, count;
  const slot_places *places;
} combine_part;

// The sum alone, as 0 + sum, in a row that nothing else needs now.
static void show_sums_phase(const combine_part *p, tile_range all) {
  cpu_backend *b = p->b;
  size_t real = b->shared.ops->bytes;
  if (!probe_is_watched(&b->watch, PROBE_FFN_MOE_OUT)) return;
  for (int64_t t = p->first; t < p->first + p->count && !team_thread(); t++) {
    void *sum = b->projected.rows[t];
    memset(sum, 0, (size_t)b->shape.hidden * real);
    combine_row(b, sum, t, all, p->places);
    b->watch.show(b->watch.context, PROBE_FFN_MOE_OUT, p->layer, t, sum, real);
  }
  team_barrier(b->team);
}

static void combine_phases(const combine_part *p) {
  cpu_backend *b = p->b;
  tile_range all = {0, b->shape.hidden};
  show_sums_phase(p, all);
  team_range part = team_share(b->team, p->count);
  for (int64_t t = p->first + part.first; t < p->first + part.end; t++)
    combine_row(b, row_at(b, b->x, t, b->shape.hidden), t, all, p->places);
}

static void show_stream(cpu_backend *b, int64_t layer, int64_t first, int64_t count) {
  if (!probe_is_watched(&b->watch, PROBE_L_OUT)) return;
  team_barrier(b->team);
  show_stream_phase(b, PROBE_L_OUT, layer, first, count);
}

static void run_combine(void *context) {
  combine_part *p = (combine_part *)context;
  combine_phases(p);
  show_stream(p->b, p->layer, p->first, p->count);
  phase_last(p->b);
}

status cpu_combine(backend *base, int64_t layer, const token_batch *rows, int64_t first, int64_t count,
                   const slot_places *places) {
  cpu_backend *b = (cpu_backend *)base;
  (void)rows;
  TRY(check_places(places));
  step_start(b, count);
  combine_part p = {b, layer, first, count, places};
  step_run(b, run_combine, &p, PHASE_COMBINE);
  return 0;
}

// ---- the whole step ----

typedef struct {
  route_part route;
  expert_part experts;
  combine_part combine;
} moe_part;

static void list_experts(cpu_backend *b, void *what) {
  moe_part *p = (moe_part *)what;
  (void)b;
  list_up(&p->experts);
  list_down(&p->experts);
}

static void run_moe(void *context) {
  moe_part *p = (moe_part *)context;
  cpu_backend *b = p->route.b;
  logits_phase(&p->route);
  choose_phase(&p->route);
  show_routing(&p->route);
  up_phases(&p->experts);
  down_phases(&p->experts);
  if (!p->experts.combines_in_tasks) {
    phase_end(b, PHASE_DOWN);
    combine_phases(&p->combine);
  }
  show_stream(b, p->combine.layer, 0, p->combine.count);
  phase_last(b);
}

status cpu_moe(backend *base, int64_t layer, const token_batch *rows) {
  static const slot_places in_order = {.order = SLOTS_IN_ORDER};
  cpu_backend *b = (cpu_backend *)base;
  step_start(b, rows->n);
  moe_part p = {
      .route = route_of(b, layer, 0, rows->n),
      .experts = {.b = b, .layer = layer, .rows = rows, .places = &in_order, .is_whole = true},
      .combine = {b, layer, 0, rows->n, &in_order},
  };
  p.route.then = list_experts;
  p.route.what = &p;
  p.experts.inputs_are_normed = b->experts.path == b->shared.path;
  norm_alone(b, PHASE_FFN_NORM, &b->shared, p.route.w->ffn_norm, 0, rows->n);
  step_run(b, run_moe, &p, combines_in_tasks(b, rows->n) ? PHASE_DOWN : PHASE_COMBINE);
  return 0;
}
