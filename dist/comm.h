// comm: the ranks of a job and the collectives that they need, every one with a deadline.
//
// Owns: MPI (mpi.h is included in comm.c and nowhere else), the deadline, who has not arrived.
// Independent of: what the bytes mean. Only copies cross ranks; nothing is ever summed here.
// Invariant: a rank that stops, dies or calls another collective becomes an error on the others that names
// it (past the deadline they ask, and who answers only waits), never a hang; so does a message of another
// length than expected. Functions marked collective are called by all ranks in the same order; the others are
// local.
#pragma once
#include "base/status.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct comm comm;

enum { COMM_DEADLINE = 300 }; // seconds, where none is set
// What the start gets beyond comm.deadline, where it has no deadline of its own: a busy host that starts more
// ranks than it has cores takes seconds.
enum { COMM_START_SECONDS = 30 };

// Local, before comm_open. From the first call on this process ends by itself, says what it waited for and
// exits with 1, unless comm_open has returned `seconds` after it.
void comm_limit_start(double seconds);

// Collective; starts MPI. deadline: seconds since the first comm_limit_start, or from here on, in which all
// ranks must have met; and then, until comm_set_deadline, those that a rank waits for another.
status comm_open(comm **out, int *argc, char ***argv, double deadline);
// Collective; takes NULL; ends MPI. A rank that waits here past the deadline says so and exits with 1.
void comm_close(comm *c);
_Noreturn void comm_abort(comm *c, int code); // local; ends every rank with a non-zero code

int comm_rank(const comm *c);
int comm_size(const comm *c);
int comm_host_rank(const comm *c); // index of this rank among those of its host
const char *comm_host(const comm *c);
bool comm_is_one_host(const comm *c); // all ranks are on it
const char *comm_host_of(const comm *c, int rank);
const char *comm_library(const comm *c); // "Open MPI v4.1.4"
void comm_set_deadline(comm *c, double seconds);
double comm_deadline(const comm *c);
// How long this rank waits, in deadlines. More than 1 for a rank that waits only for ranks which may
// themselves wait for a missing one: they then name that one before this rank names them.
void comm_set_patience(comm *c, double deadlines);
double comm_patience(const comm *c); // seconds that this rank waits

// `close` is called with `context` at the start of comm_close: for what ranks can only release together. At
// most one.
void comm_at_close(comm *c, void (*close)(void *context), void *context);

// Collective. all[size][bytes] = every rank's `mine`, in rank order. `what` names the collective in errors.
status comm_allgather(comm *c, void *all, const void *mine, size_t bytes, const char *what);

typedef struct { // of a buffer, in bytes
  size_t offset, bytes;
} comm_part;

// Collective. Sends part[from * size + to] of rank `from`'s buffer to the same offset of rank `to`'s. The
// table is the same on every rank; a rank's part to itself is ignored.
status comm_exchange(comm *c, char *buffer, const comm_part *part, const char *what);

// Local, for a rank whose wait for others outside comm.c has passed the deadline: fails and names the ranks
// that do not answer within a third of it (1 to 20 s); 0 when all answer. A rank that waits in a collective
// of comm.c answers; one that waits elsewhere answers by calling comm_answer from time to time.
status comm_name_missing(comm *c, const char *what);
void comm_answer(comm *c);

// Collective. Fails on every rank when `mine` is an error on any, with the status of the first such rank: all
// ranks end with its exit code.
status comm_agree(comm *c, status mine, const char *what);

// Collective. Fails on every rank when `bytes` of `data` differ from rank 0's on any, and names those ranks.
status comm_equal(comm *c, const void *data, size_t bytes, const char *what);
// The same of what ranks were asked to do: a difference is a refusal.
status comm_equal_request(comm *c, const void *data, size_t bytes, const char *what);

// After an error of comm_agree or comm_equal: every rank has it, so all can end in order. Where this rank
// itself was good, another one reports it.
bool comm_error_is_agreed(const comm *c);
bool comm_error_is_reported_elsewhere(const comm *c);

// Ranks that have the same error at the same time and cannot agree report it in turn: the first to report
// also ends the others, which report only if nothing has ended them. Seconds that this rank waits for its
// turn.
int comm_turn_seconds(const comm *c);

// A wait for other ranks has passed its deadline or lost a rank, or comm_take_turns was called. Other ranks
// have the same error.
bool comm_wait_has_failed(const comm *c);
// Local, before an error that other ranks may find at the same time.
void comm_take_turns(comm *c);
