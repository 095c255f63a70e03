#include "src/measure/trace_verdict.h"
#include "base/memory.h"
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

// How many times the median gain of all products, and of the same product in the other layers, one may pass.
// docs/trace.md has the spread of honest traces behind each.
static const double LEAST_GAIN = 0.2; // of other layers: less is taken for this
static const double PRODUCT_BOUND = 5, SAME_BOUND = 5, WORST_BOUND = 12, COMPOSED_BOUND = 60;
// A residual beside those of the same step in other layers, where these leave less than the type allows.
static const double RESIDUAL_SAME_BOUND = 20, RESIDUAL_LEAST = 1e-6;
static const double FLOAT_STEP = 1e-6; // more than a step in float32 leaves
// Standard errors by which a product's rows are all larger or all smaller than those of the other trace.
static const double BIAS_BOUND = 16;
enum { FEWEST_OTHERS = 2, FEWEST_BIAS_ROWS = 8 };

const char *verdict_name(trace_verdict v) {
  switch (v) {
  case VERDICT_EQUAL:
    return "equal";
  case VERDICT_EXPLAINED:
    return "explained";
  case VERDICT_UNJUDGED:
    return "not judged";
  case VERDICT_OFF:
    return "off";
  }
  __builtin_unreachable();
}

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static double median(double *x, int64_t n) {
  qsort(x, (size_t)n, sizeof *x, ascending);
  return n ? (x[(n - 1) / 2] + x[n / 2]) / 2 : (double)NAN;
}

status middle_of_rows(double *middle, double *error, double *x, int64_t n) {
  double *distance;
  *middle = *error = 0;
  if (!n) return 0;
  TRY(TAKE(&distance, (size_t)n, "a median"));
  *middle = median(x, n);
  for (int64_t i = 0; i < n; i++) distance[i] = fabs(x[i] - *middle);
  // 1.4826 median deviations are a normal's standard deviation; a median has 1.2533 times a mean's error
  *error = 1.4826 * 1.2533 * median(distance, n) / sqrt((double)n);
  free(distance);
  return 0;
}

enum { MOST_OTHERS = 4096 };

typedef double (*figure_of)(const probe_result *r);

static double gain_of(const probe_result *r) {
  return r->measure == JUDGED_BY_GAIN ? r->gain : (double)NAN;
}

static double worst_gain_of(const probe_result *r) {
  return r->measure == JUDGED_BY_GAIN ? r->worst_gain : (double)NAN;
}

static double residual_of(const probe_result *r) {
  return r->measure == JUDGED_BY_RESIDUAL ? fmax(r->residual[0], r->residual[1]) : (double)NAN;
}

// Median of a figure over the same probe in the other layers; NaN: there are too few.
static double of_others(const probe_result *r, int64_t n, int64_t at, figure_of figure) {
  double found[MOST_OTHERS];
  int64_t count = 0;
  for (int64_t i = 0; i < n && count < MOST_OTHERS; i++)
    if (i != at && r[i].point == r[at].point && r[i].is_composed == r[at].is_composed &&
        !isnan(figure(&r[i])))
      found[count++] = figure(&r[i]);
  return count < FEWEST_OTHERS ? (double)NAN : median(found, count);
}

// Median of the gains of all products whose inputs are there.
static double of_products(const probe_result *r, int64_t n, figure_of figure) {
  double found[MOST_OTHERS];
  int64_t count = 0;
  for (int64_t i = 0; i < n && count < MOST_OTHERS; i++)
    if (!r[i].is_composed && r[i].gain > 0 && !isnan(figure(&r[i]))) found[count++] = figure(&r[i]);
  return median(found, count);
}

__attribute__((format(printf, 2, 3))) static trace_verdict off(probe_result *r, const char *format, ...) {
  va_list list;
  va_start(list, format);
  vsnprintf(r->reason, sizeof r->reason, format, list);
  va_end(list);
  return VERDICT_OFF;
}

static trace_verdict judge_residual(probe_result *r, int64_t n, int64_t at) {
  static const char LETTER[2] = {'A', 'B'};
  probe_result *p = &r[at];
  step_kind kind = step_of(p->point)->kind;
  double others = of_others(r, n, at, residual_of);
  for (int side = 0; side < 2; side++) {
    double worst = p->worst_residual[side], bound = p->rounding[side], all = p->residual[side];
    char letter = LETTER[side];
    if (!(worst <= bound) && kind == STEP_LOOKUP)
      return off(p, "rows differ by %.2e, and nothing is before them", worst);
    if (!(worst <= bound))
      return off(
          p, "the %s of %c is not what its own inputs give: off by %.2e of it, where rounding leaves %.0e%s",
          step_name(kind), letter, worst, bound,
          worst <= FLOAT_STEP ? "; float32 in place of float64 leaves as much" : "");
    if (all > RESIDUAL_SAME_BOUND * others && all > RESIDUAL_LEAST)
      return off(p, "the %s of %c is off its own inputs by %.2e, in the other layers by %.2e",
                 step_name(kind), letter, all, others);
  }
  return VERDICT_EXPLAINED;
}

static trace_verdict judge_bias(probe_result *p) {
  // Random errors of relative length e make a vector e^2 longer, and one that is normalised e^2 / 2 shorter
  // along the other.
  double inherited =
      fabs(p->bias_in) + BIAS_BOUND * p->bias_in_error + p->error_out * p->error_out + p->own_error;
  if (p->bias_rows >= FEWEST_BIAS_ROWS && fabs(p->bias) > 2 * inherited + BIAS_BOUND * p->bias_error)
    return off(p, "a scale: A is %.7f times B in all rows, to %.1e; what comes in is %.7f", 1 + p->bias,
               p->bias_error, 1 + p->bias_in);
  return VERDICT_EXPLAINED;
}

// Whether all of the error lies in the angles of RoPE: the pairs that it turns have the same lengths.
static const char *axis_of(const probe_result *p) {
  bool turned = p->length_error * p->gain < p->error_out; // less than what came in
  return turned ? "; the pairs that RoPE turns have the same lengths: its angles differ" : "";
}

static trace_verdict judge_gain(probe_result *r, int64_t n, int64_t at, double products, double worst) {
  probe_result *p = &r[at];
  double others = of_others(r, n, at, gain_of), usual = fmax(products, 1), usual_worst = fmax(worst, 1);
  double bound = p->is_composed ? COMPOSED_BOUND : PRODUCT_BOUND;
  if (!(p->gain <= bound * usual))
    return off(p, "error in %.2e, out %.2e: %.3g times what comes in; products here have %.3g%s", p->error_in,
               p->error_out, p->gain, usual, axis_of(p));
  if (!isnan(others) && p->gain > SAME_BOUND * fmax(others, LEAST_GAIN))
    return off(p, "error in %.2e, out %.2e: %.3g times what comes in, %.3g in the other layers%s",
               p->error_in, p->error_out, p->gain, others, axis_of(p));
  if (!p->is_composed && p->worst_gain > WORST_BOUND * usual_worst)
    return off(p, "one row: %.3g times the error that comes in; the worst rows of products here have %.3g",
               p->worst_gain, usual_worst);
  return p->is_composed ? VERDICT_EXPLAINED : judge_bias(p);
}

static trace_verdict judge(probe_result *r, int64_t n, int64_t at, double products, double worst) {
  probe_result *p = &r[at];
  if (!p->numbers.differing) return VERDICT_EQUAL;
  if (!p->numbers.finite) return off(p, "a NaN or infinity");
  switch (p->measure) {
  case JUDGED_BY_BITS:
    return off(p, "%" PRId64 " of %" PRId64 " numbers have other bits, and the path is one",
               p->numbers.differing, p->numbers.numbers);
  case JUDGED_BY_RESIDUAL:
    return judge_residual(r, n, at);
  case JUDGED_BY_GAIN:
    return judge_gain(r, n, at, products, worst);
  case JUDGED_BY_NOTHING:
    return VERDICT_UNJUDGED;
  }
  __builtin_unreachable();
}

int64_t trace_judge(probe_result *r, int64_t n) {
  int64_t first = -1;
  double products = of_products(r, n, gain_of), worst = of_products(r, n, worst_gain_of);
  for (int64_t i = 0; i < n; i++) {
    r[i].verdict = judge(r, n, i, products, worst);
    if (first < 0 && r[i].verdict == VERDICT_OFF) first = i;
  }
  return first;
}
