// Experiment 3: do small errors grow through a chain of products?
#include "base/memory.h"
#include "src/lab/falsify_methods.h"
#include "src/lab/product_case.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N_TYPES = 2, CHAINS = 4, CHAIN_FIGURES = 4, LONGEST = 1024, LARGEST = 4096 };
static const weight_type TYPES[N_TYPES] = {TYPE_Q6_K, TYPE_Q4_K};
static const char *const TYPE_NAMES[N_TYPES] = {"q6k", "q4k"};
static const char *const ENDS[CHAIN_FIGURES] = {"max_rel", "one_minus_cos", "q8k_rel_l2",
                                                "q8k_one_minus_cos"};
typedef enum { CHAIN_PAIRWISE, CHAIN_LANES, CHAIN_Q8K, CHAIN_TRUTH } chain_kind;

typedef struct {
  int64_t size, longest;
  const experiment_input *steps; // ascending
  uint32_t activations_seed;
  uint8_t *blocks[N_TYPES]; // [longest] matrices
  size_t bytes[N_TYPES];    // of a matrix
} chain;

static status check_chain(const chain *c, const experiment *e) {
  if (c->size < QK_K || c->size % QK_K || c->size > LARGEST)
    return REFUSE("experiment %d: input.size: expected a multiple of 256, at most %d", e->id, LARGEST);
  for (size_t i = 0; i < c->steps->count; i++)
    if (!(c->steps->value[i] > (i ? c->steps->value[i - 1] : 0)) || c->steps->value[i] > LONGEST)
      return REFUSE("experiment %d: input.steps: expected ascending numbers from 1 to %d", e->id, LONGEST);
  if (!c->steps->count) return REFUSE("experiment %d: input.steps: expected numbers", e->id);
  if (!c->activations_seed)
    return REFUSE("experiment %d: input.activations_seed: expected one that is not 0", e->id);
  return 0;
}

static status chain_open(chain *c, const experiment *e, int threads) {
  uint32_t seed = (uint32_t)experiment_integer(e, "weights_seed"),
           step = (uint32_t)experiment_integer(e, "seed_step");
  status result = 0;
  for (int k = 0; k < N_TYPES; k++) {
    c->bytes[k] = (size_t)c->size * type_row_bytes(type_find(TYPES[k]), (size_t)c->size);
    TRY(TAKE(&c->blocks[k], (size_t)c->longest * c->bytes[k], "the matrices of a chain"));
  }
#pragma omp parallel for collapse(2) schedule(dynamic) num_threads(threads)
  for (int k = 0; k < N_TYPES; k++)
    for (int64_t s = 0; s < c->longest; s++) {
      status mine = falsify_make_weights(c->blocks[k] + (size_t)s * c->bytes[k], TYPES[k], c->size, c->size,
                                         seed + step * (uint32_t)s);
#pragma omp critical
      if (mine) result = mine;
    }
  return result;
}

static void chain_close(chain *c) {
  for (int k = 0; k < N_TYPES; k++) free(c->blocks[k]);
}

// Unit length, in floats but for the truth.
static void normalise(double *x, int64_t n, bool in_doubles) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
  double length = sqrt(sum);
  for (int64_t i = 0; i < n; i++)
    x[i] = length == 0 ? 0 : in_doubles ? x[i] / length : (double)((float)x[i] / (float)length);
}

// One product of chain `kind` for each of x[n][m->cols]; f is as large, room twice as large. The truth keeps
// doubles from step to step: product_compute takes floats, so its x is split into two, whose products it
// adds.
static status take_step(double *x, int64_t n, chain_kind kind, const matrix *m, float *f, double *room) {
  static const product_operation *const OF[CHAINS] = {&OF_PAIRWISE, &OF_LANES, &OF_Q8K, &OF_TRUTH};
  const product_input in = {*m, f, n, "auto", 1};
  int64_t count = n * m->cols, parts = kind == CHAIN_TRUTH ? 2 : 1;
  double *sum = room, *y = room + count;
  memset(sum, 0, (size_t)count * sizeof *sum);
  for (int64_t p = 0; p < parts; p++) {
    for (int64_t i = 0; i < count; i++) {
      f[i] = (float)x[i];
      x[i] -= (double)f[i];
    }
    TRY(product_compute(y, &in, OF[kind]));
    for (int64_t i = 0; i < count; i++) sum[i] += y[i];
  }
  memcpy(x, sum, (size_t)count * sizeof *x);
  for (int64_t d = 0; d < n; d++) normalise(x + d * m->cols, m->cols, kind == CHAIN_TRUTH);
  return 0;
}

static void measure(double out[CHAIN_FIGURES], const double *const x[CHAINS], int64_t n) {
  metrics orders, rounding;
  metrics_row(&orders, x[CHAIN_LANES], x[CHAIN_PAIRWISE], (size_t)n);
  metrics_row(&rounding, x[CHAIN_Q8K], x[CHAIN_TRUTH], (size_t)n);
  out[0] = orders.max_rel;
  out[1] = orders.one_minus_cos;
  out[2] = rounding.rel_l2;
  out[3] = rounding.one_minus_cos;
}

// ---- draws: those that start at the same matrix go through the chain together ----

typedef struct {
  int64_t first, n;  // draws first, first + longest, ...
  double *x[CHAINS]; // [n][size]
  double *room;      // [2][n][size]
  float *f;          // [n][size]
  double *values;    // [figures][n_draws], of all draws
  int64_t n_draws;
} draw_group;

static status group_open(draw_group *g, const chain *c) {
  size_t count = (size_t)(g->n * c->size);
  for (int k = 0; k < CHAINS; k++) TRY(TAKE(&g->x[k], count, "a chain"));
  TRY(TAKE(&g->room, 2 * count, "a chain"));
  return TAKE(&g->f, count, "a chain");
}

static void group_close(draw_group *g) {
  for (int k = 0; k < CHAINS; k++) free(g->x[k]);
  free(g->room);
  free(g->f);
}

static void group_start(const draw_group *g, const chain *c) {
  for (int64_t d = 0; d < g->n; d++) {
    uint32_t state = product_draw_seed(c->activations_seed, g->first + d * c->longest);
    for (int64_t i = 0; i < c->size; i++) {
      double u = (double)xorshift32_uniform(&state);
      for (int k = 0; k < CHAINS; k++) g->x[k][d * c->size + i] = u;
    }
  }
}

// After input.steps[reached] steps.
static void group_measure(const draw_group *g, const chain *c, int type, size_t reached) {
  for (int64_t d = 0; d < g->n; d++) {
    double figures[CHAIN_FIGURES];
    const double *x[CHAINS];
    for (int k = 0; k < CHAINS; k++) x[k] = g->x[k] + d * c->size;
    measure(figures, x, c->size);
    for (size_t i = 0; i < CHAIN_FIGURES; i++) {
      size_t figure = ((size_t)type * c->steps->count + reached) * CHAIN_FIGURES + i;
      g->values[(int64_t)figure * g->n_draws + g->first + d * c->longest] = figures[i];
    }
  }
}

static status group_run(const draw_group *g, const chain *c, int type) {
  size_t reached = 0;
  group_start(g, c);
  for (int64_t s = 0; s < c->longest; s++) {
    size_t at = (size_t)((s + g->first) % c->longest);
    const matrix m = {c->blocks[type] + at * c->bytes[type], TYPES[type], c->size, c->size};
    for (int k = 0; k < CHAINS; k++) TRY(take_step(g->x[k], g->n, (chain_kind)k, &m, g->f, g->room));
    if ((double)(s + 1) == c->steps->value[reached]) group_measure(g, c, type, reached++);
  }
  return 0;
}

static status run_group(double *values, const chain *c, int64_t n_draws, int64_t first) {
  draw_group g = {.first = first,
                  .n = (n_draws - first + c->longest - 1) / c->longest,
                  .values = values,
                  .n_draws = n_draws};
  status result = group_open(&g, c);
  for (int type = 0; type < N_TYPES && !result; type++) result = group_run(&g, c, type);
  group_close(&g);
  return result;
}

static status run_groups(double *values, const chain *c, int64_t n_draws, int threads) {
  int64_t groups = n_draws < c->longest ? n_draws : c->longest;
  status result = 0;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
  for (int64_t first = 0; first < groups; first++) {
    status mine = run_group(values, c, n_draws, first);
#pragma omp critical
    if (mine) result = mine;
  }
  return result;
}

static status add_figures(falsify_lab *lab, experiment_result *out, const chain *c) {
  char names[N_TYPES * EXPERIMENT_VALUES * CHAIN_FIGURES][EXPERIMENT_NAME];
  size_t n = c->steps->count, figures = N_TYPES * n * CHAIN_FIGURES;
  int64_t n_draws = falsify_draws(lab, out->settings);
  double *values;
  for (size_t i = 0; i < figures; i++)
    snprintf(names[i], sizeof names[i], "%s_%d_%s", TYPE_NAMES[i / (n * CHAIN_FIGURES)],
             (int)c->steps->value[i / CHAIN_FIGURES % n], ENDS[i % CHAIN_FIGURES]);
  TRY(TAKE(&values, figures * (size_t)n_draws, "draws"));
  status result = run_groups(values, c, n_draws, falsify_threads(lab));
  if (!result) falsify_add_values(out, names, figures, values, (size_t)n_draws);
  free(values);
  return result;
}

status falsify_chain(falsify_lab *lab, experiment_result *out) {
  const experiment *e = out->settings;
  chain c = {.size = experiment_integer(e, "size"),
             .steps = experiment_find_input(e, "steps"),
             .activations_seed = (uint32_t)experiment_integer(e, "activations_seed")};
  TRY(check_chain(&c, e));
  c.longest = (int64_t)c.steps->value[c.steps->count - 1];
  status result = chain_open(&c, e, falsify_threads(lab));
  if (!result) result = add_figures(lab, out, &c);
  chain_close(&c);
  return result;
}
