// exchange: brings rows that ranks computed to the ranks that need them.
//
// Owns: where each slot's row lies while it travels, which ranks take what.
// Refuses to know: arithmetic; whether rows lie in host memory or on a device. Rows are copied, never added:
// each rank sums a token's slots itself, in slot order.
// Invariant: what travels follows from the batch and its routing, which the ranks concerned know, or from the
// number of slots alone, where the routing stays on the devices: a row's place and every message's size need
// no word. Rows of ranks lie in the order of ranks, so that a transport can gather them in place.
#pragma once
#include "dist/transport.h"

typedef struct exchange exchange;

enum { FIXED_TOKENS = 64 }; // in the largest batch whose rows may have fixed places

// Shared ranks compute the shared steps (attention, router, combine, head); the others, the expert ranks,
// only their experts.
typedef enum { SHARED_RANKS, EXPERT_RANKS } rank_set;

// carrier, which may be started later, rank_of_expert[n_experts] and shared[size] (NULL: every rank is
// shared) are kept by reference.
status exchange_open(exchange **out, comm *c, transport *carrier, const int32_t *rank_of_expert,
                     const bool *shared, int64_t max_slots);
void exchange_close(exchange *x); // takes NULL
const char *exchange_transport(const exchange *x);

bool exchange_is_alone(const exchange *x);            // one rank: nothing travels
bool exchange_has(const exchange *x, rank_set ranks); // there are such ranks
bool exchange_takes(const exchange *x, rank_set to);  // this rank is one of them

// Local. Row of each slot: the owners' rows one rank after the other, each rank's in slot order. Returns the
// map [n_slots], valid until the next call.
const int64_t *exchange_plan(exchange *x, const int32_t *expert_of_slot, int64_t n_slots);
const int64_t *exchange_rows_of_rank(const exchange *x); // [size] of the last plan

// Local. Cuts `items` of a batch, weighted by cost[items] (NULL: all alike), into a part for each shared
// rank, in the order of ranks and as even as whole items are: rows_of_rank[size], 0 for expert ranks.
void exchange_split(const exchange *x, int64_t *rows_of_rank, const int64_t *cost, int64_t items);
int exchange_shared_count(const exchange *x);

// Local. The rows that this rank computes: `count` from `first` on; returns the number of all.
int64_t exchange_own_rows(const exchange *x, const int64_t *rows_of_rank, int64_t *first, int64_t *count);

// Collective. rows[sum of rows_of_rank][row_bytes], own ones filled before; afterwards each rank of `to` has
// them all. stream: NULL, or that of rows on a device (transport.h).
status exchange_gather(exchange *x, void *rows, void *stream, size_t row_bytes, const int64_t *rows_of_rank,
                       rank_set to, int64_t layer);
// The same for what every rank has in host memory, whatever its backend: it never takes the transport's way.
status exchange_gather_host(exchange *x, void *items, size_t item_bytes, const int64_t *items_of_rank,
                            rank_set to, int64_t layer);

// Collective. `bytes` of `data` of the first shared rank come to the expert ranks.
status exchange_tell(exchange *x, void *data, size_t bytes, const char *what);

// A small batch, and every rank's rows on its device: the row of slot i of rank r's expert has the place
// r * n_slots + i. So the host need not know the routing, and the exchange can be recorded; other places of
// [r] hold nothing.
bool exchange_is_fixed(const exchange *x, int64_t n_tokens);
// Collective. Completes rows[ranks][n_slots][row_bytes].
status exchange_gather_fixed(exchange *x, void *rows, void *stream, int64_t n_slots, size_t row_bytes,
                             int64_t layer);

// Collective. Seconds of such an exchange with nothing else to do (transport_measure).
status exchange_measure_fixed(exchange *x, double *seconds, int64_t n_slots, size_t row_bytes);

double exchange_seconds(const exchange *x); // as transport_seconds
uint64_t exchange_bytes_sent(const exchange *x);
