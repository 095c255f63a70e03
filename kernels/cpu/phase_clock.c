#include "kernels/cpu/phase_clock.h"
#include "base/clock.h"

static void add(cpu_backend *b, phase_kind phase, double seconds) {
  phase_time *p = &b->phases->of[phase];
  p->seconds += seconds;
  p->count++;
}

static void add_waiting(cpu_backend *b, int thread, phase_kind phase, double seconds) {
  b->waits[thread].seconds[phase] += seconds / b->n_threads; // their sum is the mean of the team
}

// What thread 0 did by itself since the last phase.
static void note_alone(cpu_backend *b, phase_kind phase) {
  double now = clock_seconds(), seconds = now - b->phase_start;
  add(b, phase, seconds);
  add_waiting(b, 0, phase, seconds * (b->n_threads - 1));
  b->phase_start = now;
}

void step_start(cpu_backend *b, int64_t tokens) {
  team_choice *c = tokens <= FEW_TOKENS ? &b->few : &b->many;
  b->n_threads = team_choice_threads(c);
  b->choice = team_choice_is_timed(c) ? c : NULL;
  b->is_timed = b->phases || b->choice;
  if (b->is_timed) b->phase_start = b->step_start = clock_seconds();
}

void layer_start(cpu_backend *b, int64_t layer, int64_t tokens) {
  const layer_weights *w = b->params.weights->layers;
  if (tokens <= FEW_TOKENS || !team_choice_is_timed(&b->many)) return;
  team_choice_turn(&b->many, tokens, w[layer].v.type == w[0].v.type && w[layer].down.type == w[0].down.type);
}

void phase_alone(cpu_backend *b, phase_kind phase) {
  if (b->phases) note_alone(b, phase);
}

void step_run(cpu_backend *b, void (*f)(void *context), void *context, phase_kind last) {
  team_run(b->team, b->n_threads, f, context);
  if (!b->is_timed) return;
  double now = clock_seconds();
  if (b->choice) team_choice_add(b->choice, now - b->step_start);
  if (!b->phases) return;
  add(b, last, now - b->phase_start);
  for (int i = 0; i < b->n_threads; i++) add_waiting(b, i, last, now - b->waits[i].arrived);
  b->phase_start = now;
}

static void end_timed(cpu_backend *b, phase_kind phase, phase_kind then, alone_function *f, void *what) {
  int thread = team_thread();
  double arrived = clock_seconds();
  team_arrive(b->team);
  if (!thread) {
    double now = b->all_arrived = clock_seconds();
    add(b, phase, now - b->phase_start);
    b->phase_start = now;
    if (f) {
      f(b, what);
      note_alone(b, then);
    }
  }
  team_release(b->team);
  // the next phase ends only when this thread is there, too: all_arrived is still that of this one
  add_waiting(b, thread, phase, b->all_arrived - arrived);
}

void phase_end(cpu_backend *b, phase_kind phase) {
  if (b->phases)
    end_timed(b, phase, phase, NULL, NULL);
  else
    team_barrier(b->team);
}

void phase_end_then(cpu_backend *b, phase_kind phase, phase_kind then, alone_function *f, void *what) {
  if (b->phases) {
    end_timed(b, phase, then, f, what);
    return;
  }
  team_arrive(b->team);
  if (!team_thread()) f(b, what);
  team_release(b->team);
}

void phase_last(cpu_backend *b) {
  if (b->phases) b->waits[team_thread()].arrived = clock_seconds();
}

status cpu_phases_watch(backend *base, phase_times *to) {
  cpu_backend *b = (cpu_backend *)base;
  for (int i = 0; i < team_threads(b->team) && b->phases; i++)
    for (int p = 0; p < PHASE_COUNT; p++) b->phases->of[p].waiting += b->waits[i].seconds[p];
  for (int i = 0; i < team_threads(b->team); i++) b->waits[i] = (thread_waits){0};
  b->phases = to;
  return 0;
}

// ---- what the processor can do ----

enum { PEAK_ROUNDS = 200000, PEAK_RUNS = 5 }; // some 2 ms each

typedef struct {
  cpu_backend *b;
  double operations; // of a thread
} peak_run;

static void run_peak(void *context) {
  peak_run *p = (peak_run *)context;
  double operations = p->b->row->int8_peak(PEAK_ROUNDS);
  if (!team_thread()) p->operations = operations;
}

// All threads at once; the memory's bandwidth is the caller's to measure.
status cpu_peaks(backend *base, backend_peaks *out) {
  peak_run p = {.b = (cpu_backend *)base};
  int threads = team_threads(p.b->team);
  *out = (backend_peaks){__builtin_nan(""), __builtin_nan("")};
  for (int i = 0; i < PEAK_RUNS && p.b->row->int8_peak; i++) {
    double start = clock_seconds();
    team_run(p.b->team, threads, run_peak, &p);
    double rate = p.operations * threads / (clock_seconds() - start);
    if (!i || rate > out->int8_per_second) out->int8_per_second = rate;
  }
  return 0;
}
