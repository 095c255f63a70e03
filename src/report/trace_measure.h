// trace_measure: the figures of one probe of one layer in two traces.
//
// Owns: which probes are read for it, row by row. Independent of: what the figures mean (trace_verdict.h).
#pragma once
#include "src/measure/trace_verdict.h"
#include "src/report/trace_pair.h"

typedef struct {
  trace_pair *pair;
  bool by_bits;                   // both are of one path, so that every bit must be the same
  input_rounding rounding[SIDES]; // of the activations before a product
} trace_comparison;

// Both must have the probe. p->slot_of is that of the layer.
status trace_measure_probe(probe_result *out, const trace_comparison *c, probe_point point, int64_t layer);
// Of arms whose path is not known (another program, a mixed job): the rounding with which the errors out of
// the products are best explained by those in.
status trace_find_rounding(trace_comparison *c);
