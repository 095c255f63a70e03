// exchange: transfers rows from the ranks that computed them to the ranks that need them.
//
// Owns: the row of each slot among the slots' outputs, and which ranks receive which rows of any kind.
// Independent of: arithmetic; whether rows lie in host memory or on a device. Rows are copied, never added:
// each rank sums a token's slots itself, in slot order.
// Invariant: what is sent follows from the batch and its routing, which the ranks concerned know, or from the
// number of slots alone, where the routing stays on the devices: rows and message sizes are never negotiated.
// Rows are ordered by the rank that computed them and, within one rank, by the rank that receives them: what
// one rank sends to another is one range of rows, at the same offset on both sides.
#pragma once
#include "base/seconds_log.h"
#include "dist/transport.h"

typedef struct exchange exchange;

// Tokens of the largest batch whose slots may have fixed rows; larger ones send only the rows that were
// computed.
enum { FIXED_TOKENS = 64 };

// Shared ranks compute the shared steps (attention, router, combine, head); the others, the expert ranks,
// compute only their experts.
typedef enum { SHARED_RANKS, EXPERT_RANKS, ALL_RANKS, RANK_SETS } rank_set;

typedef struct { // contiguous rows of an array
  int64_t first, count;
} row_range;

// Local. t, which may be started later, is kept by reference. shared[size]; NULL: every rank is shared.
// max_slots: of the largest batch.
status exchange_open(exchange **out, comm *c, transport *t, const bool *shared, int64_t max_slots);
void exchange_close(exchange *x); // takes NULL

bool exchange_is_alone(const exchange *x);             // one rank: nothing is sent
int exchange_count(const exchange *x, rank_set ranks); // ranks in the set
int exchange_rank(const exchange *x);
int exchange_size(const exchange *x); // ranks

// Local. Divides `items` of a batch among the shared ranks, in rank order and as evenly as whole items allow:
// rows_of_rank[size], 0 for expert ranks.
void exchange_split(const exchange *x, int64_t *rows_of_rank, int64_t items);

// What crosses ranks, as a table that is the same on every rank: range[from * size + to] are the rows that
// rank `from` sends to the same rows of rank `to`. A rank's range to itself is ignored.
//
// Local. For an all-gather: rows ordered by the rank that computed them, rows_of_rank[size] of each, go to
// all ranks of `to`. Valid until the next call.
const row_range *exchange_gather(exchange *x, const int64_t *rows_of_rank, rank_set to);

// Local. Assigns each slot its row: ordered by the rank that computes it (rank_of_slot[n_slots], the same on
// every rank), then by slot. Returns the map [n_slots]; it and exchange_slots are valid until the next call.
// slots_of_rank[size]: how many successive slots belong to the tokens of each rank, which receives only
// these; NULL: each shared rank receives all.
const int64_t *exchange_place_slots(exchange *x, const int32_t *rank_of_slot, int64_t n_slots,
                                    const int64_t *slots_of_rank);
const row_range *exchange_slots(const exchange *x); // what crosses ranks after that call
row_range exchange_own_slots(const exchange *x);    // rows of the slots that this rank computes

// Local. The smallest range that holds all rows that this rank sends.
row_range exchange_sent_rows(const exchange *x, const row_range *range);

// Collective. rows[..][row_bytes]: what this rank sends is filled before, what it receives afterwards.
// stream: NULL, or that of rows on a device (transport.h).
status exchange_transfer(exchange *x, void *rows, void *stream, size_t row_bytes, const row_range *range,
                         int64_t layer);
// The same over MPI, whatever the transport: for what every rank has in host memory, whatever its backend.
status exchange_transfer_host(exchange *x, void *rows, size_t row_bytes, const row_range *range,
                              int64_t layer);

// Collective. Broadcasts `bytes` of `data` from the first shared rank to the expert ranks.
status exchange_broadcast(exchange *x, void *data, size_t bytes, const char *what);

// True for a small batch where every rank's rows lie on its device: slot i that rank r computes then has
// row r * n_slots + i, and the other rows of [r] are unused. So the host need not know the routing, and the
// exchange can be captured in a graph.
bool exchange_is_fixed(const exchange *x, int64_t n_tokens);
// Collective. All-gather of rows[ranks][n_slots][row_bytes].
status exchange_transfer_fixed(exchange *x, void *rows, void *stream, int64_t n_slots, size_t row_bytes,
                               int64_t layer);

// Collective. Seconds of an all-gather of `bytes` per rank alone (transport_measure).
status exchange_measure(exchange *x, double *seconds, size_t bytes);

// Local. Of all transfers so far: as transport_seconds, and those of exchange_transfer_host; what this rank
// sent, but for what a captured graph sends again.
double exchange_seconds(const exchange *x);
uint64_t exchange_bytes_sent(const exchange *x);
// Local. From here on each transfer of rows in host memory adds its seconds to `log`; NULL: no more.
void exchange_log(exchange *x, seconds_log *log);
