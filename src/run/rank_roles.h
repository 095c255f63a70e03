// rank_roles: who computes what where ranks differ: the arm of each rank's experts in a mixed job, and which
// ranks compute the shared steps (attention, router, combine, head).
//
// Independent of: models, tokens and how an arm is computed. Pure: the same on every rank.
// Invariant: at least one rank is shared. The shared path depends on the configuration and the ranks' arms
// alone, so a choice of shared ranks changes who works, never a bit.
#pragma once
#include "src/config/config_types.h"

typedef struct {
  int n_ranks, reporting; // the reporting rank: the first shared rank, which has all results
  bool mixed;             // ranks.arm is set
  arm_choice *arm;        // [n_ranks] of a rank's experts, ARM_AUTO resolved; ARM_NONE where not mixed
  arm_choice shared_arm;  // of the shared steps; ARM_NONE where not mixed
  bool *shared;           // [n_ranks] in the mixed arm; in every other arm all ranks are
} rank_roles;

// Local, the same on every rank. has_gpu[n_ranks]: ranks that have a GPU to themselves.
status rank_roles_open(rank_roles *out, const config *c, const bool *has_gpu, int n_ranks);
void rank_roles_close(rank_roles *r); // takes NULL
