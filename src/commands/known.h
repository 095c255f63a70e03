// known: a run's digests against the known answers of its model (report/known_answers.h).
#pragma once
#include "src/report/bench_report.h"
#include "src/report/report.h"
#include "src/run/job.h"

// Local, before any work: refuses a table that cannot be read.
status known_check_table(const config *c);
// Collective, after the weights were checked. The reporting rank prints what it finds, where standard output
// is a table, else on standard error. STATUS_DIFFERS: an answer is another.
status known_judge_bench(job *j, const bench_report *b);
status known_judge_report(job *j, const report *r); // of parity
