#include "src/lab/falsify_slab.h"
#include "base/memory.h"
#include "src/lab/product_case.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

// ---- the tensor ----

static bool fits(const gguf_tensor *t, weight_type type, size_t bytes) {
  return t && t->type->type == type && t->bytes >= bytes;
}

// "attn_v.weight" of "blk.0.attn_v.weight".
static const char *without_layer(const char *name) {
  if (strncmp(name, "blk.", 4)) return name;
  const char *rest = name + 4 + strspn(name + 4, "0123456789");
  return *rest == '.' ? rest + 1 : name;
}

static const gguf_tensor *find_tensor(const gguf *g, const char *name, weight_type type, size_t bytes) {
  const gguf_tensor *named = gguf_tensor_find(g, name), *any = NULL;
  if (fits(named, type, bytes)) return named;
  for (size_t i = 0; i < gguf_tensor_count(g); i++) {
    const gguf_tensor *t = gguf_tensor_at(g, i);
    if (!fits(t, type, bytes)) continue;
    if (!strcmp(without_layer(t->name), without_layer(name))) return t;
    if (!any) any = t;
  }
  return any;
}

static status check_slab(const slab *s, const experiment *e, size_t bytes) {
  const type_info *type = type_find(s->weights.type);
  if (s->weights.rows < 1 || s->weights.cols < QK_K || s->weights.cols % QK_K ||
      (size_t)s->weights.rows * type_row_bytes(type, (size_t)s->weights.cols) != bytes)
    return REFUSE(
        "experiment %d: expected input.bytes to be rows * cols of %s, found %zu bytes for %lld x %lld", e->id,
        type->name, bytes, (long long)s->weights.rows, (long long)s->weights.cols);
  if (!experiment_integer(e, "activations_seed"))
    return REFUSE("experiment %d: input.activations_seed: expected one that is not 0", e->id);
  return 0;
}

static void tell_cut(const slab *s, experiment_result *out) {
  const matrix *m = &s->weights;
  experiment_note(out, "%s (%s), its first %lld x %lld weights as they lie: %.4g rows of its own %lld",
                  s->tensor->name, s->tensor->type->name, (long long)m->rows, (long long)m->cols,
                  (double)(m->rows * m->cols) / (double)s->tensor->dim[0], (long long)s->tensor->dim[0]);
}

status slab_open(slab *s, falsify_lab *lab, experiment_result *out, weight_type type) {
  const experiment *e = out->settings;
  size_t bytes = (size_t)experiment_integer(e, "bytes");
  const gguf *g = lab->j->m->file;
  *s = (slab){.weights = {NULL, type, experiment_integer(e, "rows"), experiment_integer(e, "cols")},
              .n = falsify_draws(lab, e),
              .threads = falsify_threads(lab),
              .row = lab->j->cfg->run.rows};
  TRY(check_slab(s, e, bytes));
  s->tensor = find_tensor(g, experiment_text(e, "tensor"), type, bytes);
  if (!s->tensor)
    return REFUSE("%s: experiment %d: expected a %s tensor of at least %zu bytes, found none", gguf_path(g),
                  e->id, type_find(type)->name, bytes);
  s->weights.data = s->tensor->data;
  tell_cut(s, out);
  TRY(TAKE(&s->x, (size_t)(s->n * s->weights.cols), "activations"));
  product_draw_uniform(s->x, (uint32_t)experiment_integer(e, "activations_seed"), s->n, s->weights.cols);
  return 0;
}

void slab_close(slab *s) {
  free(s->x);
}

// ---- products ----

status slab_compute(double **out, const slab *s, const product_operation *o) {
  const product_input in = {s->weights, s->x, s->n, s->row, s->threads};
  TRY(TAKE(out, (size_t)(s->n * s->weights.rows), "outputs of a slab"));
  return product_compute(*out, &in, o);
}

static status draw_pair(double *out, const void *context, int64_t draw) {
  const void *const *p = context;
  const slab *s = p[0];
  const double *a = p[1], *b = p[2];
  metrics m;
  metrics_row(&m, a + draw * s->weights.rows, b + draw * s->weights.rows, (size_t)s->weights.rows);
  out[0] = m.rel_l2;
  out[1] = m.max_rel;
  out[2] = m.one_minus_cos;
  return 0;
}

status slab_add_pair(experiment_result *out, const slab *s, const char *name, const double *a,
                     const double *b) {
  static const char *const ENDS[] = {"rel_l2", "max_rel", "one_minus_cos"};
  char names[3][EXPERIMENT_NAME];
  const void *context[] = {s, a, b};
  for (int i = 0; i < 3; i++) snprintf(names[i], sizeof names[i], "%s_%s", name, ENDS[i]);
  return falsify_add_draws_of(out, s->n, s->threads, &(falsify_figures){names, 3, draw_pair, context});
}

product_operation slab_c(const slab *s, experiment_result *out) {
  product_operation c = product_find("f32@cuda")->operation;
  const product_input in = {s->weights, s->x, s->n, s->row, s->threads};
  const char *refusal = product_refusal(&c, &in);
  if (!refusal) {
    experiment_note(out, "C is f32@cuda");
    return c;
  }
  experiment_note(out, "C is f32@cpu in place of f32@cuda (%s): same path, same bits", refusal);
  return product_find("f32@cpu")->operation;
}
