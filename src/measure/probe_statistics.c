#include "src/measure/probe_statistics.h"
#include "base/memory.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

status probe_samples_open(probe_samples *out, int64_t n_layers, int64_t n_positions) {
  *out = (probe_samples){.n_layers = n_layers, .n_positions = n_positions};
  return TAKE(&out->at, (size_t)(n_layers * n_positions), "a probe's samples");
}

void probe_samples_close(probe_samples *s) {
  if (s) free(s->at);
}

void probe_samples_add(probe_samples *s, int64_t layer, int64_t position, const double *a, const double *b,
                       int64_t width) {
  metrics m;
  metrics_row(&m, a, b, (size_t)width);
  s->at[layer * s->n_positions + position] = (probe_sample){m.rel_l2, m.one_minus_cos, m.max_abs, true};
}

// The positions are those that have the probe; `worst` is turned back into a position of all.
static status reduce(spread *out, const probe_sample *p, int64_t n, size_t offset, double *values,
                     int64_t *position) {
  size_t m = 0;
  for (int64_t i = 0; i < n; i++) {
    if (!p[i].has) continue;
    position[m] = i;
    values[m++] = *(const double *)(const void *)((const char *)&p[i] + offset);
  }
  *out = (spread){.min = NAN, .median = NAN, .max = NAN};
  if (!m) return 0;
  TRY(metrics_spread(out, values, m));
  out->worst = position[out->worst];
  return 0;
}

status probe_samples_reduce(const probe_samples *s, int64_t layer, probe_statistics *out) {
  const probe_sample *p = s->at + layer * s->n_positions;
  int64_t n = s->n_positions, *position = NULL;
  double *values = NULL;
  status result;
  out->layer = (int32_t)layer;
  out->n = 0;
  for (int64_t i = 0; i < n; i++) out->n += p[i].has;
  TRY_DONE(result, TAKE(&values, (size_t)n, "a probe's spread"));
  TRY_DONE(result, TAKE(&position, (size_t)n, "a probe's spread"));
  TRY_DONE(result, reduce(&out->rel_l2, p, n, offsetof(probe_sample, rel_l2), values, position));
  TRY_DONE(result,
           reduce(&out->one_minus_cos, p, n, offsetof(probe_sample, one_minus_cos), values, position));
  result = reduce(&out->max_abs, p, n, offsetof(probe_sample, max_abs), values, position);
done:
  free(values);
  free(position);
  return result;
}

// ---- experts ----

status expert_samples_open(expert_samples *out, int64_t n_layers, int64_t n_experts, int64_t top_k,
                           int64_t width) {
  *out = (expert_samples){.n_layers = n_layers, .n_experts = n_experts};
  TRY(TAKE(&out->at, (size_t)(n_layers * n_experts), "the map of experts"));
  for (int64_t i = 0; i < n_layers * n_experts; i++) out->at[i].finite = true;
  for (int i = 0; i < 2; i++) TRY(TAKE(&out->joined[i], (size_t)(top_k * width), "slots of one position"));
  return 0;
}

void expert_samples_close(expert_samples *s) {
  if (!s) return;
  free(s->at);
  free(s->joined[0]);
  free(s->joined[1]);
}

static int64_t slot_of(const expert_global *experts, int64_t k, int32_t id) {
  for (int64_t i = 0; i < k; i++)
    if (experts[i].id == id) return i;
  return -1;
}

static void add_slot(expert_sample *e, const double *a, const double *b, int64_t width) {
  metrics m;
  metrics_row(&m, a, b, (size_t)width);
  e->matched++;
  e->finite = e->finite && m.finite;
  for (int64_t i = 0; i < width; i++) {
    e->difference += (a[i] - b[i]) * (a[i] - b[i]);
    e->norm += b[i] * b[i];
  }
  e->worst_rel_l2 = m.rel_l2 > e->worst_rel_l2 ? m.rel_l2 : e->worst_rel_l2;
}

void expert_samples_add(expert_samples *s, int64_t layer, const double *a, const double *b, int64_t width,
                        const expert_global *experts_a, const expert_global *experts_b, int64_t k) {
  expert_sample *of_layer = s->at + layer * s->n_experts;
  for (int64_t i = 0; i < k; i++) of_layer[experts_a[i].id].hits_a++;
  for (int64_t i = 0; i < k; i++) {
    expert_sample *e = &of_layer[experts_b[i].id];
    int64_t from = slot_of(experts_a, k, experts_b[i].id);
    e->hits_b++;
    if (from >= 0) add_slot(e, a + from * width, b + i * width, width);
  }
}

void probe_slots_add(probe_samples *s, expert_samples *scratch, int64_t layer, int64_t position,
                     const double *a, const double *b, int64_t width, const expert_global *experts_a,
                     const expert_global *experts_b, int64_t k) {
  int64_t n = 0;
  size_t bytes = (size_t)width * sizeof *a;
  for (int64_t i = 0; i < k; i++) {
    int64_t from = slot_of(experts_a, k, experts_b[i].id);
    if (from < 0) continue;
    memcpy(scratch->joined[0] + n * width, a + from * width, bytes);
    memcpy(scratch->joined[1] + n++ * width, b + i * width, bytes);
  }
  if (n) probe_samples_add(s, layer, position, scratch->joined[0], scratch->joined[1], n * width);
}

double expert_rel_l2(const expert_sample *e) {
  if (!e->finite) return (double)NAN;
  return e->matched ? sqrt(e->difference / fmax(e->norm, 1e-300)) : 0;
}
