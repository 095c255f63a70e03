// exchange: brings every slot's output to every rank.
//
// Owns: where each slot's row lies while it travels, the transport that carries the rows, the time spent
// waiting. Refuses to know: arithmetic. Rows are copied, never added: each rank sums a token's slots itself,
// in slot order. Invariant: routing is known to all ranks, so a row's place and every message's size follow
// without a word.
#pragma once
#include "dist/comm.h"

typedef struct exchange exchange;

// transport: "auto" (self on one rank, else mpi), "self" or "mpi". rank_of_expert[n_experts] is kept by
// reference.
status exchange_open(exchange **out, comm *c, const char *transport, const int32_t *rank_of_expert,
                     int64_t max_slots);
void exchange_close(exchange *x); // takes NULL
const char *exchange_transport(const exchange *x);

// Local. Row of each slot: the owners' rows one rank after the other, each rank's in slot order. Returns the
// map [n_slots], valid until the next call.
const int64_t *exchange_plan(exchange *x, const int32_t *expert_of_slot, int64_t n_slots);

// Local. The rows of the last plan that this rank computes: `count` from `first` on.
void exchange_own_rows(const exchange *x, int64_t *first, int64_t *count);
bool exchange_is_alone(const exchange *x); // one rank: nothing travels

// Collective. Completes rows[n_slots][row_bytes] of the last plan from the ranks that own them.
status exchange_gather(exchange *x, void *rows, size_t row_bytes, int64_t layer);

double exchange_seconds(const exchange *x); // spent in exchange_gather since open, waiting included
uint64_t exchange_bytes_sent(const exchange *x);
