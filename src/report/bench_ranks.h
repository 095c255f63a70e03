// bench_ranks: what each rank did in a run of bench, as JSON: its time by step and layer group, what it sent
// and received, the experts that it computed (bench.phases; docs/bench.md).
//
// Independent of: how it was measured.
#pragma once
#include "base/status.h"
#include "kernels/backend.h"
#include <stdbool.h>
#include <stdio.h>

enum { BENCH_GROUPS = 6 }; // of layers, at most: with clocks a device is waited for at the end of each

typedef enum { PART_SHARED, PART_EXPERTS, PART_EXCHANGE, PART_WAITING } bench_part;
enum { BENCH_PARTS = PART_WAITING + 1 };

typedef struct { // of a rank in the pass with clocks
  double seconds;
  double phase[PHASE_COUNT];               // exchange: with the wait
  double group[BENCH_GROUPS][BENCH_PARTS]; // of layers; waiting is 0 where it is not known
} rank_times;

typedef struct { // bytes per rank and seconds of an all-gather alone; seconds NaN: not measured
  uint64_t bytes;
  double seconds;
} bench_link;

typedef struct {
  int n, n_groups; // ranks; groups of layers
  int64_t n_layers;
  const char **host;                                // [n]
  rank_times *times;                                // [n]
  uint64_t *sent, *received, *slots, *expert_bytes; // [n] of a run; slots that the rank computed
  // Sums over batches and layers of the most that any rank had, and of all ranks.
  uint64_t busiest_slots, busiest_expert_bytes;
  // Of the layers' shared steps, and of the head, what the rank that computes most of a batch computes.
  double token_share, head_share;
  double transfer_seconds;  // of each exchange that of the rank that came last; NaN: not known
  bool exchange_is_inside;  // of kernels that compute experts, so no clock sees it
  const char *transport;    // of the arm
  bool has_peers;           // GPUs store into each other's memory
  bench_link same, largest; // of a layer's bytes, and of many
} bench_ranks;

status bench_ranks_open(bench_ranks **out, int n); // of n ranks
void bench_ranks_close(bench_ranks *r);            // takes NULL
void bench_ranks_md(const bench_ranks *r, const char *arm, const char *test, FILE *out);
void bench_ranks_json(const bench_ranks *r, FILE *out); // "ranks": {...}

// Layers of group g: first .. end - 1.
int64_t bench_group_first(const bench_ranks *r, int g);
