#include "src/run/rank_roles.h"
#include "base/memory.h"
#include <stdlib.h>
#include <string.h>

// Of ranks.arm, which is repeated over ranks.
static arm_choice resolve_arm(const rank_arm_list *arms, int rank, bool has_gpu) {
  const arm_choice *arm = &arms->arm[(size_t)rank % arms->count];
  return arm->kind == ARM_AUTO ? arm_choice_of(arm->path, has_gpu ? BACKEND_CUDA : BACKEND_CPU) : *arm;
}

// By default the fastest kind of rank that there is: that of the first rank on a GPU, else that of rank 0.
static arm_choice choose_shared_arm(const rank_roles *r, const config *c) {
  if (c->ranks.shared.kind != ARM_NONE) return c->ranks.shared;
  for (int i = 0; i < r->n_ranks; i++)
    if (backend_needs_device(r->arm[i].backend)) return r->arm[i];
  return r->arm[0];
}

static status choose_shared_ranks(rank_roles *r, const config *c) {
  const rank_list *list = &c->ranks.shared_ranks;
  bool any = false;
  for (size_t i = 0; i < list->count; i++) {
    if (list->id[i] >= r->n_ranks)
      return REFUSE("ranks.shared_ranks: expected ranks from 0 to %d, found %d", r->n_ranks - 1, list->id[i]);
    if (r->shared[list->id[i]])
      return REFUSE("ranks.shared_ranks: expected each rank once, found %d twice", list->id[i]);
    r->shared[list->id[i]] = true;
  }
  for (int i = 0; i < r->n_ranks; i++) {
    if (!list->count) r->shared[i] = r->arm[i].backend == r->shared_arm.backend;
    if (r->shared[i] && !any) r->reporting = i;
    any = any || r->shared[i];
  }
  if (any) return 0;
  return REFUSE("ranks.shared = \"%s\": no rank's arm is on %s; name ranks in ranks.shared_ranks",
                r->shared_arm.name, backend_name(r->shared_arm.backend));
}

status rank_roles_open(rank_roles *out, const config *c, const bool *has_gpu, int n_ranks) {
  *out = (rank_roles){.n_ranks = n_ranks, .mixed = c->ranks.arm.count > 0};
  TRY(TAKE(&out->arm, (size_t)n_ranks, "the ranks' roles"));
  TRY(TAKE(&out->shared, (size_t)n_ranks, "the ranks' roles"));
  memset(out->shared, !out->mixed, (size_t)n_ranks * sizeof *out->shared);
  if (!out->mixed) return 0;
  if (c->ranks.arm.count > (size_t)n_ranks)
    return REFUSE("ranks.arm: expected at most an arm for each of %d ranks, found %zu", n_ranks,
                  c->ranks.arm.count);
  for (int r = 0; r < n_ranks; r++) out->arm[r] = resolve_arm(&c->ranks.arm, r, has_gpu[r]);
  out->shared_arm = choose_shared_arm(out, c);
  return choose_shared_ranks(out, c);
}

void rank_roles_close(rank_roles *r) {
  if (!r) return;
  free(r->arm);
  free(r->shared);
}
