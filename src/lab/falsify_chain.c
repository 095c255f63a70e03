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
typedef enum { CHAIN_ASCENDING, CHAIN_LANES, CHAIN_Q8K, CHAIN_TRUTH } chain_kind;

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

// One product of chain `kind`. The truth keeps doubles from step to step: product_compute takes floats, so
// its x is split into two floats, whose products it adds.
static status take_step(double *x, chain_kind kind, const matrix *m, float *f, double *part) {
  static const product_operation *const OF[CHAINS] = {&OF_ASCENDING, &OF_LANES, &OF_Q8K, &OF_TRUTH};
  const product_input in = {*m, f, 1, "auto", 1};
  int64_t n = m->cols, parts = kind == CHAIN_TRUTH ? 2 : 1;
  memset(part, 0, (size_t)n * sizeof *part);
  double *y = part + n;
  for (int64_t p = 0; p < parts; p++) {
    for (int64_t i = 0; i < n; i++) {
      f[i] = (float)x[i];
      x[i] -= (double)f[i];
    }
    TRY(product_compute(y, &in, OF[kind]));
    for (int64_t i = 0; i < n; i++) part[i] += y[i];
  }
  memcpy(x, part, (size_t)n * sizeof *x);
  normalise(x, n, kind == CHAIN_TRUTH);
  return 0;
}

static void measure(double *out, double *const x[CHAINS], int64_t n) {
  metrics orders, rounding;
  metrics_row(&orders, x[CHAIN_LANES], x[CHAIN_ASCENDING], (size_t)n);
  metrics_row(&rounding, x[CHAIN_Q8K], x[CHAIN_TRUTH], (size_t)n);
  out[0] = orders.max_rel;
  out[1] = orders.one_minus_cos;
  out[2] = rounding.rel_l2;
  out[3] = rounding.one_minus_cos;
}

static status run_chain(double *out, const chain *c, int type, int64_t draw, double *room, float *f) {
  double *x[CHAINS];
  uint32_t state = product_draw_seed(c->activations_seed, draw);
  for (int k = 0; k < CHAINS; k++) x[k] = room + k * c->size;
  for (int64_t i = 0; i < c->size; i++) {
    double u = (double)xorshift32_uniform(&state);
    for (int k = 0; k < CHAINS; k++) x[k][i] = u;
  }
  size_t reached = 0;
  for (int64_t s = 0; s < c->longest; s++) {
    size_t at = (size_t)((s + draw) % c->longest);
    const matrix m = {c->blocks[type] + at * c->bytes[type], TYPES[type], c->size, c->size};
    for (int k = 0; k < CHAINS; k++) TRY(take_step(x[k], (chain_kind)k, &m, f, room + CHAINS * c->size));
    if ((double)(s + 1) == c->steps->value[reached]) measure(out + CHAIN_FIGURES * reached++, x, c->size);
  }
  return 0;
}

static status draw_chain(double *out, const void *context, int64_t draw) {
  const chain *c = context;
  double *room = NULL;
  float *f = NULL;
  status result = TAKE(&room, (size_t)((CHAINS + 2) * c->size), "a chain");
  if (!result) result = TAKE(&f, (size_t)c->size, "a chain");
  for (int type = 0; type < N_TYPES && !result; type++)
    result = run_chain(out + (size_t)type * c->steps->count * CHAIN_FIGURES, c, type, draw, room, f);
  free(room);
  free(f);
  return result;
}

status falsify_chain(falsify_lab *lab, experiment_result *out) {
  const experiment *e = out->settings;
  chain c = {.size = experiment_integer(e, "size"),
             .steps = experiment_find_input(e, "steps"),
             .activations_seed = (uint32_t)experiment_integer(e, "activations_seed")};
  TRY(check_chain(&c, e));
  size_t n = c.steps->count;
  c.longest = (int64_t)c.steps->value[n - 1];
  char names[N_TYPES * EXPERIMENT_VALUES * CHAIN_FIGURES][EXPERIMENT_NAME];
  for (size_t i = 0; i < N_TYPES * n * CHAIN_FIGURES; i++)
    snprintf(names[i], sizeof names[i], "%s_%d_%s", TYPE_NAMES[i / (n * CHAIN_FIGURES)],
             (int)c.steps->value[i / CHAIN_FIGURES % n], ENDS[i % CHAIN_FIGURES]);
  status result = chain_open(&c, e, falsify_threads(lab));
  falsify_figures f = {names, (int64_t)(N_TYPES * n * CHAIN_FIGURES), draw_chain, &c};
  if (!result) result = falsify_add_draws(lab, out, &f);
  chain_close(&c);
  return result;
}
