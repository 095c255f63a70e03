#include "src/measure/metrics.h"
#include "base/memory.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static bool all_finite(const double *x, size_t n) {
  for (size_t i = 0; i < n; i++)
    if (!isfinite(x[i])) return false;
  return true;
}

static double larger(double x, double y) {
  return y > x ? y : x;
}

// The power of two that scales a vector's largest magnitude into [1, 2), or the largest power of two for a
// zero vector. Scaling by it is exact, and keeps the squares below from underflow (1e-170 and -1e-170 must
// not look equal) and overflow.
static double scale_of(const double *x, size_t n) {
  double largest = 0;
  for (size_t i = 0; i < n; i++) largest = larger(largest, fabs(x[i]));
  int exponent = largest > 0 ? ilogb(largest) : -1022;
  return ldexp(1, exponent < -1022 ? 1022 : -exponent); // 2^-exponent of a subnormal would overflow
}

static double norm_scaled(const double *x, double scale, size_t n) {
  double sum = 0;
  for (size_t i = 0; i < n; i++) sum += (x[i] * scale) * (x[i] * scale);
  return sqrt(sum);
}

typedef struct {
  const double *x;
  double scale, norm; // norm of x * scale
} vector;

static vector vector_of(const double *x, size_t n) {
  double scale = scale_of(x, n);
  return (vector){x, scale, norm_scaled(x, scale, n)};
}

static double one_minus_cos(vector a, vector b, size_t n) {
  if (a.norm == 0 || b.norm == 0) return a.norm == b.norm ? 0 : 1;
  double sum = 0;
  for (size_t i = 0; i < n; i++) {
    double d = a.x[i] * a.scale / a.norm - b.x[i] * b.scale / b.norm;
    sum += d * d;
  }
  return sum / 2;
}

static double rel_l2(vector a, vector b, size_t n) {
  double scale = a.scale < b.scale ? a.scale : b.scale, sum = 0;
  for (size_t i = 0; i < n; i++) {
    double d = a.x[i] * scale - b.x[i] * scale;
    sum += d * d;
  }
  return sqrt(sum) / larger(b.norm * (scale / b.scale), 1e-300 * scale);
}

// A float32 as an integer that grows with it by one a step; both zeros are 0.
static int64_t float_steps(double x) {
  float f = (float)x;
  int32_t bits;
  memcpy(&bits, &f, sizeof bits);
  return bits < 0 ? (int64_t)INT32_MIN - bits : bits;
}

void metrics_row(metrics *out, const double *a, const double *b, size_t n) {
  *out = (metrics){.rel_l2 = NAN, .one_minus_cos = NAN, .max_abs = NAN, .max_rel = NAN, .max_ulp = NAN};
  if (!all_finite(a, n) || !all_finite(b, n)) return;
  vector va = vector_of(a, n), vb = vector_of(b, n);
  *out = (metrics){.finite = true, .rel_l2 = rel_l2(va, vb, n), .one_minus_cos = one_minus_cos(va, vb, n)};
  for (size_t i = 0; i < n; i++) {
    double d = fabs(a[i] - b[i]);
    out->max_abs = larger(out->max_abs, d);
    out->max_rel = larger(out->max_rel, d / larger(larger(fabs(a[i]), fabs(b[i])), 1e-30));
    out->max_ulp = larger(out->max_ulp, (double)llabs(float_steps(a[i]) - float_steps(b[i])));
  }
}

static size_t argmax(const double *x, size_t n) {
  size_t best = 0;
  for (size_t i = 1; i < n; i++)
    if (x[i] > x[best]) best = i;
  return best;
}

// log(sum exp(x)), relative to the maximum so that nothing overflows.
static double log_sum_exp(const double *x, double largest, size_t n) {
  double sum = 0;
  for (size_t i = 0; i < n; i++) sum += exp(x[i] - largest);
  return largest + log(sum);
}

// With p = softmax(b), q = softmax(a) and d = log q - log p: the terms p * -d have the same sum as the terms
// q - p - p * d, for p and q both sum to 1. But these are all >= 0, so a small sum does not drown in
// cancellation.
static double divergence_kl(const double *a, double lse_a, const double *b, double lse_b, size_t n) {
  double sum = 0;
  for (size_t i = 0; i < n; i++) {
    double log_q = a[i] - lse_a, log_p = b[i] - lse_b, d = log_q - log_p;
    double term = fabs(d) <= 1 ? exp(log_p) * (expm1(d) - d) : exp(log_q) - exp(log_p) * (1 + d);
    sum += larger(term, 0); // below 0 by rounding only
  }
  return sum;
}

static double margin_of(const double *x, size_t n) {
  size_t first = argmax(x, n);
  double second = -INFINITY;
  for (size_t i = 0; i < n; i++)
    if (i != first && x[i] > second) second = x[i];
  return n > 1 ? x[first] - second : (double)NAN;
}

static bool is_flat(const double *x, size_t n) {
  for (size_t i = 1; i < n; i++)
    if (x[i] != x[0]) return false;
  return n > 1;
}

void metrics_logits(logit_metrics *out, const double *a, const double *b, size_t n, int64_t target) {
  *out = (logit_metrics){.kl = NAN, .margin = NAN, .nll_a = NAN, .nll_b = NAN, .delta_p = NAN};
  metrics_row(&out->row, a, b, n);
  if (!n || !out->row.finite) return;
  size_t top_a = argmax(a, n), top_b = argmax(b, n);
  double lse_a = log_sum_exp(a, a[top_a], n), lse_b = log_sum_exp(b, b[top_b], n);
  out->kl = divergence_kl(a, lse_a, b, lse_b, n);
  out->flat_a = is_flat(a, n);
  out->flat_b = is_flat(b, n);
  out->top1_agrees = top_a == top_b && !out->flat_a && !out->flat_b;
  out->margin = margin_of(b, n);
  if (target < 0 || (uint64_t)target >= n) return;
  out->nll_a = lse_a - a[target];
  out->nll_b = lse_b - b[target];
  out->delta_p = exp(-out->nll_a) - exp(-out->nll_b);
}

int metrics_router_flips(const int32_t *a, const int32_t *b, int k) {
  int flips = 0;
  for (int i = 0; i < k; i++) {
    bool found = false;
    for (int j = 0; j < k; j++) found = found || a[i] == b[j];
    flips += !found;
  }
  return flips;
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

status metrics_spread(spread *out, const double *values, size_t n) {
  double *sorted;
  *out = (spread){.min = NAN, .median = NAN, .max = NAN};
  if (!n) return FAIL("a spread over no values");
  for (size_t i = 0; i < n; i++)
    if (isnan(values[i])) {
      out->worst = (int64_t)i;
      return 0;
    }
  TRY(TAKE(&sorted, n, "a metric's spread over positions"));
  memcpy(sorted, values, n * sizeof *sorted);
  qsort(sorted, n, sizeof *sorted, ascending);
  double low = sorted[(n - 1) / 2], high = sorted[n / 2];
  *out = (spread){.min = sorted[0], .median = low == high ? low : low / 2 + high / 2, .max = sorted[n - 1]};
  out->worst = (int64_t)argmax(values, n);
  free(sorted);
  return 0;
}
