// generate: an arm continues its prompts, all sequences decoded together.
#pragma once
#include "src/report/job_report.h"

// Collective. Continues every sequence, whose prompt the arm has just computed, by run.generate tokens.
// `last` holds each sequence's last logits [n_sequences][vocabulary]. Fills the arm's texts and decode rate.
status generate_continue(job *j, arm *a, const double *last, report_arm *out);

// Collective. The command `generate`: each arm of run.arms computes the prompts and continues them.
status generate_run(job *j);
