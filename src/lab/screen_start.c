// Before the rounds: every ISA row and GPU of every rank computes the work, and they vote.
#include "src/lab/screen_parts.h"
#include "base/clock.h"
#include "base/memory.h"
#include <stdlib.h>
#include <string.h>

enum { MOST_TRIES = 6 };          // runs of a unit until two agree
static const double SHARE = 0.25; // of screen.seconds, after which no further ISA row is asked

typedef struct { // of one rank, gathered
  screen_voter voter[SCREEN_VOTERS];
  char row[SCREEN_VOTERS][32];
} voter_list;

typedef struct {
  screen *s;
  screen_reference *r;
  voter_list mine, *all;
  uint64_t *vote; // [SCREEN_VOTERS][n] of this rank
  uint64_t *votes;
  int n;
} election;

// ---- one unit's answer: that of two runs in a row that agree ----

// vote[n] of a run after the one before, which it replaces; true: they agree. Where they do not, the unit has
// contradicted itself.
static bool take_answer(election *e, const screen_unit *u, uint64_t *vote, const uint64_t *now, int64_t n,
                        int64_t first, bool is_first) {
  bool agrees = true;
  for (int64_t i = 0; i < n; i++) {
    if (!is_first && agrees && vote[i] != now[i]) {
      agrees = false;
      screen_add_unsettled(e->s, u, first + i, e->r);
    }
    vote[i] = now[i];
  }
  return agrees && !is_first;
}

static status settle_probes(election *e, screen_unit *u, bool compares, uint64_t *vote) {
  screen_store *store = &e->r->store;
  bool agrees = false;
  for (int i = 0; i < MOST_TRIES && !agrees; i++) {
    TRY(screen_unit_probe(u, store, compares));
    agrees = take_answer(e, u, vote, store->hash, store->n_tensors, 0, i == 0);
  }
  return 0;
}

static status settle_sequence(election *e, screen_unit *u, double *stream, uint64_t *vote) {
  const screen_reference *r = e->r;
  uint64_t *now;
  bool agrees = false;
  status result = 0;
  TRY(TAKE(&now, (size_t)r->n_layers + 1, "digests"));
  for (int i = 0; i < MOST_TRIES && !agrees && !result; i++) {
    result = screen_unit_run(u, i % 2 ? CUT_PARTS : CUT_PROMPT);
    if (!result && stream) result = screen_unit_stream(u, stream);
    for (int64_t l = 0; l < r->n_layers; l++) now[l] = u->layers[l * u->sequences];
    now[r->n_layers] = u->logits[0];
    if (!result) agrees = take_answer(e, u, vote, now, r->n_layers + 1, r->n_tensors, i == 0);
  }
  free(now);
  return result;
}

// The first voter of a rank keeps its values; the others are held against them.
static status ask(election *e, const backend_ops *where, const char *row, bool all) {
  screen_reference *r = e->r;
  screen_unit u = {.compute = NULL};
  bool first = !e->n;
  uint64_t *vote = e->vote + e->n * r->n;
  status result = screen_unit_open(&u, &e->s->work, r->path, where, row, 1);
  if (!result) result = settle_probes(e, &u, !first, vote);
  if (!result && all) result = settle_sequence(e, &u, first ? r->stream : NULL, vote + r->n_tensors);
  if (!result) {
    strncpy(e->mine.row[e->n], row, sizeof e->mine.row[0] - 1);
    e->mine.voter[e->n++] = (screen_voter){true, all, !backend_is_on_device(where)};
  }
  screen_unit_close(&u);
  return result;
}

// ---- the units of a rank ----

// The next of "amx_int8, avx2"; false: the end.
static bool next_row(char out[32], const char **list) {
  const char *at = *list + strspn(*list, ", ");
  size_t n = strcspn(at, ",");
  *list = at + n;
  if (!n || n >= 32) return false;
  memcpy(out, at, n);
  out[n] = 0;
  return true;
}

static bool computes_on_device(const screen *s, path_kind path) {
  for (int32_t i = 0; i < s->mine.n_units; i++)
    if (s->mine.unit[i].on_device && s->unit[i].path->kind == path) return true;
  return false;
}

static status ask_all(election *e) {
  screen *s = e->s;
  const backend_ops *cpu = backend_get(BACKEND_CPU), *cuda = backend_get(BACKEND_CUDA);
  const char *chosen = s->j->cfg->run.rows, *list = cpu->rows();
  char row[32], best[32];
  double start = clock_seconds();
  const char *from = list;
  if (!strcmp(chosen, "auto") && next_row(best, &from)) chosen = best;
  TRY(ask(e, cpu, chosen, true));
  while (next_row(row, &list) && e->n < SCREEN_VOTERS - 1) {
    if (!strcmp(row, chosen) || clock_seconds() - start > SHARE * s->j->cfg->screen.seconds) continue;
    TRY(ask(e, cpu, row, false));
  }
  return computes_on_device(s, e->r->path) ? ask(e, cuda, "auto", true) : 0;
}

// ---- the vote ----

static status count_votes(election *e) {
  screen_reference *r = e->r;
  comm *c = e->s->j->c;
  int size = comm_size(c), n_voters = size * SCREEN_VOTERS;
  size_t bytes = (size_t)(SCREEN_VOTERS * r->n) * sizeof *e->vote;
  screen_voter *voters;
  TRY(TAKE(&e->all, (size_t)size, "the votes of screen"));
  TRY(memory_take((void **)&e->votes, (size_t)size, bytes, "the votes of screen"));
  TRY(TAKE(&voters, (size_t)n_voters, "the votes of screen"));
  status result = comm_allgather(c, e->all, &e->mine, sizeof e->mine, "the gathering of voters");
  if (!result) result = comm_allgather(c, e->votes, e->vote, bytes, "the gathering of votes");
  for (int i = 0; i < n_voters; i++) {
    voters[i] = e->all[i / SCREEN_VOTERS].voter[i % SCREEN_VOTERS];
    r->voters += voters[i].votes;
  }
  if (!result) screen_vote(r->expected, r->decided, e->votes, voters, n_voters, r->n, r->n_tensors);
  free(voters);
  return result;
}

static bool is_right(const screen_reference *r, const uint64_t *vote, bool all) {
  return !memcmp(vote, r->expected, (size_t)(all ? r->n : r->n_tensors) * sizeof *vote);
}

// A rank whose first voter is wrong gets the values of one whose is right, so that bits can be counted.
static status share_values(election *e) {
  screen_reference *r = e->r;
  comm *c = e->s->j->c;
  int size = comm_size(c), giver = -1;
  comm_part *values, *stream;
  size_t stream_bytes = (size_t)(e->s->work.n_tokens * e->s->work.m->weights.shape.hidden) * sizeof(double);
  TRY(TAKE(&values, 2 * (size_t)size * (size_t)size, "the values of screen"));
  stream = values + size * size;
  for (int q = size - 1; q >= 0; q--)
    if (is_right(r, e->votes + q * SCREEN_VOTERS * r->n, true)) giver = q;
  bool any = false;
  for (int q = 0; q < size && giver >= 0; q++) {
    if (is_right(r, e->votes + q * SCREEN_VOTERS * r->n, true)) continue;
    values[giver * size + q] = (comm_part){0, r->store.bytes};
    stream[giver * size + q] = (comm_part){0, stream_bytes};
    any = true;
  }
  status result = any ? comm_exchange(c, r->store.kept, values, "the values of screen") : 0;
  if (!result && any) result = comm_exchange(c, (char *)r->stream, stream, "the values of screen");
  r->has_values = giver >= 0;
  free(values);
  return result;
}

// ---- what the vote says of this rank's units ----

// Once more, now beside the right values.
static status blame(election *e, int voter) {
  screen *s = e->s;
  const backend_ops *where = backend_get(e->mine.voter[voter].on_cpu ? BACKEND_CPU : BACKEND_CUDA);
  screen_unit u = {.compute = NULL};
  status result = screen_unit_open(&u, &s->work, e->r->path, where, e->mine.row[voter], 1);
  if (!result) result = screen_unit_probe(&u, &e->r->store, true);
  if (!result) screen_check_probes(s, &u, "start");
  if (!result && e->mine.voter[voter].has_all) {
    result = screen_unit_run(&u, CUT_PROMPT);
    if (!result) result = screen_check_run(s, &u, CUT_PROMPT);
  }
  screen_unit_close(&u);
  return result;
}

static status blame_all(election *e) {
  for (int v = 0; v < e->n; v++)
    if (!is_right(e->r, e->vote + v * e->r->n, e->mine.voter[v].has_all)) TRY(blame(e, v));
  return 0;
}

// Those that voted on every path.
static void name_rows(election *e) {
  char names[SCREEN_NAME] = "", *to = e->s->mine.cpu_rows;
  for (int v = 0; v < e->n; v++)
    if (e->mine.voter[v].on_cpu && strlen(names) + strlen(e->mine.row[v]) + 3 < SCREEN_NAME)
      strcat(strcat(names, names[0] ? ", " : ""), e->mine.row[v]);
  if (!to[0] || strlen(names) < strlen(to)) strcpy(to, names); // the list is cut at its end alone
}

static status open_arrays(election *e) {
  screen_reference *r = e->r;
  const screen_work *w = &e->s->work;
  const model_shape *shape = &w->m->weights.shape;
  TRY(screen_store_open(&r->store, shape, path_for(r->path, &w->m->weights), screen_probe_tokens(w)));
  r->n_tensors = r->store.n_tensors;
  r->n_layers = shape->n_layers;
  r->n = r->n_tensors + r->n_layers + 1;
  TRY(TAKE(&r->expected, (size_t)r->n, "the votes of screen"));
  TRY(TAKE(&r->decided, (size_t)r->n, "the votes of screen"));
  TRY(TAKE(&r->stream, (size_t)(w->n_tokens * shape->hidden), "the stream of screen"));
  return TAKE(&e->vote, (size_t)(SCREEN_VOTERS * r->n), "the votes of screen");
}

status screen_reference_open(screen *s, screen_reference *r, path_kind path) {
  *r = (screen_reference){.path = path};
  election e = {.s = s, .r = r};
  status mine = open_arrays(&e), result;
  if (!mine) mine = ask_all(&e);
  TRY_DONE(result, job_agree(s->j, mine, "the start of screen"));
  TRY_DONE(result, count_votes(&e));
  TRY_DONE(result, share_values(&e));
  name_rows(&e);
  result = job_agree(s->j, blame_all(&e), "the start of screen");
done:
  free(e.vote);
  free(e.votes);
  free(e.all);
  return result;
}

void screen_reference_close(screen_reference *r) {
  if (!r->expected) return;
  screen_store_close(&r->store);
  free(r->expected);
  free(r->decided);
  free(r->stream);
}
