// memory_bandwidth: how fast all ranks together read memory: the bound that a decode rate is held against.
#pragma once
#include "dist/topology.h"

// Collective. *bytes_per_second: every thread of every rank reads an array of its own, too large for any
// cache, all at the same time; the best of several passes, each as long as its slowest rank takes.
status memory_bandwidth_measure(double *bytes_per_second, comm *c, const topology *place);
