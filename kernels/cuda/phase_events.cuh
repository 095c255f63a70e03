// phase_events: the time of each phase on the device (bench.phases): an event on the stream after the
// launches of each.
//
// Owns: the events. Independent of: what a phase launches.
// Invariant: while nobody watches, a mark is a branch. The time from a batch's start to a mark, or from mark
// to mark, belongs to the later mark's phase, so what the host does in between does, too.
#pragma once
#include "kernels/backend.h"
#include <cuda_runtime.h>

static constexpr int PHASE_MARKS = 4096; // events before the device is waited for

struct phase_events {
  phase_times *to;    // NULL: nobody watches
  cudaEvent_t *event; // [PHASE_MARKS]
  int *phase;         // [PHASE_MARKS] of each, or PHASE_COUNT: a start, whose time before is nobody's
  int n;
};

struct cuda_backend;

status phase_start(cuda_backend *b);                  // of a batch, or of what follows what is not a phase
status phase_mark(cuda_backend *b, phase_kind phase); // its launches are enqueued
status phase_collect(cuda_backend *b); // adds to `to`; all that was enqueued is done, or it waits for it
void phase_events_close(phase_events *e);

// Those of the table: backend.h.
status cuda_phases_watch(backend *base, phase_times *to);
status cuda_peaks(backend *base, backend_peaks *out);
