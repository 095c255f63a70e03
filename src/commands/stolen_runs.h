// stolen_runs: how long, in each timed run, hypervisors kept the cores of the job's hosts from it.
//
// Independent of: what ran.
#pragma once
#include "dist/comm.h"

// Collective. seconds[n]: in, of this rank's host (base/stolen_time.h) in each run; out, of all hosts
// together.
status stolen_runs_gather(comm *c, double *seconds, size_t n);
