#include "src/lab/pair_figures.h"
#include "base/memory.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

// ---- open and close ----

static bool is_per_slot(const pair_figures *f) {
  bool any = false;
  for (size_t i = 0; i < f->n_probes; i++) any = any || probe_get(f->probe[i])->per_slot;
  return any;
}

static status open_arms(pair_figures *f) {
  const model_shape *s = &f->j->m->weights.shape;
  size_t n = (size_t)f->j->max_batch;
  for (size_t a = 0; a < f->n_arms; a++) {
    TRY(TAKE(&f->stream[a], n * (size_t)s->hidden, "a layer's rows"));
    TRY(TAKE(&f->chosen[a], n * (size_t)s->top_k, "a layer's experts"));
    TRY(TAKE(&f->logits[a], (size_t)s->vocabulary, "a row of logits"));
  }
  return TAKE(&f->nll, f->n_arms, "sums over positions");
}

static status open_samples(pair_figures *f) {
  const model_shape *s = &f->j->m->weights.shape;
  int64_t n = f->j->n_tokens, width = s->hidden > s->expert_width ? s->hidden : s->expert_width;
  TRY(TAKE(&f->samples, f->n_pairs, "the comparisons"));
  TRY(TAKE(&f->probes, f->n_pairs * f->n_probes, "the comparisons"));
  TRY(TAKE(&f->experts, f->n_pairs, "the comparisons"));
  for (size_t i = 0; i < f->n_pairs; i++) {
    TRY(pair_samples_open(&f->samples[i], s->n_layers, n));
    if (is_per_slot(f)) TRY(expert_samples_open(&f->experts[i], s->n_layers, s->n_experts, s->top_k, width));
    for (size_t p = 0; p < f->n_probes; p++)
      TRY(probe_samples_open(&f->probes[i * f->n_probes + p], s->n_layers, n));
  }
  return 0;
}

static status open_local(pair_figures *f) {
  for (size_t a = 0; a < f->n_arms; a++) {
    TRY(arm_probes_open(f->arms[a], f->wanted));
    TRY(arm_probes_want(f->arms[a], f->wanted));
  }
  if (!job_is_reporting(f->j)) return 0;
  TRY(open_arms(f));
  return open_samples(f);
}

status pair_figures_open(pair_figures *out, job *j, arm *const *arms, size_t n_arms,
                         const pair_statistics *pair, size_t n_pairs, parity_mode mode, bool imposes,
                         account_samples *accounts) {
  *out = (pair_figures){.j = j,
                        .arms = arms,
                        .n_arms = n_arms,
                        .n_pairs = n_pairs,
                        .reference = arms_reference(&j->cfg->run.arms),
                        .mode = mode,
                        .imposes = imposes || parity_mode_imposes_routing(mode),
                        .pair = pair,
                        .wanted = j->cfg->parity.probes,
                        .accounts = accounts};
  for (int p = 0; p < PROBE_COUNT; p++)
    if (out->wanted >> p & 1) out->probe[out->n_probes++] = (probe_point)p;
  if (out->imposes) out->wanted |= 1u << PROBE_FFN_MOE_TOPK;
  return job_agree(j, open_local(out), "opening the comparison");
}

void pair_figures_close(pair_figures *f) {
  for (size_t a = 0; a < CONFIG_MAX_ARMS; a++) {
    free(f->stream[a]);
    free(f->chosen[a]);
    free(f->logits[a]);
  }
  for (size_t i = 0; i < f->n_pairs; i++) {
    if (f->samples) pair_samples_close(&f->samples[i]);
    if (f->experts) expert_samples_close(&f->experts[i]);
    for (size_t p = 0; p < f->n_probes && f->probes; p++)
      probe_samples_close(&f->probes[i * f->n_probes + p]);
  }
  free(f->nll);
  free(f->samples);
  free(f->probes);
  free(f->experts);
}

// ---- probes ----

static void compare_rows(pair_figures *f, size_t p, int64_t layer, const token_batch *batch, int64_t first,
                         const double *const *rows) {
  const model_shape *s = &f->j->m->weights.shape;
  int64_t width = probe_width(f->probe[p], s), k = s->top_k;
  bool per_slot = probe_get(f->probe[p])->per_slot;
  for (size_t i = 0; i < f->n_pairs; i++) {
    size_t a = f->pair[i].a, b = f->pair[i].b;
    probe_samples *samples = &f->probes[i * f->n_probes + p];
    for (int64_t t = 0; t < batch->n; t++) {
      const double *of_a = rows[a] + t * width * (per_slot ? k : 1),
                   *of_b = rows[b] + t * width * (per_slot ? k : 1);
      if (!per_slot) {
        probe_samples_add(samples, layer, first + t, of_a, of_b, width);
        continue;
      }
      const expert_global *ea = arm_experts(f->arms[a], t), *eb = arm_experts(f->arms[b], t);
      probe_slots_add(samples, &f->experts[i], layer, first + t, of_a, of_b, width, ea, eb, k);
      if (f->probe[p] == PROBE_FFN_MOE_DOWN)
        expert_samples_add(&f->experts[i], layer, of_a, of_b, width, ea, eb, k);
    }
  }
}

static status take_probes(pair_figures *f, int64_t layer, const token_batch *batch, int64_t first) {
  for (size_t p = 0; p < f->n_probes; p++) {
    const double *rows[CONFIG_MAX_ARMS] = {NULL};
    for (size_t a = 0; a < f->n_arms; a++) TRY(arm_probe_take(f->arms[a], f->probe[p], &rows[a]));
    if (job_is_reporting(f->j)) compare_rows(f, p, layer, batch, first, rows);
  }
  return 0;
}

// What each arm would choose: where a routing is imposed, that is not what arm_experts has.
static status take_choices(pair_figures *f, const token_batch *batch) {
  int64_t k = f->j->m->weights.shape.top_k;
  for (size_t a = 0; a < f->n_arms; a++) {
    const double *own = NULL;
    if (f->imposes) TRY(arm_probe_take(f->arms[a], PROBE_FFN_MOE_TOPK, &own));
    if (!job_is_reporting(f->j)) continue;
    for (int64_t t = 0; t < batch->n; t++)
      for (int64_t s = 0; s < k; s++)
        f->chosen[a][t * k + s] =
            own ? (expert_global){(int32_t)own[t * k + s]} : arm_experts(f->arms[a], t)[s];
  }
  return 0;
}

// ---- layers ----

static void account_rows(pair_figures *f, int64_t step, const token_batch *batch, int64_t first) {
  const model_shape *s = &f->j->m->weights.shape;
  bool is_last = step == s->n_layers;
  for (size_t i = 0; i < f->n_pairs && f->accounts; i++)
    for (int64_t t = 0; t < batch->n; t++) {
      const double *a = f->stream[f->pair[i].a] + t * s->hidden, *b = f->stream[f->pair[i].b] + t * s->hidden;
      const double *truth = f->stream[f->reference] + t * s->hidden;
      switch (f->mode) {
      case MODE_TEACHER:
        account_samples_local(&f->accounts[i], step, first + t, t, a, b,
                              step && !f->imposes && // imposed routes: both computed the same experts
                                  f->samples[i].layer[(step - 1) * f->j->n_tokens + first + t].flips > 0);
        break;
      case MODE_FREE:
        if (is_last) account_samples_run(&f->accounts[i], ACCOUNT_FREE, first + t, a, b, truth);
        break;
      case MODE_FORCED:
        if (is_last) account_samples_run(&f->accounts[i], ACCOUNT_FORCED, first + t, a, b, truth);
        break;
      case MODE_LOCAL: // the account's local errors have the arm's own routing
        break;
      }
    }
}

static status read_streams(pair_figures *f) {
  for (size_t a = 0; a < f->n_arms; a++) TRY(arm_stream_read(f->arms[a], f->stream[a]));
  return 0;
}

status pair_figures_embedded(void *figures, const token_batch *batch, int64_t first) {
  pair_figures *f = figures;
  if (!job_is_reporting(f->j) || f->mode != MODE_TEACHER || !f->accounts) return 0;
  TRY(read_streams(f));
  account_rows(f, 0, batch, first);
  return 0;
}

static status compare_layer(pair_figures *f, int64_t layer, const token_batch *batch, int64_t first) {
  int64_t hidden = f->j->m->weights.shape.hidden, k = f->j->m->weights.shape.top_k;
  TRY(read_streams(f));
  for (size_t i = 0; i < f->n_pairs; i++) {
    size_t a = f->pair[i].a, b = f->pair[i].b;
    for (int64_t t = 0; t < batch->n; t++)
      pair_samples_layer(&f->samples[i], layer, first + t, f->stream[a] + t * hidden,
                         f->stream[b] + t * hidden, hidden, f->chosen[a] + t * k, f->chosen[b] + t * k,
                         (int)k, arm_margin(f->arms[b], t));
  }
  account_rows(f, layer + 1, batch, first);
  return 0;
}

status pair_figures_layer(void *figures, int64_t layer, const token_batch *batch, int64_t first) {
  pair_figures *f = figures;
  TRY(take_choices(f, batch));
  TRY(take_probes(f, layer, batch, first));
  return job_is_reporting(f->j) ? compare_layer(f, layer, batch, first) : 0;
}

// ---- logits ----

static int64_t target_of(const job *j, int64_t sequence, int64_t position) {
  const token_sequence *s = &j->sequences[sequence];
  return position + 1 < s->n ? s->tokens[position + 1] : -1;
}

static void compare_logit_row(pair_figures *f, const token_batch *batch, int64_t first, int64_t t,
                              int64_t i) {
  int64_t vocabulary = f->j->m->weights.shape.vocabulary;
  int64_t target = target_of(f->j, batch->sequence[t], batch->position[t]);
  for (size_t a = 0; a < f->n_arms; a++) arm_logits(f->arms[a], i, f->logits[a]);
  for (size_t n = 0; n < f->n_pairs; n++)
    pair_samples_logits(&f->samples[n], first + t, f->logits[f->pair[n].a], f->logits[f->pair[n].b],
                        vocabulary, target);
  for (size_t a = 0; a < f->n_arms && target >= 0; a++) {
    logit_metrics m;
    metrics_logits(&m, f->logits[a], f->logits[a], (size_t)vocabulary, target);
    f->nll[a] += m.nll_a;
  }
}

status pair_figures_logits(void *figures, const token_batch *batch, int64_t first, int64_t from,
                           int64_t count) {
  pair_figures *f = figures;
  for (int64_t i = 0; i < count && job_is_reporting(f->j); i++)
    compare_logit_row(f, batch, first, from + i, i);
  return 0;
}

// ---- results ----

static status reduce_probes(const pair_figures *f, size_t pair, pair_statistics *out) {
  int64_t n_layers = f->j->m->weights.shape.n_layers;
  out->n_probes = f->n_probes;
  if (!f->n_probes) return 0;
  TRY(TAKE(&out->probes, (size_t)n_layers * f->n_probes, "a pair's probes"));
  for (int64_t l = 0; l < n_layers; l++)
    for (size_t p = 0; p < f->n_probes; p++) {
      probe_statistics *s = &out->probes[(size_t)l * f->n_probes + p];
      s->point = f->probe[p];
      TRY(probe_samples_reduce(&f->probes[pair * f->n_probes + p], l, s));
    }
  return 0;
}

static status copy_experts(const pair_figures *f, size_t pair, pair_statistics *out) {
  const expert_samples *e = &f->experts[pair];
  size_t n = (size_t)(e->n_layers * e->n_experts);
  if (!(f->wanted >> PROBE_FFN_MOE_DOWN & 1)) return 0;
  TRY(TAKE(&out->experts, n, "a pair's experts"));
  memcpy(out->experts, e->at, n * sizeof *out->experts);
  return 0;
}

status pair_figures_reduce(const pair_figures *f, pair_statistics *out) {
  for (size_t i = 0; i < f->n_pairs; i++) {
    TRY(pair_samples_reduce(&f->samples[i], &out[i]));
    TRY(reduce_probes(f, i, &out[i]));
    TRY(copy_experts(f, i, &out[i]));
    pair_figures_first(&out[i], f->j->m->weights.shape.n_layers, &f->j->cfg->parity.bounds);
  }
  return 0;
}

// The bound of a layer of a probe goes before that of the probe, and this before the default; NaN: none.
static double bound_of(const bound_list *bounds, probe_point point, int64_t layer) {
  double bound = (double)NAN;
  int best = -1;
  for (size_t i = 0; i < bounds->count; i++) {
    const config_bound *b = &bounds->bound[i];
    bool fits =
        (b->point == BOUND_ANY || b->point == (int)point) && (b->layer == BOUND_ANY || b->layer == layer);
    int fit = (b->point != BOUND_ANY) + (b->layer != BOUND_ANY);
    if (fits && fit > best) {
      best = fit;
      bound = b->bound;
    }
  }
  return bound;
}

static void try_point(first_above *first, const bound_list *bounds, probe_point point, int32_t layer,
                      const spread *rel_l2) {
  double bound = bound_of(bounds, point, layer);
  if (first->found || isnan(bound) || rel_l2->max <= bound) return; // NaN is above
  *first = (first_above){true, layer, point, rel_l2->max, bound, rel_l2->worst};
}

void pair_figures_first(pair_statistics *p, int64_t n_layers, const bound_list *bounds) {
  p->first = (first_above){.found = false};
  for (int64_t l = 0; l < n_layers && !p->first.found; l++) {
    for (size_t i = 0; i < p->n_probes; i++) {
      const probe_statistics *s = &p->probes[(size_t)l * p->n_probes + i];
      if (s->n) try_point(&p->first, bounds, s->point, (int32_t)l, &s->rel_l2);
    }
    try_point(&p->first, bounds, PROBE_L_OUT, (int32_t)l, &p->layers[l].rel_l2);
  }
}
