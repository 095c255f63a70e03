#include "src/run/placement.h"
#include "base/memory.h"
#include "kernels/formats/numerics.h"
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
  case PLACEMENT_AUTO:
    return "auto";
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
  case PLACEMENT_AUTO:
    return FAIL("the placement \"%s\" has a map for each layer", placement_name(kind));
  case PLACEMENT_LIST:
    memcpy(rank_of_expert, list, (size_t)n_experts * sizeof *list);
    return 0;
  }
  __builtin_unreachable();
}

// ---- the map ----

static status check_ranks(int64_t n_experts, int n_ranks) {
  if (n_ranks <= n_experts) return 0;
  return REFUSE("%d ranks for %lld experts: expected at most one rank per expert", n_ranks,
                (long long)n_experts);
}

// Of the map's experts: their holders, and this rank's indices.
static status list_holders(placement *p, const bool *holds) {
  int64_t n = p->n_layers * p->n_experts, total = 0, held = 0;
  for (int64_t i = 0; i < n * p->n_ranks; i++) total += holds[i];
  TRY(TAKE(&p->holder, (size_t)total, "the placement"));
  for (int64_t i = 0; i < n; i++) {
    const bool *of = holds + i * p->n_ranks;
    if (i % p->n_experts == 0) held = 0;
    p->first[i + 1] = p->first[i];
    for (int r = 0; r < p->n_ranks; r++)
      if (of[r]) p->holder[p->first[i + 1]++] = r;
    p->local[i] = of[p->rank] ? (int32_t)held++ : -1;
    if (held > p->n_held) p->n_held = held;
    if (p->first[i + 1] - p->first[i] > p->most_holders) p->most_holders = p->first[i + 1] - p->first[i];
  }
  return 0;
}

static void hash_map(placement *p) {
  p->hash = num_mix64((uint64_t)p->n_layers << 32 | (uint64_t)p->n_ranks);
  for (int64_t i = 0; i < p->n_layers * p->n_experts; i++)
    for (int32_t k = p->first[i]; k < p->first[i + 1]; k++)
      p->hash = num_mix64(p->hash ^ ((uint64_t)i << 32 | (uint64_t)(uint32_t)p->holder[k]));
}

static status check_holders(const placement *p, const bool *holds) {
  for (int64_t l = 0; l < p->n_layers; l++) {
    const bool *layer = holds + l * p->n_experts * p->n_ranks;
    for (int r = 0; r < p->n_ranks; r++) {
      bool any = false;
      for (int64_t e = 0; e < p->n_experts && !any; e++) any = layer[e * p->n_ranks + r];
      if (!any)
        return REFUSE("experts.placement: rank %d owns no expert; every rank must own at least one", r);
    }
    for (int64_t e = 0; e < p->n_experts; e++)
      if (p->first[l * p->n_experts + e] == p->first[l * p->n_experts + e + 1])
        return FAIL("experts.placement: expert %lld of layer %lld has no rank", (long long)e, (long long)l);
  }
  return 0;
}

status placement_open_held(placement *out, const bool *holds, int64_t n_layers, int64_t n_experts,
                           int n_ranks, int rank) {
  *out = (placement){.n_layers = n_layers, .n_experts = n_experts, .n_ranks = n_ranks, .rank = rank};
  out->kind = PLACEMENT_COUNTED;
  TRY(check_ranks(n_experts, n_ranks));
  TRY(TAKE(&out->first, (size_t)(n_layers * n_experts) + 1, "the placement"));
  TRY(TAKE(&out->local, (size_t)(n_layers * n_experts), "the placement"));
  TRY(list_holders(out, holds));
  hash_map(out);
  return check_holders(out, holds);
}

status placement_open(placement *out, placement_kind kind, const int32_t *list, size_t list_length,
                      const double *speed, int64_t n_experts, int n_ranks, int rank) {
  int32_t *owner = NULL;
  bool *holds = NULL;
  status result;
  *out = (placement){.n_experts = n_experts, .n_ranks = n_ranks};
  TRY(check_ranks(n_experts, n_ranks));
  if (kind == PLACEMENT_LIST) TRY(check_list(list, list_length, n_experts, n_ranks));
  TRY_DONE(result, TAKE(&owner, (size_t)n_experts, "the placement"));
  TRY_DONE(result, TAKE(&holds, (size_t)(n_experts * n_ranks), "the placement"));
  TRY_DONE(result, choose_owners(owner, kind, list, speed, n_experts, n_ranks));
  for (int64_t e = 0; e < n_experts; e++) holds[e * n_ranks + owner[e]] = true;
  result = placement_open_held(out, holds, 1, n_experts, n_ranks, rank);
  out->kind = kind;
done:
  free(owner);
  free(holds);
  return result;
}

void placement_close(placement *p) {
  if (!p) return;
  free(p->first);
  free(p->holder);
  free(p->local);
}

expert_map placement_map(const placement *p) {
  return (expert_map){p->n_layers == 1, p->most_holders > 1, p->local, p->first, p->holder};
}

int64_t placement_replicas(const placement *p, int64_t n_layers) {
  int64_t n = p->n_layers * p->n_experts, beyond = p->first ? p->first[n] - n : 0;
  return p->n_layers == 1 ? beyond * n_layers : beyond;
}
