#include "src/run/routes.h"
#include "base/memory.h"
#include "kernels/formats/numerics.h"
#include "src/run/npy_read.h"
#include <inttypes.h>
#include <stdlib.h>

enum { DIMS = 3 };

static bool holds_ids(npy_content content) {
  switch (content) {
  case NPY_HAS_I32:
  case NPY_HAS_I64:
    return true;
  case NPY_HAS_F16:
  case NPY_HAS_F32:
  case NPY_HAS_F64:
    break;
  }
  return false;
}

// Sets n_tokens where any will do.
static status check_shape(const npy_file *f, routes *r) {
  if (r->n_tokens == ROUTES_OF_ANY_TOKENS && f->header.n_dims == DIMS) r->n_tokens = f->header.size[1];
  const int64_t expected[DIMS] = {r->n_layers, r->n_tokens, r->top_k};
  static const char *const NAMES[DIMS] = {"layers", "tokens", "experts to a token"};
  const npy_header *h = &f->header;
  if (!holds_ids(h->content))
    return REFUSE("%s: expected int32 or int64, found %s", f->path, npy_content_name(h->content));
  if (h->n_dims != DIMS)
    return REFUSE("%s: expected the shape [n_layers, n_token, top_k], found %d dimensions", f->path,
                  h->n_dims);
  if (h->size[1] < 1) return REFUSE("%s: expected at least one token, found none", f->path);
  for (int d = 0; d < DIMS; d++)
    if (h->size[d] != expected[d])
      return REFUSE("%s: expected [%" PRId64 ", %" PRId64 ", %" PRId64
                    "] (layers, tokens, top-k), found %" PRId64 " %s",
                    f->path, expected[0], expected[1], expected[2], h->size[d], NAMES[d]);
  return 0;
}

static status take_token(routes *r, const char *path, int64_t layer, int64_t token, const double *id,
                         int64_t n_experts) {
  expert_global *to = routes_at(r, layer, token);
  for (int64_t k = 0; k < r->top_k; k++) {
    if (!(id[k] >= 0 && id[k] < (double)n_experts))
      return REFUSE("%s[%" PRId64 ", %" PRId64 ", %" PRId64 "]: expected an expert from 0 to %" PRId64
                    ", found %.0f",
                    path, layer, token, k, n_experts - 1, id[k]);
    for (int64_t i = 0; i < k; i++)
      if (id[i] == id[k])
        return REFUSE("%s[%" PRId64 ", %" PRId64 ", %" PRId64
                      "]: expected each expert once in a token, found %.0f as in [%" PRId64 ", %" PRId64
                      ", %" PRId64 "]",
                      path, layer, token, k, id[k], layer, token, i);
    to[k].id = (int32_t)id[k];
    r->hash = num_mix64(r->hash + (uint64_t)to[k].id);
  }
  return 0;
}

static status take_layer(routes *r, const npy_file *f, int64_t layer, double *ids, int64_t n_experts) {
  int64_t n = r->n_tokens * r->top_k;
  TRY(npy_file_numbers(f, layer * n, n, ids));
  for (int64_t t = 0; t < r->n_tokens; t++)
    TRY(take_token(r, f->path, layer, t, ids + t * r->top_k, n_experts));
  return 0;
}

static status take_ids(routes *r, const npy_file *f, int64_t n_experts) {
  double *ids;
  TRY(check_shape(f, r));
  TRY(TAKE(&r->expert, (size_t)(r->n_layers * r->n_tokens * r->top_k), "imposed routes"));
  TRY(TAKE(&ids, (size_t)(r->n_tokens * r->top_k), "a layer's routes"));
  r->hash = num_mix64((uint64_t)r->n_layers);
  status result = 0;
  for (int64_t l = 0; l < r->n_layers && !result; l++) result = take_layer(r, f, l, ids, n_experts);
  free(ids);
  return result;
}

status routes_open(routes *out, const char *path, const model_shape *shape, int64_t n_tokens) {
  npy_file f;
  *out = (routes){.n_layers = shape->n_layers, .n_tokens = n_tokens, .top_k = shape->top_k};
  TRY(npy_file_open(&f, path));
  status result = take_ids(out, &f, shape->n_experts);
  npy_file_close(&f);
  return result;
}

void routes_close(routes *r) {
  if (r) free(r->expert);
}
