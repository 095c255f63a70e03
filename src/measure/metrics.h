// metrics: two vectors in, numbers out. Pure: no files, no ranks, no model.
//
// Owns: the definition of every metric that the program prints (explained in docs/metrics.md).
// Invariant: all sums are doubles in index order; a NaN or infinity on either side makes `finite` false and
// the metrics NaN, never a plausible number.
#pragma once
#include "base/status.h"
#include <stddef.h>
#include <stdint.h>

typedef struct {        // a against b over n numbers; b is the reference
  double rel_l2;        // ||a - b|| / max(||b||, 1e-300)
  double one_minus_cos; // 1 - a.b / (||a|| ||b||), as ||a/||a|| - b/||b||||^2 / 2, which does not cancel;
                        // 0 when both are zero vectors, 1 when one is
  double max_abs;       // max |a - b|
  double max_rel;       // max |a - b| / max(|a|, |b|, 1e-30)
  double max_ulp;       // largest distance in float32 steps, after rounding both to float32; +0 is -0
  bool finite;          // false: all five are NaN
} metrics;

typedef struct { // one position's logits, a against b
  metrics row;
  double kl;           // sum softmax(b) * (log softmax(b) - log softmax(a)), nats; never below 0
  bool flat_a, flat_b; // all logits are the same number: there is no first token
  bool top1_agrees;    // argmax, lower index on a tie; false when not finite, or where one of the two is flat
  double margin;       // b's first logit minus its second; NaN with one logit
  double nll_a, nll_b; // -log softmax(.)[target]; NaN when there is no target
  double delta_p;      // softmax(a)[target] - softmax(b)[target]; NaN when there is no target
} logit_metrics;

// a[n], b[n].
void metrics_row(metrics *out, const double *a, const double *b, size_t n);
// The same of logits a[n], b[n]. target: the token that follows, or -1.
void metrics_logits(logit_metrics *out, const double *a, const double *b, size_t n, int64_t target);

// Number of experts in one top-k set that are not in the other (0..k).
int metrics_router_flips(const int32_t *a, const int32_t *b, int k);

typedef struct { // over positions
  double min, median, max;
  int64_t worst; // position of the maximum (the first on a tie), or of the first NaN
} spread;

// Min, median (mean of the middle two) and max of n values; NaN anywhere makes all three NaN. n >= 1.
status metrics_spread(spread *out, const double *values, size_t n);
