// generate: an arm continues its prompts, all sequences decoded together.
#pragma once
#include "src/report/job_report.h"

// Collective. Continues every sequence, whose prompt the arm has just computed, by run.generate tokens.
// last[n_sequences][vocabulary]: each sequence's last logits; NULL on expert ranks. Fills out->texts and the
// decode rate.
status generate_continue(job *j, arm *a, const double *last, report_arm *out);

// Collective. The command `generate`: each arm of run.arms computes the prompts and continues them.
status generate_run(job *j);
