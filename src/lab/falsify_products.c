// Experiments 1 and 2: one synthetic product in several sum orders, and for activations of several kinds.
#include "base/memory.h"
#include "kernels/formats/numerics.h"
#include "src/lab/falsify_methods.h"
#include "src/lab/product_case.h"
#include <math.h>
#include <stdlib.h>

typedef enum { KIND_UNIFORM, KIND_LOG_NORMAL, KIND_SPIKES_5, KIND_SPIKES_100 } activation_kind;
enum { KINDS = 4 };
static const char *const KIND_NAMES[KINDS] = {"uniform", "log_normal", "spikes_5", "spikes_100"};

typedef struct {
  int64_t rows, cols;
  uint32_t weights_seed, activations_seed;
} product_shape;

static product_shape shape_of(const experiment *e) {
  return (product_shape){experiment_integer(e, "rows"), experiment_integer(e, "cols"),
                         (uint32_t)experiment_integer(e, "weights_seed"),
                         (uint32_t)experiment_integer(e, "activations_seed")};
}

static status check_shape(const experiment *e) {
  product_shape s = shape_of(e);
  if (s.rows < 1 || s.cols < QK_K || s.cols % QK_K || s.rows * s.cols > 1 << 26)
    return REFUSE("experiment %d: expected input.rows >= 1 and input.cols a multiple of 256", e->id);
  if (!s.weights_seed || !s.activations_seed)
    return REFUSE("experiment %d: expected seeds from 1 to 2^32 - 1", e->id);
  return 0;
}

static float draw_activation(activation_kind kind, uint32_t *state) {
  float u = xorshift32_uniform(state);
  switch (kind) {
  case KIND_UNIFORM:
    return u;
  case KIND_LOG_NORMAL: {
    double size = 0.1 * num_exp_f64(4.0 * 0.5 * (double)xorshift32_uniform(state));
    return (float)(u < 0 ? -size : size);
  }
  case KIND_SPIKES_5:
    return xorshift32_uniform(state) < -0.9f ? u * 5.0f : u;
  case KIND_SPIKES_100:
    return xorshift32_uniform(state) < -0.9f ? u * 100.0f : u;
  }
  __builtin_unreachable();
}

// ---- one product, in several operations ----

typedef struct {
  product_shape s;
  uint8_t *blocks;
  float *x;
  double *ascending, *lanes, *pairwise, *q8k, *truth; // [rows]
} trial;

static status trial_open(trial *t, product_shape s) {
  *t = (trial){.s = s};
  double **outputs[] = {&t->ascending, &t->lanes, &t->pairwise, &t->q8k, &t->truth};
  TRY(TAKE(&t->blocks, (size_t)(s.rows * s.cols),
           "synthetic weights")); // no type takes more than a byte each
  TRY(TAKE(&t->x, (size_t)s.cols, "activations"));
  for (size_t i = 0; i < sizeof outputs / sizeof *outputs; i++)
    TRY(TAKE(outputs[i], (size_t)s.rows, "outputs"));
  return 0;
}

static void trial_close(trial *t) {
  free(t->blocks);
  free(t->x);
  free(t->ascending);
  free(t->lanes);
  free(t->pairwise);
  free(t->q8k);
  free(t->truth);
}

static status trial_compute(trial *t, weight_type type) {
  const product_input in = {{t->blocks, type, t->s.rows, t->s.cols}, t->x, 1, "auto", 1};
  TRY(product_compute(t->ascending, &in, &OF_ASCENDING));
  TRY(product_compute(t->lanes, &in, &OF_LANES));
  TRY(product_compute(t->pairwise, &in, &OF_PAIRWISE));
  TRY(product_compute(t->q8k, &in, &OF_Q8K));
  return product_compute(t->truth, &in, &OF_TRUTH);
}

static void fill_activations(trial *t, activation_kind kind, int64_t draw) {
  uint32_t state = product_draw_seed(t->s.activations_seed, draw);
  for (int64_t i = 0; i < t->s.cols; i++) t->x[i] = draw_activation(kind, &state);
}

// max |a - b| over max |a|.
static double over_largest(const double *a, const double *b, int64_t n) {
  metrics m;
  metrics_row(&m, b, a, (size_t)n);
  return m.max_abs / falsify_largest(a, n);
}

// ---- 1 ----

enum { ORDER_FIGURES = 9 };
static char ORDER_NAMES[ORDER_FIGURES][EXPERIMENT_NAME] = {"rel",
                                                           "max_abs",
                                                           "rel_l2",
                                                           "one_minus_cos",
                                                           "l2",
                                                           "chain_rel",
                                                           "truth_rel_l2",
                                                           "lanes_truth_rel_l2",
                                                           "chain_truth_rel_l2"};

static status draw_orders(double *out, const void *context, int64_t draw) {
  const product_shape *s = context;
  trial t;
  metrics m, own, chain, lanes;
  double l2 = 0;
  status result;
  TRY_DONE(result, trial_open(&t, *s));
  TRY_DONE(result, falsify_make_weights(t.blocks, TYPE_Q6_K, s->rows, s->cols,
                                        product_draw_seed(s->weights_seed, draw)));
  fill_activations(&t, KIND_UNIFORM, draw);
  TRY_DONE(result, trial_compute(&t, TYPE_Q6_K));
  metrics_row(&m, t.lanes, t.pairwise, (size_t)s->rows);
  metrics_row(&own, t.pairwise, t.truth, (size_t)s->rows);
  metrics_row(&chain, t.ascending, t.truth, (size_t)s->rows);
  metrics_row(&lanes, t.lanes, t.truth, (size_t)s->rows);
  for (int64_t i = 0; i < s->rows; i++) l2 += t.pairwise[i] * t.pairwise[i];
  out[0] = over_largest(t.pairwise, t.lanes, s->rows);
  out[1] = m.max_abs;
  out[2] = m.rel_l2;
  out[3] = m.one_minus_cos;
  out[4] = sqrt(l2);
  out[5] = over_largest(t.ascending, t.lanes, s->rows);
  out[6] = own.rel_l2;
  out[7] = lanes.rel_l2;
  out[8] = chain.rel_l2;
done:
  trial_close(&t);
  return result;
}

status falsify_reduction_order(falsify_lab *lab, experiment_result *out) {
  product_shape s = shape_of(out->settings);
  TRY(check_shape(out->settings));
  return falsify_add_draws(lab, out, &(falsify_figures){ORDER_NAMES, ORDER_FIGURES, draw_orders, &s});
}

// ---- 2 ----

static const weight_type TYPES[] = {TYPE_Q6_K, TYPE_Q4_K};
static const char *const TYPE_NAMES[] = {"q6k", "q4k"};
enum { N_TYPES = 2, KIND_FIGURES = 5 }; // of each type and kind
static const char *const KIND_ENDS[KIND_FIGURES] = {"max_rel", "rel", "chain_rel", "q8k_rel_l2",
                                                    "q8k_one_minus_cos"};

static status draw_kinds_of(double *out, trial *t, weight_type type, int64_t draw) {
  const product_shape *s = &t->s;
  TRY(falsify_make_weights(t->blocks, type, s->rows, s->cols, product_draw_seed(s->weights_seed, draw)));
  for (int kind = 0; kind < KINDS; kind++, out += KIND_FIGURES) {
    metrics orders, rounding;
    fill_activations(t, (activation_kind)kind, draw);
    TRY(trial_compute(t, type));
    metrics_row(&orders, t->lanes, t->pairwise, (size_t)s->rows);
    metrics_row(&rounding, t->q8k, t->truth, (size_t)s->rows);
    out[0] = orders.max_rel;
    out[1] = over_largest(t->pairwise, t->lanes, s->rows);
    out[2] = over_largest(t->ascending, t->lanes, s->rows);
    out[3] = rounding.rel_l2;
    out[4] = rounding.one_minus_cos;
  }
  return 0;
}

static status draw_kinds(double *out, const void *context, int64_t draw) {
  trial t;
  status result = trial_open(&t, *(const product_shape *)context);
  for (int type = 0; type < N_TYPES && !result; type++)
    result = draw_kinds_of(out + type * KINDS * KIND_FIGURES, &t, TYPES[type], draw);
  trial_close(&t);
  return result;
}

// The largest over types and kinds of a figure of draw 0.
static double largest_of(const experiment_result *r, const char *what) {
  double largest = 0;
  for (int i = 0; i < N_TYPES * KINDS; i++) {
    char name[EXPERIMENT_NAME];
    snprintf(name, sizeof name, "%s_%s_%s", TYPE_NAMES[i / KINDS], KIND_NAMES[i % KINDS], what);
    double x = experiment_figure_of(r, name);
    largest = x > largest ? x : largest;
  }
  return largest;
}

status falsify_distributions(falsify_lab *lab, experiment_result *out) {
  char names[N_TYPES * KINDS * KIND_FIGURES][EXPERIMENT_NAME];
  product_shape s = shape_of(out->settings);
  TRY(check_shape(out->settings));
  for (int i = 0; i < N_TYPES * KINDS * KIND_FIGURES; i++)
    snprintf(names[i], sizeof names[i], "%s_%s_%s", TYPE_NAMES[i / (KINDS * KIND_FIGURES)],
             KIND_NAMES[i / KIND_FIGURES % KINDS], KIND_ENDS[i % KIND_FIGURES]);
  falsify_figures f = {names, N_TYPES * KINDS * KIND_FIGURES, draw_kinds, &s};
  TRY(falsify_add_draws(lab, out, &f));
  experiment_add(out, fmax(largest_of(out, "rel"), largest_of(out, "chain_rel")), "largest_order_rel");
  experiment_add(out, largest_of(out, "q8k_rel_l2"), "largest_q8k_rel_l2");
  return 0;
}
