// trace: named tensors out of the forward pass of each arm, as .npy files (docs/trace.md).
#pragma once
#include "src/report/job_report.h"

status trace_run(job *j); // collective
