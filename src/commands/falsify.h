// The command `falsify`. Collective.
#pragma once
#include "src/run/job.h"

status falsify_command_run(job *j);
