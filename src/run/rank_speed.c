#include "src/run/rank_speed.h"
#include "base/clock.h"
#include "base/memory.h"
#include "kernels/formats/numerics.h"

enum { EXPERTS = 8, TOKENS_EACH = 16, MOST = EXPERTS * TOKENS_EACH, RUNS = 3 };

typedef struct { // a model of one layer and a few experts of the whole one, each token with one expert
  model_weights weights;
  int32_t local[EXPERTS];
  expert_global expert[MOST];
  int64_t row_of_slot[MOST];
  int32_t zero[MOST];
  token_batch batch;
} sample;

static void sample_open(sample *s, const model *m) {
  *s = (sample){.weights = m->weights};
  model_shape *shape = &s->weights.shape;
  s->weights.layers = &m->weights.layers[shape->n_layers / 2];
  shape->n_layers = shape->top_k = 1;
  if (shape->n_experts > EXPERTS) shape->n_experts = EXPERTS;
  s->batch = (token_batch){shape->n_experts * TOKENS_EACH, s->zero, s->zero, s->zero};
  for (int64_t t = 0; t < s->batch.n; t++) {
    s->expert[t] = (expert_global){(int32_t)(t % shape->n_experts)};
    s->row_of_slot[t] = t;
  }
}

// Numbers from -1 to 1, as the normed rows of a model mostly are.
static status fill_inputs(backend *b, const path_info *path, const sample *s) {
  void *rows = b->ops->rows_host(b, ROWS_NORMED);
  for (int64_t i = 0; i < s->batch.n * s->weights.shape.hidden; i++) {
    double x = (double)(num_mix64((uint64_t)i) >> 11) * 0x1p-52 - 1;
    if (path->real_bytes == sizeof x)
      ((double *)rows)[i] = x;
    else
      ((float *)rows)[i] = (float)x;
  }
  return b->ops->rows_write(b, ROWS_NORMED, 0, s->batch.n);
}

static status time_experts(double *seconds, backend *b, sample *s) {
  const routing route = {.expert = s->expert};
  const slot_places places = {.order = SLOTS_PLACED, .row_of_slot = s->row_of_slot};
  double start = clock_seconds();
  TRY(b->ops->routing_write(b, 0, s->batch.n, ROUTING_EXPERTS, &route));
  TRY(b->ops->experts_up(b, 0, &s->batch));
  TRY(b->ops->experts_down(b, 0, &s->batch, &places));
  if (backend_is_on_device(b->ops)) TRY(b->ops->finish(b));
  *seconds = clock_seconds() - start;
  return 0;
}

static status time_runs(double *best, backend *b, sample *s) {
  TRY(time_experts(best, b, s)); // pages are read, kernels loaded
  TRY(time_experts(best, b, s));
  for (int i = 1; i < RUNS; i++) {
    double seconds;
    TRY(time_experts(&seconds, b, s));
    if (seconds < *best) *best = seconds;
  }
  return 0;
}

status rank_speed_measure(double *seconds, const model *m, const arm_spec *a, const topology *place,
                          int host_rank, const char *row) {
  sample s;
  sample_open(&s, m);
  backend_params p = {
      .weights = &s.weights,
      .shared = a->path->kind,
      .experts = a->path->kind,
      .map = expert_map_of_all(s.local, s.weights.shape.n_experts),
      .n_sequences = 1,
      .max_batch = s.batch.n,
      .threads = topology_threads(place),
      .host_rank = host_rank,
      .row = row,
  };
  backend *b;
  double best = 0;
  TRY(a->backend->open(&b, &p));
  status result = fill_inputs(b, a->path, &s);
  if (!result) result = time_runs(&best, b, &s);
  b->ops->close(b);
  *seconds += best;
  return result;
}
