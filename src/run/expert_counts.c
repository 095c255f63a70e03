#include "src/run/expert_counts.h"
#include "base/memory.h"
#include "kernels/formats/numerics.h"
#include "src/run/npy_read.h"
#include "src/run/routes.h"
#include <inttypes.h>
#include <stdlib.h>

enum { DIMS = 2 };

static status take_layer(expert_counts *c, const npy_file *f, int64_t layer, double *numbers,
                         const model_shape *s) {
  int64_t sum = 0;
  TRY(npy_file_numbers(f, layer * s->n_experts, s->n_experts, numbers));
  for (int64_t e = 0; e < s->n_experts; e++) {
    if (!(numbers[e] >= 0 && numbers[e] <= INT32_MAX))
      return REFUSE("%s[%" PRId64 ", %" PRId64 "]: expected a count from 0 to %d, found %.0f", f->path, layer,
                    e, INT32_MAX, numbers[e]);
    c->count[layer * s->n_experts + e] = (int64_t)numbers[e];
    sum += (int64_t)numbers[e];
  }
  if (layer == 0) c->n_tokens = sum / s->top_k;
  if (sum < 1 || sum != c->n_tokens * s->top_k)
    return REFUSE("%s[%" PRId64 "]: expected counts that sum to %" PRId64
                  " for each token, as many tokens in "
                  "every layer, found a sum of %" PRId64 "%s",
                  f->path, layer, s->top_k, sum, layer ? " and another before" : "");
  return 0;
}

static status take_counts(expert_counts *c, const npy_file *f, const model_shape *s) {
  double *numbers;
  status result = 0;
  if (f->header.size[0] != s->n_layers || f->header.size[1] != s->n_experts)
    return REFUSE("%s: expected [%" PRId64 ", %" PRId64 "] (layers, experts), found [%" PRId64 ", %" PRId64
                  "]",
                  f->path, s->n_layers, s->n_experts, f->header.size[0], f->header.size[1]);
  TRY(TAKE(&numbers, (size_t)s->n_experts, "a layer's counts"));
  for (int64_t l = 0; l < s->n_layers && !result; l++) result = take_layer(c, f, l, numbers, s);
  free(numbers);
  return result;
}

static status count_routes(expert_counts *c, const char *path, const model_shape *s) {
  routes r;
  status result = routes_open(&r, path, s, ROUTES_OF_ANY_TOKENS);
  for (int64_t l = 0; l < s->n_layers && !result; l++)
    for (int64_t i = 0; i < r.n_tokens * r.top_k; i++)
      c->count[l * s->n_experts + routes_at(&r, l, 0)[i].id]++;
  c->n_tokens = r.n_tokens;
  routes_close(&r);
  return result;
}

// counts: the file is of that form. Of another one routes_open says what is wrong.
static status read_form(bool *counts, expert_counts *c, const char *path, const model_shape *s) {
  npy_file f;
  TRY(npy_file_open(&f, path));
  npy_content content = f.header.content;
  *counts = f.header.n_dims == DIMS && (content == NPY_HAS_I32 || content == NPY_HAS_I64);
  status result = *counts ? take_counts(c, &f, s) : 0;
  npy_file_close(&f);
  return result;
}

status expert_counts_open(expert_counts *out, const char *path, const model_shape *shape) {
  bool counts;
  int64_t n = shape->n_layers * shape->n_experts;
  *out = (expert_counts){.hash = num_mix64((uint64_t)n)};
  TRY(TAKE(&out->count, (size_t)n, "the counts of experts"));
  TRY(read_form(&counts, out, path, shape));
  if (!counts) TRY(count_routes(out, path, shape));
  for (int64_t i = 0; i < n; i++) out->hash = num_mix64(out->hash + (uint64_t)out->count[i]);
  return 0;
}

void expert_counts_close(expert_counts *c) {
  free(c->count);
}
