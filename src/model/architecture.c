#include "src/model/architecture.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- tensors ----

typedef struct { // rows before those of a layer, and of a layer; the rest follow
  size_t before, per_layer;
} row_counts;

static row_counts count_rows(const architecture *a) {
  row_counts n = {0};
  while (n.before < a->n_tensors && !a->tensors[n.before].per_layer) n.before++;
  while (n.before + n.per_layer < a->n_tensors && a->tensors[n.before + n.per_layer].per_layer) n.per_layer++;
  return n;
}

size_t architecture_tensor_count(const architecture *a, int64_t n_layers) {
  row_counts n = count_rows(a);
  return a->n_tensors - n.per_layer + n.per_layer * (size_t)n_layers;
}

const tensor_row *architecture_tensor_at(int64_t *layer, const architecture *a, int64_t n_layers, size_t i) {
  row_counts n = count_rows(a);
  size_t in_layers = n.per_layer * (size_t)n_layers;
  *layer = -1;
  if (i < n.before) return &a->tensors[i];
  i -= n.before;
  if (i >= in_layers) return &a->tensors[n.before + n.per_layer + i - in_layers];
  *layer = (int64_t)(i / n.per_layer);
  return &a->tensors[n.before + i % n.per_layer];
}

void tensor_row_name(char out[TENSOR_NAME_BYTES], const tensor_row *row, int64_t layer) {
  if (row->per_layer)
    snprintf(out, TENSOR_NAME_BYTES, "blk.%lld.%s.weight", (long long)layer, row->name);
  else
    snprintf(out, TENSOR_NAME_BYTES, "%s.weight", row->name);
}

const tensor_row *architecture_tensor_find(int64_t *layer, const architecture *a, int64_t n_layers,
                                           const char *name) {
  long long number = -1;
  bool in_layer = sscanf(name, "blk.%lld.", &number) == 1 && number >= 0 && number < n_layers;
  *layer = in_layer ? (int64_t)number : -1;
  for (size_t i = 0; i < a->n_tensors; i++) {
    char wanted[TENSOR_NAME_BYTES];
    if (a->tensors[i].per_layer != in_layer) continue;
    tensor_row_name(wanted, &a->tensors[i], *layer);
    if (!strcmp(wanted, name)) return &a->tensors[i];
  }
  return NULL;
}

void tensor_row_fused_name(char out[TENSOR_NAME_BYTES], const tensor_row *row, int64_t layer) {
  snprintf(out, TENSOR_NAME_BYTES, "blk.%lld.%s.weight", (long long)layer, row->fused);
}

static bool same_fused(const tensor_row *a, const tensor_row *b) {
  return a->fused && b->fused && !strcmp(a->fused, b->fused);
}

int64_t architecture_fused_rows(const architecture *a, const model_shape *s, const tensor_row *row) {
  int64_t rows = 0;
  for (const tensor_row *t = a->tensors; t < row; t++)
    if (same_fused(t, row)) rows += tensor_row_dim(t, 1, s);
  return rows;
}

bool architecture_fused_find(int64_t *layer, int64_t *rows, const architecture *a, const model_shape *s,
                             const char *name) {
  long long number = -1;
  if (sscanf(name, "blk.%lld.", &number) != 1 || number < 0 || number >= s->n_layers) return false;
  *layer = number;
  *rows = 0;
  for (size_t i = 0; i < a->n_tensors; i++) { // the last part knows the rows of all before
    char wanted[TENSOR_NAME_BYTES];
    if (!a->tensors[i].fused) continue;
    tensor_row_fused_name(wanted, &a->tensors[i], *layer);
    if (!strcmp(wanted, name))
      *rows = architecture_fused_rows(a, s, &a->tensors[i]) + tensor_row_dim(&a->tensors[i], 1, s);
  }
  return *rows > 0;
}

const tensor_row *architecture_tensor(const architecture *a, tensor_id id) {
  for (size_t i = 0; i < a->n_tensors; i++)
    if (a->tensors[i].id == id) return &a->tensors[i];
  return NULL;
}

int64_t tensor_row_dim(const tensor_row *row, int d, const model_shape *s) {
  switch (d < TENSOR_DIMS ? row->dim[d] : SIZE_NONE) {
  case SIZE_NONE:
    return 1;
  case SIZE_HIDDEN:
    return s->hidden;
  case SIZE_QUERIES:
    return s->n_heads * s->head_dim;
  case SIZE_KEYS:
    return s->n_kv_heads * s->head_dim;
  case SIZE_HEAD:
    return s->head_dim;
  case SIZE_EXPERTS:
    return s->n_experts;
  case SIZE_EXPERT_WIDTH:
    return s->expert_width;
  case SIZE_VOCABULARY:
    return s->vocabulary;
  }
  abort(); // no size of the enum
}

int tensor_row_dims(const tensor_row *row) {
  int n = 0;
  while (n < TENSOR_DIMS && row->dim[n] != SIZE_NONE) n++;
  return n;
}

// ---- settings ----

static bool is_of(const setting_row *row, const char *name) {
  size_t n = strlen(row->name);
  return row->name[n - 1] == '.' ? !strncmp(row->name, name, n) : !strcmp(row->name, name);
}

const setting_row *architecture_setting(bool *ours, const architecture *a, const char *key) {
  size_t prefix = strlen(a->name);
  *ours = !strncmp(key, a->name, prefix) && key[prefix] == '.';
  for (size_t i = 0; *ours && i < a->n_settings; i++)
    if (is_of(&a->settings[i], key + prefix + 1)) return &a->settings[i];
  return NULL;
}
