// Tests of src/run/rank_roles.c: arms over ranks, "auto", and who computes the shared steps.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include "src/config/config.h"
#include "src/run/rank_roles.h"
#include <string.h>

enum { MOST = 8 };

static config configured(const char *arms, const char *shared, const char *shared_ranks) {
  char sets[3][128];
  snprintf(sets[0], sizeof sets[0], "ranks.arm=%s", arms);
  snprintf(sets[1], sizeof sets[1], "ranks.shared=\"%s\"", shared);
  snprintf(sets[2], sizeof sets[2], "ranks.shared_ranks=%s", shared_ranks);
  const char *arm = strcmp(arms, "[]") ? "run.arms=[\"ranks\"]" : "run.arms=[\"q8k@cpu\"]";
  const char *all[] = {"model.path=a", arm, sets[0], sets[1], sets[2]};
  config c;
  if (config_load(&c, NULL, all, 5)) fail_msg("%s", status_text());
  return c;
}

// wanted: each rank's arm, a * where it is shared, separated by blanks.
static void expect(const char *arms, const char *shared, const char *shared_ranks, const char *gpus,
                   const char *shared_arm, const char *wanted) {
  int n = (int)strlen(gpus);
  bool has_gpu[MOST];
  char text[256] = "";
  rank_roles r;
  config c = configured(arms, shared, shared_ranks);
  for (int i = 0; i < n; i++) has_gpu[i] = gpus[i] == 'g';
  if (rank_roles_open(&r, &c, has_gpu, n)) fail_msg("%s", status_text());
  for (int i = 0; i < n; i++)
    snprintf(text + strlen(text), sizeof text - strlen(text), "%s%s%s", i ? " " : "", r.arm[i].name,
             r.shared[i] ? "*" : "");
  assert_string_equal(text, wanted);
  assert_string_equal(r.shared_arm.name, shared_arm);
  assert_true(r.shared[r.reporting]);
  for (int i = 0; i < r.reporting; i++) assert_false(r.shared[i]);
  rank_roles_close(&r);
  config_close(&c);
}

static void without_arms_all_are_shared(void **state) {
  (void)state;
  expect("[]", "", "[]", "--g", "", "* * *");
}

static void one_backend_shares_everything(void **state) {
  (void)state;
  expect("[\"q8k@cpu\", \"f32@cpu\"]", "", "[]", "gggg", "q8k@cpu", "q8k@cpu* f32@cpu* q8k@cpu* f32@cpu*");
  expect("[\"q8k@cpu\", \"f32@cpu\"]", "f64@cpu", "[]", "--", "f64@cpu", "q8k@cpu* f32@cpu*");
}

static void gpus_compute_the_shared_steps(void **state) {
  (void)state;
  expect("[\"q8k@cpu\", \"f32@cuda\"]", "", "[]", "--g-", "f32@cuda", "q8k@cpu f32@cuda* q8k@cpu f32@cuda*");
  expect("[\"q8k@cpu\", \"f32@cuda\"]", "q8k@cuda", "[]", "--", "q8k@cuda", "q8k@cpu f32@cuda*");
  expect("[\"q8k@cpu\", \"f32@cuda\"]", "q8k@cpu", "[]", "--", "q8k@cpu", "q8k@cpu* f32@cuda");
}

static void auto_is_a_gpu_where_there_is_one(void **state) {
  (void)state;
  expect("[\"q8k@auto\"]", "", "[]", "g-g", "q8k@cuda", "q8k@cuda* q8k@cpu q8k@cuda*");
  expect("[\"f32@auto\", \"q8k@auto\"]", "", "[]", "---", "f32@cpu", "f32@cpu* q8k@cpu* f32@cpu*");
  expect("[\"f32@cpu\", \"q8k@auto\"]", "", "[]", "gg", "q8k@cuda", "f32@cpu q8k@cuda*");
}

static void ranks_named_are_the_shared_ones(void **state) {
  (void)state;
  expect("[\"q8k@cpu\", \"f32@cpu\"]", "", "[1]", "--", "q8k@cpu", "q8k@cpu f32@cpu*");
  expect("[\"q8k@cpu\", \"f32@cuda\"]", "", "[2, 0]", "---", "f32@cuda", "q8k@cpu* f32@cuda q8k@cpu*");
}

static void refused(const char *arms, const char *shared, const char *shared_ranks, const char *what) {
  const bool none[MOST] = {false};
  rank_roles r;
  config c = configured(arms, shared, shared_ranks);
  assert_int_not_equal(rank_roles_open(&r, &c, none, 2), 0);
  if (!strstr(status_text(), what)) fail_msg("\"%s\" does not say \"%s\"", status_text(), what);
  status_reset();
  rank_roles_close(&r);
  config_close(&c);
}

static void bad_roles_are_refused(void **state) {
  (void)state;
  refused("[\"q8k@cpu\"]", "", "[0, 2]", "expected ranks from 0 to 1, found 2");
  refused("[\"q8k@cpu\"]", "q8k@cuda", "[]", "no rank's arm is on cuda");
  refused("[\"q8k@cpu\"]", "", "[1, 1]", "expected each rank once, found 1 twice");
  refused("[\"q8k@cpu\", \"f32@cpu\", \"f64@cpu\"]", "", "[]", "an arm for each of 2 ranks, found 3");
  rank_roles_close(NULL);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(without_arms_all_are_shared),     cmocka_unit_test(one_backend_shares_everything),
      cmocka_unit_test(gpus_compute_the_shared_steps),   cmocka_unit_test(auto_is_a_gpu_where_there_is_one),
      cmocka_unit_test(ranks_named_are_the_shared_ones), cmocka_unit_test(bad_roles_are_refused),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
