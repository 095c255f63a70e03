// Tests of kernels/cuda/memory_plan.c: sums of parts as the driver gives them out, and what a fault says:
// each part, the largest, and values that would fit, checked by planning again with them.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include "kernels/cuda/memory_plan.h"
#include "tests/support/seed.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const uint64_t mib = 1 << 20;

// A GPU's bytes for positions and tokens: the shape of a real plan, in round numbers.
static void plan_of(memory_plan *out, void *with, int64_t context, int64_t chunk) {
  const uint64_t *weights = with;
  memory_plan_add(out, PART_SHARED, weights[0]);
  memory_plan_add(out, PART_EXPERTS, weights[1]);
  memory_plan_add(out, PART_CACHE, (uint64_t)context * mib / 16);
  memory_plan_add(out, PART_WORK, (uint64_t)chunk * mib);
}

static memory_question question(uint64_t *weights, uint64_t free_mib) {
  return (memory_question){.device = "GPU 0 (a GPU)",
                           .free_bytes = free_mib * mib,
                           .total_bytes = 1000 * mib,
                           .context = 4096,
                           .chunk = 128,
                           .least_chunk = 1,
                           .n_own = 64,
                           .n_experts = 128,
                           .plan = plan_of,
                           .with = weights};
}

static void says(const char *part) {
  if (!strstr(status_text(), part)) fail_msg("\"%s\" does not say \"%s\"", status_text(), part);
}

static int reset(void **state) {
  (void)state;
  status_reset();
  return 0;
}

static void allocations_are_rounded_as_the_driver_does(void **state) {
  (void)state;
  memory_plan p = {0};
  memory_plan_add(&p, "a", 0);
  assert_int_equal(p.n, 0);
  memory_plan_add(&p, "a", 1);
  assert_true(memory_plan_total(&p) == 512);
  memory_plan_add(&p, "b", mib + 1);
  assert_true(memory_plan_total(&p) == 512 + 2 * mib);
  memory_plan_add(&p, "a", 2 * mib + 1);
  assert_true(memory_plan_total(&p) == 512 + 6 * mib);
  assert_int_equal(p.n, 2);
  assert_string_equal(p.part[0].name, "a");
  assert_true(p.part[0].bytes == 512 + 4 * mib);
}

static void a_plan_that_fits_is_good(void **state) {
  (void)state;
  uint64_t weights[2] = {100 * mib, 200 * mib};
  memory_question q = question(weights, 684); // 100 + 200 + 256 + 128
  memory_plan p = {0};
  plan_of(&p, weights, q.context, q.chunk);
  assert_true(memory_plan_total(&p) == 684 * mib);
  assert_int_equal(memory_plan_check(&p, &q), 0);
  q.free_bytes--;
  assert_int_not_equal(memory_plan_check(&p, &q), 0);
}

static void the_fault_says_what_would_fit(void **state) {
  (void)state;
  uint64_t weights[2] = {100 * mib, 200 * mib};
  memory_question q = question(weights, 600);
  memory_plan p = {0};
  plan_of(&p, weights, q.context, q.chunk);
  assert_int_not_equal(memory_plan_check(&p, &q), 0);
  says("GPU 0 (a GPU)");
  says("684 MiB (shared weights 100, own experts 200, KV cache 256, work space 128)");
  says("600 of 1000 MiB free");
  says("the largest is KV cache");
  // 84 MiB less: of the cache, which goes by 2 MiB, of the chunk, or 27 of 64 experts
  says("run.context = 2752, or run.chunk = 44, or the experts over 4 ranks");
  memory_plan again = {0};
  plan_of(&again, weights, 2752, q.chunk);
  assert_true(memory_plan_total(&again) <= q.free_bytes);
  memory_plan more = {0};
  plan_of(&more, weights, 2753, q.chunk);
  assert_true(memory_plan_total(&more) > q.free_bytes);
}

static void what_would_not_help_is_not_said(void **state) {
  (void)state;
  uint64_t weights[2] = {100 * mib, 900 * mib}; // no context and no chunk makes room for the experts
  memory_question q = question(weights, 600);
  memory_plan p = {0};
  plan_of(&p, weights, q.context, q.chunk);
  assert_int_not_equal(memory_plan_check(&p, &q), 0);
  says("the largest is own experts; would fit: the experts over 16 ranks"); // 8 of 14.06 MiB
  assert_null(strstr(status_text(), "run.context"));
  status_reset();
  weights[0] = 700 * mib; // nothing helps
  memory_plan heavy = {0};
  plan_of(&heavy, weights, q.context, q.chunk);
  assert_int_not_equal(memory_plan_check(&heavy, &q), 0);
  assert_null(strstr(status_text(), "would fit"));
}

// Whatever is asked, the values that are named fit and the next larger ones do not.
static void named_values_fit(void **state) {
  (void)state;
  for (int round = 0; round < 2000; round++) {
    uint64_t weights[2] = {(uint64_t)(rand() % 300) * mib, (uint64_t)(rand() % 600 + 1) * mib};
    memory_question q = question(weights, (uint64_t)(rand() % 1000));
    q.context = 1 + rand() % 9000;
    q.least_chunk = 1 + rand() % 8;
    q.chunk = q.least_chunk + rand() % 400;
    memory_plan p = {0};
    plan_of(&p, weights, q.context, q.chunk);
    status_reset();
    if (!memory_plan_check(&p, &q)) continue;
    long long value;
    const char *at = strstr(status_text(), "run.chunk = ");
    if (at && sscanf(at, "run.chunk = %lld", &value) == 1) {
      memory_plan fits = {0}, more = {0};
      plan_of(&fits, weights, q.context, value);
      plan_of(&more, weights, q.context, value + 1);
      assert_in_range(value, q.least_chunk, q.chunk - 1);
      assert_true(memory_plan_total(&fits) <= q.free_bytes && memory_plan_total(&more) > q.free_bytes);
    } else {
      memory_plan least = {0};
      plan_of(&least, weights, q.context, q.least_chunk);
      assert_true(q.chunk == q.least_chunk || memory_plan_total(&least) > q.free_bytes);
    }
  }
}

int main(void) {
  srand((unsigned)test_seed());
  const struct CMUnitTest tests[] = {
      cmocka_unit_test_setup(allocations_are_rounded_as_the_driver_does, reset),
      cmocka_unit_test_setup(a_plan_that_fits_is_good, reset),
      cmocka_unit_test_setup(the_fault_says_what_would_fit, reset),
      cmocka_unit_test_setup(what_would_not_help_is_not_said, reset),
      cmocka_unit_test_setup(named_values_fit, reset),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
