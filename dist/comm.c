#include "dist/comm.h"
#include "dist/launched.h"
#include "base/clock.h"
#include "base/limit.h"
#include "base/memory.h"
#include <mpi.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <xxhash.h>

// MPI counts are int, and a message in flight may need as much pinned memory: longer ones are sent in pieces.
static const size_t piece_bytes = (size_t)256 << 20;

// Outside next_tag's range, so that they never match a collective's messages.
enum { question_tag = 0x4000, answer_tag = 0x4001 };

struct comm {
  MPI_Comm world;
  int rank, size;
  double deadline, patience; // waits deadline * patience seconds
  int next_tag; // counts collectives, so that messages of a rank that skipped one match no other's
  char host[MPI_MAX_PROCESSOR_NAME];
  char (*hosts)[MPI_MAX_PROCESSOR_NAME]; // [size]
  char library[MPI_MAX_LIBRARY_VERSION_STRING];
  MPI_Request *requests; // [2 * size]: receives, by rank, then sends
  MPI_Status *statuses;  // [2 * size]
  int *expected;         // [size] bytes of the receives
  comm_part *parts;      // [size][size] of comm_allgather
  bool *arrived;         // [size] at a missed deadline
  bool *missed;          // [size] before those were asked
  int turn;              // this rank's place among those that have arrived; until then its rank
  bool agreed, reported_elsewhere, late;
  void (*close)(void *);
  void *close_context;
};

// ---- start and end ----

static const char where_to_look[] =
    "do messages arrive between the hosts? Every host must take the same network (btl_tcp_if_include: an "
    "address that each of them has, as docker0's, leads nowhere), and no firewall may close its ports "
    "(btl_tcp_port_min_v4); docs/running.md, \"Several machines\"";

static char own_name[MPI_MAX_PROCESSOR_NAME + 32]; // "rank 3 (host)"

// Not 0 for the first either: another may have spoken just before, and ends this one meanwhile.
static double turn_seconds(int rank) {
  return 1 + 2 * (rank < 3 ? rank < 0 ? 0 : rank : 3);
}

static const char *name_self(int rank) {
  char host[MPI_MAX_PROCESSOR_NAME] = "";
  gethostname(host, sizeof host - 1);
  if (rank < 0)
    snprintf(own_name, sizeof own_name, "moe_run (%s)", host);
  else
    snprintf(own_name, sizeof own_name, "rank %d (%s)", rank, host);
  limit_turn(turn_seconds(rank));
  return own_name;
}

void comm_limit_start(double seconds) {
  limit_start(seconds);
  limit_stage(name_self(launched_rank()), "still reading the command line and the configuration: does its "
                                          "disk answer?");
}

static bool start_mpi(int *argc, char ***argv) {
  int provided, initialised;
  MPI_Initialized(&initialised);
  if (initialised) return true;
  limit_stage(NULL, "still waiting for other ranks of this job in MPI_Init: has each of them started, and %s",
              where_to_look);
  // FUNNELED: OpenMP threads compute, the main thread communicates
  return !MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided);
}

static status open_arrays(comm *c) {
  TRY(memory_take((void **)&c->hosts, (size_t)c->size, sizeof *c->hosts, "host names"));
  TRY(TAKE(&c->requests, 2 * (size_t)c->size, "message requests"));
  TRY(TAKE(&c->statuses, 2 * (size_t)c->size, "message requests"));
  TRY(TAKE(&c->expected, (size_t)c->size, "message requests"));
  TRY(TAKE(&c->parts, (size_t)c->size * (size_t)c->size, "message sizes"));
  TRY(TAKE(&c->missed, (size_t)c->size, "message requests"));
  return TAKE(&c->arrived, (size_t)c->size, "message requests");
}

// MPI_Init may return where no message has crossed yet, so these two wait without a deadline as well.
static status meet_others(comm *c) {
  limit_stage(name_self(c->rank), "still waiting for other ranks in MPI_Comm_dup: %s", where_to_look);
  MPI_Comm_dup(MPI_COMM_WORLD, &c->world);
  MPI_Comm_set_errhandler(c->world, MPI_ERRORS_RETURN);
  limit_stage(NULL, "still waiting for the names of other ranks' hosts: %s", where_to_look);
  return comm_allgather(c, c->hosts, c->host, sizeof c->host, "the exchange of host names");
}

status comm_open(comm **out, int *argc, char ***argv, double deadline) {
  *out = NULL;
  comm_limit_start(deadline);
  if (!start_mpi(argc, argv)) return FAIL("MPI could not be started");
  comm *c;
  TRY(memory_take((void **)&c, 1, sizeof *c, "the communicator"));
  MPI_Comm_rank(MPI_COMM_WORLD, &c->rank);
  MPI_Comm_size(MPI_COMM_WORLD, &c->size);
  c->deadline = deadline;
  c->patience = 1;
  c->turn = c->rank;
  int length;
  MPI_Get_processor_name(c->host, &length);
  MPI_Get_library_version(c->library, &length);
  c->library[strcspn(c->library, ",\n")] = 0;
  TRY(open_arrays(c));
  *out = c;
  memcpy(c->hosts[c->rank], c->host, sizeof c->host);
  TRY(meet_others(c));
  limit_started();
  return 0;
}

void comm_close(comm *c) {
  if (!c) return;
  if (c->close) c->close(c->close_context);
  // MPI_Finalize waits for all ranks without a deadline
  limit_set(c->deadline + comm_turn_seconds(c), 1,
            "rank %d (%s): the end of MPI: after comm.deadline = %g s, still waiting for other ranks\n",
            c->rank, c->host, c->deadline);
  MPI_Comm_free(&c->world);
  MPI_Finalize();
  limit_clear();
  free(c->hosts);
  free(c->requests);
  free(c->statuses);
  free(c->expected);
  free(c->parts);
  free(c->missed);
  free(c->arrived);
  free(c);
}

// MPI_Abort waits for the launcher, for ever on a host that is cut off from it; the end of this process ends
// the others as well, by their launcher or by their own deadline.
static const double abort_seconds = 2;

void comm_abort(comm *c, int code) {
  limit_set(abort_seconds, code, "%s", "");
  fflush(NULL);
  if (c) MPI_Abort(c->world, code);
  _Exit(code);
}

int comm_rank(const comm *c) {
  return c->rank;
}

int comm_size(const comm *c) {
  return c->size;
}

int comm_host_rank(const comm *c) {
  int place = 0;
  for (int r = 0; r < c->rank; r++) place += !strcmp(c->hosts[r], c->host);
  return place;
}

bool comm_is_one_host(const comm *c) {
  for (int r = 0; r < c->size; r++)
    if (strcmp(c->hosts[r], c->host)) return false;
  return true;
}

const char *comm_host(const comm *c) {
  return c->host;
}

const char *comm_host_of(const comm *c, int rank) {
  return c->hosts[rank];
}

const char *comm_library(const comm *c) {
  return c->library;
}

void comm_set_deadline(comm *c, double seconds) {
  c->deadline = seconds;
}

double comm_deadline(const comm *c) {
  return c->deadline;
}

void comm_set_patience(comm *c, double deadlines) {
  c->patience = deadlines;
}

double comm_patience(const comm *c) {
  return c->deadline * c->patience;
}

void comm_at_close(comm *c, void (*close)(void *), void *context) {
  c->close = close;
  c->close_context = context;
}

// Yields the core, which ranks may share. The first polls do not sleep, so that a fast exchange stays fast.
static void pause_between_polls(int polls) {
  if (polls < 2000) {
    sched_yield();
  } else {
    struct timespec t = {0, 50000};
    nanosleep(&t, NULL);
  }
}

void comm_answer(comm *c) {
  for (int asked = 1; asked;) {
    MPI_Status from;
    if (MPI_Iprobe(MPI_ANY_SOURCE, question_tag, c->world, &asked, &from)) return;
    if (!asked) return;
    MPI_Recv(NULL, 0, MPI_BYTE, from.MPI_SOURCE, question_tag, c->world, MPI_STATUS_IGNORE);
    MPI_Send(NULL, 0, MPI_BYTE, from.MPI_SOURCE, answer_tag, c->world); // empty: never waits
  }
}

static void start_messages(comm *c) {
  for (int r = 0; r < 2 * c->size; r++) c->requests[r] = MPI_REQUEST_NULL;
  memset(c->expected, 0, (size_t)c->size * sizeof *c->expected);
}

// Marks the ranks with which both messages, to and from, are complete. True: all ranks.
static bool all_arrived(comm *c) {
  bool all = true;
  for (int r = 0; r < c->size; r++) {
    int sent, taken;
    MPI_Test(&c->requests[r], &sent, MPI_STATUS_IGNORE);
    MPI_Test(&c->requests[c->size + r], &taken, MPI_STATUS_IGNORE);
    c->arrived[r] = sent && taken;
    all = all && c->arrived[r];
  }
  return all;
}

// Of every other rank; all_arrived then says who has answered.
static void ask_all(comm *c) {
  start_messages(c);
  for (int r = 0; r < c->size; r++) {
    if (r == c->rank) continue;
    MPI_Irecv(NULL, 0, MPI_BYTE, r, answer_tag, c->world, &c->requests[r]);
    MPI_Isend(NULL, 0, MPI_BYTE, r, question_tag, c->world, &c->requests[c->size + r]);
  }
}

static double answer_patience(const comm *c) {
  return c->deadline < 3 ? 1 : c->deadline > 60 ? 20 : c->deadline / 3;
}

// Of the ranks that are missed one that answers waits itself. Left missing are those that do not, or where
// all of them answer, others that do not, for whom they wait.
static void ask_the_missing(comm *c) {
  double limit = clock_seconds() + answer_patience(c);
  bool some_silent = false, all_answered = false;
  for (int r = 0; r < c->size; r++) c->missed[r] = !c->arrived[r];
  ask_all(c);
  for (int polls = 0; !all_answered && clock_seconds() < limit; polls++) {
    if ((polls & 255) == 255) comm_answer(c);
    pause_between_polls(polls);
    all_answered = all_arrived(c);
  }
  for (int r = 0; r < c->size; r++) some_silent = some_silent || (c->missed[r] && !c->arrived[r]);
  for (int r = 0; r < c->size; r++) {
    if (some_silent) c->arrived[r] = c->arrived[r] || !c->missed[r];
    if (all_answered) c->arrived[r] = !c->missed[r];
  }
}

// An error of one's own, so none that was agreed before: a difference, after which a command may go on.
static void note_lateness(comm *c) {
  c->late = true;
  c->agreed = c->reported_elsewhere = false;
}

static status name_the_missing(comm *c, const char *what) {
  char names[512] = "";
  note_lateness(c);
  c->turn = 0;
  for (int r = 0; r < c->size; r++) {
    size_t used = strlen(names);
    c->turn += r < c->rank && c->arrived[r];
    if (r != c->rank && !c->arrived[r])
      snprintf(names + used, sizeof names - used, "%s%d (%s)", used ? ", " : "", r, c->hosts[r]);
  }
  return FAIL("%s: after comm.deadline = %g s, still waiting for rank %s", what, c->deadline, names);
}

// Buffers may be released after an error, so nothing may be written to them any more. An empty message has no
// buffer.
static void cancel_receives(comm *c) {
  for (int r = 0; r < c->size; r++) {
    if (c->requests[r] == MPI_REQUEST_NULL || !c->expected[r]) continue;
    MPI_Cancel(&c->requests[r]);
    MPI_Request_free(&c->requests[r]);
  }
}

// An error of MPI itself: of one message, which it names, or of the call as a whole.
static status name_the_error(comm *c, int error, const char *what) {
  char text[MPI_MAX_ERROR_STRING];
  int length, from = -1;
  for (int r = 0; r < 2 * c->size && error == MPI_ERR_IN_STATUS; r++) {
    int found = c->statuses[r].MPI_ERROR;
    if (found == MPI_SUCCESS || found == MPI_ERR_PENDING) continue;
    error = found;
    from = r % c->size;
  }
  note_lateness(c);
  int class = error;
  MPI_Error_class(error, &class);
  if (from >= 0 && class == MPI_ERR_TRUNCATE)
    return FAIL(
        "%s: rank %d (%s): expected a message of %d bytes, found a longer one: it is in another collective",
        what, from, c->hosts[from], c->expected[from]);
  MPI_Error_string(error, text, &length);
  return FAIL("%s: MPI: %s", what, text);
}

// All messages have arrived. One of another length than expected comes from a rank in another collective.
static status check_lengths(comm *c, const char *what) {
  for (int r = 0; r < c->size; r++) {
    int found;
    MPI_Get_count(&c->statuses[r], MPI_BYTE, &found);
    if (found == c->expected[r]) continue;
    note_lateness(c);
    return FAIL("%s: rank %d (%s): expected a message of %d bytes, found %d: it is in another collective",
                what, r, c->hosts[r], c->expected[r], found);
  }
  return 0;
}

// Waits for all messages started since start_messages. asks: whom the missing wait for, before it names them.
static status wait_all(comm *c, double seconds, bool asks, const char *what) {
  double limit = clock_seconds() + seconds;
  for (int polls = 0;; polls++) {
    int done = 0;
    int error = MPI_Testall(2 * c->size, c->requests, &done, c->statuses);
    if (error) {
      status named = name_the_error(c, error, what);
      cancel_receives(c);
      return named;
    }
    if (done) return check_lengths(c, what);
    if ((polls & 255) == 255) {
      comm_answer(c);
      if (clock_seconds() > limit) {
        if (all_arrived(c)) return 0; // all arrived while this process itself was stopped
        cancel_receives(c);
        if (asks) ask_the_missing(c);
        return name_the_missing(c, what);
      }
    }
    pause_between_polls(polls);
  }
}

static int piece_of(const comm_part *part, size_t done) {
  size_t left = part->bytes > done ? part->bytes - done : 0;
  return (int)(left < piece_bytes ? left : piece_bytes);
}

// One piece of every part: from byte `done`, at most piece_bytes.
static status exchange_piece(comm *c, char *buffer, const comm_part *part, size_t done, const char *what) {
  int tag = c->next_tag;
  c->next_tag = (c->next_tag + 1) & 0x3fff;
  start_messages(c);
  for (int step = 1; step < c->size; step++) { // start at the next rank, so that no rank is everyone's first
    int from = (c->rank + c->size - step) % c->size, to = (c->rank + step) % c->size;
    const comm_part *in = &part[from * c->size + c->rank], *out = &part[c->rank * c->size + to];
    c->expected[from] = piece_of(in, done);
    if (piece_of(in, done))
      MPI_Irecv(buffer + in->offset + done, piece_of(in, done), MPI_BYTE, from, tag, c->world,
                &c->requests[from]);
    if (piece_of(out, done))
      MPI_Isend(buffer + out->offset + done, piece_of(out, done), MPI_BYTE, to, tag, c->world,
                &c->requests[c->size + to]);
  }
  return wait_all(c, comm_patience(c), true, what);
}

status comm_exchange(comm *c, char *buffer, const comm_part *part, const char *what) {
  size_t most = 0;
  for (int i = 0; i < c->size * c->size; i++)
    if (i / c->size != i % c->size && part[i].bytes > most) most = part[i].bytes;
  for (size_t done = 0; done < most; done += piece_bytes) TRY(exchange_piece(c, buffer, part, done, what));
  return 0;
}

// The other ranks wait either in a watch like the caller's, which answers too, or here, where wait_all
// answers.
status comm_name_missing(comm *c, const char *what) {
  ask_all(c);
  return wait_all(c, answer_patience(c), false, what);
}

status comm_allgather(comm *c, void *all, const void *mine, size_t bytes, const char *what) {
  for (int i = 0; i < c->size * c->size; i++) c->parts[i] = (comm_part){(size_t)(i / c->size) * bytes, bytes};
  memmove((char *)all + (size_t)c->rank * bytes, mine, bytes);
  return comm_exchange(c, (char *)all, c->parts, what);
}

status comm_agree(comm *c, status mine, const char *what) {
  int32_t own = mine, *all;
  TRY(TAKE(&all, (size_t)c->size, "ranks' statuses"));
  status result = comm_allgather(c, all, &own, sizeof own, what);
  for (int r = 0; r < c->size && !result; r++) {
    if (!all[r]) continue;
    c->agreed = true;
    c->reported_elsewhere = r != c->rank;
    result = all[r];
    if (r == c->rank) break;
    if (!mine)
      status_fail(__FILE__, __LINE__, "%s: rank %d (%s) failed; its own message says why", what, r,
                  c->hosts[r]);
  }
  free(all);
  return result ? result : mine;
}

static status equal(comm *c, status differs, const void *data, size_t bytes, const char *what) {
  XXH128_hash_t mine = XXH3_128bits(data, bytes), *all;
  TRY(TAKE(&all, (size_t)c->size, "ranks' hashes"));
  status result = comm_allgather(c, all, &mine, sizeof mine, what);
  char names[512] = "";
  for (int r = 1; r < c->size && !result; r++) {
    size_t used = strlen(names);
    if (!XXH128_isEqual(all[r], all[0]))
      snprintf(names + used, sizeof names - used, "%s%d (%s)", used ? ", " : "", r, c->hosts[r]);
  }
  free(all);
  if (result || !names[0]) return result;
  c->agreed = true;
  c->reported_elsewhere = c->rank != 0;
  status_fail(__FILE__, __LINE__, "%s: expected the same on every rank, but rank %s differs from rank 0 (%s)",
              what, names, c->hosts[0]);
  return differs;
}

status comm_equal(comm *c, const void *data, size_t bytes, const char *what) {
  return equal(c, STATUS_FAILED, data, bytes, what);
}

status comm_equal_request(comm *c, const void *data, size_t bytes, const char *what) {
  return equal(c, STATUS_REFUSED, data, bytes, what);
}

bool comm_error_is_agreed(const comm *c) {
  return c->agreed;
}

bool comm_error_is_reported_elsewhere(const comm *c) {
  return c->reported_elsewhere;
}

int comm_turn_seconds(const comm *c) {
  return c->size > 1 ? (int)turn_seconds(c->turn) : 0;
}

bool comm_wait_has_failed(const comm *c) {
  return c->late;
}

void comm_take_turns(comm *c) {
  note_lateness(c);
}
