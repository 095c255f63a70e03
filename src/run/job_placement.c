#include "src/run/job_placement.h"
#include "base/memory.h"
#include "src/run/expert_counts.h"
#include "src/run/placement_counted.h"
#include "src/run/rank_speed.h"
#include <stdio.h>
#include <stdlib.h>

// ---- by speed ----

static status measure_local_speed(const job *j, double *speed) {
  const config *c = j->cfg;
  double seconds = 0;
  for (size_t i = 0; i < c->run.arms.count; i++) {
    arm_spec local;
    TRY(arm_choice_resolve(&local, job_arm_of_rank(j, &c->run.arms.arm[i], comm_rank(j->c))));
    TRY(rank_speed_measure(&seconds, j->m, &local, j->place, comm_host_rank(j->c), c->run.rows));
  }
  *speed = 1 / seconds;
  return 0;
}

// All ranks at the same time, as in the forward pass: those of a host share its memory.
static status measure_speeds(job *j, double *all) {
  double mine = 0;
  TRY(job_agree(j, 0, "the measurement of ranks' speeds"));
  TRY(job_agree(j, measure_local_speed(j, &mine), "the measurement of ranks' speeds"));
  return comm_allgather(j->c, all, &mine, sizeof mine, "the gathering of ranks' speeds");
}

// ---- by counts ----

static bool same_path(const job *j, const arm_choice *choice, int r, int other) {
  return choice->kind == ARM_NONE ||
         job_arm_of_rank(j, choice, r)->path == job_arm_of_rank(j, choice, other)->path;
}

// Ranks whose experts are computed on other paths, in some arm, are of other groups: a replica among them
// would make the result depend on which of the two computes a slot.
static void find_groups(const job *j, int *group) {
  const arm_list *arms = &j->cfg->run.arms;
  for (int r = 0; r < comm_size(j->c); r++) {
    group[r] = r;
    for (int other = 0; other < r && group[r] == r; other++) {
      bool same = true;
      for (size_t a = 0; a < arms->count; a++) same = same && same_path(j, &arms->arm[a], r, other);
      if (j->command == COMMAND_BISECT)
        same = same && same_path(j, &j->cfg->bisect.a, r, other) && same_path(j, &j->cfg->bisect.b, r, other);
      if (same) group[r] = group[other];
    }
  }
}

static bool is_one_group(const int *group, int n_ranks) {
  bool one = true;
  for (int r = 0; r < n_ranks; r++) one = one && group[r] == group[0];
  return one;
}

// What a search needs beside the counts.
typedef struct {
  uint64_t *expert_bytes;
  int *group;
  bool *holds;
  placement_question question;
} counted;

static status counted_open(counted *x, const job *j, const expert_counts *c) {
  const model_shape *s = &j->m->weights.shape;
  const replica_limit *limit = &j->cfg->experts.replicas;
  size_t pairs = (size_t)(s->n_layers * s->n_experts), ranks = (size_t)comm_size(j->c);
  TRY(TAKE(&x->expert_bytes, (size_t)s->n_layers, "the counts of experts"));
  TRY(TAKE(&x->group, ranks, "the groups of ranks"));
  TRY(TAKE(&x->holds, pairs * ranks, "the placement"));
  find_groups(j, x->group);
  for (int64_t l = 0; l < s->n_layers; l++) x->expert_bytes[l] = model_expert_bytes(j->m, l);
  x->question = (placement_question){
      .counts = c->count,
      .n_tokens = c->n_tokens,
      .n_layers = s->n_layers,
      .n_experts = s->n_experts,
      .n_ranks = comm_size(j->c),
      .group = x->group,
      .per_layer = limit->bytes ? REPLICAS_ANY : limit->experts,
      .bytes = limit->bytes ? limit->bytes : UINT64_MAX,
      .expert_bytes = x->expert_bytes,
  };
  return 0;
}

static void counted_close(counted *x) {
  free(x->expert_bytes);
  free(x->group);
  free(x->holds);
}

static status open_contiguous(placement *p, const job *j) {
  return placement_open(p, PLACEMENT_CONTIGUOUS, NULL, 0, NULL, j->m->weights.shape.n_experts,
                        comm_size(j->c), comm_rank(j->c));
}

// Takes the contiguous one where the counted would not be more even, or would change a mixed job's function.
static status choose(placement *p, const job *j, const counted *x, double load, double contiguous) {
  bool automatic = j->cfg->experts.placement == PLACEMENT_AUTO;
  bool same_paths = is_one_group(x->group, x->question.n_ranks);
  bool takes = !automatic || (same_paths && load < contiguous);
  const placement_question *q = &x->question;
  if (takes)
    TRY(placement_open_held(p, x->holds, q->n_layers, q->n_experts, q->n_ranks, comm_rank(j->c)));
  else
    TRY(open_contiguous(p, j));
  p->counted_load = takes ? load : contiguous;
  p->contiguous_load = contiguous;
  if (!automatic) return 0;
  if (!same_paths)
    snprintf(p->reason, sizeof p->reason,
             "ranks run different paths, and another placement would be another function");
  else
    snprintf(p->reason, sizeof p->reason,
             "the busiest rank's load is %.3f times the mean's counted, %.3f contiguous", load, contiguous);
  return 0;
}

static status place_by_counts(job *j, const expert_counts *c) {
  counted x = {.expert_bytes = NULL};
  double load = 0, contiguous = 0;
  status result = counted_open(&x, j, c);
  if (!result) result = placement_count(x.holds, &x.question);
  if (!result) result = placement_load(&load, x.holds, &x.question);
  if (!result) result = placement_load_contiguous(&contiguous, &x.question);
  if (!result) result = choose(&j->experts, j, &x, load, contiguous);
  counted_close(&x);
  return result;
}

static status read_counts(job *j, expert_counts *c) {
  const char *path = j->cfg->experts.counts;
  if (!path[0])
    return REFUSE("experts.placement = \"counted\": expected experts.counts, a file that moe_run route or "
                  "output.routes "
                  "writes");
  return expert_counts_open(c, path, &j->m->weights.shape);
}

static status open_counted(job *j) {
  expert_counts c = {.count = NULL};
  status result = job_agree(j, read_counts(j, &c), "experts.counts");
  if (!result) result = comm_equal_request(j->c, &c.hash, sizeof c.hash, "the experts of experts.counts");
  if (!result) result = job_agree(j, place_by_counts(j, &c), "the placement of experts");
  expert_counts_close(&c);
  return result;
}

static status open_auto(job *j) {
  if (j->cfg->experts.counts[0]) return open_counted(j);
  TRY(job_agree(j, open_contiguous(&j->experts, j), "the placement of experts"));
  snprintf(j->experts.reason, sizeof j->experts.reason, "experts.counts names no file to count in");
  return 0;
}

// ---- the placement ----

static status open_balanced(job *j) {
  double *speed = NULL;
  status result = job_agree(j, TAKE(&speed, (size_t)comm_size(j->c), "ranks' speeds"), "ranks' speeds");
  if (!result) result = measure_speeds(j, speed);
  if (!result)
    result = job_agree(j,
                       placement_open(&j->experts, PLACEMENT_BALANCED, NULL, 0, speed,
                                      j->m->weights.shape.n_experts, comm_size(j->c), comm_rank(j->c)),
                       "the placement of experts");
  free(speed);
  return result;
}

static status open_given(job *j) {
  const config *c = j->cfg;
  return job_agree(j,
                   placement_open(&j->experts, c->experts.placement, c->experts.rank_of_expert,
                                  c->experts.n_experts, NULL, j->m->weights.shape.n_experts, comm_size(j->c),
                                  comm_rank(j->c)),
                   "the placement of experts");
}

static status check_replicas(const config *c) {
  const replica_limit *limit = &c->experts.replicas;
  switch (c->experts.placement) {
  case PLACEMENT_COUNTED:
  case PLACEMENT_AUTO:
    return 0;
  case PLACEMENT_CONTIGUOUS:
  case PLACEMENT_STRIDED:
  case PLACEMENT_BALANCED:
  case PLACEMENT_LIST:
    break;
  }
  return !limit->experts && !limit->bytes ? 0
                                          : REFUSE("experts.replicas: expected experts.placement = "
                                                   "\"counted\" or \"auto\", which say what experts "
                                                   "are hot, found \"%s\"",
                                                   placement_name(c->experts.placement));
}

static status open_kind(job *j) {
  switch (j->cfg->experts.placement) {
  case PLACEMENT_COUNTED:
    return open_counted(j);
  case PLACEMENT_AUTO:
    return open_auto(j);
  case PLACEMENT_BALANCED:
    return open_balanced(j);
  case PLACEMENT_CONTIGUOUS:
  case PLACEMENT_STRIDED:
  case PLACEMENT_LIST:
    return open_given(j);
  }
  __builtin_unreachable();
}

status job_open_placement(job *j) {
  TRY(job_agree(j, check_replicas(j->cfg), "experts.replicas"));
  TRY(open_kind(j));
  // Ranks with different maps would each be consistent, and exchange rows that nobody computed.
  return comm_equal(j->c, &j->experts.hash, sizeof j->experts.hash, "the map of experts to ranks");
}
