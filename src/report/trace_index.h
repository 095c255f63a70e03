// trace_index: index.json of a trace; docs/trace.md says what is in it.
#pragma once
#include "src/report/report.h"
#include "src/report/trace_files.h"

enum { TRACE_SCHEMA = 1 };

// Writes the files' names and then index.json, whose name comes last. r: its arms in the order of t's; batch:
// all tokens of the run, in order.
status trace_index_write(trace_files *t, const report *r, const token_batch *tokens);
