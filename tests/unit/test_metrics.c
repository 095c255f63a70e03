// Tests of src/measure/metrics.c: closed forms, long double brute force on fresh random data, and what must
// never look good.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "src/measure/metrics.h"
#include "tests/support/seed.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static double uniform(void) {
  return (rand() + 0.5) / ((double)RAND_MAX + 1) * 2 - 1;
}

static void close_to(double found, double expected, double tolerance) {
  if (!(fabs(found - expected) <= tolerance * fabs(expected)))
    fail_msg("expected %.17g within %g, found %.17g", expected, tolerance, found);
}

static void test_closed_forms(void **state) {
  (void)state;
  metrics m;
  metrics_row(&m, (double[]){3, 4}, (double[]){3, 4}, 2);
  assert_true(m.finite && m.rel_l2 == 0 && m.one_minus_cos == 0 && m.max_abs == 0 && m.max_rel == 0 &&
              m.max_ulp == 0);
  metrics_row(&m, (double[]){0, 5}, (double[]){3, 4}, 2);
  close_to(m.rel_l2, sqrt(10) / 5, 1e-15);
  close_to(m.one_minus_cos, 0.2, 1e-15);
  assert_true(m.max_abs == 3 && m.max_rel == 1);
  metrics_row(&m, (double[]){2, 0}, (double[]){-1, 0}, 2);
  assert_true(m.rel_l2 == 3 && m.one_minus_cos == 2 && m.max_abs == 3 && m.max_rel == 1.5);
  metrics_row(&m, (double[]){0, 1}, (double[]){1, 0}, 2);
  close_to(m.one_minus_cos, 1, 1e-15);
  metrics_row(&m, (double[]){7}, (double[]){14}, 1); // of one direction
  assert_true(m.rel_l2 == 0.5 && m.one_minus_cos == 0 && m.max_rel == 0.5);
  metrics_row(&m, NULL, NULL, 0);
  assert_true(m.finite && m.rel_l2 == 0 && m.one_minus_cos == 0);
}

static void test_reference_is_b(void **state) {
  (void)state;
  metrics ab, ba;
  metrics_row(&ab, (double[]){1, 1}, (double[]){2, 2}, 2);
  metrics_row(&ba, (double[]){2, 2}, (double[]){1, 1}, 2);
  close_to(ab.rel_l2, 0.5, 1e-15);
  close_to(ba.rel_l2, 1, 1e-15);
}

// A rotation by a tiny angle t: 1 - cos t = 2 sin^2(t/2), where 1 - a.b/(|a||b|) would give noise of 1e-16.
static void test_cosine_does_not_cancel(void **state) {
  (void)state;
  for (double t = 1e-3; t > 1e-13; t /= 10) {
    metrics m;
    metrics_row(&m, (double[]){cos(t), sin(t), 0}, (double[]){1, 0, 0}, 3);
    close_to(m.one_minus_cos, 2 * sin(t / 2) * sin(t / 2), 1e-9);
  }
}

static void test_zero_vectors(void **state) {
  (void)state;
  metrics m;
  metrics_row(&m, (double[]){0, -0.0}, (double[]){-0.0, 0}, 2);
  assert_true(m.finite && m.rel_l2 == 0 && m.one_minus_cos == 0 && m.max_rel == 0 && m.max_ulp == 0);
  metrics_row(&m, (double[]){1, 0}, (double[]){0, 0}, 2);
  assert_true(m.one_minus_cos == 1 && m.max_abs == 1 && m.max_rel == 1);
  close_to(m.rel_l2, 1e300, 1e-12);
  metrics_row(&m, (double[]){0, 0}, (double[]){0, 2}, 2);
  assert_true(m.rel_l2 == 1 && m.one_minus_cos == 1);
}

static void test_extreme_scales(void **state) {
  (void)state;
  static const double sizes[] = {1e-310, 1e-200, 1e-170, 1e-30, 1, 1e100, 1e200, 1e307};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    double s = sizes[i];
    metrics m;
    metrics_row(&m, (double[]){0, 5 * s}, (double[]){3 * s, 4 * s}, 2);
    if (s > 1e-290) close_to(m.rel_l2, sqrt(10) / 5, 1e-12);
    close_to(m.one_minus_cos, 0.2, 1e-12);
    assert_true(m.finite && m.max_abs > 0);
    metrics_row(&m, (double[]){s}, (double[]){-s}, 1);
    assert_true(m.rel_l2 > 0 && m.one_minus_cos == 2);
    metrics_row(&m, (double[]){3 * s, 4 * s}, (double[]){3, 4}, 2); // of one direction
    assert_true(m.one_minus_cos < 1e-15 || s < 1e-300);
  }
}

static void test_steps(void **state) {
  (void)state;
  metrics m;
  double one_up = (double)nextafterf(1, 2);
  metrics_row(&m, (double[]){one_up, 1}, (double[]){1, 1}, 2);
  assert_true(m.max_ulp == 1);
  metrics_row(&m, (double[]){1 + 1e-12}, (double[]){1}, 1); // rounds to the same float
  assert_true(m.max_ulp == 0 && m.max_abs > 0);
  metrics_row(&m, (double[]){(double)nextafterf(0, 1)}, (double[]){(double)nextafterf(0, -1)}, 1);
  assert_true(m.max_ulp == 2);
  metrics_row(&m, (double[]){2}, (double[]){1}, 1);
  assert_true(m.max_ulp == 8388608);
  metrics_row(&m, (double[]){-2}, (double[]){-1}, 1);
  assert_true(m.max_ulp == 8388608);
  metrics_row(&m, (double[]){-1}, (double[]){1}, 1);
  assert_true(m.max_ulp == 2.0 * 0x3f800000);
}

static void test_not_finite(void **state) {
  (void)state;
  const double bad[] = {NAN, INFINITY, -INFINITY};
  for (int i = 0; i < 12; i++) {
    double a[] = {1, 2}, b[] = {1, 2};
    if (i >= 6) a[i % 2] = bad[i / 2 % 3];
    b[i % 2] = i < 6 ? bad[i / 2] : i < 9 ? b[i % 2] : a[i % 2]; // also the same on both sides
    logit_metrics l;
    metrics_logits(&l, a, b, 2, 0);
    assert_false(l.row.finite || l.top1_agrees);
    assert_true(isnan(l.row.rel_l2) && isnan(l.row.one_minus_cos) && isnan(l.row.max_abs));
    assert_true(isnan(l.row.max_rel) && isnan(l.row.max_ulp) && isnan(l.kl) && isnan(l.margin));
    assert_true(isnan(l.nll_a) && isnan(l.nll_b));
  }
}

static void test_logits_closed_forms(void **state) {
  (void)state;
  logit_metrics l;
  double even[] = {0, 0, 0, 0}, tilted[] = {log(4), log(2), log(1), log(1)};
  metrics_logits(&l, even, tilted, 4, 1); // p = 1/2 1/4 1/8 1/8 against q = 1/4 each
  close_to(l.kl, 0.25 * log(2), 1e-14);
  close_to(l.nll_a, log(4), 1e-15);
  close_to(l.nll_b, log(4), 1e-15);
  close_to(l.margin, log(2), 1e-15);
  assert_true(l.flat_a && !l.flat_b && !l.top1_agrees); // no first token, so nothing agrees
  metrics_logits(&l, (double[]){1, 1, 0, 0}, tilted, 4, 1);
  assert_true(!l.flat_a && l.top1_agrees); // a tie goes to the lower index
  metrics_logits(&l, even, even, 4, 1);
  assert_true(l.flat_a && l.flat_b && !l.top1_agrees && l.kl == 0);
  metrics_logits(&l, tilted, even, 4, 0);
  close_to(l.kl, log(4) - 1.75 * log(2) + 0 * l.kl, 1e-13);
  assert_true(l.margin == 0);
  metrics_logits(&l, (double[]){0, 1, 0, 0}, tilted, 4, -1);
  assert_false(l.top1_agrees);
  assert_true(isnan(l.nll_a) && isnan(l.nll_b));
  metrics_logits(&l, even, tilted, 4, 4); // outside the vocabulary
  assert_true(isnan(l.nll_a));
  metrics_logits(&l, tilted, tilted, 4, 0);
  assert_true(l.kl == 0 && l.top1_agrees);
  double moved[4]; // softmax does not see a shift
  for (int i = 0; i < 4; i++) moved[i] = tilted[i] + 1000;
  metrics_logits(&l, moved, tilted, 4, 2);
  assert_true(l.kl < 1e-24);
  close_to(l.nll_a, log(8), 1e-12);
  metrics_logits(&l, (double[]){-900, 900}, (double[]){900, -900}, 2,
                 0); // exp runs under, nothing runs over
  close_to(l.kl, 1800, 1e-14);
  close_to(l.nll_a, 1800, 1e-14);
  assert_false(l.top1_agrees);
  metrics_logits(&l, (double[]){3}, (double[]){5}, 1, 0);
  assert_true(isnan(l.margin) && l.kl == 0 && l.nll_a == 0 && l.top1_agrees);
}

static long double exact_kl(const double *a, const double *b, size_t n, long double *lse_b) {
  long double za = 0, zb = 0, sum = 0;
  for (size_t i = 0; i < n; i++) za += expl((long double)a[i]), zb += expl((long double)b[i]);
  *lse_b = logl(zb);
  for (size_t i = 0; i < n; i++)
    sum += expl((long double)b[i]) / zb * ((long double)b[i] - *lse_b - ((long double)a[i] - logl(za)));
  return sum;
}

static void test_random_against_long_double(void **state) {
  (void)state;
  enum { N = 3000 };
  static double a[N], b[N];
  srand((unsigned)test_seed());
  for (int round = 0; round < 40; round++) {
    size_t n = 2 + (size_t)rand() % (N - 2);
    double noise = pow(10, -7.0 * round / 40), size = pow(10, rand() % 4 - 2);
    long double dd = 0, aa = 0, bb = 0, ab = 0, cos2 = 0, max_abs = 0, max_rel = 0, lse;
    for (size_t i = 0; i < n; i++) {
      b[i] = uniform() * size;
      a[i] = b[i] + uniform() * noise * size;
      long double x = a[i], y = b[i], d = fabsl(x - y);
      dd += d * d, aa += x * x, bb += y * y, ab += x * y;
      max_abs = fmaxl(max_abs, d);
      max_rel = fmaxl(max_rel, d / fmaxl(fmaxl(fabsl(x), fabsl(y)), 1e-30L));
    }
    for (size_t i = 0; i < n; i++) {
      long double d = (long double)a[i] / sqrtl(aa) - (long double)b[i] / sqrtl(bb);
      cos2 += d * d / 2;
    }
    logit_metrics l;
    int64_t target = rand() % (int)n;
    metrics_logits(&l, a, b, n, target);
    assert_true(l.row.finite);
    close_to(l.row.rel_l2, (double)sqrtl(dd / bb), 1e-12);
    close_to(l.row.one_minus_cos, (double)cos2, 1e-7);
    assert_true(fabsl(1 - ab / sqrtl(aa * bb) - (long double)l.row.one_minus_cos) < 1e-15L + 1e-12L * cos2);
    close_to(l.row.max_abs, (double)max_abs, 1e-15);
    close_to(l.row.max_rel, (double)max_rel, 1e-15);
    long double kl = exact_kl(a, b, n, &lse);
    if (!(fabsl((long double)l.kl - kl) <= 1e-9L * kl + 5e-17L))
      fail_msg("kl %.17g, expected %.17Lg", l.kl, kl);
    close_to(l.nll_b, (double)(lse - (long double)b[target]), 1e-13);
  }
}

static void test_flips(void **state) {
  (void)state;
  assert_int_equal(metrics_router_flips((int32_t[]){1, 2, 3, 4}, (int32_t[]){4, 3, 2, 1}, 4),
                   0); // sets, not lists
  assert_int_equal(metrics_router_flips((int32_t[]){1, 2, 3, 4}, (int32_t[]){1, 2, 3, 5}, 4), 1);
  assert_int_equal(metrics_router_flips((int32_t[]){0, 1}, (int32_t[]){2, 3}, 2), 2);
  assert_int_equal(metrics_router_flips(NULL, NULL, 0), 0);
}

static void test_spreads(void **state) {
  (void)state;
  spread s;
  assert_int_equal(metrics_spread(&s, (double[]){5}, 1), 0);
  assert_true(s.min == 5 && s.median == 5 && s.max == 5 && s.worst == 0);
  assert_int_equal(metrics_spread(&s, (double[]){9, 1, 9, 4}, 4), 0);
  assert_true(s.min == 1 && s.median == 6.5 && s.max == 9 &&
              s.worst == 0); // position 0 counts; first on a tie
  assert_int_equal(metrics_spread(&s, (double[]){3, 1, 2}, 3), 0);
  assert_true(s.min == 1 && s.median == 2 && s.max == 3 && s.worst == 0);
  assert_int_equal(metrics_spread(&s, (double[]){0, 1, INFINITY, INFINITY}, 4), 0);
  assert_true(s.min == 0 && isinf(s.median) && isinf(s.max) && s.worst == 2);
  assert_int_equal(metrics_spread(&s, (double[]){1, 2, NAN, 9, NAN}, 5), 0);
  assert_true(isnan(s.min) && isnan(s.median) && isnan(s.max) && s.worst == 2);
  status_reset();
  assert_int_equal(metrics_spread(&s, NULL, 0), 1);
  status_reset();
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_closed_forms),
      cmocka_unit_test(test_reference_is_b),
      cmocka_unit_test(test_cosine_does_not_cancel),
      cmocka_unit_test(test_zero_vectors),
      cmocka_unit_test(test_extreme_scales),
      cmocka_unit_test(test_steps),
      cmocka_unit_test(test_not_finite),
      cmocka_unit_test(test_logits_closed_forms),
      cmocka_unit_test(test_random_against_long_double),
      cmocka_unit_test(test_flips),
      cmocka_unit_test(test_spreads),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
