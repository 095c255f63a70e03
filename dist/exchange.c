#include "dist/exchange.h"
#include "base/clock.h"
#include "base/memory.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { // one way of carrying rows
  const char *name;
  bool (*serves)(const comm *c);
  // Completes rows on the ranks of `takes`: rank r's part is bytes[r] at offset[r].
  status (*gather)(exchange *x, char *rows, const bool *takes, const char *what);
} transport_ops;

struct exchange {
  comm *c;
  const transport_ops *transport;
  const int32_t *rank_of_expert;
  bool *takes[2];         // [size] by rank_set
  int count[2];           // ranks of each
  int64_t *row_of_slot;   // [max_slots]
  int64_t *rows_of_rank;  // [size] of the last plan
  int64_t *next_row;      // [size]
  size_t *offset, *bytes; // [size]
  double seconds;
  uint64_t sent;
};

static bool self_serves(const comm *c) {
  return comm_size(c) == 1;
}

static status self_gather(exchange *x, char *rows, const bool *takes, const char *what) {
  (void)x, (void)rows, (void)takes, (void)what; // a lone rank computed every row itself
  return 0;
}

static bool mpi_serves(const comm *c) {
  (void)c;
  return true;
}

static status mpi_gather(exchange *x, char *rows, const bool *takes, const char *what) {
  return comm_gather_to(x->c, rows, x->offset, x->bytes, takes, what);
}

static const transport_ops transports[] = {
    {"self", self_serves, self_gather},
    {"mpi", mpi_serves, mpi_gather},
};

static status choose_transport(exchange *x, const char *name) {
  for (size_t i = 0; i < sizeof transports / sizeof *transports; i++) {
    const transport_ops *t = &transports[i];
    if (strcmp(name, "auto") && strcmp(name, t->name)) continue;
    if (t->serves(x->c)) {
      x->transport = t;
      return 0;
    }
    if (strcmp(name, "auto"))
      return FAIL("comm.transport = \"%s\" cannot serve %d ranks", name, comm_size(x->c));
  }
  return FAIL("comm.transport = \"%s\": this build has \"self\" and \"mpi\"", name);
}

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

status exchange_open(exchange **out, comm *c, const char *transport, const int32_t *rank_of_expert,
                     const bool *shared, int64_t max_slots) {
  *out = NULL;
  exchange *x;
  TRY(memory_take((void **)&x, 1, sizeof *x, "the exchange"));
  x->c = c;
  x->rank_of_expert = rank_of_expert;
  size_t size = (size_t)comm_size(c);
  status result;
  TRY_DONE(result, choose_transport(x, transport));
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
  return x->transport->name;
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

status exchange_gather(exchange *x, void *rows, size_t row_bytes, const int64_t *rows_of_rank, rank_set to,
                       int64_t layer) {
  char what[64];
  snprintf(what, sizeof what, "the exchange of layer %lld", (long long)layer);
  size_t first = 0;
  for (int r = 0; r < comm_size(x->c); r++) {
    x->offset[r] = first;
    x->bytes[r] = (size_t)rows_of_rank[r] * row_bytes;
    first += x->bytes[r];
  }
  double start = clock_seconds();
  status result = x->transport->gather(x, (char *)rows, x->takes[to], what);
  x->seconds += clock_seconds() - start;
  x->sent += x->bytes[comm_rank(x->c)] * (uint64_t)(x->count[to] - exchange_takes(x, to));
  return result;
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

double exchange_seconds(const exchange *x) {
  return x->seconds;
}

uint64_t exchange_bytes_sent(const exchange *x) {
  return x->sent;
}
