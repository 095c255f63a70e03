#include "dist/exchange.h"
#include "base/clock.h"
#include "base/memory.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { // one way of carrying rows
  const char *name;
  bool (*serves)(const comm *c);
  status (*gather)(exchange *x, char *rows, const char *what);
} transport_ops;

struct exchange {
  comm *c;
  const transport_ops *transport;
  const int32_t *rank_of_expert;
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

static status self_gather(exchange *x, char *rows, const char *what) {
  (void)x, (void)rows, (void)what; // a lone rank computed every row itself
  return 0;
}

static bool mpi_serves(const comm *c) {
  (void)c;
  return true;
}

static status mpi_gather(exchange *x, char *rows, const char *what) {
  return comm_allgatherv(x->c, rows, x->offset, x->bytes, what);
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

status exchange_open(exchange **out, comm *c, const char *transport, const int32_t *rank_of_expert,
                     int64_t max_slots) {
  *out = NULL;
  exchange *x;
  TRY(memory_take((void **)&x, 1, sizeof *x, "the exchange"));
  x->c = c;
  x->rank_of_expert = rank_of_expert;
  size_t size = (size_t)comm_size(c);
  status result;
  TRY_DONE(result, choose_transport(x, transport));
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

void exchange_own_rows(const exchange *x, int64_t *first, int64_t *count) {
  *first = 0;
  for (int r = 0; r < comm_rank(x->c); r++) *first += x->rows_of_rank[r];
  *count = x->rows_of_rank[comm_rank(x->c)];
}

bool exchange_is_alone(const exchange *x) {
  return comm_size(x->c) == 1;
}

status exchange_gather(exchange *x, void *rows, size_t row_bytes, int64_t layer) {
  char what[64];
  snprintf(what, sizeof what, "the exchange of layer %lld", (long long)layer);
  size_t first = 0;
  for (int r = 0; r < comm_size(x->c); r++) {
    x->offset[r] = first;
    x->bytes[r] = (size_t)x->rows_of_rank[r] * row_bytes;
    first += x->bytes[r];
  }
  double start = clock_seconds();
  status result = x->transport->gather(x, (char *)rows, what);
  x->seconds += clock_seconds() - start;
  x->sent += x->bytes[comm_rank(x->c)] * (uint64_t)(comm_size(x->c) - 1);
  return result;
}

double exchange_seconds(const exchange *x) {
  return x->seconds;
}

uint64_t exchange_bytes_sent(const exchange *x) {
  return x->sent;
}
