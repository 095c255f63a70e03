// Tests of src/config/command_line.c and arm_choice.c: what is taken from the command line and how an arm is
// named.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include "src/config/arm_choice.h"
#include "src/config/command_line.h"
#include <string.h>

enum { MOST = 12 };

static bool takes_args(command_kind kind) {
  return kind == COMMAND_SYNTH || kind == COMMAND_COMPARE;
}

static status parse(command_line *l, const char *const *args) {
  static char *argv[MOST];
  int n = 0;
  argv[n++] = (char *)"moe_run";
  while (*args) argv[n++] = (char *)*args++;
  status_reset();
  return command_line_parse(l, n, argv, takes_args);
}
#define PARSE(l, ...) parse(l, (const char *const[]){__VA_ARGS__, NULL})

static void accepted(status result) {
  if (result) fail_msg("%s", status_text());
}

static void refused(status result, const char *told) {
  assert_int_not_equal(result, 0);
  if (!strstr(status_text(), told)) fail_msg("\"%s\" does not say \"%s\"", status_text(), told);
  status_reset();
}

static void a_job_is_described(void **state) {
  (void)state;
  command_line l;
  accepted(PARSE(&l, NULL));
  assert_true(l.command == COMMAND_PARITY && !l.named && !l.file && !l.out && !l.n_sets && !l.help);
  command_line_close(&l);
  accepted(PARSE(&l, "--set", "a=1", "bench", "--config", "f.toml", "--set", "b=2", "--out", "d"));
  assert_true(l.command == COMMAND_BENCH && l.named && !l.help && !l.version);
  assert_string_equal(l.file, "f.toml");
  assert_string_equal(l.out, "d");
  assert_int_equal(l.n_sets, 2);
  assert_string_equal(l.sets[0], "a=1");
  assert_string_equal(l.sets[1], "b=2");
  command_line_close(&l);
  accepted(PARSE(&l, "perplexity", "-h", "--version"));
  assert_true(l.command == COMMAND_PERPLEXITY && l.help && l.version);
  command_line_close(&l);
}

static void a_deadline_stands_under_every_set(void **state) {
  (void)state;
  command_line l;
  accepted(PARSE(&l, "--set", "comm.deadline=7", "generate", "--deadline", "2.5", "--resume"));
  assert_true(l.deadline == 2.5 && !l.tells_deadline);
  assert_int_equal(l.n_sets, 3);
  assert_string_equal(l.sets[0], "comm.deadline=2.5");
  assert_string_equal(l.sets[1], "comm.deadline=7");
  assert_string_equal(l.sets[2], "run.resume=true");
  command_line_close(&l);
  accepted(PARSE(&l, "--tell-deadline", "--deadline", "9", "synth", "--out", "f"));
  assert_true(l.deadline == 9 && l.tells_deadline && l.command == COMMAND_SYNTH && l.n_args == 2);
  command_line_close(&l);
  refused(PARSE(&l, "--deadline"), "expected a value");
  refused(PARSE(&l, "--deadline", "0"), "above 0");
  refused(PARSE(&l, "--deadline", "5s"), "expected seconds");
  refused(PARSE(&l, "--deadline", "nan"), "expected seconds");
  refused(PARSE(&l, "--deadline", "9", "--out", "d", "synth"), "found --out before");
}

static void own_arguments_are_passed_on(void **state) {
  (void)state;
  command_line l;
  accepted(PARSE(&l, "synth", "--out", "f", "--config", "--nonsense"));
  assert_true(l.command == COMMAND_SYNTH && l.n_args == 4 && !l.out && !l.file && !l.help);
  assert_string_equal(l.args[0], "--out");
  assert_string_equal(l.args[3], "--nonsense");
  command_line_close(&l);
  accepted(PARSE(&l, "compare", "a", "--help"));
  assert_true(l.command == COMMAND_COMPARE && l.n_args == 2 && l.help);
  command_line_close(&l);
}

static void an_option_may_hold_its_value(void **state) {
  (void)state;
  command_line l;
  accepted(PARSE(&l, "--config=f=1.toml", "bench", "--set=run.stop=\"a=b\"", "--out=", "--set", "x=--y=2"));
  assert_string_equal(l.file, "f=1.toml");
  assert_string_equal(l.out, "");
  assert_int_equal(l.n_sets, 2);
  assert_string_equal(l.sets[0], "run.stop=\"a=b\"");
  assert_string_equal(l.sets[1], "x=--y=2");
  command_line_close(&l);
  accepted(PARSE(&l, "compare", "a=1", "b", "--out=d")); // as its own parser wants it
  assert_int_equal(l.n_args, 4);
  assert_string_equal(l.args[0], "a=1");
  assert_string_equal(l.args[2], "--out");
  assert_string_equal(l.args[3], "d");
  command_line_close(&l);
  accepted(PARSE(&l, "synth", "--seed=3", "--shape=tiny"));
  assert_string_equal(l.args[1], "3");
  assert_string_equal(l.args[2], "--shape");
  command_line_close(&l);
  refused(PARSE(&l, "--sett=a=1"), "unknown argument \"--sett\"");
  refused(PARSE(&l, "--config=a", "--config=b"), "--config b: expected one config, found a before");
}

static void what_is_wrong_is_refused(void **state) {
  (void)state;
  command_line l;
  refused(PARSE(&l, "train"),
          "unknown command \"train\": expected one of parity, generate, perplexity, trace, bench");
  refused(PARSE(&l, "bench", "inspect"), "unknown argument \"inspect\" (a model is named by");
  refused(PARSE(&l, "--sett", "a=1"), "unknown argument \"--sett\"; see --help");
  refused(PARSE(&l, "--config"), "--config: expected a value after it");
  refused(PARSE(&l, "bench", "--out"), "--out: expected a value after it");
  refused(PARSE(&l, "--config", "a", "--config", "b"), "--config b: expected one config, found a before");
  refused(PARSE(&l, "--set", "a=1", "compare", "a", "b"),
          "compare: expected its options after its name, found --set");
}

static void every_command_has_its_name(void **state) {
  (void)state;
  for (int i = 0; i < COMMAND_COUNT; i++) {
    command_kind found;
    assert_true(command_find(&found, command_name((command_kind)i)));
    assert_int_equal(found, i);
  }
  command_kind none;
  assert_false(command_find(&none, "parit") || command_find(&none, "parity ") || command_find(&none, ""));
}

static arm_name_check named(arm_choice *a, const char *name) {
  return arm_choice_parse(a, name, strlen(name));
}

static void an_arm_is_parsed_once(void **state) {
  (void)state;
  arm_choice a;
  for (int p = 0; p < PATH_COUNT; p++)
    for (int b = 0; b < BACKEND_COUNT; b++) {
      arm_choice made = arm_choice_of((path_kind)p, (backend_kind)b);
      assert_int_equal(named(&a, made.name), ARM_NAME_GOOD);
      assert_true(a.kind == ARM_PLAIN && (int)a.path == p && (int)a.backend == b &&
                  arm_choice_equal(&a, &made));
      assert_true(arm_is_truth(&a) == (p == PATH_F64));
      for (int other = 0; other < BACKEND_COUNT; other++)
        assert_true(arm_may_need(&a, (backend_kind)other) == (other == b));
    }
  assert_int_equal(named(&a, "q8k@auto"), ARM_NAME_GOOD);
  assert_true(a.kind == ARM_AUTO && a.path == PATH_Q8K && arm_may_need(&a, BACKEND_CPU) &&
              arm_may_need(&a, BACKEND_CUDA));
  assert_int_equal(named(&a, "ranks"), ARM_NAME_GOOD);
  assert_true(a.kind == ARM_MIXED && !arm_is_truth(&a));
  arm_spec spec;
  refused(arm_choice_resolve(&spec, &a), "arm \"ranks\": expected path@backend");
  assert_int_equal(named(&a, "f64@auto"), ARM_NAME_GOOD);
  assert_false(arm_is_truth(&a));
}

static void names_that_are_none(void **state) {
  (void)state;
  arm_choice a;
  assert_int_equal(named(&a, ""), ARM_NAME_WITHOUT_AT);
  assert_int_equal(named(&a, "rank"), ARM_NAME_WITHOUT_AT);
  assert_int_equal(named(&a, "ranks@cpu"), ARM_NAME_BAD_PATH);
  assert_int_equal(named(&a, "@cpu"), ARM_NAME_BAD_PATH);
  assert_int_equal(named(&a, "q8k@"), ARM_NAME_BAD_BACKEND);
  assert_int_equal(named(&a, "q8k@cpu "), ARM_NAME_BAD_BACKEND);
  assert_int_equal(arm_choice_parse(&a, "q8k@cpu", 8), ARM_NAME_BAD_BACKEND); // with its NUL
  assert_int_equal(arm_choice_parse(&a, "q8k@cpux", 7), ARM_NAME_GOOD);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(a_job_is_described),           cmocka_unit_test(a_deadline_stands_under_every_set),
      cmocka_unit_test(own_arguments_are_passed_on),  cmocka_unit_test(what_is_wrong_is_refused),
      cmocka_unit_test(every_command_has_its_name),   cmocka_unit_test(an_arm_is_parsed_once),
      cmocka_unit_test(an_option_may_hold_its_value), cmocka_unit_test(names_that_are_none),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
