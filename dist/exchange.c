#include "dist/exchange.h"
#include "base/memory.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct exchange {
  comm *c;
  transport *carrier;
  const int32_t *rank_of_expert;
  int64_t *row_of_slot;   // [max_slots]
  int64_t *rows_of_rank;  // [size] of the last plan
  int64_t *next_row;      // [size]
  size_t *offset, *bytes; // [size]
  uint64_t sent;
};

status exchange_open(exchange **out, comm *c, transport *carrier, const int32_t *rank_of_expert,
                     int64_t max_slots) {
  *out = NULL;
  exchange *x;
  TRY(memory_take((void **)&x, 1, sizeof *x, "the exchange"));
  x->c = c;
  x->carrier = carrier;
  x->rank_of_expert = rank_of_expert;
  size_t size = (size_t)comm_size(c);
  status result;
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
  return transport_name(x->carrier);
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

static status gather(exchange *x, void *rows, void *stream, int64_t layer) {
  char what[64];
  snprintf(what, sizeof what, "the exchange of layer %lld", (long long)layer);
  x->sent += x->bytes[comm_rank(x->c)] * (uint64_t)(comm_size(x->c) - 1);
  return transport_gather(x->carrier, rows, stream, x->offset, x->bytes, what);
}

status exchange_gather(exchange *x, void *rows, void *stream, size_t row_bytes, int64_t layer) {
  size_t first = 0;
  for (int r = 0; r < comm_size(x->c); r++) {
    x->offset[r] = first;
    x->bytes[r] = (size_t)x->rows_of_rank[r] * row_bytes;
    first += x->bytes[r];
  }
  return gather(x, rows, stream, layer);
}

bool exchange_is_fixed(const exchange *x, int64_t n_tokens) {
  return n_tokens <= FIXED_TOKENS && comm_size(x->c) > 1 && transport_all_on_device(x->carrier);
}

status exchange_gather_fixed(exchange *x, void *rows, void *stream, int64_t n_slots, size_t row_bytes,
                             int64_t layer) {
  for (int r = 0; r < comm_size(x->c); r++) {
    x->bytes[r] = (size_t)n_slots * row_bytes;
    x->offset[r] = (size_t)r * x->bytes[r];
  }
  return gather(x, rows, stream, layer);
}

double exchange_seconds(const exchange *x) {
  return transport_seconds(x->carrier);
}

uint64_t exchange_bytes_sent(const exchange *x) {
  return x->sent;
}
