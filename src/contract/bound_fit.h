// bound_fit: figures of honest runs in, a bound and what it implies out. Pure.
//
// A figure of a gate is the worst over positions, an extreme value, so its logarithm is taken to follow
// Gumbel's distribution, fitted by L-moments; where a figure is 0 there is no logarithm, and the figures
// themselves are taken. The bound is where the fit is exceeded at the asked rate, and never below the largest
// figure seen.
#pragma once
#include "base/status.h"
#include <stddef.h>

typedef struct {
  size_t n;
  double median, largest;
  double bound;       // 3 digits, rounded up
  double fitted_rate; // at which an honest run exceeds the bound, by the fit
  double sure_rate;   // not exceeded by the true rate with 95 % confidence, whatever the distribution: 1 -
                      // 0.05^(1/n)
} bound_fit;

// x[n], n >= 2. rate: of one gate, above 0 and below 1. A figure that is not finite is an error.
status bound_fit_of(bound_fit *out, const double *x, size_t n, double rate);
