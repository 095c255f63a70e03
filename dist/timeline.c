#include "dist/timeline.h"
#include "base/clock.h"
#include "base/memory.h"
#include "dist/range_table.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_DEPTH = 16, MOST_LABELS = 64 };

struct timeline {
  comm *c;
  int root;
  double zero; // clock_seconds() of the start
  span *spans; // [room]
  size_t n, room;
  uint64_t lost;
  int64_t open[MOST_DEPTH]; // the spans around what is recorded now, outermost first; below 0: lost
  int depth;
  char labels[MOST_LABELS][SPAN_LABEL];
  int n_labels, label;
  clock_skew *start, *end; // [size]
};

timeline *timeline_running;

static const span_info INFOS[] = {
    [SPAN_BATCH] = {"batch", "batch", "tokens"},
    [SPAN_LAYER] = {"layer", "layer", NULL},
    [SPAN_EMBED] = {"embed", "step", NULL},
    [SPAN_ATTENTION] = {"attention", "step", NULL},
    [SPAN_PROJECT] = {"project", "step", NULL},
    [SPAN_ATTEND] = {"attend", "step", NULL},
    [SPAN_ROUTE] = {"route", "step", NULL},
    [SPAN_MOE] = {"moe", "step", NULL},
    [SPAN_EXPERTS_UP] = {"experts_up", "step", NULL},
    [SPAN_EXPERTS_DOWN] = {"experts_down", "step", NULL},
    [SPAN_COMBINE] = {"combine", "step", NULL},
    [SPAN_HEAD] = {"head", "step", "rows"},
    [SPAN_DIGEST] = {"digest", "step", NULL},
    [SPAN_ROWS_READ] = {"rows to the host", "step", NULL},
    [SPAN_ROWS_WRITE] = {"rows from the host", "step", NULL},
    [SPAN_ROUTING] = {"routing", "step", NULL},
    [SPAN_PEERS] = {"exchange between GPUs", "exchange", NULL},
    [SPAN_EXCHANGE] = {"exchange", "exchange", "bytes"},
    [SPAN_WAIT] = {"wait for the last rank", "wait", NULL},
    [SPAN_WAIT_DEVICE] = {"wait for the device", "wait", NULL},
};
_Static_assert(sizeof INFOS / sizeof *INFOS == SPAN_COUNT, "a name for each span");

const span_info *span_get(span_kind kind) {
  return &INFOS[kind];
}

// ---- profilers ----

static const range_ops *const table[] = {RANGE_TABLE_ROWS NULL};

static void tell_push(span_kind kind, int64_t layer) {
  char name[64];
  if (!table[0]) return;
  if (layer == SPAN_NO_LAYER)
    snprintf(name, sizeof name, "%s", INFOS[kind].name);
  else
    snprintf(name, sizeof name, "%s %lld", INFOS[kind].name, (long long)layer);
  for (int i = 0; table[i]; i++) table[i]->push(name);
}

static void tell_pop(void) {
  for (int i = 0; table[i]; i++) table[i]->pop();
}

const char *timeline_profilers(void) {
  return table[0] ? table[0]->name : "none";
}

// ---- recording ----

void timeline_push(span_kind kind, int64_t layer) {
  timeline *t = timeline_running;
  bool kept = t->n < t->room && t->depth < MOST_DEPTH;
  tell_push(kind, layer);
  if (t->depth < MOST_DEPTH) t->open[t->depth] = kept ? (int64_t)t->n : -1;
  t->lost += !kept;
  if (kept)
    t->spans[t->n++] = (span){.start = clock_seconds(),
                              .amount = SPAN_NO_AMOUNT,
                              .layer = (int32_t)layer,
                              .kind = (int16_t)kind,
                              .label = (int16_t)t->label,
                              .last = -1,
                              .depth = t->depth};
  t->depth++;
}

void timeline_pop(int64_t amount) {
  timeline *t = timeline_running;
  int64_t at = --t->depth < MOST_DEPTH ? t->open[t->depth] : -1;
  if (at >= 0) {
    t->spans[at].end = clock_seconds();
    t->spans[at].amount = amount;
  }
  tell_pop();
}

void timeline_set_label(const char *name) {
  timeline *t = timeline_running;
  for (t->label = 0; t->label < t->n_labels; t->label++)
    if (!strcmp(t->labels[t->label], name)) return;
  if (t->n_labels == MOST_LABELS) t->label = --t->n_labels; // the last one's place is shared
  snprintf(t->labels[t->n_labels++], SPAN_LABEL, "%s", name);
}

const char *timeline_label_name(const timeline *t, int label) {
  return label >= 0 && label < t->n_labels ? t->labels[label] : "";
}

comm *timeline_comm(const timeline *t) {
  return t->c;
}

// ---- open and close ----

static status open_parts(timeline **out, comm *c, int root, size_t room) {
  timeline *t;
  TRY(memory_take((void **)&t, 1, sizeof *t, "the timeline"));
  *out = t;
  *t = (timeline){.c = c, .root = root, .room = room, .label = -1};
  TRY(TAKE(&t->spans, room, "the timeline"));
  TRY(TAKE(&t->start, (size_t)comm_size(c), "the timeline"));
  return TAKE(&t->end, (size_t)comm_size(c), "the timeline");
}

status timeline_open(timeline **out, comm *c, int root, size_t room) {
  *out = NULL;
  status result = comm_agree(c, open_parts(out, c, root, room), "the timeline");
  if (!result) result = clock_skew_measure((*out)->start, c, root);
  if (result) {
    timeline_close(*out);
    *out = NULL;
    return result;
  }
  (*out)->zero = clock_seconds();
  timeline_running = *out;
  return 0;
}

void timeline_close(timeline *t) {
  if (!t) return;
  if (timeline_running == t) timeline_running = NULL;
  free(t->spans);
  free(t->start);
  free(t->end);
  free(t);
}

timeline_figures timeline_describe(const timeline *t) {
  timeline_figures f = {.profilers = t ? timeline_profilers() : NULL};
  for (int r = 0; t && r < comm_size(t->c); r++) {
    const clock_skew *s = &t->start[r];
    double distance = s->seconds < 0 ? -s->seconds : s->seconds;
    if (distance > f.largest_skew) f.largest_skew = distance;
    if (s->bound > f.largest_bound) f.largest_bound = s->bound;
  }
  return f;
}

// ---- one clock ----

// A time of this rank on root's clock, since root's start: the skew is taken to change evenly between the two
// measurements.
static double on_root_clock(const timeline *t, double time, double root_zero) {
  const clock_skew *a = &t->start[comm_rank(t->c)], *b = &t->end[comm_rank(t->c)];
  double passed = b->at - a->at, skew = a->seconds;
  if (passed > 0) skew += (b->seconds - a->seconds) * ((time - a->seconds - a->at) / passed);
  return time - skew - root_zero;
}

static status to_one_clock(timeline *t) {
  double *zeros;
  TRY(comm_agree(t->c, TAKE(&zeros, (size_t)comm_size(t->c), "the timeline"), "the timeline"));
  status result = comm_allgather(t->c, zeros, &t->zero, sizeof t->zero, "the start of the timeline");
  double zero = zeros[t->root];
  free(zeros);
  for (size_t i = 0; i < t->n && !result; i++) {
    t->spans[i].start = on_root_clock(t, t->spans[i].start, zero);
    t->spans[i].end = on_root_clock(t, t->spans[i].end, zero);
  }
  return result;
}

// ---- waits: the k-th exchange is the same one on every rank ----

enum { AT_ONCE = 4096 }; // exchanges whose starts are gathered together

// Finds the next `count` exchanges from span *at on, whose places it keeps.
static void next_exchanges(const timeline *t, size_t *at, size_t *place, double *start, size_t count) {
  for (size_t k = 0; k < count; k++, (*at)++) {
    while (t->spans[*at].kind != SPAN_EXCHANGE) (*at)++;
    place[k] = *at;
    start[k] = t->spans[*at].start;
  }
}

static void note_last(timeline *t, const size_t *place, const double *starts, size_t count) {
  int size = comm_size(t->c);
  for (size_t k = 0; k < count; k++) {
    span *s = &t->spans[place[k]];
    s->last = 0;
    for (int r = 1; r < size; r++)
      if (starts[(size_t)r * count + k] > starts[(size_t)s->last * count + k]) s->last = r;
    double came = starts[(size_t)s->last * count + k], end = came < s->end ? came : s->end;
    s->wait = end > s->start ? end - s->start : 0;
  }
}

static status count_exchanges(const timeline *t, uint64_t *all, uint64_t *least) {
  uint64_t mine = 0;
  for (size_t i = 0; i < t->n; i++) mine += t->spans[i].kind == SPAN_EXCHANGE;
  TRY(comm_allgather(t->c, all, &mine, sizeof mine, "the exchanges of the timeline"));
  *least = all[0];
  for (int r = 1; r < comm_size(t->c); r++) *least = all[r] < *least ? all[r] : *least;
  return 0;
}

static status find_waits(timeline *t) {
  size_t size = (size_t)comm_size(t->c), *place = NULL, at = 0;
  double *mine = NULL, *all = NULL;
  uint64_t *counts = NULL, left = 0;
  status result = TAKE(&place, AT_ONCE, "the timeline");
  if (!result) result = TAKE(&mine, AT_ONCE, "the timeline");
  if (!result) result = TAKE(&all, AT_ONCE * size, "the timeline");
  if (!result) result = TAKE(&counts, size, "the timeline");
  result = comm_agree(t->c, result, "the timeline");
  if (!result) result = count_exchanges(t, counts, &left);
  while (left && !result) {
    size_t count = left < AT_ONCE ? (size_t)left : AT_ONCE;
    next_exchanges(t, &at, place, mine, count);
    result = comm_allgather(t->c, all, mine, count * sizeof *mine, "the exchanges of the timeline");
    if (!result) note_last(t, place, all, count);
    left -= count;
  }
  free(place);
  free(mine);
  free(all);
  free(counts);
  return result;
}

// ---- the merge ----

typedef struct {
  uint64_t n, lost;
} rank_count;

// Rank r's spans into `room` of root.
static status bring(timeline *t, int r, const rank_count *count, span *room, comm_part *part) {
  int size = comm_size(t->c);
  char *buffer = (char *)(comm_rank(t->c) == t->root ? room : t->spans);
  part[r * size + t->root] = (comm_part){0, count->n * sizeof *room};
  status result = comm_exchange(t->c, buffer, part, "the spans of the timeline");
  part[r * size + t->root] = (comm_part){0, 0};
  return result;
}

static status take_one(const timeline *t, int r, const rank_count *count, const span *spans,
                       status (*take)(void *, const rank_spans *), void *context) {
  rank_spans one = {r, {t->start[r], t->end[r]}, spans, count->n, count->lost};
  return take(context, &one);
}

static status merge(timeline *t, const rank_count *all, span *room, comm_part *part,
                    status (*take)(void *, const rank_spans *), void *context) {
  status taken = 0;
  bool is_root = comm_rank(t->c) == t->root;
  for (int r = 0; r < comm_size(t->c); r++) {
    if (r != t->root) TRY(bring(t, r, &all[r], room, part));
    if (is_root && !taken) taken = take_one(t, r, &all[r], r == t->root ? t->spans : room, take, context);
  }
  return comm_agree(t->c, taken, "the merge of the timeline");
}

static status open_merge(const timeline *t, const rank_count *all, span **room, comm_part **part) {
  size_t size = (size_t)comm_size(t->c), most = 0;
  for (size_t r = 0; r < size; r++)
    if ((int)r != t->root && all[r].n > most) most = all[r].n;
  TRY(TAKE(part, size * size, "the merge of the timeline"));
  return comm_rank(t->c) == t->root ? TAKE(room, most, "the merge of the timeline") : 0;
}

status timeline_merge(timeline *t, status (*take)(void *context, const rank_spans *rank), void *context) {
  rank_count mine = {t->n, t->lost}, *all = NULL;
  span *room = NULL;
  comm_part *part = NULL;
  timeline_running = NULL; // what follows is not recorded
  TRY(clock_skew_measure(t->end, t->c, t->root));
  TRY(to_one_clock(t));
  TRY(find_waits(t));
  TRY(comm_agree(t->c, TAKE(&all, (size_t)comm_size(t->c), "the merge of the timeline"), "the timeline"));
  status result = comm_allgather(t->c, all, &mine, sizeof mine, "the counts of the timeline");
  if (!result) result = comm_agree(t->c, open_merge(t, all, &room, &part), "the merge of the timeline");
  if (!result) result = merge(t, all, room, part, take, context);
  free(all);
  free(room);
  free(part);
  return result;
}
