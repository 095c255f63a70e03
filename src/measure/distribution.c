#include "src/measure/distribution.h"
#include "base/memory.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

const double PERCENTILES[N_PERCENTILES] = {0.1, 1, 5, 50, 95, 99, 99.9};

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double percentile_of(const double *sorted, size_t n, double percent) {
  double place = percent / 100 * (double)(n - 1);
  size_t low = (size_t)place, high = low + 1 < n ? low + 1 : low;
  double part = place - (double)low;
  return sorted[low] == sorted[high] ? sorted[low] : (1 - part) * sorted[low] + part * sorted[high];
}

// Deviations from the mean, not the difference of two sums, so that equal values have no error at all.
estimate estimate_of(const double *values, size_t n) {
  double sum = 0, squares = 0;
  if (!n) return (estimate){(double)NAN, (double)NAN};
  for (size_t i = 0; i < n; i++) sum += values[i];
  double mean = sum / (double)n;
  for (size_t i = 0; i < n; i++) squares += (values[i] - mean) * (values[i] - mean);
  return (estimate){mean, n > 1 ? sqrt(squares / (double)n / (double)(n - 1)) : (double)NAN};
}

static void fill_sorted(distribution *out, double *sorted, size_t n) {
  qsort(sorted, n, sizeof *sorted, ascending);
  out->min = sorted[0];
  out->max = sorted[n - 1];
  for (int p = 0; p < N_PERCENTILES; p++) out->percentile[p] = percentile_of(sorted, n, PERCENTILES[p]);
}

static void fill_moments(distribution *out, const double *values, double *squares, size_t n) {
  estimate mean = estimate_of(values, n);
  for (size_t i = 0; i < n; i++) squares[i] = values[i] * values[i];
  estimate square = estimate_of(squares, n);
  out->mean = mean.mean;
  out->standard_error = mean.standard_error;
  out->rms = sqrt(square.mean);
  out->rms_error = out->rms > 0 ? square.standard_error / (2 * out->rms) : square.standard_error;
}

status distribution_of(distribution *out, const double *values, size_t n) {
  double *copy;
  *out = (distribution){.n = (int64_t)n, .min = NAN, .max = NAN};
  out->mean = out->standard_error = out->rms = out->rms_error = (double)NAN;
  for (int p = 0; p < N_PERCENTILES; p++) out->percentile[p] = (double)NAN;
  for (size_t i = 0; i < n; i++)
    if (isnan(values[i])) return 0;
  if (!n) return 0;
  TRY(TAKE(&copy, n, "a distribution over positions"));
  fill_moments(out, values, copy, n);
  memcpy(copy, values, n * sizeof *copy);
  fill_sorted(out, copy, n);
  free(copy);
  return 0;
}
