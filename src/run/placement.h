// placement: which rank owns which expert. Pure: the same on every rank that is given the same.
//
// Invariant: every expert has one owner and every rank owns at least one, so that no rank idles by mistake.
#pragma once
#include "kernels/backend.h"
#include "src/config/config_types.h"

typedef struct {
  int64_t n_experts;
  int n_ranks;
  int32_t *rank_of_expert; // [n_experts], indexed by expert_global
  expert_local *local;     // [n_experts], by expert_global: index among this rank's experts; -1: another's
  int64_t n_owned;         // experts of this rank, in each layer
  double counted_load;     // placement_load of PLACEMENT_COUNTED; 0: another
} placement;

// Local. list[list_length], for PLACEMENT_LIST and PLACEMENT_COUNTED: each expert's owner. speed[n_ranks],
// for PLACEMENT_BALANCED: experts per second, in any unit; experts are shared out in proportion, by largest
// remainder, at least one to a rank.
status placement_open(placement *out, placement_kind kind, const int32_t *list, size_t list_length,
                      const double *speed, int64_t n_experts, int n_ranks, int rank);
void placement_close(placement *p); // takes NULL
const char *placement_name(placement_kind kind);
