#include "src/run/probe_rows.h"
#include "base/memory.h"
#include <stdlib.h>
#include <string.h>

static status store_open(probe_store *s, probe_point point, const model_shape *shape, int64_t max_batch,
                         int64_t max_logit_rows) {
  const probe_info *info = probe_get(point);
  s->width = probe_width(point, shape);
  s->room = info->scope == PROBE_OF_HEAD ? max_logit_rows : max_batch * (info->per_slot ? shape->top_k : 1);
  TRY(TAKE(&s->seen, (size_t)s->room, info->name));
  return TAKE(&s->numbers, (size_t)(s->room * s->width), info->name);
}

status probe_rows_open(probe_rows *p, comm *c, int reporting, const model_shape *s, uint32_t points,
                       int64_t max_batch, int64_t max_logit_rows) {
  size_t size = (size_t)comm_size(c), most = 0;
  probe_rows_close(p);
  *p = (probe_rows){.c = c, .reporting = reporting};
  for (int i = 0; i < PROBE_COUNT; i++) {
    if (!(points >> i & 1)) continue;
    probe_store *store = &p->store[i];
    TRY(store_open(store, (probe_point)i, s, max_batch, max_logit_rows));
    size_t numbers = (size_t)(store->room * (store->width + 1)); // with a row's number before it
    most = numbers > most ? numbers : most;
  }
  TRY(TAKE(&p->taken, most, "probes"));
  p->buffer_bytes = most * sizeof(double);
  TRY(TAKE(&p->buffer, p->buffer_bytes, "probes"));
  TRY(TAKE(&p->part, size * size, "probes"));
  return TAKE(&p->n_of_rank, size, "probes");
}

void probe_rows_close(probe_rows *p) {
  if (!p) return;
  for (int i = 0; i < PROBE_COUNT; i++) {
    free(p->store[i].seen);
    free(p->store[i].numbers);
  }
  free(p->taken);
  free(p->buffer);
  free(p->part);
  free(p->n_of_rank);
  *p = (probe_rows){.c = NULL};
}

void probe_rows_clear(probe_rows *p, uint32_t points) {
  for (int i = 0; i < PROBE_COUNT; i++)
    if (points >> i & 1) p->store[i].n_seen = 0;
}

static void widen(double *out, const void *in, int64_t n, size_t bytes, bool is_ids) {
  for (int64_t i = 0; i < n; i++)
    out[i] = is_ids                 ? (double)((const int32_t *)in)[i]
             : bytes == sizeof *out ? ((const double *)in)[i]
                                    : (double)((const float *)in)[i];
}

void probe_rows_show(void *context, probe_point point, int64_t layer, int64_t row, const void *numbers,
                     size_t real_bytes) {
  probe_store *s = &((probe_rows *)context)->store[point];
  (void)layer;
  if (s->n_seen == s->room) return; // probe_rows_take finds the row that is missing or shown twice
  s->seen[s->n_seen] = row;
  widen(s->numbers + s->n_seen++ * s->width, numbers, s->width, real_bytes, probe_get(point)->is_ids);
}

// ---- to the reporting rank ----

static bool is_source(const probe_rows *p, probe_point point, const probe_order *order, int64_t row) {
  const probe_info *info = probe_get(point);
  if (info->per_slot) return true; // only the rank that owns the expert shows it
  bool sharded = order->row_of_token != NULL && info->scope != PROBE_OF_HEAD;
  return sharded ? row >= order->first && row < order->first + order->count : comm_rank(p->c) == p->reporting;
}

// The rows that this rank is the source of, as records: the row's number, then its numbers. Returns how many.
static int64_t pack(const probe_rows *p, probe_point point, const probe_order *order, double *out) {
  const probe_store *s = &p->store[point];
  int64_t n = 0;
  for (int64_t i = 0; i < s->n_seen; i++) {
    if (!is_source(p, point, order, s->seen[i])) continue;
    double *record = out + n++ * (s->width + 1);
    record[0] = (double)s->seen[i];
    memcpy(record + 1, s->numbers + i * s->width, (size_t)s->width * sizeof *record);
  }
  return n;
}

// Gathers every rank's records in the reporting rank's buffer, in rank order.
static status gather(probe_rows *p, probe_point point, const probe_order *order, int64_t *n_records) {
  int size = comm_size(p->c), rank = comm_rank(p->c);
  size_t record = (size_t)(p->store[point].width + 1) * sizeof(double), at = 0;
  int64_t mine = pack(p, point, order, (double *)(void *)p->buffer);
  TRY(comm_allgather(p->c, p->n_of_rank, &mine, sizeof mine, "the count of a probe's rows"));
  *n_records = 0;
  for (int r = 0; r < size; r++) *n_records += p->n_of_rank[r];
  if ((size_t)*n_records * record > p->buffer_bytes)
    return FAIL("the probe %s: %lld rows came, more than there is room for", probe_get(point)->name,
                (long long)*n_records);
  for (int from = 0; from < size; from++) {
    size_t bytes = (size_t)p->n_of_rank[from] * record;
    for (int to = 0; to < size; to++)
      p->part[from * size + to] = (comm_part){at, to == p->reporting && from != to ? bytes : 0};
    if (from == rank) memmove(p->buffer + at, p->buffer, bytes);
    at += bytes;
  }
  return comm_exchange(p->c, p->buffer, p->part, "a probe's rows");
}

// Copies the records to p->taken in token order; every row must be there, once.
static status unpack(probe_rows *p, probe_point point, const double *records, int64_t n_records,
                     const probe_order *order, int64_t n_tokens, int64_t each) {
  const probe_store *s = &p->store[point];
  int64_t *record_of_row, n_rows = n_tokens * each;
  status result = 0;
  TRY(TAKE(&record_of_row, (size_t)n_rows, "a probe's rows")); // zeros: none; else the record's number plus 1
  if (n_records != n_rows)
    result = FAIL("the probe %s: expected %lld rows, found %lld", probe_get(point)->name, (long long)n_rows,
                  (long long)n_records);
  for (int64_t i = 0; i < n_records && !result; i++) {
    int64_t row = (int64_t)records[i * (s->width + 1)];
    if (row < 0 || row >= n_rows || record_of_row[row])
      result = FAIL("the probe %s: row %lld came twice, or is not of the batch", probe_get(point)->name,
                    (long long)row);
    else
      record_of_row[row] = i + 1;
  }
  for (int64_t i = 0; i < n_rows && !result; i++) {
    int64_t t = i / each, row = (order->row_of_token ? order->row_of_token[t] : t) * each + i % each;
    memcpy(p->taken + i * s->width, records + (record_of_row[row] - 1) * (s->width + 1) + 1,
           (size_t)s->width * sizeof *p->taken);
  }
  free(record_of_row);
  return result;
}

status probe_rows_take(probe_rows *p, probe_point point, const probe_order *order, int64_t n_tokens,
                       int64_t top_k, const double **out) {
  const probe_info *info = probe_get(point);
  probe_order in_order = {0, n_tokens, NULL};
  const probe_order *by = info->scope == PROBE_OF_HEAD ? &in_order : order;
  int64_t n_records = 0, each = info->per_slot ? top_k : 1;
  *out = NULL;
  if (!p->store[point].room) return FAIL("the probe %s was not opened", info->name);
  TRY(gather(p, point, by, &n_records));
  if (comm_rank(p->c) != p->reporting) return 0;
  TRY(unpack(p, point, (const double *)(void *)p->buffer, n_records, by, n_tokens, each));
  *out = p->taken;
  return 0;
}
