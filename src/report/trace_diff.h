// trace_diff: two traces, probe by probe: which are the same, which differ by what their inputs and the arms'
// own rounding explain, and the first that does not.
//
// Owns: which arms of two traces are laid beside each other, the console's table and compare.json.
// Independent of: figures (src/measure), how files are read and matched.
#pragma once
#include "src/report/trace_read.h"
#include <stdio.h>

// Prints the comparison; with `dir` writes DIR/compare.json (schema in docs/trace.md). *same: nothing is off.
// Fails where the two cannot be compared, and says why.
status trace_diff(bool *same, FILE *out, const recorded_trace *a, const recorded_trace *b, const char *dir);
