// probe_given: the rows of probes that a layer takes in place of those that it computes.
//
// Owns: the given rows, in the order in which a batch is computed. Independent of: what they mean.
#pragma once
#include "kernels/backend.h"

typedef struct {
  int64_t width, each; // numbers in a row; rows to a token
  int64_t room;        // tokens; 0: not opened
  double *rows;        // [room * each][width]
} given_store;

typedef struct {
  given_store store[PROBE_COUNT];
  uint32_t points; // bits 1 << probe_point that the next layer takes
} probe_given;

// Local. Allocates for the points; takes an open one too, which it closes first.
status probe_given_open(probe_given *p, const model_shape *s, uint32_t points, int64_t max_batch);
void probe_given_close(probe_given *p); // takes NULL

// The rows of the token that is computed as row `row`, [each][width].
void probe_given_set(probe_given *p, probe_point point, int64_t row, const double *in);
// For probe_watch.impose; `context` is the probe_given.
void probe_given_impose(void *context, probe_point point, int64_t row, void *numbers, size_t real_bytes);
