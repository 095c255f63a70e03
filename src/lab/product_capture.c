#include "src/lab/product_capture.h"
#include "base/memory.h"
#include <inttypes.h>
#include <stdlib.h>

typedef struct {
  job *j;
  arm *a;
  probe_point point;
  int64_t layer, width, rows_per_token;
  float *x;
  int64_t n; // rows so far
} capture;

static status check(const job *j, probe_point point, int64_t layer, int64_t width) {
  const probe_info *info = probe_get(point);
  int64_t found = probe_width(point, &j->m->weights.shape);
  if (info->is_ids) return REFUSE("bisect.activations: %s holds ids, no activations", info->name);
  if ((info->scope == PROBE_OF_LAYER) != (layer >= 0))
    return REFUSE("bisect.activations: %s is %s a layer, but the tensor is %s one", info->name,
                  info->scope == PROBE_OF_LAYER ? "a probe of" : "no probe of", layer >= 0 ? "of" : "of no");
  if (found != width)
    return REFUSE("bisect.activations: %s has %" PRId64 " numbers, expected the tensor's %" PRId64 " columns",
                  info->name, found, width);
  return 0;
}

static status take(capture *c, int64_t n_tokens) {
  const double *numbers;
  TRY(arm_probe_take(c->a, c->point, &numbers));
  int64_t rows = n_tokens * c->rows_per_token;
  for (int64_t i = 0; i < rows * c->width && numbers; i++) c->x[c->n * c->width + i] = (float)numbers[i];
  c->n += rows;
  return 0;
}

static status run_batch(capture *c, const token_batch *batch) {
  probe_scope scope = probe_get(c->point)->scope;
  uint32_t point = 1u << c->point;
  TRY(arm_probes_want(c->a, scope == PROBE_OF_BATCH ? point : 0));
  TRY(arm_embed(c->a, batch));
  if (scope == PROBE_OF_BATCH) return take(c, batch->n);
  int64_t last = scope == PROBE_OF_LAYER ? c->layer : c->j->m->weights.shape.n_layers - 1;
  for (int64_t layer = 0; layer <= last; layer++) {
    TRY(arm_probes_want(c->a, layer == c->layer ? point : 0));
    TRY(arm_layer(c->a, layer));
  }
  if (scope == PROBE_OF_LAYER) return take(c, batch->n);
  TRY(arm_probes_want(c->a, point));
  for (int64_t first = 0; first < batch->n; first += LOGIT_ROWS) {
    int64_t count = batch->n - first < LOGIT_ROWS ? batch->n - first : LOGIT_ROWS;
    TRY(arm_head(c->a, first, count));
    TRY(take(c, count));
  }
  return 0;
}

static status run_input(capture *c) {
  batcher batches;
  token_batch batch;
  status result = batcher_open(&batches, c->j->sequences, c->j->n_sequences, c->j->chunk);
  while (!result && batcher_next(&batches, &batch)) result = run_batch(c, &batch);
  batcher_close(&batches);
  return result;
}

static status open_room(capture *c) {
  size_t rows = (size_t)(c->j->n_tokens * c->rows_per_token);
  TRY(arm_probes_open(c->a, 1u << c->point));
  return job_is_reporting(c->j) ? TAKE(&c->x, rows * (size_t)c->width, "captured activations") : 0;
}

status product_capture(float **x, int64_t *n, job *j, const arm_choice *choice, probe_point point,
                       int64_t layer, int64_t width) {
  bool per_slot = probe_get(point)->per_slot;
  capture c = {.j = j, .point = point, .layer = layer, .width = width};
  status result;
  c.rows_per_token = per_slot ? j->m->weights.shape.top_k : 1;
  *x = NULL;
  TRY(job_agree(j, check(j, point, layer, width), "the captured activations"));
  TRY(job_open_arm(j, choice, &c.a));
  TRY_DONE(result, job_agree(j, open_room(&c), "the captured activations"));
  TRY_DONE(result, run_input(&c));
  *x = c.x;
  *n = c.n;
  c.x = NULL;
done:
  free(c.x);
  arm_close(c.a);
  return result;
}
