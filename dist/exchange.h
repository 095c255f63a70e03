// exchange: brings rows that ranks computed to the ranks that need them.
//
// Owns: where each slot's row lies while it travels, which ranks take what.
// Refuses to know: arithmetic; whether rows lie in host memory or on a device. Rows are copied, never added:
// each rank sums a token's slots itself, in slot order.
// Invariant: what travels follows from the batch and its routing, which the ranks concerned know, or from the
// number of slots alone, where the routing stays on the devices: a row's place and every message's size need
// no word. Rows lie in the order of the ranks that computed them and, of one rank, in the order of the ranks
// that take them: what goes from one rank to another is one range of rows, at one place on both sides.
#pragma once
#include "dist/transport.h"

typedef struct exchange exchange;

enum { FIXED_TOKENS = 64 }; // in the largest batch whose rows may have fixed places

// Shared ranks compute the shared steps (attention, router, combine, head); the others, the expert ranks,
// only their experts.
typedef enum { SHARED_RANKS, EXPERT_RANKS, ALL_RANKS, RANK_SETS } rank_set;

typedef struct { // neighbours among the rows of an array
  int64_t first, count;
} row_range;

// carrier, which may be started later, rank_of_expert[n_experts] and shared[size] (NULL: every rank is
// shared) are kept by reference.
status exchange_open(exchange **out, comm *c, transport *carrier, const int32_t *rank_of_expert,
                     const bool *shared, int64_t max_slots);
void exchange_close(exchange *x); // takes NULL

bool exchange_is_alone(const exchange *x); // one rank: nothing travels
int exchange_count(const exchange *x, rank_set ranks);
int exchange_rank(const exchange *x);
int exchange_size(const exchange *x); // ranks

// Local. Cuts `items` of a batch into a part for each shared rank, in the order of ranks and as even as whole
// items are: rows_of_rank[size], 0 for expert ranks.
void exchange_split(const exchange *x, int64_t *rows_of_rank, int64_t items);

// What crosses ranks: range[from * size + to] of rank `from`'s rows comes to the same rows of rank `to`. The
// same table on every rank; a rank's range to itself says nothing.
//
// Local. Rows that lie in the order of the ranks that computed them, rows_of_rank[size] of each, come to all
// ranks of `to`. Valid until the next call.
const row_range *exchange_gather(exchange *x, const int64_t *rows_of_rank, rank_set to);

// Local. Row of each slot: the owners' rows one rank after the other, each rank's in slot order. Returns the
// map [n_slots]; it and exchange_slots are valid until the next call. slots_of_rank[size]: how many
// successive slots are of tokens of each rank, which takes only these; NULL: each shared rank takes all.
const int64_t *exchange_place_slots(exchange *x, const int32_t *expert_of_slot, int64_t n_slots,
                                    const int64_t *slots_of_rank);
const row_range *exchange_slots(const exchange *x); // what crosses ranks by the last plan

// The least range that holds all that this rank gives.
row_range exchange_gives(const exchange *x, const row_range *range);

// Collective. rows[..][row_bytes]: what this rank gives filled before, what it takes afterwards. stream:
// NULL, or that of rows on a device (transport.h).
status exchange_transfer(exchange *x, void *rows, void *stream, size_t row_bytes, const row_range *range,
                         int64_t layer);
// The same for what every rank has in host memory, whatever its backend: it never takes the transport's way.
status exchange_transfer_host(exchange *x, void *rows, size_t row_bytes, const row_range *range,
                              int64_t layer);

// Collective. `bytes` of `data` of the first shared rank come to the expert ranks.
status exchange_broadcast(exchange *x, void *data, size_t bytes, const char *what);

// A small batch, and every rank's rows on its device: the row of slot i of rank r's expert has the place
// r * n_slots + i. So the host need not know the routing, and the exchange can be recorded; other places of
// [r] hold nothing.
bool exchange_is_fixed(const exchange *x, int64_t n_tokens);
// Collective. Completes rows[ranks][n_slots][row_bytes].
status exchange_transfer_fixed(exchange *x, void *rows, void *stream, int64_t n_slots, size_t row_bytes,
                               int64_t layer);

// Collective. Seconds of such an exchange with nothing else to do (transport_measure).
status exchange_measure_fixed(exchange *x, double *seconds, int64_t n_slots, size_t row_bytes);

double exchange_seconds(const exchange *x); // as transport_seconds
uint64_t exchange_bytes_sent(const exchange *x);
