#include "src/contract/bound_fit.h"
#include "base/memory.h"
#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

typedef struct {
  double location, scale;
} gumbel;

// From the first two L-moments of sorted y[n].
static gumbel gumbel_fit(const double *y, size_t n) {
  static const double euler = 0.57721566490153286;
  double mean = 0, weighted = 0;
  for (size_t i = 0; i < n; i++) {
    mean += y[i] / (double)n;
    weighted += y[i] * (double)i / ((double)n * (double)(n - 1));
  }
  double scale = (2 * weighted - mean) / log(2);
  return (gumbel){mean - euler * scale, scale};
}

static double exceeded_at(gumbel g, double y) {
  if (g.scale <= 0) return y >= g.location ? 0 : 1; // one and the same figure in all runs
  return -expm1(-exp(-(y - g.location) / g.scale));
}

static double quantile(gumbel g, double rate) {
  return g.location - g.scale * log(-log1p(-rate));
}

// Up to the next number of three digits.
static double round_up(double x) {
  if (x <= 0) return x;
  double unit = pow(10, floor(log10(x)) - 2);
  return ceil(x / unit * (1 - 1e-12)) * unit;
}

status bound_fit_of(bound_fit *out, const double *x, size_t n, double rate) {
  double *y;
  for (size_t i = 0; i < n; i++)
    if (!isfinite(x[i]))
      return FAIL("run %zu of %zu has a figure that is not finite: no bound follows", i + 1, n);
  TRY(TAKE(&y, n, "figures"));
  memcpy(y, x, n * sizeof *y);
  qsort(y, n, sizeof *y, ascending);
  *out = (bound_fit){.n = n, .median = (y[(n - 1) / 2] + y[n / 2]) / 2, .largest = y[n - 1]};
  bool by_log = y[0] > 0;
  for (size_t i = 0; i < n && by_log; i++) y[i] = log(y[i]);
  gumbel g = gumbel_fit(y, n);
  double at = quantile(g, rate);
  out->bound = round_up(fmax(by_log ? exp(at) : at, out->largest));
  out->fitted_rate = exceeded_at(g, by_log ? log(out->bound) : out->bound);
  out->sure_rate = -expm1(log(0.05) / (double)n);
  free(y);
  return 0;
}
