#include "src/run/agreement.h"
#include "base/memory.h"
#include "kernels/build_hash.h"
#include "kernels/self_check.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NAME_BYTES = 64 };

typedef struct {       // of one rank
  uint64_t value;      // 0: the rank has none, and is not compared
  char by[NAME_BYTES]; // the row or device that gave it
  char host[NAME_BYTES];
} finding;

static int count_equal(const finding *all, int size, int rank) {
  int n = 0;
  for (int r = 0; r < size; r++) n += all[r].value == all[rank].value;
  return n;
}

// The rank whose value most ranks have; the first of them where others have as many.
static int find_majority(const finding *all, int size) {
  int best = -1;
  for (int r = 0; r < size; r++)
    if (all[r].value && (best < 0 || count_equal(all, size, r) > count_equal(all, size, best))) best = r;
  return best;
}

// all[size], one of each rank, the same on every rank. The error names those that differ from most ranks.
static status compare(const finding *all, int size, const char *what, const char *advice) {
  char names[512] = "";
  int most = find_majority(all, size);
  for (int r = 0; r < size && most >= 0; r++) {
    size_t used = strlen(names);
    if (all[r].value && all[r].value != all[most].value)
      snprintf(names + used, sizeof names - used, "%srank %d (%s%s%s) has %016" PRIx64, used ? ", " : "", r,
               all[r].host, all[r].by[0] ? ", " : "", all[r].by, all[r].value);
  }
  if (!names[0]) return 0;
  return FAIL("%s: expected the same on every rank, but %s, and rank %d (%s%s%s) %016" PRIx64
              ", as %d of %d ranks: %s",
              what, names, most, all[most].host, all[most].by[0] ? ", " : "", all[most].by, all[most].value,
              count_equal(all, size, most), size, advice);
}

// Collective. n findings of each rank, gathered and compared one by one.
static status compare_all(comm *c, const finding *mine, int n, const char *const *what, const char *advice) {
  int size = comm_size(c);
  finding *all, *each;
  TRY(TAKE(&all, (size_t)(size * n), "the ranks' agreement"));
  status result = TAKE(&each, (size_t)size, "the ranks' agreement");
  if (!result) result = comm_allgather(c, all, mine, (size_t)n * sizeof *mine, "the ranks' agreement");
  for (int i = 0; i < n && !result; i++) {
    for (int r = 0; r < size; r++) each[r] = all[r * n + i];
    result = compare(each, size, what[i], advice);
    if (result) result = comm_agree(c, result, what[i]);
  }
  free(all);
  free(each);
  return result;
}

static finding finding_of(const comm *c, uint64_t value) {
  finding f = {.value = value};
  snprintf(f.host, sizeof f.host, "%s", comm_host(c));
  return f;
}

status agreement_of_builds(comm *c) {
  static const char *const what[] = {"the build (hash of the sources that decide the bits)",
                                     "the build (hash of the sources of the cuda backend)"};
  build_hash own = build_hash_get();
  const finding mine[] = {finding_of(c, own.common), finding_of(c, own.cuda)};
  return compare_all(c, mine, 2, what, "every host needs a moe_run of the same sources");
}

// ---- kernels ----

typedef struct {
  const job *j;
  finding table[CHECK_PARTS * PATH_COUNT];
} kernel_check;

// A backend that does not open for this path and these types is refused where its arm is opened, with the
// name of the tensor: here it has nothing to compare.
static void check_path(kernel_check *k, const arm_spec *where, path_kind path, check_part part) {
  const job *j = k->j;
  finding *to = &k->table[part * PATH_COUNT + path];
  if (to->value || !where->backend->has_path(path)) return;
  self_check_params p = {
      .backend = where->backend,
      .path = path,
      .part = part,
      .like = &j->m->weights,
      .kv_f16 = j->cfg->run.kv == KV_F16,
      .threads = topology_threads(j->place),
      .host_rank = comm_host_rank(j->c),
      .row = j->cfg->run.rows,
  };
  uint64_t value = 0;
  if (self_check_run(&value, to->by, sizeof to->by, &p))
    status_reset();
  else
    to->value = value;
}

static void check_arm(kernel_check *k, const arm_choice *choice) {
  const job *j = k->j;
  int rank = comm_rank(j->c);
  bool mixed = choice->kind == ARM_MIXED;
  arm_spec local, shared;
  if ((mixed && !j->roles.mixed) || arm_choice_resolve(&local, job_arm_of_rank(j, choice, rank)) ||
      arm_choice_resolve(&shared, mixed ? &j->roles.shared_arm : choice)) {
    status_reset(); // refused where the arm is opened
    return;
  }
  if (!mixed || j->roles.shared[rank]) check_path(k, &local, shared.path->kind, CHECK_WHOLE);
  if (mixed) check_path(k, &local, local.path->kind, CHECK_EXPERTS);
}

status agreement_of_kernels(job *j) {
  static const char *const part_names[CHECK_PARTS] = {"all steps", "experts"};
  char text[CHECK_PARTS * PATH_COUNT][96];
  const char *what[CHECK_PARTS * PATH_COUNT];
  kernel_check k = {.j = j};
  if (comm_size(j->c) == 1) return 0;
  for (int i = 0; i < CHECK_PARTS * PATH_COUNT; i++) {
    k.table[i] = finding_of(j->c, 0);
    snprintf(text[i], sizeof text[i], "the self-check of the path %s, %s (digest)",
             path_get((path_kind)(i % PATH_COUNT))->name, part_names[i / PATH_COUNT]);
    what[i] = text[i];
  }
  for (size_t i = 0; i < j->cfg->run.arms.count; i++) check_arm(&k, &j->cfg->run.arms.arm[i]);
  const arm_choice *sides[] = {&j->cfg->bisect.a, &j->cfg->bisect.b};
  for (int i = 0; i < 2 && j->command == COMMAND_BISECT; i++)
    if (sides[i]->kind != ARM_NONE) check_arm(&k, sides[i]);
  return compare_all(j->c, k.table, CHECK_PARTS * PATH_COUNT, what,
                     "by the law it is the same everywhere, so a build or a machine computes something else");
}
