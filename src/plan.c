#include "src/plan.h"
#include "base/memory.h"
#include <stdlib.h>

const char *placement_name(placement_kind kind) {
  static const char *const names[] = {"contiguous", "strided", "list"};
  return names[kind];
}

// Contiguous: the first n % r ranks own one expert more than the others.
static int32_t contiguous_owner(int64_t expert, int64_t n, int64_t ranks) {
  int64_t each = n / ranks, more = n % ranks, boundary = more * (each + 1);
  return (int32_t)(expert < boundary ? expert / (each + 1) : more + (expert - boundary) / each);
}

static status check_list(const int32_t *list, size_t length, int64_t n_experts, int n_ranks) {
  if ((int64_t)length != n_experts)
    return FAIL("experts.placement: expected %lld ranks, one for each expert, found %zu",
                (long long)n_experts, length);
  for (size_t e = 0; e < length; e++)
    if (list[e] < 0 || list[e] >= n_ranks)
      return FAIL("experts.placement: expert %zu: expected a rank from 0 to %d, found %d", e, n_ranks - 1,
                  list[e]);
  return 0;
}

static status check_owners(const plan *p) {
  for (int r = 0; r < p->n_ranks; r++) {
    bool owns = false;
    for (int64_t e = 0; e < p->n_experts && !owns; e++) owns = p->rank_of_expert[e] == r;
    if (!owns) return FAIL("experts.placement: rank %d owns no expert; every rank must own at least one", r);
  }
  return 0;
}

status plan_open(plan *out, placement_kind kind, const int32_t *list, size_t list_length, int64_t n_experts,
                 int n_ranks, int rank) {
  *out = (plan){.n_experts = n_experts, .n_ranks = n_ranks};
  if (n_ranks > n_experts)
    return FAIL("%d ranks for %lld experts: expected at most one rank to an expert", n_ranks,
                (long long)n_experts);
  if (kind == PLACEMENT_LIST) TRY(check_list(list, list_length, n_experts, n_ranks));
  TRY(TAKE(&out->rank_of_expert, (size_t)n_experts, "the plan"));
  TRY(TAKE(&out->local, (size_t)n_experts, "the plan"));
  for (int64_t e = 0; e < n_experts; e++) {
    out->rank_of_expert[e] = kind == PLACEMENT_LIST      ? list[e]
                             : kind == PLACEMENT_STRIDED ? (int32_t)(e % n_ranks)
                                                         : contiguous_owner(e, n_experts, n_ranks);
    out->local[e] = out->rank_of_expert[e] == rank ? (expert_local)out->n_own++ : -1;
  }
  return check_owners(out);
}

void plan_close(plan *p) {
  if (!p) return;
  free(p->rank_of_expert);
  free(p->local);
}
