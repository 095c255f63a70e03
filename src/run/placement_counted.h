// placement_counted: experts on ranks by how often a text chose each of them in each layer.
//
// Owns: the search. Independent of: files, ranks that run: the same counts give the same placement
// everywhere. Invariant: ranks own as many experts as they would contiguously, so memory does not change.
#pragma once
#include "base/status.h"
#include <stdint.h>

// What a layer costs is the load of its busiest rank: counts are those of tokens, all experts cost the same.
// Local. rank_of_expert[n_experts], from counts[n_layers][n_experts]: a placement of which no two experts of
// different ranks can change places and lessen the sum over layers of the busiest rank's load.
status placement_count(int32_t *rank_of_expert, const int64_t *counts, int64_t n_layers, int64_t n_experts,
                       int n_ranks);
// Local. The sum over layers of the busiest rank's load, over that of the mean rank's: 1 is even.
status placement_load(double *out, const int32_t *rank_of_expert, const int64_t *counts, int64_t n_layers,
                      int64_t n_experts, int n_ranks);
