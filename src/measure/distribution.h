// distribution: values over positions as the field prints them: mean with its standard error, percentiles.
//
// Invariant: a NaN among the values makes every number NaN; sums are doubles in index order.
#pragma once
#include "base/status.h"
#include <stddef.h>
#include <stdint.h>

enum { N_PERCENTILES = 7 };
extern const double PERCENTILES[N_PERCENTILES]; // 0.1, 1, 5, 50, 95, 99, 99.9

typedef struct {
  int64_t n;             // values; 0: every number is NaN
  double mean;           //
  double standard_error; // of the mean: sqrt((mean of x^2 - mean^2) / (n - 1)); NaN for one value
  double rms;            // sqrt(mean of x^2)
  double rms_error;      // its standard error: that of the mean of x^2, over 2 rms; 0 where all are 0
  double min, max;
  double percentile[N_PERCENTILES]; // linear between the two nearest of the sorted values, as NumPy has it
} distribution;

status distribution_of(distribution *out, const double *values, size_t n);

typedef struct { // of a mean alone
  double mean, standard_error;
} estimate;

estimate estimate_of(const double *values, size_t n);
