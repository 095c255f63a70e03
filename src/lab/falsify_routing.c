// Experiment 10: does the router's margin, measured in the error of its logits, explain the flips?
#include "base/memory.h"
#include "src/lab/falsify_pass.h"
#include "src/lab/flip_model.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  double n, flips, predicted;
} bin;

typedef struct {
  pass p;
  const experiment_input *edges; // of margin / s
  int64_t n_experts, top_k;
  double *truth; // router logits [max_batch][n_experts]
  bin bins[CONFIG_MAX_ARMS][EXPERIMENT_VALUES + 1];
  double without_error[CONFIG_MAX_ARMS]; // decisions whose logits are equal
  bool *chosen[2];                       // [n_experts] of the truth, of an arm
} flips;

// sqrt(2) times the standard deviation over experts of a - b: the size of the error of a difference of two
// logits. What moves all experts alike moves no choice.
static double error_size(const double *a, const double *b, int64_t n) {
  double mean = 0, sum = 0;
  for (int64_t e = 0; e < n; e++) mean += (a[e] - b[e]) / (double)n;
  for (int64_t e = 0; e < n; e++) sum += (a[e] - b[e] - mean) * (a[e] - b[e] - mean);
  return n > 1 ? sqrt(2 * sum / (double)(n - 1)) : 0;
}

static void decide(flips *f, size_t a, const double *mine, const double *truth) {
  double margin = flip_choose(f->chosen[0], truth, f->n_experts, f->top_k),
         s = error_size(mine, truth, f->n_experts);
  flip_choose(f->chosen[1], mine, f->n_experts, f->top_k);
  bool flipped = memcmp(f->chosen[0], f->chosen[1], (size_t)f->n_experts * sizeof(bool)) != 0;
  if (!(s > 0)) {
    f->without_error[a]++;
    return;
  }
  size_t at = 0;
  while (at < f->edges->count && margin / s >= f->edges->value[at]) at++;
  bin *b = &f->bins[a][at];
  b->n++;
  b->flips += flipped;
  b->predicted += flip_chance(truth, f->chosen[0], f->n_experts, margin, s / sqrt(2));
}

static status take_layer(void *context, int64_t layer, const token_batch *batch, int64_t first) {
  flips *f = context;
  const double *logits;
  size_t width = (size_t)f->n_experts;
  (void)layer, (void)first;
  TRY(arm_probe_take(f->p.arm[f->p.truth], PROBE_FFN_MOE_LOGITS, &logits));
  if (logits) memcpy(f->truth, logits, (size_t)batch->n * width * sizeof *logits);
  for (size_t a = 0; a < f->p.n_arms; a++) {
    if (a == f->p.truth) continue;
    TRY(arm_probe_take(f->p.arm[a], PROBE_FFN_MOE_LOGITS, &logits));
    for (int64_t t = 0; t < batch->n && logits; t++)
      decide(f, a, logits + (size_t)t * width, f->truth + (size_t)t * width);
  }
  return 0;
}

static void add_arm(const flips *f, experiment_result *out, size_t a) {
  const char *prefix = f->p.prefix[a];
  bin all = {0, 0, 0};
  for (size_t i = 0; i <= f->edges->count; i++) {
    const bin *b = &f->bins[a][i];
    all.n += b->n;
    all.flips += b->flips;
    all.predicted += b->predicted;
    if (i < f->edges->count)
      experiment_add(out, b->n, "%s_below_%g_decisions", prefix, f->edges->value[i]);
    else
      experiment_add(out, b->n, "%s_beyond_decisions", prefix);
    const char *name = i < f->edges->count ? "below" : "beyond";
    double edge = i < f->edges->count ? f->edges->value[i] : f->edges->value[i - 1];
    experiment_add(out, b->flips, "%s_%s_%g_flips", prefix, name, edge);
    experiment_add(out, b->predicted, "%s_%s_%g_predicted", prefix, name, edge);
  }
  experiment_add(out, all.n + f->without_error[a], "%s_decisions", prefix);
  experiment_add(out, all.flips, "%s_flips", prefix);
  experiment_add(out, all.predicted, "%s_predicted", prefix);
  experiment_add(out, (all.flips + 1) / (all.predicted + 1), "%s_flips_over_model", prefix);
}

static status flips_open(flips *f, const experiment *e) {
  const model_shape *s = &f->p.j.m->weights.shape;
  f->edges = experiment_find_input(e, "bins");
  for (size_t i = 1; i < f->edges->count; i++)
    if (!(f->edges->value[i] > f->edges->value[i - 1]))
      return REFUSE("experiment %d: input.bins: expected ascending numbers", e->id);
  if (!f->edges->count) return REFUSE("experiment %d: input.bins: expected numbers", e->id);
  f->n_experts = s->n_experts;
  f->top_k = s->top_k;
  TRY(TAKE(&f->truth, (size_t)(f->p.j.max_batch * s->n_experts), "router logits"));
  TRY(TAKE(&f->chosen[0], (size_t)s->n_experts, "chosen experts"));
  return TAKE(&f->chosen[1], (size_t)s->n_experts, "chosen experts");
}

static void flips_close(flips *f) {
  free(f->truth);
  free(f->chosen[0]);
  free(f->chosen[1]);
  pass_close(&f->p);
}

status falsify_routing(falsify_lab *lab, experiment_result *out) {
  flips f = {.n_experts = 0};
  const step_observer observer = {&f, NULL, take_layer, NULL};
  status result;
  TRY_DONE(result, pass_open(&f.p, lab, out, 1u << PROBE_FFN_MOE_LOGITS, false));
  TRY_DONE(result, job_agree(lab->j, flips_open(&f, out->settings), "the bins of flips"));
  TRY_DONE(result, pass_run(&f.p, MODE_FREE, &observer));
  for (size_t a = 0; a < f.p.n_arms && job_is_reporting(lab->j); a++)
    if (pass_is_measured(&f.p, a)) add_arm(&f, out, a);
done:
  flips_close(&f);
  return result;
}
