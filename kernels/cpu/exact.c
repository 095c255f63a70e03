// exact: the order of chunks and groups of attention in integers, for any ISA row.
#include "kernels/cpu/exact.h"
#include "kernels/cpu/row.h"
#include <string.h>

void exact_factors_fill(float *query, float *key, float *value, const float *q_norm, const float *k_norm,
                        int64_t head_dim) {
  int64_t pairs = head_dim / 2;
  for (int64_t i = 0; i < pairs; i++) {
    int32_t e = exact_balance(k_norm[i], k_norm[i + pairs], q_norm[i], q_norm[i + pairs]);
    query[i] = query[i + pairs] = exact_power(e);
    key[i] = key[i + pairs] = exact_power(-e);
    value[i] = value[i + pairs] = 1.0f;
  }
}

enum { MAX_ROWS = ATTEND_TOKENS * ATTEND_HEADS };

typedef struct { // the scratch of exact_attend
  exact_queries q;
  exact_rows group, total; // folds of chunks, and of the groups before
  exact_rows fresh;        // of a tile of rows over one chunk
  int32_t *n_keys;         // [EXACT_TILE]
} exact_room;

static exact_rows take_rows(char **at, int64_t rows, int64_t width) {
  float *out = (float *)(void *)*at;
  *at += (size_t)(rows * (width + 2)) * sizeof(float);
  return (exact_rows){out + rows * width, out + rows * (width + 1), out};
}

// The parts with the widest lines first, so that each starts at a multiple of 64 bytes.
static void room_of(exact_room *room, void *scratch, int64_t width) {
  char *at = (char *)scratch;
  room->group = take_rows(&at, MAX_ROWS, width);
  room->total = take_rows(&at, MAX_ROWS, width);
  room->fresh = take_rows(&at, EXACT_TILE, width);
  room->q.high = (int8_t *)at;
  room->q.low = (int8_t *)at + MAX_ROWS * width;
  at += 2 * MAX_ROWS * width;
  room->q.unit = (float *)(void *)at;
  room->q.high_sum = (int32_t *)(void *)(at + MAX_ROWS * sizeof(float));
  room->q.low_sum = room->q.high_sum + MAX_ROWS;
  room->n_keys = room->q.low_sum + MAX_ROWS;
}

size_t exact_scratch_bytes(int64_t head_dim) {
  size_t width = (size_t)exact_width(head_dim),
         results = (2 * MAX_ROWS + EXACT_TILE) * (width + 2) * sizeof(float);
  return results + MAX_ROWS * (2 * width + 3 * sizeof(float)) + EXACT_TILE * sizeof(int32_t);
}

static void round_queries(const exact_ops *ops, const exact_room *room, const exact_span *s,
                          int64_t head_dim) {
  int64_t width = s->kv.width;
  for (int64_t r = 0; r < s->n * s->heads; r++) {
    const exact_queries to = exact_queries_from(&room->q, r, width);
    const float *q = (const float *)s->q[r / s->heads] + r % s->heads * head_dim;
    ops->query(&to, q, &s->factors, head_dim, width);
  }
}

static int32_t keys_in_chunk(const exact_span *s, int64_t row, int64_t chunk) {
  int64_t n = s->n_keys[row / s->heads] - chunk * EXACT_CHUNK;
  return (int32_t)(n < 0 ? 0 : n < EXACT_CHUNK ? n : EXACT_CHUNK);
}

// Rows row .. row + n - 1 over one chunk: the first of its group is the group's result, the others are folded
// into it.
static void attend_tile(const exact_ops *ops, const exact_room *room, const exact_span *s, int64_t chunk,
                        int64_t row, int64_t n) {
  int64_t width = s->kv.width;
  const exact_queries q = exact_queries_from(&room->q, row, width);
  const exact_chunk keys = exact_chunk_at(&s->kv, chunk);
  const exact_rows group = exact_rows_from(&room->group, row, width);
  bool is_first = chunk % (EXACT_GROUP / EXACT_CHUNK) == 0;
  for (int64_t r = 0; r < n; r++) room->n_keys[r] = keys_in_chunk(s, row + r, chunk);
  ops->chunk(is_first ? &group : &room->fresh, &q, &keys, room->n_keys, n, width);
  for (int64_t r = 0; r < n && !is_first; r++) {
    const exact_rows run = exact_rows_from(&group, r, width), next = exact_rows_from(&room->fresh, r, width);
    if (room->n_keys[r]) ops->fold(&run, &next, width);
  }
}

// The group of which `chunk` is the first is whole: it joins the ones before.
static void join_group(const exact_ops *ops, exact_room *room, const exact_span *s, int64_t first_chunk) {
  int64_t width = s->kv.width;
  if (!first_chunk) { // every row has keys here: it is the total so far
    exact_rows group = room->group;
    room->group = room->total;
    room->total = group;
    return;
  }
  for (int64_t r = 0; r < s->n * s->heads; r++) {
    const exact_rows run = exact_rows_from(&room->total, r, width),
                     next = exact_rows_from(&room->group, r, width);
    if (keys_in_chunk(s, r, first_chunk)) ops->fold(&run, &next, width);
  }
}

void exact_attend(const exact_ops *ops, const exact_span *s, int64_t head_dim, void *scratch) {
  int64_t rows = s->n * s->heads, n_keys = 0;
  exact_room room;
  room_of(&room, scratch, s->kv.width);
  round_queries(ops, &room, s, head_dim);
  for (int64_t t = 0; t < s->n; t++) n_keys = s->n_keys[t] > n_keys ? s->n_keys[t] : n_keys;
  enum { CHUNKS = EXACT_GROUP / EXACT_CHUNK };
  int64_t n_chunks = (n_keys + EXACT_CHUNK - 1) / EXACT_CHUNK;
  for (int64_t c = 0; c < n_chunks; c++) {
    for (int64_t r = 0; r < rows; r += EXACT_TILE)
      attend_tile(ops, &room, s, c, r, rows - r < EXACT_TILE ? rows - r : EXACT_TILE);
    if (c % CHUNKS == CHUNKS - 1 || c == n_chunks - 1) join_group(ops, &room, s, c / CHUNKS * CHUNKS);
  }
  for (int64_t r = 0; r < rows; r++) {
    const exact_rows run = exact_rows_from(&room.total, r, s->kv.width);
    float *out = (float *)s->out[r / s->heads] + r % s->heads * head_dim;
    ops->finish(out, &run, room.q.unit[r], head_dim);
  }
}
