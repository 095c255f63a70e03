// rank_work: what each rank computes and transfers in a run, from its batches and their routing.
//
// Owns: the counting. Independent of: how long it took. Invariant: the same on every shared rank.
#pragma once
#include "src/report/bench_ranks.h"
#include "src/run/arm.h"
#include "src/run/placement.h"

typedef struct {
  const model *m;
  const placement *experts;
  bench_ranks *to;           // its counts grow; NULL: nothing is counted
  uint64_t *slots;           // room: [ranks] of a layer
  uint64_t *read;            // room: [ranks] of a layer
  uint8_t *chosen;           // room: [ranks][n_experts]
  double owned, all;         // tokens: of the rank that computes most of a batch, and of the batches
  double heads_owned, heads; // rows of heads likewise
} rank_work;

// Local. Arrays are of `ranks` ranks. rank_work_close takes what was never opened, if zero.
status rank_work_open(rank_work *w, const model *m, const placement *experts);
void rank_work_close(rank_work *w);
// Local, on shared ranks: from here on what follows is added to `to`, whose counts become 0.
void rank_work_start(rank_work *w, bench_ranks *to);
void rank_work_end(rank_work *w); // the shares are whole
// Local, on shared ranks, after a layer of the batch, which is watched.
void rank_work_add_layer(rank_work *w, arm *a, int64_t layer, const token_batch *batch);
void rank_work_add_head(rank_work *w, const arm *a, int64_t rows);
