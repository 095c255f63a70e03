// The replicas of placement_counted.h.
#include "base/memory.h"
#include "src/run/placement_counted.h"
#include <math.h>
#include <stdlib.h>

enum { BATCH = 32 };     // tokens of the batch that replicas are chosen for
enum { MOST_TRIED = 8 }; // ranks that are tried as an expert's next holder: those with the least load

typedef struct {
  int64_t expert;
  int rank;
} replica;

typedef struct { // what is added at once, and what the layer's loads would be
  int count;     // 0: nothing lessens them
  replica add[2];
  double busiest, squares;
} addition;

typedef struct { // of a rank, over the counted text; a batch's share of it is so many times as small
  double mean, variance;
} rank_load;

typedef struct {
  const placement_question *q;
  bool *holds;
  rank_load *load;  // [n_layers][n_ranks]
  int64_t *extra;   // [n_layers][n_ranks] replicas so far
  uint64_t *used;   // [n_ranks] bytes of them
  addition *next;   // [n_layers]
  bool *spent;      // [n_layers] nothing is better by these loads any more
  rank_load *trial; // [n_ranks] room
} replicas;

static bool *holders_of(const replicas *x, int64_t layer, int64_t expert) {
  return x->holds + (layer * x->q->n_experts + expert) * x->q->n_ranks;
}

static int count_holders(const bool *of, int n_ranks) {
  int n = 0;
  for (int r = 0; r < n_ranks; r++) n += of[r];
  return n;
}

// ---- loads ----

// Of an expert on each of n holders, times sign.
static void add_load(rank_load *to, const placement_question *q, int64_t count, int n, double sign) {
  double c = (double)count, chosen = q->n_tokens ? c / (double)q->n_tokens : 0;
  to->mean += sign * c / n;
  to->variance += sign * c * (1 - chosen) / ((double)n * n);
}

static void add_loads(rank_load *load, const placement_question *q, const bool *holds, int64_t layer) {
  for (int r = 0; r < q->n_ranks; r++) load[r] = (rank_load){0, 0};
  for (int64_t e = 0; e < q->n_experts; e++) {
    const bool *of = holds + (layer * q->n_experts + e) * q->n_ranks;
    int n = count_holders(of, q->n_ranks);
    for (int r = 0; r < q->n_ranks; r++)
      if (of[r]) add_load(&load[r], q, q->counts[layer * q->n_experts + e], n, 1);
  }
}

// Mean and standard deviation in a batch, in the counts of the whole text.
static double weight_of(const placement_question *q, const rank_load *load) {
  double times = (double)q->n_tokens / BATCH;
  return load->mean + sqrt(load->variance > 0 ? load->variance * times : 0);
}

static void weigh(addition *to, const placement_question *q, const rank_load *load) {
  to->busiest = to->squares = 0;
  for (int r = 0; r < q->n_ranks; r++) {
    double w = weight_of(q, &load[r]);
    to->busiest = w > to->busiest ? w : to->busiest;
    to->squares += w * w;
  }
}

// Less load on the busiest rank, or as much and the ranks nearer to each other: where two are the busiest,
// only the second replica lessens it.
static bool is_better(const addition *a, const addition *b) {
  return a->busiest < b->busiest || (a->busiest == b->busiest && a->squares < b->squares);
}

// ---- the next addition to a layer ----

static bool may_hold(const replicas *x, int64_t layer, int64_t expert, int rank) {
  const placement_question *q = x->q;
  const bool *of = holders_of(x, layer, expert);
  if (of[rank] || x->extra[layer * q->n_ranks + rank] >= q->per_layer) return false;
  if (q->bytes != UINT64_MAX && q->expert_bytes[layer] > q->bytes - x->used[rank]) return false;
  for (int r = 0; r < q->n_ranks && q->group; r++)
    if (of[r] && q->group[r] != q->group[rank]) return false;
  return true;
}

// The next rank above `after` in load that is tried; -1: all were. The lower rank on a tie.
static int next_rank(const replicas *x, int64_t layer, int after) {
  const rank_load *load = x->load + layer * x->q->n_ranks;
  int best = -1;
  for (int r = 0; r < x->q->n_ranks; r++) {
    bool later =
        after < 0 || load[r].mean > load[after].mean || (load[r].mean == load[after].mean && r > after);
    if (later && (best < 0 || load[r].mean < load[best].mean)) best = r;
  }
  return best;
}

static void try_addition(const replicas *x, addition *best, int64_t layer, addition found) {
  const placement_question *q = x->q;
  for (int r = 0; r < q->n_ranks; r++) x->trial[r] = x->load[layer * q->n_ranks + r];
  for (int i = 0; i < found.count; i++) {
    int64_t count = q->counts[layer * q->n_experts + found.add[i].expert];
    const bool *of = holders_of(x, layer, found.add[i].expert);
    int n = count_holders(of, q->n_ranks);
    for (int r = 0; r < q->n_ranks; r++) {
      if (of[r]) add_load(&x->trial[r], q, count, n, -1);
      if (of[r] || r == found.add[i].rank) add_load(&x->trial[r], q, count, n + 1, 1);
    }
  }
  weigh(&found, q, x->trial);
  if (is_better(&found, best)) *best = found;
}

// The expert on rank `to` as well; alone, or while `from` takes one of its.
static void try_rank(const replicas *x, addition *best, int64_t layer, int64_t expert, int from, int to) {
  addition a = {1, {{expert, to}, {0, from}}, 0, 0};
  try_addition(x, best, layer, a);
  a.count = 2;
  for (int64_t e = 0; e < x->q->n_experts; e++) {
    if (!holders_of(x, layer, e)[to] || !may_hold(x, layer, e, from)) continue;
    a.add[1].expert = e;
    try_addition(x, best, layer, a);
  }
}

// The rank with the most load below that of `after`; -1: there is none. The lower rank on a tie.
static int next_busiest(const placement_question *q, const rank_load *load, int after) {
  int most = -1;
  for (int r = 0; r < q->n_ranks; r++) {
    double w = weight_of(q, &load[r]), below = after < 0 ? 0 : weight_of(q, &load[after]);
    bool later = after < 0 || w < below || (w == below && r > after);
    if (later && (most < 0 || w > weight_of(q, &load[most]))) most = r;
  }
  return most;
}

static void try_from(const replicas *x, addition *best, int64_t layer, int from) {
  const placement_question *q = x->q;
  for (int to = next_rank(x, layer, -1), n = 0; to >= 0 && n < MOST_TRIED; to = next_rank(x, layer, to), n++)
    for (int64_t e = 0; e < q->n_experts; e++)
      if (holders_of(x, layer, e)[from] && may_hold(x, layer, e, to)) try_rank(x, best, layer, e, from, to);
}

// Of an expert of the busiest rank; where none of its helps, of the next one, so that others get nearer.
static void find_next(const replicas *x, int64_t layer) {
  const placement_question *q = x->q;
  addition *best = &x->next[layer];
  const rank_load *load = x->load + layer * q->n_ranks;
  *best = (addition){.count = 0};
  weigh(best, q, load);
  for (int from = next_busiest(q, load, -1); from >= 0 && !best->count && !x->spent[layer];
       from = next_busiest(q, load, from))
    try_from(x, best, layer, from);
  if (best->count) return;
  // Nothing is better by these loads; but a slot with a choice goes where its token has fewest.
  x->spent[layer] = true;
  best->busiest = INFINITY;
  for (int from = next_busiest(q, load, -1); from >= 0 && !best->count; from = next_busiest(q, load, from))
    try_from(x, best, layer, from);
}

// ---- the next of all layers ----

static bool still_fits(const replicas *x, int64_t layer) { // bytes may be used up since it was found
  const addition *n = &x->next[layer];
  bool fits = true;
  for (int i = 0; i < n->count; i++) fits = fits && may_hold(x, layer, n->add[i].expert, n->add[i].rank);
  return fits;
}

// What the layer's next addition lessens, per byte where bytes are the limit: below 0.
static addition gain_of(const replicas *x, int64_t layer) {
  const placement_question *q = x->q;
  const addition *next = &x->next[layer];
  addition now = {.count = 0};
  double price = next->count * (q->bytes == UINT64_MAX ? 1 : (double)q->expert_bytes[layer]);
  weigh(&now, q, x->load + layer * q->n_ranks);
  now.busiest = (next->busiest - now.busiest) / price;
  now.squares = (next->squares - now.squares) / price;
  return now;
}

static int64_t next_layer(const replicas *x) {
  int64_t best = -1;
  addition most = {.count = 0};
  for (int64_t l = 0; l < x->q->n_layers; l++) {
    if (!still_fits(x, l)) find_next(x, l);
    if (!x->next[l].count) continue;
    addition gain = gain_of(x, l);
    if (best >= 0 && !is_better(&gain, &most)) continue;
    best = l;
    most = gain;
  }
  return best;
}

static void add_to_layer(replicas *x, int64_t layer) {
  const placement_question *q = x->q;
  const addition *n = &x->next[layer];
  for (int i = 0; i < n->count; i++) {
    holders_of(x, layer, n->add[i].expert)[n->add[i].rank] = true;
    x->extra[layer * q->n_ranks + n->add[i].rank]++;
    if (q->bytes != UINT64_MAX) x->used[n->add[i].rank] += q->expert_bytes[layer];
  }
}

static void look_at(replicas *x, int64_t layer) {
  add_loads(x->load + layer * x->q->n_ranks, x->q, x->holds, layer);
  find_next(x, layer);
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
  TRY_DONE(result, TAKE(&x.spent, layers, "the placement of replicas"));
  TRY_DONE(result, TAKE(&x.trial, ranks, "the placement of replicas"));
  for (int64_t l = 0; l < q->n_layers; l++) look_at(&x, l);
  for (int64_t l = next_layer(&x); l >= 0; l = next_layer(&x)) {
    add_to_layer(&x, l);
    look_at(&x, l);
  }
done:
  free(x.load);
  free(x.extra);
  free(x.used);
  free(x.next);
  free(x.spent);
  free(x.trial);
  return result;
}

// ---- the load ----

status placement_load(double *out, const bool *holds, const placement_question *q) {
  rank_load *load;
  double sum = 0, all = 0;
  TRY(TAKE(&load, (size_t)q->n_ranks, "the load of ranks"));
  for (int64_t l = 0; l < q->n_layers; l++) {
    double most = 0;
    add_loads(load, q, holds, l);
    for (int r = 0; r < q->n_ranks; r++) most = load[r].mean > most ? load[r].mean : most;
    sum += most;
    for (int64_t e = 0; e < q->n_experts; e++) all += (double)q->counts[l * q->n_experts + e];
  }
  free(load);
  *out = all > 0 ? sum * q->n_ranks / all : 1;
  return 0;
}
