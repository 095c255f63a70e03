// phase_clock: the ends of phases: the barrier, and where phases are watched (bench.phases) the time.
//
// A step is: step_start, perhaps work of the caller alone and phase_alone, then step_run of phases that end
// with phase_end or phase_end_then, the last with phase_last.
//
// Owns: what the team's threads waited. Independent of: what phases compute.
#pragma once
#include "kernels/cpu/state.h"

typedef void alone_function(cpu_backend *b, void *what);

// The caller is thread 0, outside of a run. `tokens` of the batch choose the team's size, b->n_threads.
void step_start(cpu_backend *b, int64_t tokens);
// Before the first step of a layer: layers of a large batch take turns in finding the team's size.
void layer_start(cpu_backend *b, int64_t layer, int64_t tokens);
void phase_alone(cpu_backend *b, phase_kind phase); // ends what the caller did by itself
void step_run(cpu_backend *b, void (*f)(void *context), void *context, phase_kind last); // team_run

// By all threads of the run, which leave together.
void phase_end(cpu_backend *b, phase_kind phase);
// The same; before they leave thread 0 runs f(b, what), which is phase `then`.
void phase_end_then(cpu_backend *b, phase_kind phase, phase_kind then, alone_function *f, void *what);
// The end of a run, which is a barrier by itself.
void phase_last(cpu_backend *b);

status cpu_phases_watch(backend *base, phase_times *to);
status cpu_peaks(backend *base, backend_peaks *out);
