// trace_steps: a probe's step, measured over two traces: from its own inputs, or by the errors of these.
//
// Owns: which files a step reads, row by row. Independent of: arithmetic (src/measure/probe_steps.h).
#pragma once
#include "src/report/trace_measure.h"

typedef struct { // a probe's file of both sides, and a token's numbers of each
  trace_pair *pair;
  recorded_rows rows[SIDES];
  double *x[SIDES]; // [width]
  int64_t width;
} both_rows;

status both_rows_open(both_rows *out, trace_pair *p, probe_point point, int64_t layer);
void both_rows_close(both_rows *b);                              // also after an error of both_rows_open
status both_rows_read(both_rows *b, bool *there, int64_t token); // *there: both have this token

// Sets what out's step gives: measure, residuals or gains. Which probe and layer stands in `out`.
status trace_measure_step(probe_result *out, const trace_comparison *c);
