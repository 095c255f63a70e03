// Experiment 9: the local error of every layer and expert, in teacher mode.
#include "base/memory.h"
#include "src/lab/falsify_pass.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

typedef struct { // of sums over tokens: ||a - b||^2 and ||b||^2
  double error, size;
} square_sums;

typedef struct {
  pass p;
  int64_t n_layers, n_experts, top_k, hidden;
  double *before, *after,
      *mine;     // streams [max_batch][hidden]: the truth's before and after a layer, an arm's
  double *down;  // the truth's outputs of slots [max_batch * top_k][hidden]; reporting rank
  routing given; // the truth's
  // of each arm
  square_sums *expert[CONFIG_MAX_ARMS]; // [n_layers][n_experts]
  square_sums *layer[CONFIG_MAX_ARMS];  // [n_layers]
  int64_t *hits;                        // [n_layers][n_experts]
} teacher;

static status teacher_open(teacher *t, bool reports) {
  const model_shape *s = &t->p.j.m->weights.shape;
  size_t rows = (size_t)t->p.j.max_batch, map = (size_t)(s->n_layers * s->n_experts);
  t->n_layers = s->n_layers;
  t->n_experts = s->n_experts;
  t->top_k = s->top_k;
  t->hidden = s->hidden;
  TRY(TAKE(&t->before, rows * (size_t)s->hidden, "a layer's rows"));
  TRY(TAKE(&t->after, rows * (size_t)s->hidden, "a layer's rows"));
  TRY(TAKE(&t->mine, rows * (size_t)s->hidden, "a layer's rows"));
  TRY(TAKE(&t->given.expert, rows * (size_t)s->top_k, "the truth's routing"));
  TRY(TAKE(&t->hits, map, "the map of experts"));
  if (reports) TRY(TAKE(&t->down, rows * (size_t)(s->top_k * s->hidden), "the experts' outputs"));
  for (size_t a = 0; a < t->p.n_arms; a++) {
    TRY(TAKE(&t->expert[a], map, "the map of experts"));
    TRY(TAKE(&t->layer[a], (size_t)s->n_layers, "the map of layers"));
  }
  return 0;
}

static void teacher_close(teacher *t) {
  for (size_t a = 0; a < t->p.n_arms; a++) {
    free(t->expert[a]);
    free(t->layer[a]);
  }
  free(t->before);
  free(t->after);
  free(t->mine);
  free(t->down);
  free(t->given.expert);
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

static status truth_layer(teacher *t, int64_t layer, const token_batch *batch) {
  arm *a = t->p.arm[t->p.truth];
  const double *down;
  TRY(arm_stream_read(a, t->before));
  TRY(arm_layer(a, layer));
  TRY(arm_stream_read(a, t->after));
  TRY(arm_probe_take(a, PROBE_FFN_MOE_DOWN, &down));
  for (int64_t i = 0; i < batch->n; i++)
    memcpy(t->given.expert + i * t->top_k, arm_experts(a, i), (size_t)t->top_k * sizeof *t->given.expert);
  if (!down) return 0;
  memcpy(t->down, down, (size_t)(batch->n * t->top_k * t->hidden) * sizeof *down);
  for (int64_t i = 0; i < batch->n * t->top_k; i++) t->hits[layer * t->n_experts + t->given.expert[i].id]++;
  return 0;
}

static status other_layer(teacher *t, size_t index, int64_t layer, const token_batch *batch) {
  arm *a = t->p.arm[index];
  const double *down;
  TRY(arm_stream_write(a, t->before));
  TRY(arm_impose_routing(a, ROUTING_EXPERTS, &t->given));
  TRY(arm_layer(a, layer));
  TRY(arm_probe_take(a, PROBE_FFN_MOE_DOWN, &down));
  if (!down) return 0;
  TRY(arm_stream_read(a, t->mine));
  for (int64_t i = 0; i < batch->n; i++)
    add_squares(&t->layer[index][layer], t->mine + i * t->hidden, t->after + i * t->hidden,
                t->before + i * t->hidden, t->hidden);
  for (int64_t i = 0; i < batch->n * t->top_k; i++)
    add_squares(&t->expert[index][layer * t->n_experts + t->given.expert[i].id], down + i * t->hidden,
                t->down + i * t->hidden, NULL, t->hidden);
  return 0;
}

static status run_batch(teacher *t, const token_batch *batch) {
  for (size_t a = 0; a < t->p.n_arms; a++) TRY(arm_embed(t->p.arm[a], batch));
  for (int64_t layer = 0; layer < t->n_layers; layer++) {
    TRY(truth_layer(t, layer, batch));
    for (size_t a = 0; a < t->p.n_arms; a++)
      if (a != t->p.truth) TRY(other_layer(t, a, layer, batch));
  }
  return 0;
}

// ---- figures ----

static double rel_of(const square_sums *s) {
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

static status add_arm(const teacher *t, experiment_result *out, size_t a) {
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
static status add_map(const teacher *t, experiment_result *out) {
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
  TRY(TAKE(&out->expert_error, (size_t)map, "the map of experts"));
  TRY(TAKE(&out->expert_hits, (size_t)map, "the map of experts"));
  for (int64_t i = 0; i < map; i++) out->expert_error[i] = rel_of(&t->expert[shown][i]);
  memcpy(out->expert_hits, t->hits, (size_t)map * sizeof *t->hits);
  out->n_layers = t->n_layers;
  out->n_experts = t->n_experts;
  return 0;
}

static status add_figures(const teacher *t, experiment_result *out) {
  TRY(add_map(t, out));
  for (size_t a = 0; a < t->p.n_arms; a++)
    if (pass_is_measured(&t->p, a)) TRY(add_arm(t, out, a));
  return 0;
}

status falsify_experts(falsify_lab *lab, experiment_result *out) {
  teacher t = {.n_layers = 0};
  token_batch batch;
  bool reports = job_is_reporting(lab->j);
  status result;
  TRY_DONE(result, pass_open(&t.p, lab, out, 1u << PROBE_FFN_MOE_DOWN, false));
  TRY_DONE(result, job_agree(lab->j, teacher_open(&t, reports), "the map of experts"));
  while (pass_next(&t.p, &batch)) TRY_DONE(result, run_batch(&t, &batch));
  result = job_agree(lab->j, reports ? add_figures(&t, out) : 0, "the map of experts");
done:
  teacher_close(&t);
  return result;
}
