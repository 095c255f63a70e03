// rank_clocks: where each rank's time goes in a pass: by step and by group of layers, and of each exchange
// how much of it is the wait for the rank that comes last.
//
// Independent of: what is computed. Invariant: needs no common clock. An exchange ends for nobody before the
// last rank has come, and for that one it takes as long as the transfer: so the shortest of the ranks' times
// is the transfer, and what another rank took longer it waited.
#pragma once
#include "src/report/bench_ranks.h"
#include "src/run/arm.h"

typedef struct {
  int64_t n_layers;
  int n_groups, current;             // which group is watched; n_groups: what is outside of layers
  phase_times of[BENCH_GROUPS + 1];  // of this rank
  double exchange[BENCH_GROUPS + 1]; // seconds, with the wait
  seconds_log log;
  int8_t *group_of; // [log.room] of each exchange
  int64_t noted;    // exchanges that have a group
  double sum;       // of these
  double seconds;   // of the pass
} rank_clocks;

status rank_clocks_open(rank_clocks *c, int64_t n_layers); // local
void rank_clocks_close(rank_clocks *c);                    // local; takes one that is zero

// A pass is: start, rank_clocks_forward in place of arm_forward, heads, end. The same calls on all ranks.
status rank_clocks_start(rank_clocks *c, arm *a);
status rank_clocks_forward(rank_clocks *c, arm *a, const token_batch *batch);
status rank_clocks_end(rank_clocks *c, arm *a);

// Local. The pass as a whole, of this rank.
void rank_clocks_sum(const rank_clocks *c, phase_times *out);
// Collective. Fills times, host, transfer_seconds, exchange_is_inside and what the arm's transport is.
status rank_clocks_gather(const rank_clocks *c, comm *ranks, const arm *a, bench_ranks *out);
