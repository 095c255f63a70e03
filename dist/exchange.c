#include "dist/exchange.h"
#include "base/memory.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct exchange {
  comm *c;
  transport *carrier;
  const int32_t *rank_of_expert;
  bool *takes[2];         // [size] by rank_set
  int count[2];           // ranks of each
  int64_t *row_of_slot;   // [max_slots]
  int64_t *rows_of_rank;  // [size] of the last plan
  int64_t *next_row;      // [size]
  size_t *offset, *bytes; // [size]
  uint64_t sent;
};

static status open_sets(exchange *x, const bool *shared) {
  size_t size = (size_t)comm_size(x->c);
  TRY(TAKE(&x->takes[SHARED_RANKS], size, "the ranks' roles"));
  TRY(TAKE(&x->takes[EXPERT_RANKS], size, "the ranks' roles"));
  for (size_t r = 0; r < size; r++) {
    rank_set set = !shared || shared[r] ? SHARED_RANKS : EXPERT_RANKS;
    x->takes[set][r] = true;
    x->count[set]++;
  }
  return x->count[SHARED_RANKS] ? 0 : FAIL("the exchange: expected a rank that computes the shared steps");
}

status exchange_open(exchange **out, comm *c, transport *carrier, const int32_t *rank_of_expert,
                     const bool *shared, int64_t max_slots) {
  *out = NULL;
  exchange *x;
  TRY(memory_take((void **)&x, 1, sizeof *x, "the exchange"));
  x->c = c;
  x->carrier = carrier;
  x->rank_of_expert = rank_of_expert;
  size_t size = (size_t)comm_size(c);
  status result;
  TRY_DONE(result, open_sets(x, shared));
  TRY_DONE(result, TAKE(&x->row_of_slot, (size_t)max_slots, "the rows of slots"));
  TRY_DONE(result, TAKE(&x->rows_of_rank, size, "the rows of ranks"));
  TRY_DONE(result, TAKE(&x->next_row, size, "the rows of ranks"));
  TRY_DONE(result, TAKE(&x->offset, size, "message sizes"));
  TRY_DONE(result, TAKE(&x->bytes, size, "message sizes"));
  *out = x;
done:
  if (result) exchange_close(x);
  return result;
}

void exchange_close(exchange *x) {
  if (!x) return;
  free(x->takes[SHARED_RANKS]);
  free(x->takes[EXPERT_RANKS]);
  free(x->row_of_slot);
  free(x->rows_of_rank);
  free(x->next_row);
  free(x->offset);
  free(x->bytes);
  free(x);
}

const char *exchange_transport(const exchange *x) {
  return transport_name(x->carrier);
}

bool exchange_is_alone(const exchange *x) {
  return comm_size(x->c) == 1;
}

bool exchange_has(const exchange *x, rank_set ranks) {
  return x->count[ranks] > 0;
}

bool exchange_takes(const exchange *x, rank_set to) {
  return x->takes[to][comm_rank(x->c)];
}

int exchange_shared_count(const exchange *x) {
  return x->count[SHARED_RANKS];
}

const int64_t *exchange_plan(exchange *x, const int32_t *expert_of_slot, int64_t n_slots) {
  int size = comm_size(x->c);
  memset(x->rows_of_rank, 0, (size_t)size * sizeof *x->rows_of_rank);
  for (int64_t i = 0; i < n_slots; i++) x->rows_of_rank[x->rank_of_expert[expert_of_slot[i]]]++;
  int64_t first = 0;
  for (int r = 0; r < size; r++) {
    x->next_row[r] = first;
    first += x->rows_of_rank[r];
  }
  for (int64_t i = 0; i < n_slots; i++)
    x->row_of_slot[i] = x->next_row[x->rank_of_expert[expert_of_slot[i]]]++;
  return x->row_of_slot;
}

const int64_t *exchange_rows_of_rank(const exchange *x) {
  return x->rows_of_rank;
}

// An item belongs to the part in which the middle of its cost lies.
void exchange_split(const exchange *x, int64_t *rows_of_rank, const int64_t *cost, int64_t items) {
  int64_t total = cost ? 0 : items, before = 0, next = 0;
  for (int64_t i = 0; i < items && cost; i++) total += cost[i];
  int part = 0;
  for (int r = 0; r < comm_size(x->c); r++) {
    rows_of_rank[r] = 0;
    if (!x->takes[SHARED_RANKS][r]) continue;
    part++;
    for (; next < items; next++) {
      int64_t each = cost ? cost[next] : 1;
      if ((2 * before + each) * x->count[SHARED_RANKS] > 2 * part * total) break;
      before += each;
      rows_of_rank[r]++;
    }
  }
}

int64_t exchange_own_rows(const exchange *x, const int64_t *rows_of_rank, int64_t *first, int64_t *count) {
  int64_t all = 0;
  for (int r = 0; r < comm_size(x->c); r++) {
    if (r == comm_rank(x->c)) *first = all;
    all += rows_of_rank[r];
  }
  *count = rows_of_rank[comm_rank(x->c)];
  return all;
}

// Sizes and places of parts that lie one after the other.
static void lay_out(exchange *x, const int64_t *rows_of_rank, size_t row_bytes) {
  size_t first = 0;
  for (int r = 0; r < comm_size(x->c); r++) {
    x->offset[r] = first;
    x->bytes[r] = (size_t)rows_of_rank[r] * row_bytes;
    first += x->bytes[r];
  }
}

typedef char exchange_name[64];

static const char *name_of(exchange_name out, int64_t layer) {
  snprintf(out, sizeof(exchange_name), "the exchange of layer %lld", (long long)layer);
  return out;
}

static status carry(exchange *x, void *rows, void *stream, rank_set to, int64_t layer) {
  exchange_name what;
  const bool *takes = x->count[to] == comm_size(x->c) ? NULL : x->takes[to];
  x->sent += x->bytes[comm_rank(x->c)] * (uint64_t)(x->count[to] - exchange_takes(x, to));
  return transport_gather(x->carrier, rows, stream, x->offset, x->bytes, takes, name_of(what, layer));
}

status exchange_gather(exchange *x, void *rows, void *stream, size_t row_bytes, const int64_t *rows_of_rank,
                       rank_set to, int64_t layer) {
  lay_out(x, rows_of_rank, row_bytes);
  return carry(x, rows, stream, to, layer);
}

status exchange_gather_host(exchange *x, void *items, size_t item_bytes, const int64_t *items_of_rank,
                            rank_set to, int64_t layer) {
  exchange_name what;
  lay_out(x, items_of_rank, item_bytes);
  return comm_gather_to(x->c, (char *)items, x->offset, x->bytes, x->takes[to], name_of(what, layer));
}

bool exchange_is_fixed(const exchange *x, int64_t n_tokens) {
  return n_tokens <= FIXED_TOKENS && comm_size(x->c) > 1 && !exchange_has(x, EXPERT_RANKS) &&
         transport_all_on_device(x->carrier);
}

status exchange_gather_fixed(exchange *x, void *rows, void *stream, int64_t n_slots, size_t row_bytes,
                             int64_t layer) {
  for (int r = 0; r < comm_size(x->c); r++) {
    x->bytes[r] = (size_t)n_slots * row_bytes;
    x->offset[r] = (size_t)r * x->bytes[r];
  }
  return carry(x, rows, stream, SHARED_RANKS, layer);
}

status exchange_tell(exchange *x, void *data, size_t bytes, const char *what) {
  if (!exchange_has(x, EXPERT_RANKS)) return 0;
  bool told = false;
  for (int r = 0; r < comm_size(x->c); r++) {
    x->offset[r] = 0;
    x->bytes[r] = x->takes[SHARED_RANKS][r] && !told ? bytes : 0;
    told = told || x->takes[SHARED_RANKS][r];
  }
  return comm_gather_to(x->c, (char *)data, x->offset, x->bytes, x->takes[EXPERT_RANKS], what);
}

status exchange_measure_fixed(exchange *x, double *seconds, int64_t n_slots, size_t row_bytes) {
  return transport_measure(x->carrier, seconds, (size_t)n_slots * row_bytes);
}

double exchange_seconds(const exchange *x) {
  return transport_seconds(x->carrier);
}

uint64_t exchange_bytes_sent(const exchange *x) {
  return x->sent;
}
