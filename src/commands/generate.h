// generate: an arm continues its prompts, all sequences decoded together.
#pragma once
#include "src/report/job_report.h"
#include "src/report/run_state.h"

typedef struct { // where the tokens are kept as they are written, and those of an ended run are found
  run_state *state;
  size_t index; // of the arm in run.arms
} generate_kept;

// Collective. Continues every sequence, whose prompt the arm has just computed, by run.generate tokens.
// last[n_sequences][vocabulary]: each sequence's last logits; NULL on expert ranks. kept NULL: nothing
// is kept. Fills out->texts and the decode rate.
status generate_continue(job *j, arm *a, const double *last, const generate_kept *kept, report_arm *out);

// Collective. The command `generate`: each arm of run.arms computes the prompts and continues them.
status generate_run(job *j);
