// bisect_model: two arms of the whole model, part by part. For bisect.c alone.
#pragma once
#include "src/run/job.h"

status bisect_model_run(job *j); // collective
