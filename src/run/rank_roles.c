#include "src/run/rank_roles.h"
#include "base/memory.h"
#include <stdlib.h>
#include <string.h>

static const char *backend_of(const char *arm) {
  return strchr(arm, '@') + 1;
}

// ranks.arm, repeated over ranks; "auto" is cuda on a rank with a GPU of its own, else cpu.
static void resolve_arm(char out[ARM_NAME_BYTES], const arm_list *arms, int rank, bool has_gpu) {
  const char *name = arms->name[(size_t)rank % arms->count], *backend = backend_of(name);
  if (!strcmp(backend, "auto")) backend = has_gpu ? "cuda" : "cpu";
  snprintf(out, ARM_NAME_BYTES, "%.*s%s", (int)(backend_of(name) - name), name, backend);
}

// By default the fastest kind of rank that there is: that of the first rank on a GPU, else that of rank 0.
static void choose_shared_arm(rank_roles *r, const config *c) {
  int first = 0;
  for (int i = r->n_ranks - 1; i >= 0; i--)
    if (!strcmp(backend_of(r->arm[i]), "cuda")) first = i;
  memcpy(r->shared_arm, c->ranks.shared[0] ? c->ranks.shared : r->arm[first], sizeof r->shared_arm);
}

static status choose_shared_ranks(rank_roles *r, const config *c) {
  const size_list *list = &c->ranks.shared_ranks;
  bool any = false;
  for (size_t i = 0; i < list->count; i++) {
    if (list->size[i] >= r->n_ranks)
      return FAIL("ranks.shared_ranks: expected ranks from 0 to %d, found %lld", r->n_ranks - 1,
                  (long long)list->size[i]);
    if (r->shared[list->size[i]])
      return FAIL("ranks.shared_ranks: expected each rank once, found %lld twice", (long long)list->size[i]);
    r->shared[list->size[i]] = true;
  }
  for (int i = 0; i < r->n_ranks; i++) {
    if (!list->count) r->shared[i] = !strcmp(backend_of(r->arm[i]), backend_of(r->shared_arm));
    if (r->shared[i] && !any) r->printer = i;
    any = any || r->shared[i];
  }
  if (any) return 0;
  return FAIL("ranks.shared = \"%s\": no rank's arm is on %s; name ranks in ranks.shared_ranks",
              r->shared_arm, backend_of(r->shared_arm));
}

status rank_roles_open(rank_roles *out, const config *c, const bool *has_gpu, int n_ranks) {
  *out = (rank_roles){.n_ranks = n_ranks, .mixed = c->ranks.arm.count > 0};
  TRY(memory_take((void **)&out->arm, (size_t)n_ranks, sizeof *out->arm, "the ranks' roles"));
  TRY(TAKE(&out->shared, (size_t)n_ranks, "the ranks' roles"));
  memset(out->shared, !out->mixed, (size_t)n_ranks * sizeof *out->shared);
  if (!out->mixed) return 0;
  if (c->ranks.arm.count > (size_t)n_ranks)
    return FAIL("ranks.arm: expected at most an arm for each of %d ranks, found %zu", n_ranks,
                c->ranks.arm.count);
  for (int r = 0; r < n_ranks; r++) resolve_arm(out->arm[r], &c->ranks.arm, r, has_gpu[r]);
  choose_shared_arm(out, c);
  return choose_shared_ranks(out, c);
}

void rank_roles_close(rank_roles *r) {
  if (!r) return;
  free(r->arm);
  free(r->shared);
}
