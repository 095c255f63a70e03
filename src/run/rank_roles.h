// roles: who computes what where ranks differ: the arm of each rank's experts in a mixed job, and which ranks
// compute the shared steps (attention, router, combine, head).
//
// Refuses to know: models, tokens, how an arm is computed. Pure: the same on every rank.
// Invariant: at least one rank is shared. The shared path depends on the configuration and the ranks' arms
// alone, so a choice of shared ranks changes who works, never a bit.
#pragma once
#include "src/config/config.h"

typedef struct {
  int n_ranks, printer;            // printer: the first shared rank; it has all results, so it reports
  bool mixed;                      // ranks.arm is set
  char (*arm)[ARM_NAME_BYTES];     // [n_ranks] of a rank's experts, "auto" resolved; "" where not mixed
  char shared_arm[ARM_NAME_BYTES]; // of the shared steps; "" where not mixed
  bool *shared;                    // [n_ranks] in the arm "ranks"; in every other arm all ranks are
} rank_roles;

// has_gpu[n_ranks]: ranks with a GPU of their own.
status rank_roles_open(rank_roles *out, const config *c, const bool *has_gpu, int n_ranks);
void rank_roles_close(rank_roles *r); // takes NULL
