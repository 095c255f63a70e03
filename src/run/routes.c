#include "src/run/routes.h"
#include "base/memory.h"
#include "base/read_file.h"
#include "kernels/formats/numerics.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_BYTES = 1 << 30, DIMS = 3 };

typedef struct { // the file, as its header says
  const char *path;
  const unsigned char *data;
  size_t data_bytes;
  int64_t size[DIMS];
  int n_dims;
  size_t id_bytes; // 4 or 8
} npy_view;

// ---- NumPy's header: magic, version, length, a Python dict ----

// What stands after 'KEY': in the dict; NULL: no such key.
static const char *value_of(const char *header, const char *key) {
  const char *at = strstr(header, key);
  return at ? at + strlen(key) + strspn(at + strlen(key), ": ") : NULL;
}

static status read_type(npy_view *v, const char *header) {
  const char *type = value_of(header, "'descr'"), *order = value_of(header, "'fortran_order'");
  if (!type || !order) return FAIL("%s: expected NumPy's header with descr and fortran_order", v->path);
  v->id_bytes = !strncmp(type, "'<i4'", 5) ? 4 : !strncmp(type, "'<i8'", 5) ? 8 : 0;
  if (!v->id_bytes) return FAIL("%s: expected int32 or int64 ('<i4', '<i8'), found %.12s", v->path, type);
  return strncmp(order, "False", 5)
             ? FAIL("%s: expected rows in C order, found fortran_order %.5s", v->path, order)
             : 0;
}

static status read_sizes(npy_view *v, const char *header) {
  const char *at = value_of(header, "'shape'");
  if (!at || *at != '(') return FAIL("%s: expected NumPy's header with a shape", v->path);
  for (at++; *at && *at != ')' && v->n_dims < DIMS; at += strspn(at, ", ")) {
    char *end;
    long long n = strtoll(at, &end, 10);
    if (end == at || n < 0) break;
    v->size[v->n_dims++] = n;
    at = end;
  }
  if (*at != ')' || v->n_dims != DIMS)
    return FAIL("%s: expected the shape [n_layers, n_token, top_k], found %.40s", v->path,
                value_of(header, "'shape'"));
  return 0;
}

static status read_header(npy_view *v, const char *text, size_t length) {
  enum { PREFIX = 10, MOST_HEADER = 4096 };
  char header[MOST_HEADER + 1];
  const unsigned char *bytes = (const unsigned char *)text;
  if (length < PREFIX || memcmp(text, "\x93NUMPY\x01", 7))
    return FAIL("%s: expected a file of NumPy (.npy, version 1)", v->path);
  size_t n = bytes[8] | (size_t)bytes[9] << 8;
  if (n > MOST_HEADER || n > length - PREFIX)
    return FAIL("%s: the header of %zu bytes is longer than expected", v->path, n);
  memcpy(header, text + PREFIX, n);
  header[n] = 0;
  v->data = bytes + PREFIX + n;
  v->data_bytes = length - PREFIX - n;
  TRY(read_type(v, header));
  return read_sizes(v, header);
}

// ---- the ids ----

static status check_shape(const npy_view *v, const routes *r) {
  const int64_t expected[DIMS] = {r->n_layers, r->n_tokens, r->top_k};
  static const char *const NAMES[DIMS] = {"layers", "tokens", "experts to a token"};
  for (int d = 0; d < DIMS; d++)
    if (v->size[d] != expected[d])
      return FAIL("%s: expected [%" PRId64 ", %" PRId64 ", %" PRId64
                  "] (layers, tokens, top-k), found %" PRId64 " %s",
                  v->path, expected[0], expected[1], expected[2], v->size[d], NAMES[d]);
  size_t n = (size_t)(expected[0] * expected[1] * expected[2]);
  if (v->data_bytes != n * v->id_bytes)
    return FAIL("%s: expected %zu bytes of ids after the header, found %zu", v->path, n * v->id_bytes,
                v->data_bytes);
  return 0;
}

static int64_t id_at(const npy_view *v, size_t i) {
  int32_t narrow;
  int64_t wide;
  if (v->id_bytes == sizeof narrow) {
    memcpy(&narrow, v->data + i * sizeof narrow, sizeof narrow);
    return narrow;
  }
  memcpy(&wide, v->data + i * sizeof wide, sizeof wide);
  return wide;
}

static status take_token(routes *r, const npy_view *v, int64_t layer, int64_t token, int64_t n_experts) {
  size_t at = (size_t)((layer * r->n_tokens + token) * r->top_k);
  for (int64_t k = 0; k < r->top_k; k++) {
    int64_t id = id_at(v, at + (size_t)k);
    if (id < 0 || id >= n_experts)
      return FAIL("%s[%" PRId64 ", %" PRId64 ", %" PRId64 "]: expected an expert from 0 to %" PRId64
                  ", found %" PRId64,
                  v->path, layer, token, k, n_experts - 1, id);
    for (int64_t i = 0; i < k; i++)
      if (r->expert[at + (size_t)i].id == id)
        return FAIL("%s[%" PRId64 ", %" PRId64 ", %" PRId64
                    "]: expected each expert once in a token, found %" PRId64 " as in [%" PRId64 ", %" PRId64
                    ", %" PRId64 "]",
                    v->path, layer, token, k, id, layer, token, i);
    r->expert[at + (size_t)k].id = (int32_t)id;
    r->hash = num_mix64(r->hash + (uint64_t)id);
  }
  return 0;
}

static status take_ids(routes *r, const npy_view *v, int64_t n_experts) {
  TRY(check_shape(v, r));
  TRY(TAKE(&r->expert, (size_t)(r->n_layers * r->n_tokens * r->top_k), "imposed routes"));
  r->hash = num_mix64((uint64_t)r->n_layers);
  for (int64_t l = 0; l < r->n_layers; l++)
    for (int64_t t = 0; t < r->n_tokens; t++) TRY(take_token(r, v, l, t, n_experts));
  return 0;
}

status routes_open(routes *out, const char *path, const model_shape *shape, int64_t n_tokens) {
  char *text;
  size_t length;
  npy_view v = {.path = path};
  *out = (routes){.n_layers = shape->n_layers, .n_tokens = n_tokens, .top_k = shape->top_k};
  TRY(read_file(&text, &length, path, "parity.routes", MOST_BYTES, READ_REGULAR));
  status result = read_header(&v, text, length);
  if (!result) result = take_ids(out, &v, shape->n_experts);
  free(text);
  return result;
}

void routes_close(routes *r) {
  if (r) free(r->expert);
}
