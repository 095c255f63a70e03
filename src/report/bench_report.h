// bench_report: the rates that bench measured, printed as Markdown, CSV or JSON.
//
// Independent of: how it was measured. Invariant: the three forms hold the same rows; a digest is
// hexadecimal.
#pragma once
#include "base/message_list.h"
#include "src/config/config_types.h"
#include "dist/timeline.h"
#include "src/report/bench_phases.h"
#include "src/report/bench_ranks.h"
#include <stdio.h>

typedef struct {
  const char *arm;
  char row_name[32];            // of its backend: the ISA row or device in use
  bool decode;                  // tg, else pp
  int64_t tokens, depth, batch; // of each sequence; before them; sequences
  size_t n;                     // timed runs
  double *rate;                 // [n] tokens/s of all sequences, in the order of the runs
  double *rank_seconds;         // [ranks][n] in the steps, of each rank
  double *stolen_seconds;       // [n] core-seconds kept from the hosts (base/stolen_time.h); NaN: not known
  double bytes_per_token;       // read from memory by all ranks, decode only; NaN otherwise
  uint64_t digest;              // of the logits of each run
  double exchange_seconds;      // in exchanges, of the last run; NaN: one rank, or linked GPUs
  bool exchange_is_alone;       // captured in a graph with the other steps, so measured alone
  char attention[256];          // which batches had attention and head divided among the ranks, and why
  int threads;                  // of a rank that computed it; 0: a device did
  bench_phases *phases;         // NULL: not asked for
  bench_ranks *ranks;           // likewise
} bench_row;

typedef struct {
  const char *model, *types, *cpu;
  uint64_t model_bytes, fingerprint; // of the model's file
  int ranks, threads, hosts;         // threads of a rank
  const message_list *warnings;      // of the job; NULL: none
  timeline_figures timeline;         // profilers NULL: none is kept
  double bandwidth;                  // bytes/s that all ranks read at once
  bench_row *rows;
  size_t n_rows;
} bench_report;

// Also the peak of the phases that a CPU computed: a rank's part.
void bench_report_set_bandwidth(bench_report *r, double bytes_per_second);

enum { BENCH_TEST = 80 };
void bench_test_name(char out[BENCH_TEST], const bench_row *row); // "pp512", "tg128 @ d4096 x8"
void bench_report_print(const bench_report *r, bench_format format, FILE *out);
// Writes DIR/bench.json, which gets its name only when it is whole.
status bench_report_write(const bench_report *r, const char *dir);
