// Tests of src/run/sampler.c: greedy choice and its ties, the shares that a temperature gives, the cuts of
// top_k and top_p, and that a token follows from logits, settings and position alone.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include "src/run/sampler.h"
#include "tests/support/seed.h"
#include <math.h>
#include <string.h>

enum { N = 8, DRAWS = 200000 };

static uint64_t seed;
static const double logits[N] = {0.5, 2.0, -1.0, 1.5, 2.0, -3.0, 0.0, 1.0};

static sampler *opened(double temperature, int64_t top_k, double top_p) {
  const sampler_settings settings = {temperature, top_k, top_p, seed};
  sampler *s;
  assert_int_equal(sampler_open(&s, &settings, N), 0);
  return s;
}

static int32_t next(sampler *s, const double *from, int64_t position) {
  int32_t token = -1;
  assert_int_equal(sampler_next(s, from, position, &token), 0);
  assert_in_range(token, 0, N - 1);
  return token;
}

static void greedy_takes_the_lower_index(void **state) {
  (void)state;
  sampler *s = opened(0, 0, 1);
  double last[N] = {0};
  assert_int_equal(next(s, logits, 0), 1);
  assert_int_equal(next(s, last, 3), 0);
  last[N - 1] = 1e-300;
  assert_int_equal(next(s, last, 5), N - 1);
  sampler_close(s);
  s = opened(0.7, 1, 1); // the best one alone
  for (int64_t p = 0; p < 100; p++) assert_int_equal(next(s, logits, p), 1);
  sampler_close(s);
  s = opened(0.7, 0, 1e-9);
  for (int64_t p = 0; p < 100; p++) assert_int_equal(next(s, logits, p), 1);
  sampler_close(s);
}

// chi^2 of the draws against shares that are 0 outside the cut; 40 is beyond one run in 10^5 for seven
// degrees.
static void check_shares(double temperature, int64_t top_k, double top_p, const int *kept, int n_kept) {
  double share[N] = {0}, sum = 0, chi = 0;
  int count[N] = {0};
  for (int i = 0; i < n_kept; i++) sum += share[kept[i]] = exp(logits[kept[i]] / temperature);
  sampler *s = opened(temperature, top_k, top_p);
  for (int64_t p = 0; p < DRAWS; p++) count[next(s, logits, p)]++;
  sampler_close(s);
  for (int v = 0; v < N; v++) {
    double expected = DRAWS * share[v] / sum;
    if (share[v] > 0)
      chi += (count[v] - expected) * (count[v] - expected) / expected;
    else
      assert_int_equal(count[v], 0);
  }
  print_message("temperature %g, top_k %d, top_p %g: chi^2 %.1f\n", temperature, (int)top_k, top_p, chi);
  assert_true(chi < 60);
}

static void shares_are_those_of_the_softmax(void **state) {
  (void)state;
  const int order[N] = {1, 4, 3, 7, 0, 6, 2, 5}; // by logit, the lower index first
  check_shares(1.0, 0, 1, order, N);
  check_shares(2.5, 0, 1, order, N);
  check_shares(0.4, N, 1, order, N);
  check_shares(1.0, 3, 1, order, 3);
  check_shares(1.0, 1000, 1, order, N);
}

static void top_p_keeps_the_fewest_that_reach_it(void **state) {
  (void)state;
  const int order[N] = {1, 4, 3, 7, 0, 6, 2, 5};
  double sum = 0, part = 0;
  for (int v = 0; v < N; v++) sum += exp(logits[v]);
  for (int kept = 1; kept < N; kept++) {
    double share = exp(logits[order[kept - 1]]) / sum;
    check_shares(1.0, 0, part + share / 2, order, kept); // half of the last one is asked for
    part += share;
  }
  check_shares(1.0, 2, 0.9, order, 2); // both cuts: of the two best, whose shares are equal, 0.9 needs both
}

static void tokens_follow_from_seed_and_position(void **state) {
  (void)state;
  sampler *a = opened(1.0, 0, 1), *b = opened(1.0, 0, 1);
  seed++;
  sampler *other = opened(1.0, 0, 1);
  int same = 0, run = 0;
  for (int64_t p = 0; p < 1000; p++) next(b, logits, 5000 + p); // what was drawn before does not matter
  for (int64_t p = 999; p >= 0; p--) {
    int32_t token = next(a, logits, p);
    assert_int_equal(token, next(b, logits, p));
    same += token == next(other, logits, p);
    run += token == next(a, logits, p + 1);
  }
  assert_true(same < 500 && run < 500);
  sampler_close(a);
  sampler_close(b);
  sampler_close(other);
}

static void logits_that_are_not_finite_are_refused(void **state) {
  (void)state;
  const double bad[] = {(double)NAN, (double)INFINITY, (double)-INFINITY};
  for (int i = 0; i < 3; i++)
    for (int greedy = 0; greedy < 2; greedy++) {
      double x[N];
      int32_t token;
      memcpy(x, logits, sizeof x);
      x[5] = bad[i];
      sampler *s = opened(greedy ? 0 : 1, 0, 1);
      assert_int_not_equal(sampler_next(s, x, 77, &token), 0);
      assert_non_null(strstr(status_text(), "position 77: logit 5"));
      status_reset();
      sampler_close(s);
    }
  sampler_close(NULL);
}

// A difference of 2,000 between logits, and temperatures near 0: nothing overflows.
static void far_logits(void **state) {
  (void)state;
  const double far[N] = {-1000, 1000, 0, 999, -1e300, 1000, 5, 1e-300};
  static const double temperatures[] = {1e-300, 1e-3, 1, 1e300};
  for (int t = 0; t < 4; t++) {
    sampler *s = opened(temperatures[t], 0, 1);
    for (int64_t p = 0; p < 200; p++) {
      int32_t token = next(s, far, p);
      if (t < 2) assert_true(token == 1 || token == 5);
    }
    sampler_close(s);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(greedy_takes_the_lower_index),
      cmocka_unit_test(shares_are_those_of_the_softmax),
      cmocka_unit_test(top_p_keeps_the_fewest_that_reach_it),
      cmocka_unit_test(tokens_follow_from_seed_and_position),
      cmocka_unit_test(logits_that_are_not_finite_are_refused),
      cmocka_unit_test(far_logits),
  };
  seed = test_seed();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
