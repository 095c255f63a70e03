// comparison: gathers one pair's metrics position by position and reduces them for the report.
//
// Refuses to know: engines and ranks; it is given rows. Invariant: every position counts, position 0
// included.
#pragma once
#include "src/report.h"

typedef struct { // of one position in one layer
  metrics row;
  int flips;
  double margin; // of the reference
} layer_point;

typedef struct {
  int64_t n_layers, n_positions;
  layer_point *layer;    // [n_layers][n_positions]
  logit_metrics *logits; // [n_positions]
  bool *has_target;      // [n_positions]
} comparison;

status comparison_open(comparison *out, int64_t n_layers, int64_t n_positions);
void comparison_close(comparison *c); // takes NULL

// a against the reference b: hidden numbers of the residual stream, and the k chosen experts.
void comparison_layer(comparison *c, int64_t layer, int64_t position, const double *a, const double *b,
                      int64_t hidden, const int32_t *experts_a, const int32_t *experts_b, int k,
                      double margin_b);
// target: the token that follows in the same sequence, or -1.
void comparison_logits(comparison *c, int64_t position, const double *a, const double *b, int64_t n,
                       int64_t target);

// Fills all of *out but a, b and its layers array, which is the caller's.
status comparison_reduce(const comparison *c, report_pair *out);
int64_t comparison_flips(const comparison *c, int64_t position); // over all layers
