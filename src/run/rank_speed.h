// rank_speed: how fast this rank computes experts, for experts.placement = "balanced".
//
// What is measured: the steps experts_up and experts_down of the middle layer, on this rank's backend, opened
// for an expert rank: the layer's first 8 experts (or all, if fewer) with 16 tokens of random numbers each;
// the best of three runs after one that is not timed; summed over the arms that the rank will run. Nothing
// else is loaded and no other weight is read. Independent of: other ranks; that all measure at the same time
// is up to the caller.
#pragma once
#include "dist/topology.h"
#include "src/model/model.h"

// Local. *seconds += those of one arm. host_rank: this rank's index among those of its host. row: ISA row.
status rank_speed_measure(double *seconds, const model *m, const arm_spec *a, const topology *place,
                          int host_rank, const char *row);
