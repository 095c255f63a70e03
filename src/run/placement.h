// placement: which rank owns which expert. Pure: the same on every rank that is given the same.
//
// Invariant: every expert has one owner and every rank owns at least one, so that no rank idles by mistake.
#pragma once
#include "kernels/backend.h"
#include "src/config/config.h"

typedef struct {
  int64_t n_experts;
  int n_ranks;
  int32_t *rank_of_expert; // [n_experts], indexed by expert_global
  expert_local *local;     // [n_experts]: index among the experts that rank `rank` owns, -1 for others
  int64_t n_own;
} placement;

// list: of PLACEMENT_LIST, each expert's owner. speed[n_ranks]: of PLACEMENT_BALANCED, experts a second in
// any unit; each rank gets the share of the experts that it has of the sum, by largest remainder, but at
// least one.
status placement_open(placement *out, placement_kind kind, const int32_t *list, size_t list_length,
                      const double *speed, int64_t n_experts, int n_ranks, int rank);
void placement_close(placement *p); // takes NULL
const char *placement_name(placement_kind kind);
