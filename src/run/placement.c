#include "src/run/placement.h"
#include "base/memory.h"
#include <stdlib.h>
#include <string.h>

const char *placement_name(placement_kind kind) {
  switch (kind) {
  case PLACEMENT_CONTIGUOUS:
    return "contiguous";
  case PLACEMENT_STRIDED:
    return "strided";
  case PLACEMENT_BALANCED:
    return "balanced";
  case PLACEMENT_COUNTED:
    return "counted";
  case PLACEMENT_LIST:
    return "list";
  }
  __builtin_unreachable();
}

// Contiguous: the first n % r ranks own one expert more than the others.
static int32_t contiguous_owner(int64_t expert, int64_t n, int64_t ranks) {
  int64_t each = n / ranks, more = n % ranks, boundary = more * (each + 1);
  return (int32_t)(expert < boundary ? expert / (each + 1) : more + (expert - boundary) / each);
}

// The rank that is furthest below its share (sign 1) or above it (sign -1; only ranks with more than one
// expert). The lowest rank on a tie.
static int furthest(const int64_t *count, const double *share, int n_ranks, int sign) {
  int found = -1;
  double most = 0;
  for (int r = 0; r < n_ranks; r++) {
    double distance = sign * (share[r] - (double)count[r]);
    if ((sign < 0 && count[r] == 1) || (found >= 0 && distance <= most)) continue;
    found = r;
    most = distance;
  }
  return found;
}

// count[n_ranks] = experts of each rank; share[n_ranks] is scratch.
static void apportion(int64_t *count, double *share, const double *speed, int64_t n_experts, int n_ranks) {
  double sum = 0;
  int64_t given = 0;
  for (int r = 0; r < n_ranks; r++) sum += speed[r];
  for (int r = 0; r < n_ranks; r++) {
    share[r] = (double)n_experts * (speed[r] / sum);
    count[r] = share[r] < 1 ? 1 : (int64_t)share[r];
    given += count[r];
  }
  for (; given < n_experts; given++) count[furthest(count, share, n_ranks, 1)]++;
  for (; given > n_experts; given--) count[furthest(count, share, n_ranks, -1)]--;
}

static status balance(int32_t *rank_of_expert, const double *speed, int64_t n_experts, int n_ranks) {
  int64_t *count, expert = 0;
  double *share;
  for (int r = 0; r < n_ranks; r++)
    if (!(speed[r] > 0 && speed[r] < 1e300))
      return FAIL("experts.placement: rank %d: expected a speed above 0, found %g", r, speed[r]);
  TRY(TAKE(&count, (size_t)n_ranks, "the placement"));
  status result = TAKE(&share, (size_t)n_ranks, "the placement");
  if (!result) {
    apportion(count, share, speed, n_experts, n_ranks);
    for (int r = 0; r < n_ranks; r++)
      for (int64_t i = 0; i < count[r]; i++) rank_of_expert[expert++] = r;
    free(share);
  }
  free(count);
  return result;
}

static status check_list(const int32_t *list, size_t length, int64_t n_experts, int n_ranks) {
  if ((int64_t)length != n_experts)
    return REFUSE("experts.placement: expected %lld ranks, one for each expert, found %zu",
                  (long long)n_experts, length);
  for (size_t e = 0; e < length; e++)
    if (list[e] < 0 || list[e] >= n_ranks)
      return REFUSE("experts.placement: expert %zu: expected a rank from 0 to %d, found %d", e, n_ranks - 1,
                    list[e]);
  return 0;
}

static status check_owners(const placement *p) {
  for (int r = 0; r < p->n_ranks; r++) {
    bool owns = false;
    for (int64_t e = 0; e < p->n_experts && !owns; e++) owns = p->rank_of_expert[e] == r;
    if (!owns)
      return REFUSE("experts.placement: rank %d owns no expert; every rank must own at least one", r);
  }
  return 0;
}

static status choose_owners(int32_t *rank_of_expert, placement_kind kind, const int32_t *list,
                            const double *speed, int64_t n_experts, int n_ranks) {
  switch (kind) {
  case PLACEMENT_CONTIGUOUS:
    for (int64_t e = 0; e < n_experts; e++) rank_of_expert[e] = contiguous_owner(e, n_experts, n_ranks);
    return 0;
  case PLACEMENT_STRIDED:
    for (int64_t e = 0; e < n_experts; e++) rank_of_expert[e] = (int32_t)(e % n_ranks);
    return 0;
  case PLACEMENT_BALANCED:
    return balance(rank_of_expert, speed, n_experts, n_ranks);
  case PLACEMENT_COUNTED:
  case PLACEMENT_LIST:
    memcpy(rank_of_expert, list, (size_t)n_experts * sizeof *list);
    return 0;
  }
  __builtin_unreachable();
}

status placement_open(placement *out, placement_kind kind, const int32_t *list, size_t list_length,
                      const double *speed, int64_t n_experts, int n_ranks, int rank) {
  *out = (placement){.n_experts = n_experts, .n_ranks = n_ranks};
  if (n_ranks > n_experts)
    return REFUSE("%d ranks for %lld experts: expected at most one rank per expert", n_ranks,
                  (long long)n_experts);
  if (kind == PLACEMENT_LIST || kind == PLACEMENT_COUNTED)
    TRY(check_list(list, list_length, n_experts, n_ranks));
  TRY(TAKE(&out->rank_of_expert, (size_t)n_experts, "the placement"));
  TRY(TAKE(&out->local, (size_t)n_experts, "the placement"));
  TRY(choose_owners(out->rank_of_expert, kind, list, speed, n_experts, n_ranks));
  for (int64_t e = 0; e < n_experts; e++)
    out->local[e] = (expert_local){out->rank_of_expert[e] == rank ? (int32_t)out->n_owned++ : -1};
  return check_owners(out);
}

void placement_close(placement *p) {
  if (!p) return;
  free(p->rank_of_expert);
  free(p->local);
}
