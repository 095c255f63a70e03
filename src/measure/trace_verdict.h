// trace_verdict: the first probe of two traces that is off by more than its neighbours explain.
//
// Owns: the criterion and its bounds (docs/trace.md). Pure: figures in, verdicts out.
// Invariant: an error that an input already has is never a probe's own.
#pragma once
#include "src/measure/probe_steps.h"
#include "src/measure/row_statistics.h"

typedef enum {
  VERDICT_EQUAL,     // the same bits
  VERDICT_EXPLAINED, // by its inputs and the arms' own rounding
  VERDICT_UNJUDGED,  // neither trace has what it is computed from
  VERDICT_OFF,
} trace_verdict;
const char *verdict_name(trace_verdict v);

typedef enum {
  JUDGED_BY_BITS,     // two traces of one path
  JUDGED_BY_RESIDUAL, // recomputed from its own inputs, on each side
  JUDGED_BY_GAIN,     // the error out over the error in
  JUDGED_BY_NOTHING,
} trace_measure;

typedef enum { CACHE_AS_IT_IS, CACHE_F16, CACHE_AND_QUERIES_F16 } trace_cache; // what attention reads
enum { CACHE_KINDS = 3 };

typedef struct {
  probe_point point;
  int64_t layer; // -1: of none
  pair_statistics_of_rows numbers;
  int64_t flips; // of ffn_moe_topk: experts that one side chose and the other did not
  trace_measure measure;
  bool is_composed; // its own inputs are not in the traces, but what these come from is

  // JUDGED_BY_RESIDUAL, of each side: relative, over all rows and of the worst row; what such a step may
  // leave.
  double residual[2], worst_residual[2], rounding[2];
  trace_cache cache[2]; // of attention: known, or what explains it best

  // JUDGED_BY_GAIN: relative L2 over all rows of the inputs, as the product reads them, and of the step;
  // error out over error in and own rounding, over all rows and of the worst row.
  double error_in, error_out, gain, worst_gain;
  double own_error; // what the sums of both sides leave, relative, whatever comes in
  double
      length_error; // of Qcur and Kcur: of the lengths of the pairs that RoPE turns, relative; NaN: of others
  double gain_error; // standard error of the median of the rows' log gain
  // How much larger A is than B along B: median over rows of the step and of its input, and the standard
  // error of each median, from the rows' median deviation.
  double bias, bias_error, bias_in, bias_in_error;
  int64_t bias_rows;
  int64_t worst_row; // of worst_gain or worst_residual, as numbers.worst_row
  trace_verdict verdict;
  char reason[240]; // of VERDICT_OFF
} probe_result;

// Median and its standard error of x[n], which is sorted.
status middle_of_rows(double *middle, double *error, double *x, int64_t n);
// Sets verdict and reason of r[n], which are in the order of computation. Returns the first that is off, or
// -1.
int64_t trace_judge(probe_result *r, int64_t n);
