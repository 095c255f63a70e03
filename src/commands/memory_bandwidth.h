// bench_bandwidth: how fast all ranks together read memory: the bound that a decode rate is held against.
#pragma once
#include "dist/topology.h"

// Collective. Bytes/s: every thread of every rank reads memory of its own that no cache holds, all at the
// same time; the best of several passes, each as long as its slowest rank takes.
status bench_bandwidth(double *bytes_per_second, comm *c, const topology *place);
