// rank_speed: how fast this rank computes experts, for experts.placement = "balanced".
//
// What is measured: the step `experts` of the middle layer, on this rank's backend as an expert rank: the
// layer's first 8 experts (or all, if fewer) with 16 random tokens each; the best of three runs after one
// that is not timed; summed over the arms that the rank will run. Nothing else is loaded and no other weight
// is read. Independent of: other ranks; that they measure at the same time is the caller's doing.
#pragma once
#include "dist/topology.h"
#include "src/model/model.h"

// seconds += those of one arm. host_rank: this rank's place among those of its host.
status rank_speed_measure(double *seconds, const model *m, const arm_spec *a, const topology *place,
                          int host_rank, const char *row);
