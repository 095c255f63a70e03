// comm: the ranks of a job and the collectives that they need, every one with a deadline.
//
// Owns: MPI (mpi.h is included in comm.c and nowhere else), the deadline, who has not arrived.
// Refuses to know: what the bytes mean. Only copies cross ranks; nothing is ever summed here.
// Invariant: a rank that stops, dies or goes another way becomes a fault on the others that names it, never a
// hang: a message of another length than expected is one too. Functions marked collective are called by all
// ranks in the same order.
#pragma once
#include "base/status.h"
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef struct comm comm;

enum { COMM_DEADLINE = 300 }; // seconds, where none is set

// Collective; starts MPI. deadline: seconds that this rank waits for another from here on. A rank that MPI's
// start keeps waiting longer than that, and than a busy host needs, says so and exits with 1: a process of
// the same job may have ended without a start.
status comm_open(comm **out, int *argc, char ***argv, double deadline);
// Collective; takes NULL; ends MPI. A rank that waits here past the deadline says so and exits with 1.
void comm_close(comm *c);
_Noreturn void comm_abort(comm *c, int code); // local; ends every rank with a non-zero code

int comm_rank(const comm *c);
int comm_size(const comm *c);
int comm_host_rank(const comm *c); // place of this rank among those of its host
const char *comm_host(const comm *c);
const char *comm_library(const comm *c); // "Open MPI v4.1.4"
void comm_set_deadline(comm *c, double seconds);
double comm_deadline(const comm *c);
// Waits so many deadlines: more than 1 for a rank that waits only for ranks that may wait for another, so
// that these name the one that is missing before it names them.
void comm_set_patience(comm *c, double deadlines);
double comm_patience(const comm *c); // seconds that this rank waits

// `close` is called with `context` at the head of comm_close, where all ranks end in order: for what ranks
// can only give back together. At most one.
void comm_at_close(comm *c, void (*close)(void *context), void *context);

// Collective. all[size][bytes] = every rank's `mine`, in rank order. `what` stands in the fault.
status comm_allgather(comm *c, void *all, const void *mine, size_t bytes, const char *what);

typedef struct { // of a buffer
  size_t offset, bytes;
} comm_part;

// Collective. part[from * size + to] of rank `from`'s buffer comes to the same place of rank `to`'s. Every
// rank has the same table; a rank's part to itself says nothing.
status comm_exchange(comm *c, char *buffer, const comm_part *part, const char *what);

// Collective. part[r] of every rank's `buffer` is rank r's; own one filled before, all filled after.
status comm_allgatherv(comm *c, char *buffer, const comm_part *part, const char *what);

// For a rank whose wait for the others outside of comm.c passed the deadline: fails and names those that do
// not answer within a third of it (1 to 20 s). Good when all do. Ranks that wait in a collective here answer;
// those that wait elsewhere do it by calling comm_answer now and then.
status comm_name_missing(comm *c, const char *what);
void comm_answer(comm *c); // local

// Collective. Fails on every rank when `mine` is a fault on any.
status comm_agree(comm *c, status mine, const char *what);

// Collective. Fails on every rank when `bytes` of `data` differ from rank 0's on any, and names those ranks.
status comm_equal(comm *c, const void *data, size_t bytes, const char *what);

// After a fault of comm_agree or comm_equal: every rank has it, so all can end in order. Another rank tells
// it, where this one itself was good.
bool comm_fault_is_agreed(const comm *c);
bool comm_fault_is_told_elsewhere(const comm *c);

// Ranks that have one fault at one moment and no way to agree tell it in turn: the first to speak also ends
// the others, who speak only where nothing has ended them. Seconds that this rank waits for those before it.
int comm_turn_seconds(const comm *c);

// A wait for other ranks missed its deadline or lost one. The others that wait have the same fault.
bool comm_wait_has_failed(const comm *c);
