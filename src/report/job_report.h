// job_report: a job as a report: what ran, where, on which ranks, and each arm's numbers.
//
// Independent of: how a report is printed (report.h) and of what the arms' differences mean.
#pragma once
#include "src/run/job.h"
#include "src/report/report.h"

// Collective. Fills all of `out` but arms, pairs and tokens (whose room it makes for n_arms and n_pairs) on
// the reporting rank.
status job_report_open(job *j, report *out, size_t n_arms, size_t n_pairs, size_t n_token_rows);
void job_report_close(report *r);
// Collective: fills the section of an arm of run.arms, `index` there and in the report.
status job_report_arm(job *j, arm *a, report *r, size_t index, int64_t tokens);
// Collective, and so is its outcome: the reporting rank writes the report where output.dir asks for it, and
// prints it.
status job_report_finish(job *j, report *r);
