#include "src/measure/arm_checks.h"
#include "base/memory.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

status arm_checks_open(arm_checks *out, int64_t n_layers, int64_t width, int64_t max_batch) {
  *out = (arm_checks){.n_layers = n_layers,
                      .width = width,
                      .least_expert = INT32_MAX,
                      .most_expert = -1,
                      .distinct_experts = true,
                      .finite = true};
  TRY(TAKE(&out->layer_rms, (size_t)n_layers, "an arm's checks"));
  TRY(TAKE(&out->layer_update, (size_t)n_layers, "an arm's checks"));
  for (int64_t l = 0; l < n_layers; l++) out->layer_rms[l] = out->layer_update[l] = (double)INFINITY;
  return TAKE(&out->before, (size_t)(max_batch * width), "an arm's checks");
}

void arm_checks_close(arm_checks *c) {
  free(c->layer_rms);
  free(c->layer_update);
  free(c->before);
  *c = (arm_checks){.before = NULL};
}

static bool all_finite(const double *x, int64_t n) {
  for (int64_t i = 0; i < n; i++)
    if (!isfinite(x[i])) return false;
  return true;
}

// Of x - y; y NULL: of x.
static double rms(const double *x, const double *y, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) {
    double d = y ? x[i] - y[i] : x[i];
    sum += d * d;
  }
  return sqrt(sum / (double)n);
}

void arm_checks_embedded(arm_checks *c, int64_t t, const double *stream) {
  c->finite = c->finite && all_finite(stream, c->width);
  memcpy(c->before + t * c->width, stream, (size_t)c->width * sizeof *stream);
}

static void check_routing(arm_checks *c, const expert_global *experts, const double *weights, int64_t k) {
  double sum = 0;
  for (int64_t i = 0; i < k; i++) {
    sum += weights[i];
    if (experts[i].id < c->least_expert) c->least_expert = experts[i].id;
    if (experts[i].id > c->most_expert) c->most_expert = experts[i].id;
    for (int64_t j = 0; j < i; j++)
      c->distinct_experts = c->distinct_experts && experts[i].id != experts[j].id;
  }
  c->finite = c->finite && all_finite(weights, k);
  double error = fabs(sum - 1);
  if (!isnan(c->weight_sum_error) && !(error <= c->weight_sum_error))
    c->weight_sum_error = error; // NaN stays
}

void arm_checks_layer(arm_checks *c, int64_t layer, int64_t t, const double *stream,
                      const expert_global *experts, const double *weights, int64_t k) {
  double *before = c->before + t * c->width;
  c->layer_rms[layer] = fmin(c->layer_rms[layer], rms(stream, NULL, c->width));
  c->layer_update[layer] = fmin(c->layer_update[layer], rms(stream, before, c->width));
  check_routing(c, experts, weights, k);
  arm_checks_embedded(c, t, stream);
}

void arm_checks_logits(arm_checks *c, const double *logits, int64_t n) {
  c->finite = c->finite && all_finite(logits, n);
}
