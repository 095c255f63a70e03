// Experiments 4, 6 and 7: products with the bytes of a real tensor.
#include "base/memory.h"
#include "src/lab/falsify_slab.h"
#include "src/lab/product_case.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

// ---- 4: the slab ----

// max |a - b| over max |a|, of one draw.
static status draw_over_largest(double *out, const void *context, int64_t draw) {
  const void *const *p = context;
  const slab *s = p[0];
  const double *a = (const double *)p[1] + draw * s->weights.rows,
               *b = (const double *)p[2] + draw * s->weights.rows;
  metrics m;
  metrics_row(&m, b, a, (size_t)s->weights.rows);
  *out = m.max_abs / falsify_largest(a, s->weights.rows);
  return 0;
}

static status add_over_largest(experiment_result *out, const slab *s, const double *a, const double *b) {
  char name[1][EXPERIMENT_NAME] = {"orders_rel"};
  const void *context[] = {s, a, b};
  return falsify_add_draws_of(out, s->n, s->threads, &(falsify_figures){name, 1, draw_over_largest, context});
}

static status compare_orders(experiment_result *out, const slab *s) {
  double *pairwise = NULL, *lanes = NULL, l2 = 0;
  status result;
  TRY_DONE(result, slab_compute(&pairwise, s, &OF_PAIRWISE));
  TRY_DONE(result, slab_compute(&lanes, s, &OF_LANES));
  TRY_DONE(result, add_over_largest(out, s, pairwise, lanes));
  TRY_DONE(result, slab_add_pair(out, s, "orders", lanes, pairwise));
  for (int64_t i = 0; i < s->weights.rows; i++) l2 += pairwise[i] * pairwise[i];
  experiment_add(out, sqrt(l2), "l2");
done:
  free(pairwise);
  free(lanes);
  return result;
}

// Every Q6_K matrix of the model: the same cut of its own bytes.
static status compare_all(experiment_result *out, const slab *s, const gguf *g) {
  const size_t bytes = (size_t)experiment_integer(out->settings, "bytes");
  double worst = 0, a[64], b[64];
  int64_t n = 0;
  if (s->weights.rows > 64) return REFUSE("experiment 4: input.rows: expected at most 64");
  for (size_t i = 0; i < gguf_tensor_count(g); i++) {
    const gguf_tensor *t = gguf_tensor_at(g, i);
    if (t->type->type != TYPE_Q6_K || t->bytes < bytes) continue;
    metrics m;
    const product_input in = {{t->data, TYPE_Q6_K, s->weights.rows, s->weights.cols}, s->x, 1, s->row, 1};
    TRY(product_compute(a, &in, &OF_LANES));
    TRY(product_compute(b, &in, &OF_PAIRWISE));
    metrics_row(&m, a, b, (size_t)s->weights.rows);
    worst = fmax(worst, m.rel_l2);
    n++;
  }
  experiment_add(out, (double)n, "q6k_tensors");
  experiment_add(out, worst, "worst_tensor_rel_l2");
  return 0;
}

// ---- 4: the mix ----

// Which layers llama.cpp gives Q6_K in the mix Q4_K_M (use_more_bits): the first and last eighth, and every
// third between them.
static bool has_more_bits(int64_t layer, int64_t n_layers) {
  return layer < n_layers / 8 || layer >= 7 * n_layers / 8 || (layer - n_layers / 8) % 3 == 2;
}

static double log_choose(double n, double k) {
  return lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1);
}

// The chance that of `drawn` out of `all`, of which `marked` are marked, at least `seen` are marked.
static double chance_of_so_many(int64_t all, int64_t marked, int64_t drawn, int64_t seen) {
  double sum = 0;
  for (int64_t k = seen; k <= drawn && k <= marked; k++)
    if (drawn - k <= all - marked)
      sum += exp(log_choose((double)marked, (double)k) +
                 log_choose((double)(all - marked), (double)(drawn - k)) -
                 log_choose((double)all, (double)drawn));
  return sum;
}

static void count_known_layers(experiment_result *out) {
  const experiment_input *low = experiment_find_input(out->settings, "known_layers");
  int64_t all = experiment_integer(out->settings, "known_n_layers"), marked = 0, seen = 0;
  for (int64_t l = 0; l < all; l++) marked += has_more_bits(l, all);
  for (size_t i = 0; i < low->count; i++) seen += has_more_bits((int64_t)low->value[i], all);
  experiment_add(out, (double)low->count, "known_low_layers");
  experiment_add(out, (double)seen, "known_low_layers_with_q6k");
  experiment_add(out, (double)marked / (double)all, "known_share_of_layers_with_q6k");
  experiment_add(out, chance_of_so_many(all, marked, (int64_t)low->count, seen), "known_mix_chance");
}

static void count_layers(experiment_result *out, const model *m) {
  int64_t with = 0, n = m->weights.shape.n_layers;
  for (int64_t l = 0; l < n; l++) {
    const layer_weights *w = &m->weights.layers[l];
    const weight_type types[] = {w->q.type,    w->k.type,  w->v.type,   w->o.type,
                                 w->gate.type, w->up.type, w->down.type};
    bool has = false;
    for (size_t i = 0; i < sizeof types / sizeof *types; i++) has = has || types[i] == TYPE_Q6_K;
    with += has;
  }
  experiment_add(out, (double)n, "layers");
  experiment_add(out, (double)with, "layers_with_q6k");
}

status falsify_real_q6k(falsify_lab *lab, experiment_result *out) {
  slab s;
  status result;
  TRY_DONE(result, slab_open(&s, lab, out, TYPE_Q6_K));
  TRY_DONE(result, compare_orders(out, &s));
  TRY_DONE(result, compare_all(out, &s, lab->j->m->file));
  count_known_layers(out);
  count_layers(out, lab->j->m);
done:
  slab_close(&s);
  return result;
}

// ---- 6 and 7 ----

typedef struct {
  slab s;
  double *a, *a1, *b, *c, *truth; // [n][rows]
} arms;

static status arms_open(arms *r, falsify_lab *lab, experiment_result *out) {
  *r = (arms){.a = NULL};
  TRY(slab_open(&r->s, lab, out, TYPE_Q4_K));
  const product_operation c = slab_c(&r->s, out);
  const struct {
    double **out;
    const product_operation *of;
  } all[] = {{&r->a, &OF_Q8K},
             {&r->a1, &OF_Q8K_ABSMAX},
             {&r->b, &OF_ASCENDING},
             {&r->c, &c},
             {&r->truth, &OF_TRUTH}};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) TRY(slab_compute(all[i].out, &r->s, all[i].of));
  return 0;
}

static void arms_close(arms *r) {
  slab_close(&r->s);
  free(r->a);
  free(r->a1);
  free(r->b);
  free(r->c);
  free(r->truth);
}

static double ratio(const experiment_result *r, const char *above, const char *below) {
  return experiment_figure_of(r, above) / experiment_figure_of(r, below);
}

status falsify_two_arms(falsify_lab *lab, experiment_result *out) {
  arms r;
  status result;
  TRY_DONE(result, arms_open(&r, lab, out));
  TRY_DONE(result, slab_add_pair(out, &r.s, "a_c", r.a, r.c));
  TRY_DONE(result, slab_add_pair(out, &r.s, "a1_c", r.a1, r.c));
  TRY_DONE(result, slab_add_pair(out, &r.s, "a_truth", r.a, r.truth));
  TRY_DONE(result, slab_add_pair(out, &r.s, "c_truth", r.c, r.truth));
  experiment_add(out, ratio(out, "c_truth_rel_l2", "a_truth_rel_l2"), "c_over_a_error");
  experiment_add(out, ratio(out, "a_c_rel_l2", "c_truth_rel_l2"), "blame_over_error_of_c");
  experiment_note(
      out,
      "With A taken for the truth, C is blamed for a rel_l2 of %.2e; against the truth it is off by %.2e",
      experiment_figure_of(out, "a_c_rel_l2"), experiment_figure_of(out, "c_truth_rel_l2"));
done:
  arms_close(&r);
  return result;
}

// How many of the draws have a max_rel above `bound`.
static double share_above(const slab *s, const double *a, const double *b, double bound) {
  int64_t above = 0, rows = s->weights.rows;
  for (int64_t d = 0; d < s->n; d++) {
    metrics m;
    metrics_row(&m, a + d * rows, b + d * rows, (size_t)rows);
    above += m.max_rel > bound;
  }
  return (double)above / (double)s->n;
}

status falsify_three_arms(falsify_lab *lab, experiment_result *out) {
  arms r;
  status result;
  TRY_DONE(result, arms_open(&r, lab, out));
  const struct {
    const char *name;
    const double *a, *b;
  } pairs[] = {{"a_b", r.a, r.b},         {"a_c", r.a, r.c},           {"b_c", r.b, r.c},
               {"a1_b", r.a1, r.b},       {"a1_c", r.a1, r.c},         {"a1_a", r.a1, r.a},
               {"a_truth", r.a, r.truth}, {"a1_truth", r.a1, r.truth}, {"b_truth", r.b, r.truth},
               {"c_truth", r.c, r.truth}};
  for (size_t i = 0; i < sizeof pairs / sizeof *pairs; i++)
    TRY_DONE(result, slab_add_pair(out, &r.s, pairs[i].name, pairs[i].a, pairs[i].b));
  experiment_add(out, ratio(out, "a_b_rel_l2", "a_c_rel_l2"), "a_b_over_a_c");
  experiment_add(out, ratio(out, "a_b_rel_l2", "b_c_rel_l2"), "a_b_over_b_c");
  experiment_add(out, share_above(&r.s, r.a1, r.b, 0.1), "a1_b_share_max_rel_above_tenth");
done:
  arms_close(&r);
  return result;
}
