// parity: the main command. Runs the arms over the same tokens in step, layer by layer, and measures each
// against the truth and against each other.
#pragma once
#include "src/report/job_report.h"

status parity_run(job *j); // collective
