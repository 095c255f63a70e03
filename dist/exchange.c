#include "dist/exchange.h"
#include "base/clock.h"
#include "base/memory.h"
#include "dist/timeline.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct exchange {
  comm *c;
  transport *t;
  bool *holds[RANK_SETS];    // [size] ranks of each set
  int count[RANK_SETS];      // ranks of each
  int64_t *row_of_slot;      // [max_slots]
  int64_t *next_row;         // [size]
  row_range *gather, *slots; // [size][size] of the last exchange_gather and exchange_place_slots
  comm_part *part;           // [size][size]
  uint64_t sent;
  double host_seconds; // of exchange_transfer_host
  seconds_log *log;    // NULL: nobody asks
};

static status open_sets(exchange *x, const bool *shared) {
  size_t size = (size_t)comm_size(x->c);
  for (int set = 0; set < RANK_SETS; set++) TRY(TAKE(&x->holds[set], size, "the ranks' roles"));
  for (size_t r = 0; r < size; r++) {
    rank_set set = !shared || shared[r] ? SHARED_RANKS : EXPERT_RANKS;
    x->holds[set][r] = x->holds[ALL_RANKS][r] = true;
    x->count[set]++;
    x->count[ALL_RANKS]++;
  }
  return x->count[SHARED_RANKS] ? 0 : FAIL("the exchange: expected a rank that computes the shared steps");
}

status exchange_open(exchange **out, comm *c, transport *t, const bool *shared, int64_t max_slots) {
  *out = NULL;
  exchange *x;
  TRY(memory_take((void **)&x, 1, sizeof *x, "the exchange"));
  x->c = c;
  x->t = t;
  size_t size = (size_t)comm_size(c);
  status result;
  TRY_DONE(result, open_sets(x, shared));
  TRY_DONE(result, TAKE(&x->row_of_slot, (size_t)max_slots, "the rows of slots"));
  TRY_DONE(result, TAKE(&x->next_row, size, "the rows of ranks"));
  TRY_DONE(result, TAKE(&x->gather, size * size, "the rows of ranks"));
  TRY_DONE(result, TAKE(&x->slots, size * size, "the rows of ranks"));
  TRY_DONE(result, TAKE(&x->part, size * size, "message sizes"));
  *out = x;
done:
  if (result) exchange_close(x);
  return result;
}

void exchange_close(exchange *x) {
  if (!x) return;
  for (int set = 0; set < RANK_SETS; set++) free(x->holds[set]);
  free(x->row_of_slot);
  free(x->next_row);
  free(x->gather);
  free(x->slots);
  free(x->part);
  free(x);
}

bool exchange_is_alone(const exchange *x) {
  return comm_size(x->c) == 1;
}

int exchange_count(const exchange *x, rank_set ranks) {
  return x->count[ranks];
}

int exchange_rank(const exchange *x) {
  return comm_rank(x->c);
}

int exchange_size(const exchange *x) {
  return comm_size(x->c);
}

// ---- which rows go where ----

void exchange_split(const exchange *x, int64_t *rows_of_rank, int64_t items) {
  int64_t part = 0, count = x->count[SHARED_RANKS];
  for (int r = 0; r < comm_size(x->c); r++) {
    rows_of_rank[r] = 0;
    if (!x->holds[SHARED_RANKS][r]) continue;
    rows_of_rank[r] = (part + 1) * items / count - part * items / count;
    part++;
  }
}

const row_range *exchange_gather(exchange *x, const int64_t *rows_of_rank, rank_set to) {
  int size = comm_size(x->c);
  int64_t first = 0;
  for (int from = 0; from < size; first += rows_of_rank[from++])
    for (int r = 0; r < size; r++)
      x->gather[from * size + r] = (row_range){first, x->holds[to][r] ? rows_of_rank[from] : 0};
  return x->gather;
}

// How many of each rank's slots each rank receives.
static void count_slots(exchange *x, const int32_t *rank_of_slot, int64_t n_slots,
                        const int64_t *slots_of_rank) {
  int size = comm_size(x->c), receiver = 0;
  int64_t end = slots_of_rank ? slots_of_rank[0] : n_slots; // of the slots of `receiver`
  memset(x->slots, 0, (size_t)(size * size) * sizeof *x->slots);
  for (int64_t i = 0; i < n_slots; i++) {
    while (i == end) end += slots_of_rank[++receiver];
    x->slots[rank_of_slot[i] * size + receiver].count++;
  }
}

const int64_t *exchange_place_slots(exchange *x, const int32_t *rank_of_slot, int64_t n_slots,
                                    const int64_t *slots_of_rank) {
  int size = comm_size(x->c);
  int64_t next = 0;
  count_slots(x, rank_of_slot, n_slots, slots_of_rank);
  for (int from = 0; from < size; from++) {
    row_range *range = x->slots + from * size;
    x->next_row[from] = next;
    for (int to = 0; to < size; next += range[to++].count) range[to].first = next;
    if (slots_of_rank) continue;
    for (int to = size - 1; to >= 0; to--) // all were counted as rank 0's
      range[to] = (row_range){range[0].first, x->holds[SHARED_RANKS][to] ? range[0].count : 0};
  }
  for (int64_t i = 0; i < n_slots; i++) x->row_of_slot[i] = x->next_row[rank_of_slot[i]]++;
  return x->row_of_slot;
}

const row_range *exchange_slots(const exchange *x) {
  return x->slots;
}

row_range exchange_own_slots(const exchange *x) { // every rank's next row is now where its last one ends
  int rank = comm_rank(x->c);
  int64_t first = rank ? x->next_row[rank - 1] : 0;
  return (row_range){first, x->next_row[rank] - first};
}

row_range exchange_sent_rows(const exchange *x, const row_range *range) {
  int rank = comm_rank(x->c), size = comm_size(x->c);
  row_range all = {0, 0};
  for (int to = 0; to < size; to++) {
    row_range one = range[rank * size + to];
    if (to == rank || !one.count) continue;
    int64_t end = one.first + one.count, before = all.first + all.count;
    if (!all.count || one.first < all.first) all.first = one.first;
    all.count = (before > end && all.count ? before : end) - all.first;
  }
  return all;
}

// ---- the transfer ----

typedef char exchange_name[64];

static const char *name_of(exchange_name out, int64_t layer) {
  snprintf(out, sizeof(exchange_name), "the exchange of layer %lld", (long long)layer);
  return out;
}

static void lay_out(exchange *x, const row_range *range, size_t row_bytes) {
  int size = comm_size(x->c);
  for (int i = 0; i < size * size; i++)
    x->part[i] = (comm_part){(size_t)range[i].first * row_bytes, (size_t)range[i].count * row_bytes};
}

// What this rank sends of x->part.
static uint64_t bytes_sent(const exchange *x) {
  int rank = comm_rank(x->c), size = comm_size(x->c);
  uint64_t bytes = 0;
  for (int to = 0; to < size; to++) bytes += to == rank ? 0 : x->part[rank * size + to].bytes;
  return bytes;
}

static status transfer(exchange *x, void *rows, void *stream, int64_t layer) {
  exchange_name what;
  uint64_t bytes = bytes_sent(x);
  double start = clock_seconds();
  x->sent += bytes;
  span_start(SPAN_EXCHANGE, layer);
  status result = transport_transfer(x->t, rows, stream, x->part, name_of(what, layer));
  span_end((int64_t)bytes);
  if (!stream) seconds_log_add(x->log, clock_seconds() - start); // on a device it has not ended
  return result;
}

// *seconds: of it on this rank.
static status transfer_host(exchange *x, double *seconds, void *rows, int64_t layer, const char *what) {
  double start = clock_seconds();
  span_start(SPAN_EXCHANGE, layer);
  status result = comm_exchange(x->c, (char *)rows, x->part, what);
  span_end((int64_t)bytes_sent(x));
  *seconds = clock_seconds() - start;
  return result;
}

status exchange_transfer(exchange *x, void *rows, void *stream, size_t row_bytes, const row_range *range,
                         int64_t layer) {
  lay_out(x, range, row_bytes);
  return transfer(x, rows, stream, layer);
}

status exchange_transfer_host(exchange *x, void *rows, size_t row_bytes, const row_range *range,
                              int64_t layer) {
  exchange_name what;
  lay_out(x, range, row_bytes);
  x->sent += bytes_sent(x);
  double seconds;
  status result = transfer_host(x, &seconds, rows, layer, name_of(what, layer));
  x->host_seconds += seconds;
  seconds_log_add(x->log, seconds);
  return result;
}

bool exchange_is_fixed(const exchange *x, int64_t n_tokens) {
  return n_tokens <= FIXED_TOKENS && comm_size(x->c) > 1 && !x->count[EXPERT_RANKS] &&
         transport_all_on_device(x->t);
}

status exchange_transfer_fixed(exchange *x, void *rows, void *stream, int64_t n_slots, size_t row_bytes,
                               int64_t layer) {
  int size = comm_size(x->c);
  size_t bytes = (size_t)n_slots * row_bytes;
  for (int i = 0; i < size * size; i++) x->part[i] = (comm_part){(size_t)(i / size) * bytes, bytes};
  return transfer(x, rows, stream, layer);
}

status exchange_broadcast(exchange *x, void *data, size_t bytes, const char *what) {
  if (!x->count[EXPERT_RANKS]) return 0;
  int size = comm_size(x->c), root = 0;
  while (!x->holds[SHARED_RANKS][root]) root++;
  for (int i = 0; i < size * size; i++)
    x->part[i] = (comm_part){0, i / size == root && x->holds[EXPERT_RANKS][i % size] ? bytes : 0};
  double seconds;
  return transfer_host(x, &seconds, data, SPAN_NO_LAYER, what);
}

status exchange_measure(exchange *x, double *seconds, size_t bytes) {
  return transport_measure(x->t, seconds, bytes);
}

void exchange_log(exchange *x, seconds_log *log) {
  x->log = log;
}

double exchange_seconds(const exchange *x) {
  return transport_seconds(x->t) + x->host_seconds;
}

uint64_t exchange_bytes_sent(const exchange *x) {
  return x->sent;
}
