// bisect: why two ways of computing differ: of one product, or of the whole model (docs/bisect.md).
#pragma once
#include "src/run/job.h"

status bisect_run(job *j); // collective
