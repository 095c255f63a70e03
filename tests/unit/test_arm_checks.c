// Tests of what a report says of one arm's tensors: each thing that an arm must keep, broken once.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "src/measure/arm_checks.h"
#include <math.h>

enum { LAYERS = 2, WIDTH = 4 };

static const double EMBEDDED[WIDTH] = {1, 2, 3, 4}, AFTER[WIDTH] = {1, 2, 3, 6};
static const expert_global EXPERTS[] = {{5}, {2}};
static const double WEIGHTS[] = {0.75, 0.25};

static arm_checks opened(void) {
  arm_checks c;
  assert_int_equal(arm_checks_open(&c, LAYERS, WIDTH, 2), 0);
  for (int64_t t = 0; t < 2; t++) arm_checks_embedded(&c, t, EMBEDDED);
  return c;
}

static void test_honest(void **state) {
  arm_checks c = opened();
  const double logits[] = {1, 2}, near[] = {0.75, 0.2500001};
  (void)state;
  arm_checks_layer(&c, 0, 0, AFTER, EXPERTS, WEIGHTS, 2);
  arm_checks_layer(&c, 0, 1, EMBEDDED + 0, EXPERTS, near, 2); // the second token: nothing is added
  arm_checks_logits(&c, logits, 2);
  assert_true(c.finite && c.distinct_experts);
  assert_int_equal(c.least_expert, 2);
  assert_int_equal(c.most_expert, 5);
  assert_true(fabs(c.weight_sum_error - 1e-7) < 1e-12);
  assert_true(c.layer_update[0] == 0); // the smallest over positions
  assert_true(fabs(c.layer_rms[0] - sqrt(30 / 4.0)) < 1e-12);
  arm_checks_close(&c);
}

static void test_update_is_from_the_layer_before(void **state) {
  arm_checks c = opened();
  const double last[WIDTH] = {1, 2, 3, 8};
  (void)state;
  arm_checks_layer(&c, 0, 0, AFTER, EXPERTS, WEIGHTS, 2);
  arm_checks_layer(&c, 1, 0, last, EXPERTS, WEIGHTS, 2);
  assert_true(c.layer_update[0] == 1 && c.layer_update[1] == 1);
  arm_checks_close(&c);
}

static void test_broken(void **state) {
  (void)state;
  const double nan[] = {0.5, (double)NAN}, bad_stream[WIDTH] = {1, (double)INFINITY, 0, 0}, zero[WIDTH] = {0};
  const expert_global twice[] = {{3}, {3}}, negative[] = {{-1}, {2}};
  arm_checks c = opened();
  arm_checks_layer(&c, 0, 0, AFTER, twice, WEIGHTS, 2);
  assert_false(c.distinct_experts);
  arm_checks_layer(&c, 0, 0, AFTER, negative, WEIGHTS, 2);
  assert_int_equal(c.least_expert, -1);
  arm_checks_layer(&c, 1, 0, zero, EXPERTS, WEIGHTS, 2);
  assert_true(c.layer_rms[1] == 0 && c.finite);
  arm_checks_layer(&c, 0, 1, AFTER, EXPERTS, nan, 2);
  assert_true(isnan(c.weight_sum_error) && !c.finite);
  arm_checks_layer(&c, 0, 1, AFTER, EXPERTS, WEIGHTS, 2);
  assert_true(isnan(c.weight_sum_error)); // it stays
  arm_checks_close(&c);
  c = opened();
  arm_checks_layer(&c, 0, 0, bad_stream, EXPERTS, WEIGHTS, 2);
  assert_false(c.finite);
  arm_checks_close(&c);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_honest),
      cmocka_unit_test(test_update_is_from_the_layer_before),
      cmocka_unit_test(test_broken),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
