#include "base/memory.h"
#include "kernels/cuda/state.cuh"
#include <math.h>
#include <stdlib.h>

static status mark(cuda_backend *b, int phase) {
  phase_events *e = &b->phases;
  if (!e->to) return 0;
  if (e->n == PHASE_MARKS) TRY(phase_collect(b));
  CUDA_TRY(cudaEventRecord(e->event[e->n], b->stream));
  e->phase[e->n++] = phase;
  return 0;
}

status phase_start(cuda_backend *b) {
  return mark(b, PHASE_COUNT);
}

status phase_mark(cuda_backend *b, phase_kind phase) {
  return mark(b, phase);
}

// The last event stays as the first: the next mark's time counts from it.
status phase_collect(cuda_backend *b) {
  phase_events *e = &b->phases;
  if (!e->to || !e->n) return 0;
  TRY(device_wait_event(e->event[e->n - 1], &b->params));
  for (int i = 1; i < e->n; i++) {
    float milliseconds = 0;
    if (e->phase[i] == PHASE_COUNT) continue;
    CUDA_TRY(cudaEventElapsedTime(&milliseconds, e->event[i - 1], e->event[i]));
    phase_time *of = &e->to->of[e->phase[i]];
    double before = of->seconds;
    of->seconds += (double)milliseconds * 1e-3;
    of->waiting = (double)NAN; // of thread blocks: not known
    of->count++;
    if (e->phase[i] == PHASE_EXCHANGE) seconds_log_add(e->to->exchanges, of->seconds - before);
  }
  cudaEvent_t last = e->event[e->n - 1];
  e->event[e->n - 1] = e->event[0];
  e->event[0] = last;
  e->n = 1;
  return 0;
}

void phase_events_close(phase_events *e) {
  for (int i = 0; e->event && i < PHASE_MARKS; i++)
    if (e->event[i]) cudaEventDestroy(e->event[i]);
  free(e->event);
  free(e->phase);
}

static status open_events(phase_events *e) {
  if (e->event) return 0;
  TRY(TAKE(&e->event, PHASE_MARKS, "events of phases"));
  TRY(TAKE(&e->phase, PHASE_MARKS, "events of phases"));
  for (int i = 0; i < PHASE_MARKS; i++) CUDA_TRY(cudaEventCreateWithFlags(&e->event[i], cudaEventDefault));
  return 0;
}

status cuda_phases_watch(backend *base, phase_times *to) {
  cuda_backend *b = self(base);
  TRY(phase_collect(b));
  if (to) TRY(open_events(&b->phases));
  b->phases.to = to;
  b->phases.n = 0;
  return phase_start(b); // perhaps within a batch: the next mark's time counts from here
}

// int8 multiplications with their additions that a multiprocessor's tensor cores do in a cycle, two
// operations each, from NVIDIA's figures for A100, RTX 3090, L40S and H100; 0: not known.
static double int8_per_cycle(int major, int minor) {
  if (major == 9) return 8192;
  if (major != 8) return 0;
  return minor == 0 ? 4096 : 2048;
}

status cuda_peaks(backend *, backend_peaks *out) {
  double memory = 1e3 * device_attribute(cudaDevAttrMemoryClockRate),
         bits = device_attribute(cudaDevAttrGlobalMemoryBusWidth),
         clock = 1e3 * device_attribute(cudaDevAttrClockRate);
  double each = int8_per_cycle(device_attribute(cudaDevAttrComputeCapabilityMajor),
                               device_attribute(cudaDevAttrComputeCapabilityMinor));
  out->bytes_per_second = memory * bits > 0 ? 2 * memory * bits / 8 : (double)NAN; // two transfers a cycle
  out->int8_per_second = each * clock > 0 ? each * clock * device_multiprocessors() : (double)NAN;
  return 0;
}
