// Experiment 9: the local error of every layer and expert, from the truth's stream, with its routing (mode
// local).
#include "base/memory.h"
#include "src/lab/falsify_pass.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { // of sums over tokens: ||a - b||^2 and ||b||^2
  double error, size;
} square_sums;

typedef struct {
  pass p;
  int64_t n_layers, n_experts, top_k, hidden;
  // all that follows on the reporting rank alone
  double *before, *after,
      *mine; // streams [max_batch][hidden]: the truth's before and after a layer, an arm's
  // of each arm
  square_sums *expert[CONFIG_MAX_ARMS]; // [n_layers][n_experts]
  square_sums *layer[CONFIG_MAX_ARMS];  // [n_layers]
  int64_t *hits;                        // [n_layers][n_experts]
} local_errors;

static status local_open(local_errors *t) {
  const model_shape *s = &t->p.j.m->weights.shape;
  size_t rows = (size_t)t->p.j.max_batch, map = (size_t)(s->n_layers * s->n_experts);
  t->n_layers = s->n_layers;
  t->n_experts = s->n_experts;
  t->top_k = s->top_k;
  t->hidden = s->hidden;
  TRY(TAKE(&t->before, rows * (size_t)s->hidden, "a layer's rows"));
  TRY(TAKE(&t->after, rows * (size_t)s->hidden, "a layer's rows"));
  TRY(TAKE(&t->mine, rows * (size_t)s->hidden, "a layer's rows"));
  TRY(TAKE(&t->hits, map, "the map of experts"));
  for (size_t a = 0; a < t->p.n_arms; a++) {
    TRY(TAKE(&t->expert[a], map, "the map of experts"));
    TRY(TAKE(&t->layer[a], (size_t)s->n_layers, "the map of layers"));
  }
  return 0;
}

static void local_close(local_errors *t) {
  for (size_t a = 0; a < t->p.n_arms; a++) {
    free(t->expert[a]);
    free(t->layer[a]);
  }
  free(t->before);
  free(t->after);
  free(t->mine);
  free(t->hits);
  pass_close(&t->p);
}

static void add_squares(square_sums *s, const double *a, const double *b, const double *base, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    double size = base ? b[i] - base[i] : b[i];
    s->error += (a[i] - b[i]) * (a[i] - b[i]);
    s->size += size * size;
  }
}

// ---- a layer ----

// Where the truth has the expert of an arm's slot, which takes the same experts in an order of its own.
static int64_t slot_of(const expert_global *of_truth, expert_global e, int64_t top_k) {
  int64_t s = 0;
  while (s < top_k - 1 && of_truth[s].id != e.id) s++;
  return s;
}

static void add_token(local_errors *t, size_t index, int64_t layer, int64_t token, const double *down,
                      const double *of_truth) {
  const expert_global *mine = arm_experts(t->p.arm[index], token),
                      *given = arm_experts(t->p.arm[t->p.truth], token);
  size_t stream = (size_t)(token * t->hidden);
  add_squares(&t->layer[index][layer], t->mine + stream, t->after + stream, t->before + stream, t->hidden);
  for (int64_t s = 0; s < t->top_k; s++) {
    int64_t own = token * t->top_k + s, other = token * t->top_k + slot_of(given, mine[s], t->top_k);
    add_squares(&t->expert[index][layer * t->n_experts + mine[s].id], down + own * t->hidden,
                of_truth + other * t->hidden, NULL, t->hidden);
  }
}

static status read_truth(void *context, const token_batch *batch, int64_t first) {
  local_errors *t = context;
  (void)batch, (void)first;
  return job_is_reporting(&t->p.j) ? arm_stream_read(t->p.arm[t->p.truth], t->after) : 0;
}

static status see_layer(void *context, int64_t layer, const token_batch *batch, int64_t first) {
  local_errors *t = context;
  const double *down[CONFIG_MAX_ARMS];
  double *before = t->after;
  for (size_t a = 0; a < t->p.n_arms; a++) TRY(arm_probe_take(t->p.arm[a], PROBE_FFN_MOE_DOWN, &down[a]));
  if (!job_is_reporting(&t->p.j)) return 0;
  t->after = t->before;
  t->before = before;
  TRY(read_truth(t, batch, first));
  for (int64_t i = 0; i < batch->n; i++)
    for (int64_t s = 0; s < t->top_k; s++)
      t->hits[layer * t->n_experts + arm_experts(t->p.arm[t->p.truth], i)[s].id]++;
  for (size_t a = 0; a < t->p.n_arms; a++) {
    if (a == t->p.truth) continue;
    TRY(arm_stream_read(t->p.arm[a], t->mine));
    for (int64_t i = 0; i < batch->n; i++) add_token(t, a, layer, i, down[a], down[t->p.truth]);
  }
  return 0;
}

// ---- figures ----

// NaN: there was nothing; infinite: something that is no number.
static double rel_of(const square_sums *s) {
  if (isnan(s->size) || isnan(s->error)) return (double)INFINITY;
  return s->size > 0 ? sqrt(s->error / s->size) : (double)NAN;
}

// Of the finite ones among n: *values holds *count of them.
static size_t finite_ones(double *values, const square_sums *s, int64_t n) {
  size_t count = 0;
  for (int64_t i = 0; i < n; i++)
    if (!isnan(rel_of(&s[i]))) values[count++] = rel_of(&s[i]);
  return count;
}

static int64_t worst_of(const square_sums *s, int64_t n) {
  int64_t worst = 0;
  for (int64_t i = 1; i < n; i++)
    if (isnan(rel_of(&s[worst])) || rel_of(&s[i]) > rel_of(&s[worst])) worst = i;
  return worst;
}

static status add_arm(const local_errors *t, experiment_result *out, size_t a) {
  const char *prefix = t->p.prefix[a];
  int64_t map = t->n_layers * t->n_experts, worst = worst_of(t->expert[a], map);
  double *values;
  TRY(TAKE(&values, (size_t)map, "the figures of experts"));
  size_t n = finite_ones(values, t->expert[a], map);
  if (n) {
    double median = draws_at(values, n, 0.5), largest = draws_at(values, n, 1);
    experiment_add(out, draws_at(values, n, 0), "%s_expert_min", prefix);
    experiment_add(out, median, "%s_expert_median", prefix);
    experiment_add(out, draws_at(values, n, 0.95), "%s_expert_p95", prefix);
    experiment_add(out, largest, "%s_expert_max", prefix);
    experiment_add(out, largest / median, "%s_expert_max_over_median", prefix);
    experiment_add(out, (double)(worst / t->n_experts), "%s_worst_expert_layer", prefix);
    experiment_add(out, (double)(worst % t->n_experts), "%s_worst_expert", prefix);
  }
  n = finite_ones(values, t->layer[a], t->n_layers);
  if (n) {
    double median = draws_at(values, n, 0.5), largest = draws_at(values, n, 1);
    experiment_add(out, median, "%s_layer_median", prefix);
    experiment_add(out, largest, "%s_layer_max", prefix);
    experiment_add(out, largest / median, "%s_layer_max_over_median", prefix);
    experiment_add(out, (double)worst_of(t->layer[a], t->n_layers), "%s_worst_layer", prefix);
  }
  for (int64_t l = 0; l < t->n_layers && t->n_layers <= 64; l++)
    experiment_add(out, rel_of(&t->layer[a][l]), "%s_layer_%d", prefix, (int)l);
  free(values);
  return 0;
}

// The map of the arm with the largest error in all.
static status add_map(const local_errors *t, experiment_result *out) {
  int64_t map = t->n_layers * t->n_experts, n_hit = 0;
  size_t shown = t->p.n_arms;
  double most = -1;
  for (size_t a = 0; a < t->p.n_arms; a++) {
    double worst = a == t->p.truth ? -1 : rel_of(&t->expert[a][worst_of(t->expert[a], map)]);
    if (worst > most) {
      most = worst;
      shown = a;
    }
  }
  for (int64_t i = 0; i < map; i++) n_hit += t->hits[i] > 0;
  experiment_add(out, (double)map, "experts");
  experiment_add(out, (double)n_hit, "experts_hit");
  if (shown == t->p.n_arms) return 0;
  experiment_note(out, "The map of layers and experts is that of %s", arm_name(t->p.arm[shown]));
  snprintf(out->expert_arm, sizeof out->expert_arm, "%s", arm_name(t->p.arm[shown]));
  TRY(TAKE(&out->expert_error, (size_t)map, "the map of experts"));
  TRY(TAKE(&out->expert_hits, (size_t)map, "the map of experts"));
  for (int64_t i = 0; i < map; i++) out->expert_error[i] = rel_of(&t->expert[shown][i]);
  memcpy(out->expert_hits, t->hits, (size_t)map * sizeof *t->hits);
  out->n_layers = t->n_layers;
  out->n_experts = t->n_experts;
  return 0;
}

static status add_figures(const local_errors *t, experiment_result *out) {
  TRY(add_map(t, out));
  for (size_t a = 0; a < t->p.n_arms; a++)
    if (pass_is_measured(&t->p, a)) TRY(add_arm(t, out, a));
  return 0;
}

status falsify_experts(falsify_lab *lab, experiment_result *out) {
  local_errors t = {.n_layers = 0};
  const step_observer observer = {&t, read_truth, see_layer, NULL};
  bool reports = job_is_reporting(lab->j);
  status result;
  TRY_DONE(result, pass_open(&t.p, lab, out, 1u << PROBE_FFN_MOE_DOWN, false));
  TRY_DONE(result, job_agree(lab->j, reports ? local_open(&t) : 0, "the map of experts"));
  TRY_DONE(result, pass_run(&t.p, MODE_LOCAL, &observer));
  result = job_agree(lab->j, reports ? add_figures(&t, out) : 0, "the map of experts");
done:
  local_close(&t);
  return result;
}
