#include "src/lab/product_backend.h"
#include "base/memory.h"
#include <stdlib.h>
#include <string.h>

enum { MAX_BATCH = 256 }; // activations that are multiplied at once

typedef struct {
  const product_input *in;
  layer_weights layer;
  model_weights model;
  float *down; // [hidden][expert_width] zeros: the step that would read it is not called
  int32_t local;
  backend *compute;
  int64_t max_batch;
  int32_t *zeros; // [max_batch]: tokens, sequences, positions
  routing route;  // every row to expert 0
  double *out;    // where shown rows go
  int64_t first;  // the row of `out` that row 0 of the batch is
} one_product;

const char *product_backend_absence(backend_kind where) {
  const backend_ops *b = backend_get(where);
  if (!b) return "this build has no such backend";
  return b->devices && b->devices() < 1 ? "this host has no device for it" : NULL;
}

static void show(void *context, probe_point point, int64_t layer, int64_t row, const void *numbers,
                 size_t real_bytes) {
  one_product *p = context;
  int64_t rows = p->in->weights.rows;
  double *out = p->out + (p->first + row) * rows;
  (void)point, (void)layer;
  for (int64_t i = 0; i < rows; i++)
    out[i] = real_bytes == sizeof *out ? ((const double *)numbers)[i] : (double)((const float *)numbers)[i];
}

static void describe_model(one_product *p) {
  const matrix *w = &p->in->weights;
  p->layer.gate = p->layer.up = *w;
  p->layer.down = (matrix){p->down, TYPE_F32, w->cols, w->rows};
  p->model = (model_weights){
      .shape = {.n_layers = 1,
                .hidden = w->cols,
                .n_heads = 1,
                .n_kv_heads = 1,
                .head_dim = 64,
                .n_experts = 1,
                .top_k = 1,
                .expert_width = w->rows,
                .vocabulary = 1,
                .rms_epsilon = 1e-6,
                .rope_base = 1e4},
      .layers = &p->layer,
  };
}

static status open_backend(one_product *p, path_kind path, backend_kind where) {
  const backend_params params = {
      .weights = &p->model,
      .shared = path,
      .experts = path,
      .map = expert_map_of_all(&p->local, 1),
      .n_sequences = 1,
      .context = 1,
      .max_batch = p->max_batch,
      .max_logit_rows = 1,
      .threads = p->in->threads,
      .row = p->in->row,
      .n_ranks = 1,
  };
  const probe_watch watch = {.wanted = 1u << PROBE_FFN_MOE_GATE, .show = show, .context = p};
  const backend_ops *b = backend_get(where);
  TRY(b->open(&p->compute, &params));
  return b->probes_watch(p->compute, &watch);
}

static status one_product_open(one_product *p, path_kind path, backend_kind where) {
  const matrix *w = &p->in->weights;
  p->max_batch = p->in->n < MAX_BATCH ? p->in->n : MAX_BATCH;
  size_t n = (size_t)p->max_batch;
  TRY(TAKE(&p->down, (size_t)(w->rows * w->cols), "a product"));
  TRY(TAKE(&p->zeros, n, "a product"));
  TRY(TAKE(&p->route.expert, n, "a product"));
  TRY(TAKE(&p->route.weight, n, "a product"));
  TRY(TAKE(&p->route.margin, n, "a product"));
  for (size_t i = 0; i < n; i++) p->route.weight[i] = 1;
  describe_model(p);
  return open_backend(p, path, where);
}

static void one_product_close(one_product *p) {
  if (p->compute) p->compute->ops->close(p->compute);
  free(p->down);
  free(p->zeros);
  free(p->route.expert);
  free(p->route.weight);
  free(p->route.margin);
}

static void widen(void *to, const float *from, int64_t n, bool wide) {
  for (int64_t i = 0; i < n && wide; i++) ((double *)to)[i] = (double)from[i];
  if (!wide) memcpy(to, from, (size_t)n * sizeof *from);
}

static status multiply_batch(one_product *p, int64_t count, bool wide) {
  backend *b = p->compute;
  const backend_ops *step = b->ops;
  const token_batch rows = {count, p->zeros, p->zeros, p->zeros};
  int64_t cols = p->in->weights.cols;
  TRY(step->rows_read(b, ROWS_NORMED, 0, 0));
  widen(step->rows_host(b, ROWS_NORMED), p->in->x + p->first * cols, count * cols, wide);
  TRY(step->rows_write(b, ROWS_NORMED, 0, count));
  TRY(step->routing_write(b, 0, count, ROUTING_EXPERTS, &p->route));
  TRY(step->experts_up(b, 0, &rows));
  return step->finish ? step->finish(b) : 0;
}

status product_backend_compute(double *out, const product_input *in, path_kind path, backend_kind where) {
  one_product p = {.in = in, .out = out};
  bool wide = path_get(path)->real_bytes == sizeof(double);
  status result;
  TRY_DONE(result, one_product_open(&p, path, where));
  for (int64_t count; p.first < in->n; p.first += count) {
    count = in->n - p.first < p.max_batch ? in->n - p.first : p.max_batch;
    TRY_DONE(result, multiply_batch(&p, count, wide));
  }
done:
  if (result) status_within("one product on the backend %s", backend_name(where));
  one_product_close(&p);
  return result;
}
