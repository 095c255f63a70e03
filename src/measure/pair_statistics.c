#include "src/measure/pair_statistics.h"
#include "base/memory.h"
#include "kernels/formats/numerics.h"
#include <math.h>
#include <stdlib.h>

status pair_samples_open(pair_samples *out, int64_t n_layers, int64_t n_positions) {
  *out = (pair_samples){.n_layers = n_layers, .n_positions = n_positions};
  TRY(TAKE(&out->layer, (size_t)(n_layers * n_positions), "a pair's samples"));
  TRY(TAKE(&out->logits, (size_t)n_positions, "a pair's samples"));
  return TAKE(&out->has_target, (size_t)n_positions, "a pair's samples");
}

void pair_samples_close(pair_samples *s) {
  if (!s) return;
  free(s->layer);
  free(s->logits);
  free(s->has_target);
}

void pair_samples_layer(pair_samples *s, int64_t layer, int64_t position, const double *a, const double *b,
                        int64_t hidden, const expert_global *experts_a, const expert_global *experts_b, int k,
                        double margin_b) {
  layer_point *p = &s->layer[layer * s->n_positions + position];
  metrics_row(&p->row, a, b, (size_t)hidden);
  p->flips = metrics_router_flips(&experts_a->id, &experts_b->id, k);
  p->margin = margin_b;
}

void pair_samples_logits(pair_samples *s, int64_t position, const double *a, const double *b, int64_t n,
                         int64_t target) {
  metrics_logits(&s->logits[position], a, b, (size_t)n, target);
  s->has_target[position] = target >= 0;
}

int64_t pair_samples_flips(const pair_samples *s, int64_t position) {
  int64_t flips = 0;
  for (int64_t l = 0; l < s->n_layers; l++) flips += s->layer[l * s->n_positions + position].flips;
  return flips;
}

// The spread of one double of each of n records, `stride` bytes apart.
static status spread_of(spread *out, const double *first, size_t stride, int64_t n) {
  double *values;
  TRY(TAKE(&values, (size_t)n, "a spread"));
  for (int64_t i = 0; i < n; i++)
    values[i] = *(const double *)(const void *)((const char *)first + (size_t)i * stride);
  status result = metrics_spread(out, values, (size_t)n);
  free(values);
  return result;
}

// NaN is the worst.
static double worse(double x, double y) {
  return !isnan(x) && (isnan(y) || y > x) ? y : x;
}

// Of the positions where both have the same experts.
static void reduce_same(const layer_point *p, int64_t n, layer_statistics *out) {
  for (int64_t i = 0; i < n; i++) {
    if (p[i].flips) continue;
    bool first = !out->same_experts++;
    out->same_rel_l2 = first ? p[i].row.rel_l2 : worse(out->same_rel_l2, p[i].row.rel_l2);
    out->same_one_minus_cos =
        first ? p[i].row.one_minus_cos : worse(out->same_one_minus_cos, p[i].row.one_minus_cos);
  }
}

static status reduce_layer(const pair_samples *s, int64_t layer, layer_statistics *out, bool *finite) {
  const layer_point *p = s->layer + layer * s->n_positions;
  int64_t n = s->n_positions;
  *out = (layer_statistics){.layer = (int32_t)layer, .min_margin = (double)INFINITY};
  out->flip_margin = out->same_rel_l2 = out->same_one_minus_cos = (double)NAN;
  reduce_same(p, n, out);
  TRY(spread_of(&out->rel_l2, &p->row.rel_l2, sizeof *p, n));
  TRY(spread_of(&out->one_minus_cos, &p->row.one_minus_cos, sizeof *p, n));
  TRY(spread_of(&out->max_abs, &p->row.max_abs, sizeof *p, n));
  TRY(spread_of(&out->max_rel, &p->row.max_rel, sizeof *p, n));
  TRY(spread_of(&out->max_ulp, &p->row.max_ulp, sizeof *p, n));
  for (int64_t i = 0; i < n; i++) {
    *finite = *finite && p[i].row.finite;
    out->min_margin = fmin(out->min_margin, p[i].margin);
    if (!p[i].flips) continue;
    out->router_flips += p[i].flips;
    out->flipped_tokens++;
    out->flip_margin = fmax(out->flip_margin, p[i].margin); // fmax ignores the NaN that it starts from
  }
  return 0;
}

static void reduce_targets(const pair_samples *s, pair_statistics *out) {
  double sum_a = 0, sum_b = 0;
  int64_t agrees = 0, targets = 0;
  for (int64_t i = 0; i < s->n_positions; i++) {
    agrees += s->logits[i].top1_agrees;
    out->flat_a += s->logits[i].flat_a;
    out->flat_b += s->logits[i].flat_b;
    if (!s->has_target[i]) continue;
    targets++;
    sum_a += s->logits[i].nll_a;
    sum_b += s->logits[i].nll_b;
  }
  out->top1_agreement = (double)agrees / (double)s->n_positions;
  out->top1_error = sqrt(out->top1_agreement * (1 - out->top1_agreement) / (double)(s->n_positions - 1));
  out->perplexity_delta = (double)NAN;
  if (targets)
    out->perplexity_delta = num_exp_f64(sum_a / (double)targets) - num_exp_f64(sum_b / (double)targets);
}

// Of the positions with a next token.
static status reduce_changes(const pair_samples *s, pair_statistics *out) {
  double *values;
  size_t n = 0;
  status result;
  TRY(TAKE(&values, (size_t)s->n_positions, "a pair's changes"));
  for (int64_t i = 0; i < s->n_positions; i++)
    if (s->has_target[i]) values[n++] = s->logits[i].delta_p;
  TRY_DONE(result, distribution_of(&out->delta_p, values, n));
  n = 0;
  for (int64_t i = 0; i < s->n_positions; i++)
    if (s->has_target[i]) values[n++] = s->logits[i].nll_a - s->logits[i].nll_b;
  TRY_DONE(result, distribution_of(&out->nll_delta, values, n));
  for (int64_t i = 0; i < s->n_positions; i++) values[i] = s->logits[i].kl;
  result = distribution_of(&out->kl_spread, values, (size_t)s->n_positions);
done:
  free(values);
  return result;
}

status pair_samples_reduce(const pair_samples *s, pair_statistics *out) {
  const logit_metrics *p = s->logits;
  int64_t n = s->n_positions;
  out->finite = true;
  out->flat_a = out->flat_b = 0;
  TRY(spread_of(&out->rel_l2, &p->row.rel_l2, sizeof *p, n));
  TRY(spread_of(&out->one_minus_cos, &p->row.one_minus_cos, sizeof *p, n));
  TRY(spread_of(&out->max_abs, &p->row.max_abs, sizeof *p, n));
  TRY(spread_of(&out->max_rel, &p->row.max_rel, sizeof *p, n));
  TRY(spread_of(&out->max_ulp, &p->row.max_ulp, sizeof *p, n));
  TRY(spread_of(&out->kl, &p->kl, sizeof *p, n));
  for (int64_t i = 0; i < n; i++) out->finite = out->finite && p[i].row.finite;
  for (int64_t l = 0; l < s->n_layers; l++) TRY(reduce_layer(s, l, &out->layers[l], &out->finite));
  reduce_targets(s, out);
  return reduce_changes(s, out);
}
