// bench: prompt and decode rates of each arm, beside the digest of the same runs. docs/bench.md defines every
// number.
#pragma once
#include "src/run/job.h"

status bench_run(job *j); // collective; one rank prints
