// bench_phases: the budget of a token by phase (bench.phases), printed as Markdown and JSON.
//
// Independent of: how it was measured. Invariant: the phases and `rest` sum up to the seconds of the pass.
#pragma once
#include "kernels/backend.h"
#include <stdio.h>

typedef struct { // of one pass of a test on the reporting rank
  phase_times times;
  uint64_t bytes[PHASE_COUNT];         // that must be read
  double int8_operations[PHASE_COUNT]; // 0: none, or in reals
  double seconds;                      // of the steps
  int64_t tokens, batches, layers;
  int threads; // that computed it; 0: no threads
  backend_peaks peaks;
} bench_phases;

void bench_phases_md(const bench_phases *p, const char *arm, const char *test, FILE *out);
// "phases": {...}
void bench_phases_json(const bench_phases *p, FILE *out);
