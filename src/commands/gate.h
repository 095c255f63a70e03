// gate: a run that is held against contract.path as soon as it has written its report.
#pragma once
#include "src/report/job_report.h"

// Local, before the run: the contract can be read and is for this command, so that no run is computed in
// vain. reports: the command writes a report.
status gate_check(const config *cfg, command_kind command, bool reports);

// Collective, in place of job_report_finish: finishes the report, then judges it where contract.path is set,
// and writes verify.json beside it. STATUS_DIFFERS on every rank: the contract does not hold.
status gate_report_finish(job *j, report *r);
