// route: which experts a text chooses, counted, for experts.counts; and what placements would make of it.
//
// Output: a table on standard output, and with output.dir counts.npy (int32 [n_layers][n_experts]).
#pragma once
#include "src/run/job.h"

status route_run(job *j); // collective
