#include "src/run/job_placement.h"
#include "base/memory.h"
#include "src/run/placement_counted.h"
#include "src/run/rank_speed.h"
#include "src/run/routes.h"
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

// How often each expert of each layer was chosen.
static void count_routes(int64_t *counts, const routes *r, int64_t n_experts) {
  for (int64_t l = 0; l < r->n_layers; l++)
    for (int64_t i = 0; i < r->n_tokens * r->top_k; i++) counts[l * n_experts + routes_at(r, l, 0)[i].id]++;
}

static status place_by_counts(job *j, const routes *r, int32_t *owner, double *load) {
  const model_shape *s = &j->m->weights.shape;
  int64_t *counts;
  TRY(TAKE(&counts, (size_t)(s->n_layers * s->n_experts), "the counts of experts"));
  count_routes(counts, r, s->n_experts);
  status result = placement_count(owner, counts, s->n_layers, s->n_experts, comm_size(j->c));
  if (!result) result = placement_load(load, owner, counts, s->n_layers, s->n_experts, comm_size(j->c));
  free(counts);
  return result;
}

static status read_counts(job *j, routes *r) {
  const char *path = j->cfg->experts.counts;
  if (!path[0])
    return REFUSE(
        "experts.placement = \"counted\": expected experts.counts, a file of chosen experts as output.routes "
        "writes it");
  return routes_open(r, path, &j->m->weights.shape, ROUTES_OF_ANY_TOKENS);
}

// Collective. owner[n_experts] and the load of the busiest rank.
static status count_owners(job *j, int32_t *owner, double *load) {
  routes r = {.n_layers = 0};
  status result = job_agree(j, read_counts(j, &r), "experts.counts");
  if (!result) result = comm_equal_request(j->c, &r.hash, sizeof r.hash, "the experts of experts.counts");
  if (!result) result = job_agree(j, place_by_counts(j, &r, owner, load), "the placement of experts");
  routes_close(&r);
  return result;
}

// ---- the placement ----

static status open_with(job *j, const double *speed, const int32_t *owner) {
  const config *c = j->cfg;
  size_t n = (size_t)j->m->weights.shape.n_experts;
  bool counted = c->experts.placement == PLACEMENT_COUNTED;
  return placement_open(&j->experts, c->experts.placement, counted ? owner : c->experts.rank_of_expert,
                        counted ? n : c->experts.n_experts, speed, (int64_t)n, comm_size(j->c),
                        comm_rank(j->c));
}

status job_open_placement(job *j) {
  const config *c = j->cfg;
  double *speed = NULL, load = 0;
  int32_t *owner = NULL;
  status result = TAKE(&speed, (size_t)comm_size(j->c), "ranks' speeds");
  if (!result) result = TAKE(&owner, (size_t)j->m->weights.shape.n_experts, "the placement");
  result = job_agree(j, result, "the placement of experts");
  if (!result && c->experts.placement == PLACEMENT_BALANCED) result = measure_speeds(j, speed);
  if (!result && c->experts.placement == PLACEMENT_COUNTED) result = count_owners(j, owner, &load);
  if (!result) result = job_agree(j, open_with(j, speed, owner), "the placement of experts");
  j->experts.counted_load = load;
  free(speed);
  free(owner);
  return result;
}
