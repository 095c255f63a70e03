#include "dist/transport.h"
#include "base/clock.h"
#include "base/memory.h"
#include "dist/table.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { // of one rank, all-gathered
  char host[96];
  device_id device;
  int32_t computes;
} rank_device;

typedef struct { // of all ranks
  int size;
  bool one_computes, all_compute, each_has_one;
  char why_not[256]; // "ranks 0, 1 share a GPU"
} device_survey;

struct transport {
  const transport_ops *ops;
  comm *c;
  device_id device;
  bool all_on_device, started;
  char reason[256];
  void *state; // of ops->start; for self and mpi the transport itself
  double seconds;
};

// ---- self and mpi ----

static status self_transfer(void *state, char *rows, void *stream, const comm_part *part, const char *what) {
  (void)state, (void)rows, (void)stream, (void)part, (void)what; // one rank has every row
  return 0;
}

static status mpi_transfer(void *state, char *rows, void *stream, const comm_part *part, const char *what) {
  transport *t = state;
  (void)stream; // its rows lie in host memory
  double start = clock_seconds();
  status result = comm_exchange(t->c, rows, part, what);
  t->seconds += clock_seconds() - start;
  return result;
}

// ---- an all-gather alone ----

enum { MEASURED_BYTES = 64 << 20, MOST_GATHERS = 200, LEAST_GATHERS = 3, MEASURED_ROUNDS = 4 };

// Mean of n; every round starts when all ranks are there.
static status time_gathers(transport *t, double *seconds, char *rows, const comm_part *part, int n) {
  static const char what[] = "the measured exchange";
  TRY(comm_agree(t->c, 0, what));
  double start = clock_seconds();
  for (int i = 0; i < n; i++) TRY(comm_exchange(t->c, rows, part, what));
  *seconds = (clock_seconds() - start) / n;
  return 0;
}

// The least of the rounds: what the link can do. The first also brings the pages.
static status gather_rounds(transport *t, double *seconds, char *rows, comm_part *part, size_t bytes) {
  int size = comm_size(t->c), fit = (int)(MEASURED_BYTES / (bytes + 1)),
      n = fit > MOST_GATHERS    ? MOST_GATHERS
          : fit < LEAST_GATHERS ? LEAST_GATHERS
                                : fit;
  for (int i = 0; i < size * size; i++) part[i] = (comm_part){(size_t)(i / size) * bytes, bytes};
  for (int round = 0; round < MEASURED_ROUNDS; round++) {
    double one;
    TRY(time_gathers(t, &one, rows, part, n));
    if (!round || one < *seconds) *seconds = one;
  }
  return 0;
}

static status mpi_measure(void *state, double *seconds, size_t bytes) {
  transport *t = state;
  size_t size = (size_t)comm_size(t->c);
  char *rows = NULL;
  comm_part *part = NULL;
  status result;
  TRY_DONE(result, comm_agree(t->c, TAKE(&rows, size * bytes, "the measured exchange"), "its memory"));
  TRY_DONE(result, comm_agree(t->c, TAKE(&part, size * size, "message sizes"), "its memory"));
  result = gather_rounds(t, seconds, rows, part, bytes);
done:
  free(rows);
  free(part);
  return result;
}

static const transport_ops self_ops = {.kind = TRANSPORT_SELF, .transfer = self_transfer};
static const transport_ops mpi_ops = {
    .kind = TRANSPORT_MPI, .transfer = mpi_transfer, .measure = mpi_measure};

static const transport_ops *const table[] = {&self_ops, &mpi_ops, TRANSPORT_TABLE_ROWS NULL};

const char *transport_list(void) {
  static char text[64];
  text[0] = 0;
  for (int i = 0; table[i]; i++) {
    size_t used = strlen(text);
    snprintf(text + used, sizeof text - used, "%s%s", used ? ", " : "", transport_kind_name(table[i]->kind));
  }
  return text;
}

// ---- the choice ----

static bool same_device(const rank_device *a, const rank_device *b) {
  return a->device.index >= 0 && b->device.index >= 0 && !strcmp(a->host, b->host) &&
         !memcmp(a->device.uuid, b->device.uuid, sizeof a->device.uuid);
}

static bool shares(const rank_device *all, int size, int rank) {
  for (int r = 0; r < size; r++)
    if (r != rank && same_device(&all[r], &all[rank])) return true;
  return false;
}

// "rank 1 has no GPU" or "ranks 0, 1 share a GPU"; "": each rank has one to itself
static void list_ranks(char *out, size_t size, const rank_device *all, int n, bool lacking) {
  char ranks[160] = "";
  int count = 0;
  for (int r = 0; r < n; r++) {
    size_t used = strlen(ranks);
    if (lacking ? all[r].device.index >= 0 : !shares(all, n, r)) continue;
    if (count++ < 16) snprintf(ranks + used, sizeof ranks - used, "%s%d", used ? ", " : "", r);
  }
  if (count)
    snprintf(out, size, "rank%s %s%s %s", count > 1 ? "s" : "", ranks, count > 16 ? ", ..." : "",
             lacking     ? (count > 1 ? "have no GPU" : "has no GPU")
             : count > 2 ? "share GPUs"
                         : "share a GPU");
}

static status survey_devices(device_survey *out, comm *c, const device_id *device, bool computes) {
  rank_device mine = {.device = *device, .computes = computes}, *all;
  int n = comm_size(c);
  snprintf(mine.host, sizeof mine.host, "%s", comm_host(c));
  *out = (device_survey){.size = n, .all_compute = true};
  TRY(TAKE(&all, (size_t)n, "ranks' devices"));
  status result = comm_allgather(c, all, &mine, sizeof mine, "the exchange of ranks' devices");
  for (int r = 0; r < n && !result; r++) {
    out->one_computes = out->one_computes || all[r].computes;
    out->all_compute = out->all_compute && all[r].computes;
  }
  if (!result) list_ranks(out->why_not, sizeof out->why_not, all, n, true);
  if (!result && !out->why_not[0]) list_ranks(out->why_not, sizeof out->why_not, all, n, false);
  out->each_has_one = !out->why_not[0];
  free(all);
  return result;
}

static const transport_ops *device_transport(void) {
  for (int i = 0; table[i]; i++)
    if (table[i]->on_device) return table[i];
  return NULL;
}

static void choose_automatically(transport *t, const device_survey *s) {
  t->ops = s->size == 1 ? &self_ops : &mpi_ops;
  if (s->size == 1 || !s->one_computes) return; // no rank computes on a device: nothing to explain
  if (!device_transport()) {
    snprintf(t->reason, sizeof t->reason, "this build has no NCCL");
  } else if (s->each_has_one) {
    t->ops = device_transport();
    snprintf(t->reason, sizeof t->reason, "each rank has a GPU");
  } else {
    snprintf(t->reason, sizeof t->reason, "%s", s->why_not);
  }
}

static status choose_by_kind(transport *t, transport_kind kind, const device_survey *s) {
  const char *name = transport_kind_name(kind);
  for (int i = 0; table[i]; i++)
    if (table[i]->kind == kind) t->ops = table[i];
  if (!t->ops) return REFUSE("comm.transport = \"%s\": this build has %s", name, transport_list());
  if (t->ops == &self_ops && s->size > 1)
    return REFUSE("comm.transport = \"%s\" cannot serve %d ranks", name, s->size);
  if (t->ops->on_device && !s->each_has_one)
    return REFUSE("comm.transport = \"%s\": expected a GPU of its own for each rank, but %s", name,
                  s->why_not);
  snprintf(t->reason, sizeof t->reason, "as set");
  return 0;
}

status transport_choose(transport **out, comm *c, transport_kind kind, const device_id *device,
                        bool computes) {
  *out = NULL;
  transport *t;
  device_survey s;
  TRY(memory_take((void **)&t, 1, sizeof *t, "the transport"));
  t->c = c;
  t->device = *device;
  status result = survey_devices(&s, c, device, computes);
  if (!result && kind == TRANSPORT_AUTO)
    choose_automatically(t, &s);
  else if (!result)
    result = comm_agree(c, choose_by_kind(t, kind, &s), "the choice of the transport");
  if (result) {
    free(t);
    return result;
  }
  t->all_on_device = t->ops->on_device && s.all_compute;
  *out = t;
  return 0;
}

// ---- in use ----

status transport_start(transport *t, size_t host_bytes) {
  t->state = t;
  if (!t->ops->start) return 0;
  status mine = t->ops->start(&t->state, t->c, &t->device, host_bytes);
  t->started = !mine;
  if (mine && comm_error_is_agreed(t->c)) return mine;
  return comm_agree(t->c, mine, "the start of the transport");
}

void transport_close(transport *t) {
  if (!t) return;
  if (t->started && t->ops->stop) t->ops->stop(t->state);
  free(t);
}

const char *transport_name(const transport *t) {
  return transport_kind_name(t->ops->kind);
}

const char *transport_reason(const transport *t) {
  return t->reason;
}

bool transport_takes_device(const transport *t) {
  return t->ops->on_device;
}

bool transport_all_on_device(const transport *t) {
  return t->all_on_device;
}

status transport_transfer(transport *t, void *rows, void *stream, const comm_part *part, const char *what) {
  return t->ops->transfer(t->state, rows, stream, part, what);
}

static status name_the_late(transport *t, const char *broken) {
  const char *oldest = t->ops->under_way(t->state);
  char what[256];
  snprintf(what, sizeof what, "%s%s%s", oldest ? oldest : "layers in a graph", broken ? ": " : "",
           broken ? broken : "");
  TRY(comm_name_missing(t->c, what));
  if (broken) return FAIL("%s", what);
  return FAIL("%s: not done after comm.deadline = %g s, though every rank is there", what,
              comm_deadline(t->c));
}

status transport_watch(transport *t, double waited) {
  bool late = waited > comm_patience(t->c);
  if (!t->started)
    return late ? FAIL("the GPU's work was not done after comm.deadline = %g s", comm_deadline(t->c)) : 0;
  if (waited > 0.5) comm_answer(t->c); // not in short waits, which it would make longer
  const char *broken = t->ops->broken(t->state);
  if (!broken && !late) return 0;
  status result = name_the_late(t, broken);
  t->ops->abandon(t->state); // work that still waits on the device would delay the end of the job
  return result;
}

double transport_seconds(const transport *t) {
  return t->ops->seconds && t->started ? t->ops->seconds(t->state) : t->seconds;
}

status transport_measure(transport *t, double *seconds, size_t bytes) {
  *seconds = __builtin_nan("");
  return t->ops->measure ? t->ops->measure(t->state, seconds, bytes) : 0;
}
