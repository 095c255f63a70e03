// job_report: a job as a report: what ran, where, on which ranks, and each arm's numbers.
//
// Refuses to know: how a report is printed (report.h), what the arms' differences mean.
#pragma once
#include "src/run/job.h"
#include "src/report/report.h"

// Collective. Fills all of `out` but arms, pairs and tokens (whose room it makes for n_arms and n_pairs) on
// the printer.
status job_report_open(job *j, report *out, size_t n_arms, size_t n_pairs, size_t n_token_rows);
void job_report_close(report *r);
// Collective: fills an arm's section from its engine.
status job_report_arm(job *j, arm *e, report *r, size_t index, int64_t tokens);
// The printer prints and writes the report where output.dir asks for it; collective agreement on the outcome.
status job_report_finish(job *j, report *r);
