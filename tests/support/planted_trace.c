// planted_trace: moe_run with one step of one layer that computes something else, for test_planted_trace.py.
//
//   moe_run_planted_trace FAULT LAYER [moe_run's args]
//
// FAULT is a name of the table below, or "none". The row is portable, with the fault's function before its
// own; the table of rows takes the place of kernels/cpu/rows.c's. The linker's --wrap leads forward_layer
// here, which says the layer. Invariant: outside of its layer, and with "none" everywhere, the program is
// moe_run on the row portable.
#include "kernels/cpu/isa/each_row/generic.h"
#include "kernels/table.h"
#include "src/run/forward.h"
#include <stdio.h>
#include <stdlib.h>

enum { STALE_POSITION = 3 };

static struct {
  const char *fault;
  int64_t layer, current;
} plan = {"none", -1, -1};

int __real_main(int argc, char **argv);
int __wrap_main(int argc, char **argv);
status __real_forward_layer(forward_state *f, int64_t layer);
status __wrap_forward_layer(forward_state *f, int64_t layer);

static bool is_here(void) {
  return plan.current == plan.layer;
}

// ---- the router ----

static void read_real(double *to, const void *from, int64_t at, size_t bytes) {
  *to = bytes == sizeof(float) ? (double)((const float *)from)[at] : ((const double *)from)[at];
}

static void write_real(void *to, int64_t at, double x, size_t bytes) {
  if (bytes == sizeof(float))
    ((float *)to)[at] = (float)x;
  else
    ((double *)to)[at] = x;
}

static const real_ops *own(size_t bytes) {
  return bytes == sizeof(float) ? cpu_row_portable.f32 : cpu_row_portable.f64;
}

// The next expert in the place of each, as a counter that starts at 1 has it.
static void next_expert(expert_global *expert, void *weight, double *margin, void *logits, int64_t n,
                        int64_t k, size_t bytes) {
  own(bytes)->route(expert, weight, margin, logits, n, k);
  for (int64_t s = 0; s < k && is_here(); s++) expert[s].id = (int32_t)((expert[s].id + 1) % n);
}

// The second best is the first, and so on.
static void no_best_expert(expert_global *expert, void *weight, double *margin, void *logits, int64_t n,
                           int64_t k, size_t bytes) {
  expert_global more[MAX_TOP_K + 1];
  double weights[MAX_TOP_K + 1], sum = 0, w;
  if (!is_here()) {
    own(bytes)->route(expert, weight, margin, logits, n, k);
    return;
  }
  own(bytes)->route(more, weights, margin, logits, n, k + 1);
  for (int64_t s = 1; s <= k; s++) {
    read_real(&w, weights, s, bytes);
    sum += w;
  }
  for (int64_t s = 0; s < k; s++) {
    expert[s] = more[s + 1];
    read_real(&w, weights, s + 1, bytes);
    write_real(weight, s, w / sum, bytes);
  }
}

static void even_weights(expert_global *expert, void *weight, double *margin, void *logits, int64_t n,
                         int64_t k, size_t bytes) {
  own(bytes)->route(expert, weight, margin, logits, n, k);
  for (int64_t s = 0; s < k && is_here(); s++) write_real(weight, s, 1.0 / (double)k, bytes);
}

// ---- combine ----

static void combine_from(void *x, const void *const *slot, const void *weight, int64_t k, int64_t n,
                         size_t bytes, int64_t from, bool swapped) {
  const void *slots[MAX_TOP_K];
  double weights[MAX_TOP_K], w; // room for either real
  for (int64_t s = from; s < k; s++) {
    int64_t to = s - from, other = !swapped || k < 2 ? s : s == 0 ? k - 1 : s == k - 1 ? 0 : s;
    slots[to] = slot[other];
    read_real(&w, weight, other, bytes);
    write_real(weights, to, w, bytes);
  }
  own(bytes)->combine(x, slots, weights, k - from, n);
}

// ---- the cache: a position's key and value go to the one before, and what was there stays ----

static void store_before(kv_head *kv, int64_t position, const void *k, const void *v, int64_t head_dim,
                         size_t bytes) {
  bool stale = is_here() && position == STALE_POSITION;
  own(bytes)->kv_store(kv, position - stale, k, v, head_dim);
}

// ---- one function for each real ----

#define BOTH_REALS(name, result, parameters, ...)                                                            \
  static result name##_f32 parameters {                                                                      \
    size_t bytes = sizeof(float);                                                                            \
    __VA_ARGS__;                                                                                             \
  }                                                                                                          \
  static result name##_f64 parameters {                                                                      \
    size_t bytes = sizeof(double);                                                                           \
    __VA_ARGS__;                                                                                             \
  }
#define ROUTE_PARAMETERS                                                                                     \
  (expert_global * expert, void *weight, double *margin, void *logits, int64_t n, int64_t k)
#define COMBINE_PARAMETERS (void *x, const void *const *slot, const void *weight, int64_t k, int64_t n)
#define STORE_PARAMETERS   (kv_head * kv, int64_t position, const void *k, const void *v, int64_t head_dim)

BOTH_REALS(route_next, void, ROUTE_PARAMETERS, next_expert(expert, weight, margin, logits, n, k, bytes))
BOTH_REALS(route_no_best, void, ROUTE_PARAMETERS, no_best_expert(expert, weight, margin, logits, n, k, bytes))
BOTH_REALS(route_even, void, ROUTE_PARAMETERS, even_weights(expert, weight, margin, logits, n, k, bytes))
BOTH_REALS(combine_no_first, void, COMBINE_PARAMETERS,
           combine_from(x, slot, weight, k, n, bytes, is_here(), false))
BOTH_REALS(combine_swapped, void, COMBINE_PARAMETERS,
           combine_from(x, slot, weight, k, n, bytes, 0, is_here()))
BOTH_REALS(store_stale, void, STORE_PARAMETERS, store_before(kv, position, k, v, head_dim, bytes))

// ---- rounding to Q8_K: halves away from zero ----

static void quantize_half_away(block_q8_K *out, const float *x, int64_t n) {
  cpu_row_portable.quantize_q8k(out, x, n);
  for (int64_t b = 0; b < n / QK_K && is_here(); b++) {
    float inverse = out[b].d == 0 ? 0 : 1.0f / out[b].d;
    memset(out[b].bsums, 0, sizeof out[b].bsums);
    for (int i = 0; i < QK_K; i++) {
      float scaled = inverse * x[b * QK_K + i], whole = __builtin_truncf(scaled);
      int32_t q = out[b].qs[i];
      if (scaled - whole == 0.5f) q = (int32_t)whole + 1;
      if (scaled - whole == -0.5f) q = (int32_t)whole - 1;
      out[b].qs[i] = (int8_t)(q < 127 ? q : 127);
      out[b].bsums[i / 16] = (int16_t)(out[b].bsums[i / 16] + out[b].qs[i]);
    }
  }
}

// ---- the table ----

static bool is_planned(const char *fault) {
  return !strcmp(plan.fault, fault);
}

static void plant(cpu_row *row, real_ops *f32, real_ops *f64) {
  static const struct {
    const char *fault;
    void (*route[2])(expert_global *, void *, double *, void *, int64_t, int64_t);
    void (*combine[2])(void *, const void *const *, const void *, int64_t, int64_t);
    void (*kv_store[2])(kv_head *, int64_t, const void *, const void *, int64_t);
  } FAULTS[] = {
      {.fault = "next_expert", .route = {route_next_f32, route_next_f64}},
      {.fault = "no_best_expert", .route = {route_no_best_f32, route_no_best_f64}},
      {.fault = "even_weights", .route = {route_even_f32, route_even_f64}},
      {.fault = "no_first_slot", .combine = {combine_no_first_f32, combine_no_first_f64}},
      {.fault = "slot_order", .combine = {combine_swapped_f32, combine_swapped_f64}},
      {.fault = "stale_key", .kv_store = {store_stale_f32, store_stale_f64}},
  };
  for (size_t i = 0; i < sizeof FAULTS / sizeof *FAULTS; i++) {
    if (!is_planned(FAULTS[i].fault)) continue;
    real_ops *ops[2] = {f32, f64};
    for (int r = 0; r < 2; r++) {
      if (FAULTS[i].route[r]) ops[r]->route = FAULTS[i].route[r];
      if (FAULTS[i].combine[r]) ops[r]->combine = FAULTS[i].combine[r];
      if (FAULTS[i].kv_store[r]) ops[r]->kv_store = FAULTS[i].kv_store[r];
    }
    return;
  }
  if (is_planned("half_away"))
    row->quantize_q8k = quantize_half_away;
  else if (!is_planned("none"))
    abort();
}

const cpu_row *const *cpu_row_table(void) {
  static cpu_row row;
  static real_ops f32, f64;
  static const cpu_row *table[2];
  if (table[0]) return table;
  row = cpu_row_portable;
  f32 = *row.f32;
  f64 = *row.f64;
  plant(&row, &f32, &f64);
  row.f32 = &f32;
  row.f64 = &f64;
  table[0] = &row;
  return table;
}

const cpu_row *cpu_row_find(const char *name) {
  const cpu_row *row = cpu_row_table()[0];
  return !strcmp(name, "auto") || !strcmp(name, row->name) ? row : NULL;
}

// ---- what the linker leads here ----

status __wrap_forward_layer(forward_state *f, int64_t layer) {
  plan.current = layer;
  status result = __real_forward_layer(f, layer);
  plan.current = -1;
  return result;
}

int __wrap_main(int argc, char **argv) {
  enum { WORDS = 2 };
  if (argc <= WORDS) return 2;
  plan.fault = argv[1];
  plan.layer = atoi(argv[2]);
  argv[WORDS] = argv[0];
  return __real_main(argc - WORDS, argv + WORDS);
}
