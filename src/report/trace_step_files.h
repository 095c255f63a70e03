// trace_step_files: the files that one step of two traces reads, row by row, and what a type's arithmetic
// leaves. For trace_steps.c and what it calls.
#pragma once
#include "src/report/trace_steps.h"

typedef struct {
  const trace_comparison *c;
  trace_pair *p;
  probe_result *out;
  int n;                         // of in
  both_rows to, in[STEP_INPUTS]; // in the order of step_info
  probe_point in_point;          // of in[0]
  double *room;                  // of measure_product: a row of in[0]
} step_files;

// *there: every file of the step has this token on both sides.
status step_files_read(step_files *f, bool *there, int64_t token);
npy_content step_content(const both_rows *b, int side);
double by_content(npy_content content, double f64, double f32, double f16);

// Recomputed on each side from its own numbers: sets the residuals of f->out.
status measure_rows(step_files *f, step_kind kind);
status measure_norm(step_files *f);
status measure_lookup(step_files *f); // has no inputs: the distance of the two sides
status measure_attention(step_files *f);
// The error out over the error in. in_per_slot: a slot's output follows from a slot's input.
status measure_product(step_files *f, const step_info *step, bool in_per_slot);
