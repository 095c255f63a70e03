#define _GNU_SOURCE // sched_getaffinity, syscall
#include "kernels/cpu/team.h"
#include "base/memory.h"
#include <linux/futex.h>
#include <omp.h>
#include <pthread.h>
#include <sched.h>
#include <stdalign.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/syscall.h>

long syscall(long number, ...); // of <unistd.h>: kernels do not include the headers of files

enum {
  FANOUT = 4,         // of the tree: 64 threads are three levels
  LINE = 64,          // bytes
  SPINS = 300000,     // pauses before a thread sleeps, some 5 to 10 ms: to wake it costs 0.1 ms and more in a
                      // virtual machine, and a prompt's phases often have threads wait for one
  SPINS_SHARED = 200, // the same where threads outnumber cores: who is waited for may need this one
  SPINS_ALONE = 4000, // after these a thread lets others run on its core from time to time
  SPINS_A_YIELD = 2000,
};

typedef struct { // a word that one thread waits for and another sets
  _Atomic uint32_t epoch;
  _Atomic uint32_t sleeps; // whether the waiting thread has to be woken
} signal_word;

typedef struct {                     // of a thread; in pairs of lines, which processors prefetch together
  alignas(LINE) signal_word arrived; // awaited by the thread above it in the tree
  alignas(LINE) uint32_t epoch;      // its own count of barriers and runs
  alignas(LINE) signal_word released;
  alignas(LINE) char unused;
} seat;

struct team {
  seat *seats;
  pthread_t *threads;
  bool *is_started;
  int size;
  _Atomic int spins; // threads that start read it before all are there
  // of the run
  int n;
  void (*f)(void *);
  void *context;
};

typedef struct { // what a new thread is given
  team *t;
  int thread;
} start;

static _Thread_local int current;

// ---- waiting ----

static void pause_briefly(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

// Waits until the word is `epoch`, or with `other` until it is not; returns what it is then.
static uint32_t await(signal_word *w, uint32_t epoch, bool other, int spins) {
  uint32_t now;
  for (int i = 0; i < spins; i++) {
    now = atomic_load_explicit(&w->epoch, memory_order_acquire);
    if ((now == epoch) != other) return now;
    pause_briefly();
    if (i >= SPINS_ALONE && i % SPINS_A_YIELD == 0) sched_yield();
  }
  for (;;) {
    atomic_store(&w->sleeps, 1); // before the word is read again: who sets it after that sees this
    now = atomic_load(&w->epoch);
    if ((now == epoch) != other) break;
    syscall(SYS_futex, &w->epoch, FUTEX_WAIT_PRIVATE, now, NULL, NULL, 0);
  }
  atomic_store_explicit(&w->sleeps, 0, memory_order_relaxed);
  return now;
}

static void wake(signal_word *w) {
  if (atomic_load_explicit(&w->sleeps, memory_order_relaxed))
    syscall(SYS_futex, &w->epoch, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void set(signal_word *w, uint32_t epoch) {
  atomic_store_explicit(&w->epoch, epoch, memory_order_release);
  atomic_thread_fence(memory_order_seq_cst);
  wake(w);
}

// ---- the tree ----

static int first_child(int thread) {
  return FANOUT * thread + 1;
}

static int end_child(const team *t, int thread) {
  int end = FANOUT * thread + FANOUT + 1;
  return end < t->n ? end : t->n;
}

// All below are there; then says so to the thread above.
static void gather(team *t, int thread) {
  seat *own = &t->seats[thread];
  own->epoch++;
  for (int i = first_child(thread); i < end_child(t, thread); i++)
    await(&t->seats[i].arrived, own->epoch, false, t->spins);
  if (thread) set(&own->arrived, own->epoch);
}

static void release_below(team *t, int thread) {
  uint32_t epoch = t->seats[thread].epoch;
  int first = first_child(thread), end = end_child(t, thread);
  for (int i = first; i < end; i++)
    atomic_store_explicit(&t->seats[i].released.epoch, epoch, memory_order_release);
  if (first < end) atomic_thread_fence(memory_order_seq_cst); // one for all of them
  for (int i = first; i < end; i++) wake(&t->seats[i].released);
}

void team_arrive(team *t) {
  if (t->n > 1) gather(t, current);
}

void team_release(team *t) {
  seat *own = &t->seats[current];
  if (t->n == 1) return;
  if (current) await(&own->released, own->epoch, false, t->spins);
  release_below(t, current);
}

int team_thread(void) {
  return current;
}

int team_size(const team *t) {
  return t->n;
}

int team_threads(const team *t) {
  return t->size;
}

team_range team_share(const team *t, int64_t n) {
  return (team_range){n * current / t->n, n * (current + 1) / t->n};
}

// ---- runs ----

// A run is one barrier whose two halves lie apart: it starts with a release and ends with an arrival.
void team_run(team *t, int n, void (*f)(void *), void *context) {
  seat *own = &t->seats[0];
  t->n = n;
  if (n > 1) {
    t->f = f;
    t->context = context;
    own->epoch++;
    release_below(t, 0);
  }
  f(context);
  if (n > 1) gather(t, 0);
  t->n = 1;
}

static void *work(void *given) {
  start s = *(start *)given;
  team *t = s.t;
  seat *own = &t->seats[s.thread];
  uint32_t released = 0;
  free(given);
  current = s.thread;
  for (;;) {
    own->epoch = await(&own->released, released, true, t->spins);
    release_below(t, current);
    if (!t->f) return NULL;
    t->f(t->context);
    gather(t, current);
    released = own->epoch - 1; // the last that released it, by a barrier or at the start
  }
}

// ---- open and close ----

// From a thread that is bound, as thread `thread`: a new thread has the cores of the one that starts it.
static bool start_thread(team *t, int thread) {
  start *s = (start *)malloc(sizeof *s);
  if (!s) return false;
  *s = (start){t, thread};
  if (!pthread_create(&t->threads[thread], NULL, work, s)) return true;
  free(s);
  return false;
}

// Whether each thread can have a core: all of them together may use so many.
static bool has_cores(const cpu_set_t *all, int threads) {
  return CPU_COUNT(all) >= threads;
}

static status start_threads(team *t) {
  cpu_set_t all;
  bool started = true;
  CPU_ZERO(&all);
#pragma omp parallel num_threads(t->size)
  {
    cpu_set_t own;
    int i = omp_get_thread_num();
#pragma omp critical(moe_team)
    if (!sched_getaffinity(0, sizeof own, &own)) CPU_OR(&all, &all, &own);
    if (i) t->is_started[i] = start_thread(t, i);
  }
  t->spins = has_cores(&all, t->size) ? SPINS : SPINS_SHARED;
  for (int i = 1; i < t->size; i++) started = started && t->is_started[i];
  return started ? 0 : FAIL("cannot start %d threads", t->size);
}

status team_open(team **out, int threads) {
  *out = NULL;
  team *t;
  TRY(memory_take((void **)&t, 1, sizeof *t, "a team of threads"));
  t->size = threads;
  t->n = 1;
  status result = memory_take((void **)&t->seats, (size_t)threads, sizeof *t->seats, "a team of threads");
  if (!result) result = TAKE(&t->threads, (size_t)threads, "a team of threads");
  if (!result) result = TAKE(&t->is_started, (size_t)threads, "a team of threads");
  if (!result && threads > 1) result = start_threads(t);
  if (result) {
    team_close(t);
    return result;
  }
  *out = t;
  return 0;
}

void team_close(team *t) {
  if (!t) return;
  t->f = NULL;
  t->n = 1; // each is released by itself: one that could not be started would release nobody
  for (int i = 1; i < t->size && t->is_started; i++)
    if (t->is_started[i]) set(&t->seats[i].released, t->seats[0].epoch + 1);
  for (int i = 1; i < t->size && t->is_started; i++)
    if (t->is_started[i]) pthread_join(t->threads[i], NULL);
  free(t->is_started);
  free(t->threads);
  free(t->seats);
  free(t);
}
