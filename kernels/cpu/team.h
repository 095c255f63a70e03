// team: the threads of one cpu backend, and the barrier between its phases.
//
// OpenMP's barrier and its start of a region count every thread on one cache line, and it cannot run a region
// on fewer threads without ending the others. A decoded token has some 300 such points, so with many cores
// they are most of its time. Here each thread has a line of its own, and threads wait in a tree.
//
// Owns: the threads. Independent of: what they compute.
// Invariant: a thread that waits spins for a short while, then sleeps; threads that share cores with others
// sleep almost at once.
#pragma once
#include "base/status.h"
#include <stdint.h>

typedef struct team team;

// The caller becomes thread 0. The others take the cores to which the threads of an OpenMP team of this size
// are bound (dist/topology.h).
status team_open(team **out, int threads);
void team_close(team *t); // takes NULL
int team_threads(const team *t);

// Runs f(context) on the first n threads, the caller among them; returns when all have returned.
void team_run(team *t, int n, void (*f)(void *context), void *context);

// ---- inside of f ----

int team_thread(void);        // the caller's number; 0 outside of a run
int team_size(const team *t); // n of the run; 1 outside of one
void team_arrive(team *t);    // thread 0: waits for all others. What it does then, it does alone,
void team_release(team *t);   // until it releases the others, which wait here.

static inline void team_barrier(team *t) {
  team_arrive(t);
  team_release(t);
}

typedef struct {
  int64_t first, end;
} team_range;

// The caller's part of n loop iterations.
team_range team_share(const team *t, int64_t n);
