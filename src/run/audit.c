#define _GNU_SOURCE // qsort_r
#include "src/run/audit.h"
#include "base/clock.h"
#include "base/memory.h"
#include "kernels/formats/numerics.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS_AT_ONCE = 32 }; // slots that are recomputed in one batch

typedef struct {
  int64_t slot; // row * top_k + k
  int32_t expert;
  int owner;
} candidate;

struct audit {
  audit_params params;
  const path_info *path; // of the shared steps
  path_kind *path_of_rank;
  model_weights one; // the model's weights with one expert to a token
  int32_t *local;
  backend *of_path[PATH_COUNT]; // NULL: no other rank has it
  int64_t hidden, n_experts, n_layers, top_k;
  double credit;   // slots that may be recomputed
  uint64_t drawn;  // numbers of the random stream so far
  uint64_t batch;  // layers seen
  uint8_t *used;   // [n_layers][n_experts]: had a slot
  uint32_t *times; // [n_layers][n_experts]: recomputed
  int64_t *times_of_rank;
  uint8_t *used_rank; // [ranks] it computed a slot
  int64_t slots, slots_seen;
  double seconds;
  candidate *candidates;
  size_t n_candidates, room;
  // one batch
  char *inputs;
  int32_t zero[ROWS_AT_ONCE];
  expert_global expert[ROWS_AT_ONCE];
  int64_t row_of_slot[ROWS_AT_ONCE];
};

// ---- open and close ----

static status open_arrays(audit *a) {
  size_t ranks = (size_t)comm_size(a->params.c), pairs = (size_t)(a->n_layers * a->n_experts);
  TRY(TAKE(&a->path_of_rank, ranks, "the audit"));
  memcpy(a->path_of_rank, a->params.experts_path, ranks * sizeof *a->path_of_rank);
  TRY(TAKE(&a->local, (size_t)a->n_experts, "the audit"));
  TRY(TAKE(&a->used, pairs, "the audit"));
  TRY(TAKE(&a->times, pairs, "the audit"));
  TRY(TAKE(&a->times_of_rank, ranks, "the audit"));
  TRY(TAKE(&a->used_rank, ranks, "the audit"));
  return TAKE(&a->inputs, ROWS_AT_ONCE * (size_t)a->hidden * a->path->real_bytes, "the audit");
}

// The cpu backend for each path of another rank's experts, with every expert of the model.
static status open_backends(audit *a) {
  backend_params b = {
      .weights = &a->one,
      .shared = a->params.shared,
      .map = expert_map_of_all(a->local, a->n_experts),
      .n_sequences = 1,
      .max_batch = ROWS_AT_ONCE,
      .threads = a->params.threads,
      .row = a->params.row,
  };
  for (int r = 0; r < comm_size(a->params.c); r++) {
    backend **to = &a->of_path[a->path_of_rank[r]];
    b.experts = a->path_of_rank[r];
    if (r != comm_rank(a->params.c) && !*to) TRY(backend_get(BACKEND_CPU)->open(to, &b));
  }
  return 0;
}

status audit_open(audit **out, const audit_params *p) {
  const model_shape *s = &p->m->weights.shape;
  audit *a;
  TRY(memory_take((void **)&a, 1, sizeof *a, "the audit"));
  *out = a;
  a->params = *p;
  a->path = path_for(p->shared, &p->m->weights);
  a->one = p->m->weights;
  a->one.shape.top_k = 1;
  a->hidden = s->hidden;
  a->n_experts = s->n_experts;
  a->n_layers = s->n_layers;
  a->top_k = s->top_k;
  a->credit = 1; // the first slot of another rank that comes
  TRY(open_arrays(a));
  return open_backends(a);
}

void audit_close(audit *a) {
  if (!a) return;
  for (int i = 0; i < PATH_COUNT; i++)
    if (a->of_path[i]) a->of_path[i]->ops->close(a->of_path[i]);
  free(a->path_of_rank);
  free(a->local);
  free(a->used);
  free(a->times);
  free(a->times_of_rank);
  free(a->used_rank);
  free(a->candidates);
  free(a->inputs);
  free(a);
}

// ---- which slots ----

static bool is_shared(const audit *a, int rank) {
  return !a->params.computes_shared || a->params.computes_shared[rank];
}

// The shared rank that may recompute the slot where all of them hold it, not its owner; -1: there is no
// other.
static int auditor_of(const audit *a, int64_t slot, int owner) {
  int size = comm_size(a->params.c), n = 0;
  for (int r = 0; r < size; r++) n += r != owner && is_shared(a, r);
  if (!n) return -1;
  int64_t place = (int64_t)((num_mix64(a->batch) + (uint64_t)slot) % (uint64_t)n);
  for (int r = 0; r < size; r++)
    if (r != owner && is_shared(a, r) && !place--) return r;
  return -1;
}

static status find_candidates(audit *a, int64_t layer, const audited_rows *rows) {
  int me = comm_rank(a->params.c);
  a->n_candidates = 0;
  for (int64_t i = rows->first * a->top_k; i < (rows->first + rows->count) * a->top_k; i++) {
    int32_t e = rows->expert[i].id;
    int owner = rows->rank_of_slot[i];
    a->used[layer * a->n_experts + e] = 1;
    a->used_rank[owner] = 1;
    if (owner == me || (!rows->is_sharded && auditor_of(a, i, owner) != me)) continue;
    TRY(memory_grow((void **)&a->candidates, &a->room, a->n_candidates, sizeof *a->candidates, "the audit"));
    a->candidates[a->n_candidates++] = (candidate){i, e, owner};
  }
  return 0;
}

// How many of the candidates: in the long run the share of them, at places that no layer or expert is in step
// with.
static size_t take_credit(audit *a) {
  size_t n = 0;
  if (a->params.share >= 1) return a->n_candidates;
  a->credit += a->params.share * (double)a->n_candidates;
  while (n < a->n_candidates && a->credit >= 1) {
    uint64_t key = (uint64_t)comm_rank(a->params.c) << 48 | a->drawn++;
    a->credit -= 0.5 + (double)(num_mix64(key) >> 11) * 0x1p-53; // 1 on average
    n++;
  }
  return n;
}

// A rank of which nothing was recomputed first, then the pair of layer and expert that was least often.
static bool comes_before(const audit *a, int64_t layer, const candidate *x, const candidate *y) {
  bool new_x = !a->times_of_rank[x->owner], new_y = !a->times_of_rank[y->owner];
  uint32_t times_x = a->times[layer * a->n_experts + x->expert];
  uint32_t times_y = a->times[layer * a->n_experts + y->expert];
  if (new_x != new_y) return new_x;
  if (times_x != times_y) return times_x < times_y;
  return a->times_of_rank[x->owner] < a->times_of_rank[y->owner];
}

// Puts the candidate that comes first into place i, and counts it.
static void choose(audit *a, int64_t layer, size_t i) {
  size_t best = i;
  for (size_t c = i + 1; c < a->n_candidates && a->params.share < 1; c++)
    if (comes_before(a, layer, &a->candidates[c], &a->candidates[best])) best = c;
  candidate first = a->candidates[best];
  a->candidates[best] = a->candidates[i];
  a->candidates[i] = first;
  a->times[layer * a->n_experts + first.expert]++;
  a->times_of_rank[first.owner]++;
}

// ---- recomputing ----

static double real_at(const audit *a, const char *row, int64_t i) {
  return a->path->real_bytes == sizeof(double) ? ((const double *)(const void *)row)[i]
                                               : (double)((const float *)(const void *)row)[i];
}

static int64_t count_different(const audit *a, const char *own, const char *received) {
  int64_t n = 0;
  for (int64_t i = 0; i < a->hidden; i++) {
    double x = real_at(a, own, i), y = real_at(a, received, i);
    n += !(isnan(x) && isnan(y)) && (x != y || signbit(x) != signbit(y));
  }
  return n;
}

// Of one slot: the row that was received lies in ROWS_SLOTS of the batch's backend.
static status compare(audit *a, int64_t layer, const audited_rows *rows, const candidate *c,
                      const char *own) {
  backend *b = rows->compute;
  size_t bytes = (size_t)a->hidden * a->path->real_bytes;
  int64_t row = rows->row_of_slot[c->slot];
  TRY(b->ops->rows_read(b, ROWS_SLOTS, row, 1));
  const char *received = (const char *)b->ops->rows_host(b, ROWS_SLOTS) + (size_t)row * bytes;
  if (!memcmp(own, received, bytes)) return 0;
  int64_t n = count_different(a, own, received);
  if (!n) return 0;
  comm_take_turns(a->params.c); // other ranks may find the same at the same time
  return FAIL(
      "the audit: layer %lld, expert %d, which rank %d (%s) computes: its output for the batch's row %lld "
      "differs in %lld of %lld numbers from what the model file and the path %s give here: a fault of "
      "that host's memory, processor or build",
      (long long)layer, c->expert, c->owner, comm_host_of(a->params.c, c->owner),
      (long long)(c->slot / a->top_k), (long long)n, (long long)a->hidden,
      path_get(a->path_of_rank[c->owner])->name);
}

// The experts' input of candidates[n].
static status read_inputs(audit *a, const audited_rows *rows, const candidate *list, int64_t n) {
  backend *b = rows->compute;
  size_t bytes = (size_t)a->hidden * a->path->real_bytes;
  for (int64_t i = 0; i < n; i++) {
    int64_t row = list[i].slot / a->top_k;
    TRY(b->ops->rows_read(b, ROWS_NORMED, row, 1));
    memcpy(a->inputs + (size_t)i * bytes,
           (const char *)b->ops->rows_host(b, ROWS_NORMED) + (size_t)row * bytes, bytes);
  }
  return 0;
}

// candidates[n] whose owners compute on one path, at most ROWS_AT_ONCE.
static status recompute(audit *a, int64_t layer, const audited_rows *rows, const candidate *list, int64_t n) {
  const routing route = {.expert = a->expert};
  const slot_places places = {.order = SLOTS_PLACED, .row_of_slot = a->row_of_slot};
  const token_batch batch = {n, a->zero, a->zero, a->zero};
  size_t bytes = (size_t)a->hidden * a->path->real_bytes;
  backend *b = a->of_path[a->path_of_rank[list[0].owner]];
  TRY(read_inputs(a, rows, list, n));
  memcpy(b->ops->rows_host(b, ROWS_NORMED), a->inputs, (size_t)n * bytes);
  TRY(b->ops->rows_write(b, ROWS_NORMED, 0, n));
  for (int64_t i = 0; i < n; i++) {
    a->expert[i] = (expert_global){list[i].expert};
    a->row_of_slot[i] = i;
  }
  TRY(b->ops->routing_write(b, 0, n, ROUTING_EXPERTS, &route));
  TRY(b->ops->experts_up(b, layer, &batch));
  TRY(b->ops->experts_down(b, layer, &batch, &places));
  const char *own = b->ops->rows_host(b, ROWS_SLOTS);
  for (int64_t i = 0; i < n; i++) TRY(compare(a, layer, rows, &list[i], own + (size_t)i * bytes));
  return 0;
}

// Candidates of one path lie together, so that each batch has one.
static int by_path(const void *x, const void *y, void *context) {
  const audit *a = (const audit *)context;
  path_kind p = a->path_of_rank[((const candidate *)x)->owner],
            q = a->path_of_rank[((const candidate *)y)->owner];
  return (p > q) - (p < q);
}

status audit_layer(audit *a, int64_t layer, const audited_rows *rows) {
  double start = clock_seconds();
  a->batch++;
  TRY(find_candidates(a, layer, rows));
  size_t n = take_credit(a);
  for (size_t i = 0; i < n; i++) choose(a, layer, i);
  a->slots += (int64_t)n;
  a->slots_seen += (int64_t)a->n_candidates;
  if (n) qsort_r(a->candidates, n, sizeof *a->candidates, by_path, a);
  for (size_t i = 0, count; i < n; i += count) {
    path_kind path = a->path_of_rank[a->candidates[i].owner];
    for (count = 1; count < ROWS_AT_ONCE && i + count < n; count++)
      if (a->path_of_rank[a->candidates[i + count].owner] != path) break;
    TRY(recompute(a, layer, rows, &a->candidates[i], (int64_t)count));
  }
  a->seconds += clock_seconds() - start;
  return 0;
}

// ---- what was covered ----

typedef struct {
  int64_t slots, slots_seen;
  double seconds;
} totals;

static status add_totals(const audit *a, audit_coverage *out) {
  totals mine = {a->slots, a->slots_seen, a->seconds}, *all;
  TRY(TAKE(&all, (size_t)comm_size(a->params.c), "the audit's coverage"));
  status result = comm_allgather(a->params.c, all, &mine, sizeof mine, "the audit's coverage");
  for (int r = 0; r < comm_size(a->params.c) && !result; r++) {
    out->slots += all[r].slots;
    out->slots_seen += all[r].slots_seen;
    if (all[r].seconds > out->seconds) out->seconds = all[r].seconds;
  }
  free(all);
  return result;
}

enum { USED = 1, RECOMPUTED = 2 }; // of a pair of layer and expert, and of a rank

// all[ranks]: the pairs of each rank, then what it recomputed of each rank.
static void count_pairs(const audit *a, audit_coverage *out, const uint8_t *all) {
  size_t pairs = (size_t)(a->n_layers * a->n_experts), size = (size_t)comm_size(a->params.c),
         n = pairs + size;
  for (size_t i = 0; i < n; i++) {
    unsigned found = 0;
    for (size_t r = 0; r < size; r++) found |= all[r * n + i];
    *(i >= pairs ? &out->ranks_used : &out->experts_used) += (found & USED) != 0;
    *(i >= pairs ? &out->ranks : &out->experts) += (found & RECOMPUTED) != 0;
  }
}

static status add_pairs(const audit *a, audit_coverage *out) {
  size_t pairs = (size_t)(a->n_layers * a->n_experts), size = (size_t)comm_size(a->params.c),
         n = pairs + size;
  uint8_t *mine = NULL, *all = NULL;
  status result;
  TRY_DONE(result, TAKE(&mine, n, "the audit's coverage"));
  TRY_DONE(result, TAKE(&all, n * size, "the audit's coverage"));
  for (size_t i = 0; i < pairs; i++)
    mine[i] = (uint8_t)((a->used[i] ? USED : 0) | (a->times[i] ? RECOMPUTED : 0));
  for (size_t r = 0; r < size; r++)
    mine[pairs + r] = (uint8_t)((a->used_rank[r] ? USED : 0) | (a->times_of_rank[r] ? RECOMPUTED : 0));
  TRY_DONE(result, comm_allgather(a->params.c, all, mine, n, "the audit's coverage"));
  count_pairs(a, out, all);
done:
  free(mine);
  free(all);
  return result;
}

status audit_cover(const audit *a, audit_coverage *out) {
  *out = (audit_coverage){.share = a->params.share};
  TRY(add_totals(a, out));
  return add_pairs(a, out);
}
