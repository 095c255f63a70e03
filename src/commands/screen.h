// screen: whether a machine of the job computes other bits than the law says (docs/screen.md).
#pragma once
#include "src/run/job.h"

status screen_command_run(job *j); // collective; STATUS_DIFFERS: a fault, or not the known answer
