#include "src/commands/rank_clocks.h"
#include "base/memory.h"
#include <math.h>
#include <stdlib.h>

enum { LOG_ROOM = 1 << 16 }; // exchanges of a pass: 128 tokens of 48 layers have at most 24,576

status rank_clocks_open(rank_clocks *c, int64_t n_layers) {
  int groups = n_layers < BENCH_GROUPS ? (int)n_layers : BENCH_GROUPS;
  *c = (rank_clocks){.n_layers = n_layers, .n_groups = groups};
  TRY(TAKE(&c->log.seconds, LOG_ROOM, "times of exchanges"));
  c->log.room = LOG_ROOM;
  return TAKE(&c->group_of, LOG_ROOM, "times of exchanges");
}

void rank_clocks_close(rank_clocks *c) {
  free(c->log.seconds);
  free(c->group_of);
}

// ---- the pass ----

// The exchanges that have ended since the last call are of the group that was watched.
static void note_exchanges(rank_clocks *c) {
  for (; c->noted < c->log.n; c->noted++)
    if (c->noted < c->log.room) c->group_of[c->noted] = (int8_t)c->current;
  c->exchange[c->current] += c->log.sum - c->sum;
  c->sum = c->log.sum;
}

static status watch(rank_clocks *c, arm *a, int group) {
  if (group == c->current) return 0;
  TRY(arm_finish(a)); // what a device still does is of the group before
  TRY(arm_phases_watch(a, &c->of[group]));
  note_exchanges(c);
  c->current = group;
  return 0;
}

status rank_clocks_start(rank_clocks *c, arm *a) {
  for (int g = 0; g <= c->n_groups; g++) {
    c->of[g] = (phase_times){.exchanges = &c->log};
    c->exchange[g] = 0;
  }
  c->log.n = c->noted = 0;
  c->log.sum = c->sum = 0;
  c->current = c->n_groups;
  return arm_phases_watch(a, &c->of[c->n_groups]);
}

status rank_clocks_forward(rank_clocks *c, arm *a, const token_batch *batch) {
  TRY(arm_embed(a, batch));
  for (int64_t layer = 0; layer < c->n_layers; layer++) {
    int group = (int)(((layer + 1) * c->n_groups - 1) / c->n_layers); // as bench_group_first
    TRY(watch(c, a, group));
    TRY(arm_layer(a, layer));
  }
  return watch(c, a, c->n_groups);
}

status rank_clocks_end(rank_clocks *c, arm *a) {
  TRY(arm_finish(a));
  TRY(arm_phases_watch(a, NULL));
  note_exchanges(c);
  c->seconds = arm_seconds(a);
  return 0;
}

void rank_clocks_sum(const rank_clocks *c, phase_times *out) {
  *out = c->of[0];
  out->exchanges = NULL;
  for (int g = 1; g <= c->n_groups; g++)
    for (int p = 0; p < PHASE_COUNT; p++) {
      out->of[p].seconds += c->of[g].of[p].seconds;
      out->of[p].waiting += c->of[g].of[p].waiting;
      out->of[p].count += c->of[g].of[p].count;
    }
}

// ---- all ranks ----

typedef struct {
  rank_times times;
  int64_t exchanges;
  int32_t is_shared; // an expert rank only sends some rows, and then waits for nobody
} gathered;

static bench_part part_of(phase_kind phase) {
  switch (phase) {
  case PHASE_GATE_UP:
  case PHASE_SWIGLU:
  case PHASE_DOWN:
    return PART_EXPERTS;
  case PHASE_EXCHANGE:
    return PART_EXCHANGE;
  case PHASE_EMBED:
  case PHASE_ATTN_NORM:
  case PHASE_QKV:
  case PHASE_HEADS:
  case PHASE_ATTEND:
  case PHASE_O:
  case PHASE_FFN_NORM:
  case PHASE_ROUTER:
  case PHASE_TOP_K:
  case PHASE_COMBINE:
  case PHASE_HEAD_NORM:
  case PHASE_HEAD:
  case PHASE_DIGEST:
    break;
  }
  return PART_SHARED;
}

static gathered times_of(const rank_clocks *c, const arm *a) {
  gathered mine = {.times.seconds = c->seconds, .exchanges = c->log.n, .is_shared = arm_computes_shared(a)};
  for (int g = 0; g <= c->n_groups; g++) {
    double *parts = g < c->n_groups ? mine.times.group[g] : NULL;
    for (int p = 0; p < PHASE_COUNT; p++) {
      double seconds = p == PHASE_EXCHANGE ? c->exchange[g] : c->of[g].of[p].seconds;
      mine.times.phase[p] += seconds;
      if (parts) parts[part_of((phase_kind)p)] += seconds;
    }
  }
  return mine;
}

// Splits each exchange of all ranks, [size][n], into transfer and wait.
static void split_exchanges(const rank_clocks *c, const double *all, int64_t n, bench_ranks *out) {
  for (int64_t i = 0; i < n; i++) {
    double shortest = all[i];
    int g = c->group_of[i];
    for (int r = 1; r < out->n; r++) shortest = fmin(shortest, all[r * n + i]);
    out->transfer_seconds += shortest;
    for (int r = 0; r < out->n && g < c->n_groups; r++) {
      out->times[r].group[g][PART_WAITING] += all[r * n + i] - shortest;
      out->times[r].group[g][PART_EXCHANGE] -= all[r * n + i] - shortest;
    }
  }
}

// All ranks have had the same exchanges.
static status gather_exchanges(const rank_clocks *c, comm *ranks, int64_t n, bench_ranks *out) {
  double *all;
  out->transfer_seconds = 0;
  TRY(TAKE(&all, (size_t)(n * out->n), "times of exchanges"));
  status result =
      comm_allgather(ranks, all, c->log.seconds, (size_t)n * sizeof *all, "the times of exchanges");
  if (!result) split_exchanges(c, all, n, out);
  free(all);
  return result;
}

// Where GPUs are linked, the kernel that computes the last product of one token also waits for the others'
// slots and combines them: then nothing is left between steps for the exchange.
static int64_t times_combined(const rank_clocks *c) {
  int64_t count = 0;
  for (int g = 0; g < c->n_groups; g++) count += c->of[g].of[PHASE_COMBINE].count;
  return count;
}

status rank_clocks_gather(const rank_clocks *c, comm *ranks, const arm *a, bench_ranks *out) {
  gathered mine = times_of(c, a), *all;
  bool alike = c->log.n > 0 && c->log.n <= c->log.room;
  out->n_groups = c->n_groups;
  out->n_layers = c->n_layers;
  out->transport = transport_name(arm_transport(a));
  out->has_peers = arm_has_peers(a);
  out->transfer_seconds = out->n > 1 ? __builtin_nan("") : 0;
  out->exchange_is_inside = arm_has_peers(a) && !times_combined(c);
  TRY(TAKE(&all, (size_t)out->n, "ranks' times"));
  status result = comm_allgather(ranks, all, &mine, sizeof mine, "the ranks' times");
  for (int r = 0; r < out->n && !result; r++) {
    out->host[r] = comm_host_of(ranks, r);
    out->times[r] = all[r].times;
    alike = alike && all[r].exchanges == c->log.n && all[r].is_shared; // not so on different backends
  }
  free(all);
  alike = alike && !out->exchange_is_inside;
  return !result && alike && out->n > 1 ? gather_exchanges(c, ranks, c->log.n, out) : result;
}
