// job_report: a job as a report: what ran, where, on which ranks, and each arm's numbers.
//
// Independent of: how a report is printed (report.h) and how the arms are compared.
#pragma once
#include "src/run/job.h"
#include "src/report/report.h"

// Collective. Fills `out` but for arms[n_arms], pairs[n_pairs] and tokens[n_token_rows], which it allocates.
// job_report_close releases what there is, after an error too.
status job_report_open(job *j, report *out, size_t n_arms, size_t n_pairs, size_t n_token_rows);
void job_report_close(report *r);
// Collective. Fills r->arms[index] for the arm with that index in run.arms. tokens: positions computed.
status job_report_arm(job *j, arm *a, report *r, size_t index, int64_t tokens);
// Collective. Adds a mode to the report; *pairs: its n_pairs, whose a, b and layers are there, to be filled.
status job_report_mode_open(job *j, report *r, parity_mode mode, pair_statistics **pairs);
// Collective, after the arms ran in the mode that was added last: their digests.
status job_report_mode(job *j, arm *const *arms, report *r);
// Local. Makes room for r->accounts, with their pairs and layers.
status job_report_accounts(report *r);
// Collective; fails on every rank or on none. The reporting rank writes the report to output.dir, where it is
// set, and prints it.
status job_report_finish(job *j, report *r);

// What an arm of the path keeps its keys and values in: "f64", "limbs", or `kv`, the job's run.kv.
const char *report_cache_name(const path_info *path, const char *kv);
