// inspect: what is in a GGUF, and what each rank of this job would hold.
#pragma once
#include "src/run/job.h"

status inspect_run(job *j); // collective; one rank prints
