// trace_diff_report: what a comparison of traces found, as a table and as compare.json.
//
// Independent of: how it was found.
#pragma once
#include "src/report/trace_measure.h"
#include <stdio.h>

enum { COMPARE_SCHEMA = 1, PROBE_NAME_BYTES = 48 };

typedef struct {
  const recorded_trace_arm *a, *b;
  bool by_bits;                   // of one path
  trace_pair match;               // for its notes and shapes
  input_rounding rounding[SIDES]; // as known or found
  probe_result *probes;           // in the order of computation
  int64_t n_probes, first;        // -1: none is off
  int64_t only_in[SIDES];         // files that the other side lacks
} arm_pair;

typedef struct {
  const recorded_trace *a, *b;
  arm_pair *pairs;
  size_t n_pairs;
} trace_report;

// The first probe that is off, of the first pair that has one; NULL: none is.
const probe_result *trace_report_first(const trace_report *r);
void trace_report_print(const trace_report *r, FILE *out);
status trace_report_write(const trace_report *r, const char *dir);
