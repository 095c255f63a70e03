// exchange: brings every slot's output to every rank.
//
// Owns: where each slot's row lies while it travels.
// Refuses to know: arithmetic; whether rows lie in host memory or on a device. Rows are copied, never added:
// each rank sums a token's slots itself, in slot order.
// Invariant: a row's place and every message's size follow without a word: from the routing, where all ranks
// know it, or from the number of slots alone, where it stays on the devices.
#pragma once
#include "dist/transport.h"

typedef struct exchange exchange;

enum { FIXED_TOKENS = 64 }; // in the largest batch whose rows may have fixed places

// carrier, which may be started later, and rank_of_expert[n_experts] are kept by reference.
status exchange_open(exchange **out, comm *c, transport *carrier, const int32_t *rank_of_expert,
                     int64_t max_slots);
void exchange_close(exchange *x); // takes NULL
const char *exchange_transport(const exchange *x);

// Local. Row of each slot: the owners' rows one rank after the other, each rank's in slot order. Returns the
// map [n_slots], valid until the next call.
const int64_t *exchange_plan(exchange *x, const int32_t *expert_of_slot, int64_t n_slots);

// Local. The rows of the last plan that this rank computes: `count` from `first` on.
void exchange_own_rows(const exchange *x, int64_t *first, int64_t *count);
bool exchange_is_alone(const exchange *x); // one rank: nothing travels

// Collective. Completes rows[n_slots][row_bytes] of the last plan from the ranks that own them. stream: NULL,
// or that of rows on a device (transport.h).
status exchange_gather(exchange *x, void *rows, void *stream, size_t row_bytes, int64_t layer);

// A small batch, and every rank's rows on its device: the row of slot i of rank r's expert has the place
// r * n_slots + i. So the host need not know the routing, and the exchange can be recorded; other places of
// [r] hold nothing.
bool exchange_is_fixed(const exchange *x, int64_t n_tokens);
// Collective. Completes rows[ranks][n_slots][row_bytes].
status exchange_gather_fixed(exchange *x, void *rows, void *stream, int64_t n_slots, size_t row_bytes,
                             int64_t layer);

double exchange_seconds(const exchange *x); // as transport_seconds
uint64_t exchange_bytes_sent(const exchange *x);
