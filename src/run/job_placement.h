// job_placement: which rank owns which expert of a job, and what that was measured or counted from.
#pragma once
#include "src/run/job.h"

status job_open_placement(job *j); // collective, of an open model with its ranks' roles
