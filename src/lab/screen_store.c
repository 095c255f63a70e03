#include "src/lab/screen_store.h"
#include "base/memory.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

enum { ALL_PROBES = PROBE_COUNT };

// Points of a batch go before the layers, in the first block, those of a head behind them, in the last.
static int64_t block_of(const probe_info *info, int64_t layer, int64_t n_layers) {
  switch (info->scope) {
  case PROBE_OF_BATCH:
    return 0;
  case PROBE_OF_LAYER:
    return 1 + layer;
  case PROBE_OF_HEAD:
    return 1 + n_layers;
  }
  __builtin_unreachable();
}

static bool is_in_block(const probe_info *info, int64_t block, int64_t n_layers) {
  bool of_layer = block > 0 && block <= n_layers;
  return info->scope == PROBE_OF_LAYER ? of_layer : block_of(info, 0, n_layers) == block;
}

static size_t row_bytes(const screen_store *s, probe_point point) {
  size_t each = probe_get(point)->is_ids ? sizeof(int32_t) : s->real_bytes;
  return (size_t)probe_width(point, &s->shape) * each;
}

status screen_store_open(screen_store *s, const model_shape *shape, const path_info *path, int64_t tokens) {
  *s = (screen_store){.shape = *shape, .real_bytes = path->real_bytes};
  s->n_tensors = (shape->n_layers + 2) * ALL_PROBES;
  TRY(TAKE(&s->start, (size_t)s->n_tensors + 1, "the tensors of screen"));
  for (int64_t i = 0; i < s->n_tensors; i++) {
    probe_point point = (probe_point)(i % ALL_PROBES);
    const probe_info *info = probe_get(point);
    int64_t rows = tokens * (info->per_slot ? shape->top_k : 1);
    bool is = is_in_block(info, i / ALL_PROBES, shape->n_layers);
    s->start[i] = s->bytes;
    s->bytes += is ? (size_t)rows * row_bytes(s, point) : 0;
  }
  s->start[s->n_tensors] = s->bytes;
  TRY(memory_take((void **)&s->kept, s->bytes, 1, "the tensors of screen"));
  TRY(TAKE(&s->hash, (size_t)s->n_tensors, "the tensors of screen"));
  return TAKE(&s->differ, (size_t)s->n_tensors, "the tensors of screen");
}

void screen_store_close(screen_store *s) {
  free(s->start);
  free(s->kept);
  free(s->hash);
  free(s->differ);
}

void screen_store_start(screen_store *s, bool compares) {
  s->compares = compares;
  memset(s->hash, 0, (size_t)s->n_tensors * sizeof *s->hash);
  memset(s->differ, 0, (size_t)s->n_tensors * sizeof *s->differ);
}

int64_t screen_count_bits(const void *a, const void *b, size_t bytes) {
  const uint8_t *x = a, *y = b;
  int64_t bits = 0;
  for (size_t i = 0; i < bytes; i++) bits += __builtin_popcount((unsigned)(x[i] ^ y[i]));
  return bits;
}

static void compare_row(screen_difference *out, const char *kept, const char *now, size_t bytes,
                        size_t each) {
  if (!memcmp(kept, now, bytes)) return;
  out->rows++;
  out->bits += screen_count_bits(kept, now, bytes);
  for (size_t i = 0; i < bytes; i += each) out->values += memcmp(kept + i, now + i, each) != 0;
}

void screen_store_show(void *store, probe_point point, int64_t layer, int64_t row, const void *numbers,
                       size_t real_bytes) {
  screen_store *s = store;
  const probe_info *info = probe_get(point);
  int64_t tensor = block_of(info, layer, s->shape.n_layers) * ALL_PROBES + point;
  size_t bytes = row_bytes(s, point), at = s->start[tensor] + (size_t)row * bytes;
  (void)real_bytes; // the path's, or those of ids
  s->hash[tensor] += XXH3_64bits_withSeed(numbers, bytes, (uint64_t)row);
  if (s->compares)
    compare_row(&s->differ[tensor], s->kept + at, numbers, bytes, info->is_ids ? 4 : s->real_bytes);
  else
    memcpy(s->kept + at, numbers, bytes);
}

void screen_store_name(char *out, size_t size, int64_t tensor) {
  const probe_info *info = probe_get((probe_point)(tensor % ALL_PROBES));
  if (info->scope == PROBE_OF_LAYER)
    snprintf(out, size, "%s-%lld", info->name, (long long)(tensor / ALL_PROBES - 1));
  else
    snprintf(out, size, "%s", info->name);
}
