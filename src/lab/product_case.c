#include "src/lab/product_case.h"
#include "kernels/formats/numerics.h"
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

enum { ROWS_BY_DEFAULT = 64 };

uint32_t xorshift32(uint32_t *state) {
  uint32_t x = *state;
  x ^= x << 13;
  x ^= x >> 17;
  x ^= x << 5;
  return *state = x;
}

float xorshift32_uniform(uint32_t *state) {
  return (float)xorshift32(state) / ((float)UINT32_MAX / 2.0f) - 1.0f;
}

uint32_t product_draw_seed(uint32_t seed, int64_t i) {
  uint32_t drawn = i ? (uint32_t)(num_mix64((uint64_t)seed << 32 | (uint64_t)i) >> 32) : seed;
  return drawn ? drawn : 1;
}

void product_draw_uniform(float *out, uint32_t seed, int64_t n, int64_t cols) {
  for (int64_t t = 0; t < n; t++) {
    uint32_t state = product_draw_seed(seed, t);
    for (int64_t i = 0; i < cols; i++) out[t * cols + i] = xorshift32_uniform(&state);
  }
}

static const gguf_tensor *find_tensor(const model *m, const char *name) {
  if (name[0]) return gguf_tensor_find(m->file, name);
  for (size_t i = 0; i < gguf_tensor_count(m->file); i++) {
    const gguf_tensor *t = gguf_tensor_at(m->file, i);
    bool is_embedding =
        !strcmp(t->name, "token_embd.weight"); // whose rows are looked up, not multiplied with
    if (t->type->type == TYPE_Q4_K && t->n_dims >= 2 && !is_embedding) return t;
  }
  return NULL;
}

// Checked against the tensor's bytes, whatever the columns.
static status cut_rows(product_weights *out, const char *path, int64_t rows, int64_t cols) {
  const gguf_tensor *t = out->tensor;
  int64_t own = t->dim[0], width = cols ? cols : own;
  if (width % (int64_t)t->type->elements)
    return REFUSE("%s: tensor \"%s\": bisect.cols = %" PRId64 ": expected a multiple of the %zu weights of a "
                  "block of %s",
                  path, t->name, cols, t->type->elements, t->type->name);
  int64_t most = (int64_t)(t->bytes / type_row_bytes(t->type, (size_t)width));
  int64_t n = rows ? rows : most < ROWS_BY_DEFAULT ? most : ROWS_BY_DEFAULT;
  if (n > most || n < 1)
    return REFUSE("%s: tensor \"%s\" holds %" PRId64 " rows of %" PRId64 " columns, expected the %" PRId64
                  " of bisect.rows",
                  path, t->name, most, width, rows);
  out->weights = (matrix){t->data, t->type->type, n, width};
  return 0;
}

status product_weights_find(product_weights *out, const model *m, const char *name, int64_t rows,
                            int64_t cols) {
  const char *path = gguf_path(m->file);
  *out = (product_weights){.tensor = find_tensor(m, name), .layer = -1};
  if (!out->tensor && !name[0])
    return REFUSE("%s: no matrix of the type Q4_K: name another in bisect.tensor", path);
  if (!out->tensor) return REFUSE("%s: bisect.tensor: there is no tensor \"%s\"", path, name);
  if (out->tensor->n_dims < 2) return REFUSE("%s: tensor \"%s\" is no matrix", path, out->tensor->name);
  if (sscanf(out->tensor->name, "blk.%" SCNd64 ".", &out->layer) != 1) out->layer = -1;
  return cut_rows(out, path, rows, cols);
}
