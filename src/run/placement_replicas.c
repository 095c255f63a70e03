// The replicas of placement_counted.h, one at a time.
#include "base/memory.h"
#include "src/run/placement_counted.h"
#include <stdlib.h>

typedef struct { // an expert's next holder, and what the layer's loads would be
  bool found;
  int64_t expert;
  int rank;
  double busiest, squares;
} next_replica;

typedef struct {
  const placement_question *q;
  bool *holds;
  double *load;       // [n_layers][n_ranks]
  int64_t *extra;     // [n_layers][n_ranks] replicas so far
  uint64_t *used;     // [n_ranks] bytes of them
  next_replica *next; // [n_layers]
  double *trial;      // [n_ranks] room
} replicas;

static bool *holders_of(const replicas *x, int64_t layer, int64_t expert) {
  return x->holds + (layer * x->q->n_experts + expert) * x->q->n_ranks;
}

static int count_holders(const bool *of, int n_ranks) {
  int n = 0;
  for (int r = 0; r < n_ranks; r++) n += of[r];
  return n;
}

// load[n_ranks] of a layer.
static void add_loads(double *load, const bool *holds, const int64_t *counts, int64_t n_experts, int n_ranks) {
  for (int r = 0; r < n_ranks; r++) load[r] = 0;
  for (int64_t e = 0; e < n_experts; e++) {
    const bool *of = holds + e * n_ranks;
    double each = (double)counts[e] / count_holders(of, n_ranks);
    for (int r = 0; r < n_ranks; r++)
      if (of[r]) load[r] += each;
  }
}

static void find_loads(const replicas *x, int64_t layer) {
  const placement_question *q = x->q;
  add_loads(x->load + layer * q->n_ranks, holders_of(x, layer, 0), q->counts + layer * q->n_experts,
            q->n_experts, q->n_ranks);
}

static void weigh(next_replica *to, const double *load, int n_ranks) {
  to->busiest = to->squares = 0;
  for (int r = 0; r < n_ranks; r++) {
    to->busiest = load[r] > to->busiest ? load[r] : to->busiest;
    to->squares += load[r] * load[r];
  }
}

// Less load on the busiest rank, or as much and the ranks nearer to each other: where two are the busiest,
// only the second replica lessens it.
static bool is_better(const next_replica *a, const next_replica *b) {
  return a->busiest < b->busiest || (a->busiest == b->busiest && a->squares < b->squares);
}

// ---- the next replica of a layer ----

static bool may_hold(const replicas *x, int64_t layer, const bool *of, int rank) {
  const placement_question *q = x->q;
  if (of[rank] || x->extra[layer * q->n_ranks + rank] >= q->per_layer) return false;
  if (q->bytes != UINT64_MAX && q->expert_bytes[layer] > q->bytes - x->used[rank]) return false;
  for (int r = 0; r < q->n_ranks && q->group; r++)
    if (of[r] && q->group[r] != q->group[rank]) return false;
  return true;
}

// The least loaded rank that may hold it too; -1: none.
static int next_holder(const replicas *x, int64_t layer, const bool *of) {
  const double *load = x->load + layer * x->q->n_ranks;
  int best = -1;
  for (int r = 0; r < x->q->n_ranks; r++)
    if (may_hold(x, layer, of, r) && (best < 0 || load[r] < load[best])) best = r;
  return best;
}

static void try_replica(const replicas *x, next_replica *best, int64_t layer, int64_t expert) {
  const placement_question *q = x->q;
  const bool *of = holders_of(x, layer, expert);
  double count = (double)q->counts[layer * q->n_experts + expert];
  int rank = next_holder(x, layer, of), n = count_holders(of, q->n_ranks);
  if (rank < 0) return;
  next_replica found = {true, expert, rank, 0, 0};
  for (int r = 0; r < q->n_ranks; r++) {
    x->trial[r] = x->load[layer * q->n_ranks + r];
    if (of[r]) x->trial[r] += count / (n + 1) - count / n;
    if (r == rank) x->trial[r] += count / (n + 1);
  }
  weigh(&found, x->trial, q->n_ranks);
  if (is_better(&found, best)) *best = found;
}

static int busiest_of(const double *load, int n_ranks) {
  int most = 0;
  for (int r = 1; r < n_ranks; r++)
    if (load[r] > load[most]) most = r;
  return most;
}

static void find_next(const replicas *x, int64_t layer) {
  const placement_question *q = x->q;
  next_replica *best = &x->next[layer];
  const double *load = x->load + layer * q->n_ranks;
  int from = busiest_of(load, q->n_ranks);
  *best = (next_replica){.found = false};
  weigh(best, load, q->n_ranks);
  for (int64_t e = 0; e < q->n_experts; e++)
    if (holders_of(x, layer, e)[from]) try_replica(x, best, layer, e);
}

// ---- the next of all layers ----

// What the layer's next replica lessens: of the busiest rank's load, and of the squares; per byte where bytes
// are the limit.
static next_replica gain_of(const replicas *x, int64_t layer) {
  const placement_question *q = x->q;
  next_replica now = {.found = false};
  double bytes = q->bytes == UINT64_MAX ? 1 : (double)q->expert_bytes[layer];
  weigh(&now, x->load + layer * q->n_ranks, q->n_ranks);
  now.busiest = (x->next[layer].busiest - now.busiest) / bytes; // below 0
  now.squares = (x->next[layer].squares - now.squares) / bytes;
  return now;
}

static int64_t next_layer(const replicas *x) {
  int64_t best = -1;
  next_replica most = {.found = false};
  for (int64_t l = 0; l < x->q->n_layers; l++) {
    const next_replica *n = &x->next[l];
    if (n->found && !may_hold(x, l, holders_of(x, l, n->expert), n->rank)) find_next(x, l); // bytes are used up
    if (!n->found) continue;
    next_replica gain = gain_of(x, l);
    if (best >= 0 && !is_better(&gain, &most)) continue;
    best = l;
    most = gain;
  }
  return best;
}

static void add_all(replicas *x) {
  const placement_question *q = x->q;
  for (int64_t l = 0; l < q->n_layers; l++) {
    find_loads(x, l);
    find_next(x, l);
  }
  for (int64_t l = next_layer(x); l >= 0; l = next_layer(x)) {
    next_replica n = x->next[l];
    holders_of(x, l, n.expert)[n.rank] = true;
    x->extra[l * q->n_ranks + n.rank]++;
    if (q->bytes != UINT64_MAX) x->used[n.rank] += q->expert_bytes[l];
    find_loads(x, l);
    find_next(x, l);
  }
}

status placement_replicate(bool *holds, const placement_question *q) {
  size_t ranks = (size_t)q->n_ranks, layers = (size_t)q->n_layers;
  replicas x = {.q = q, .holds = holds};
  status result = 0;
  if (!q->per_layer || !q->bytes) return 0;
  TRY_DONE(result, TAKE(&x.load, layers * ranks, "the placement of replicas"));
  TRY_DONE(result, TAKE(&x.extra, layers * ranks, "the placement of replicas"));
  TRY_DONE(result, TAKE(&x.used, ranks, "the placement of replicas"));
  TRY_DONE(result, TAKE(&x.next, layers, "the placement of replicas"));
  TRY_DONE(result, TAKE(&x.trial, ranks, "the placement of replicas"));
  add_all(&x);
done:
  free(x.load);
  free(x.extra);
  free(x.used);
  free(x.next);
  free(x.trial);
  return result;
}

// ---- the load ----

status placement_load(double *out, const bool *holds, const placement_question *q) {
  double *load, sum = 0, all = 0;
  TRY(TAKE(&load, (size_t)q->n_ranks, "the load of ranks"));
  for (int64_t l = 0; l < q->n_layers; l++) {
    const int64_t *counts = q->counts + l * q->n_experts;
    add_loads(load, holds + l * q->n_experts * q->n_ranks, counts, q->n_experts, q->n_ranks);
    sum += load[busiest_of(load, q->n_ranks)];
    for (int64_t e = 0; e < q->n_experts; e++) all += (double)counts[e];
  }
  free(load);
  *out = all > 0 ? sum * q->n_ranks / all : 1;
  return 0;
}
