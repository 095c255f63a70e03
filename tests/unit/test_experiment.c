// Experiments: the model of flips, the generator of their inputs, draws, the reader of their files, the
// verdict; and that every file that is built in is one which its method takes.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include "src/lab/draws.h"
#include "src/lab/experiment_files.h"
#include "src/lab/falsify.h"
#include "src/lab/falsify_methods.h"
#include "src/lab/flip_model.h"
#include "src/lab/product_case.h"
#include "tests/support/seed.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

static unsigned seed; // of random edits and samples

static void xorshift32_is_marsaglias(void **state) {
  (void)state;
  uint32_t x = 2463534242u; // the seed and first numbers of Marsaglia's own, of 2003
  assert_int_equal(xorshift32(&x), 723471715u);
  assert_int_equal(xorshift32(&x), 2497366906u);
  assert_int_equal(xorshift32(&x), 2064144800u);
}

static void uniform_numbers_are_what_their_bits_say(void **state) {
  (void)state;
  uint32_t bits = 0x15830001, x = bits;
  double sum = 0, squares = 0;
  for (int i = 0; i < 100000; i++) {
    double wanted = (double)xorshift32(&bits) / (4294967295.0 / 2) - 1,
           found = (double)xorshift32_uniform(&x);
    assert_true(fabs(found - wanted) <= 0x1p-23); // a float's step below 2, wherever it was rounded
    assert_true(found >= -1 && found <= 1);
    sum += found;
    squares += found * found;
  }
  assert_true(fabs(sum / 100000) < 0.01 && fabs(squares / 100000 - 1.0 / 3) < 0.01);
}

static status draw_number(double *figures, const void *context, int64_t draw) {
  figures[0] = (double)draw;
  figures[1] = 2.0 * (double)draw;
  return context && draw == 7 ? FAIL("draw 7") : 0;
}

static void draws_are_kept_by_number(void **state) {
  (void)state;
  double x[2 * 101];
  assert_int_equal(draws_run(x, 2, 101, 3, draw_number, NULL), 0);
  for (int d = 0; d < 101; d++) assert_true(x[d] == d && x[101 + d] == 2 * d);
  assert_true(draws_at(x, 101, 0) == 0 && draws_at(x, 101, 1) == 100 && draws_at(x, 101, 0.5) == 50);
  assert_true(fabs(draws_at(x, 101, 0.011) - 1.1) < 1e-12);
  assert_true(draws_quantile(x, 101, 1000) == 1 && draws_quantile(x, 101, -1) == 0);
  assert_true(fabs(draws_quantile(x, 101, 50) - 50.5 / 101) < 1e-12);
  assert_int_not_equal(draws_run(x, 2, 101, 3, draw_number, x), 0);
  status_reset();
}

// ---- files ----

static status read_text(experiment *e, const char *text) {
  return experiment_read(e, "test.toml", text, strlen(text));
}

static const char GOOD[] =
    "id = 3\nname = 'n'\nhypothesis = 'h'\n[input]\nrows = 16\nsteps = [1, 2.5]\ntensor = 'a.b'\n"
    "[predicts]\nx.min = 0.5\nx.max = 2\ny.max = 1e-6\n[known]\nx = 7\n";

static void a_file_is_read(void **state) {
  (void)state;
  static const char *const inputs[] = {"rows", "steps", "tensor"};
  experiment e;
  char bounds[256];
  assert_int_equal(read_text(&e, GOOD), 0);
  assert_int_equal(e.id, 3);
  assert_int_equal(experiment_integer(&e, "rows"), 16);
  assert_string_equal(experiment_text(&e, "tensor"), "a.b");
  assert_int_equal(experiment_find_input(&e, "steps")->count, 2);
  assert_true(experiment_find_input(&e, "steps")->value[1] == 2.5);
  assert_true(experiment_known(&e, "x") == 7 && isnan(experiment_known(&e, "y")));
  assert_int_equal(experiment_check_inputs(&e, inputs, 3), 0);
  experiment_bound_text(bounds, sizeof bounds, &e);
  assert_string_equal(bounds, "0.5 <= x <= 2, y <= 1e-06");
  assert_int_not_equal(experiment_check_inputs(&e, inputs, 2), 0); // it reads no tensor
  status_reset();
  static const char *const more[] = {"rows", "steps", "tensor", "seed"};
  assert_int_not_equal(experiment_check_inputs(&e, more, 4), 0);
  assert_non_null(strstr(status_text(), "input.seed"));
  status_reset();
}

static void a_terminal_does_not_obey_a_file(void **state) {
  (void)state;
  experiment e;
  assert_int_equal(
      read_text(&e, "id = 3\nname = \"n\\u001b[2J\"\nhypothesis = \"h\\u009b\"\n[predicts]\nx.min = 1\n"), 0);
  assert_string_equal(e.name, "n?[2J");
  assert_string_equal(e.hypothesis, "h?");
}

static void a_bad_file_is_refused_by_place(void **state) {
  (void)state;
  static const struct {
    const char *text, *complaint;
  } bad[] = {
      {"id = 1\nname = 'n'\nhypothesis = 'h'\n", "predicts nothing"},
      {"id = 1\nname = 'n'\n[predicts]\nx.min = 1\n", "hypothesis"},
      {"id = 1.5\n", "test.toml:1"},
      {"id = 1\ncolour = 2\n", "test.toml:2: colour"},
      {"id = 1\n[predicts]\nx = 1\n", "test.toml:3: predicts.x"},
      {"id = 1\n[predicts]\nx.least = 1\n", "test.toml:3: predicts.x.least"},
      {"id = 1\n[input]\na = true\n", "test.toml:3: input.a"},
      {"id = 1\n[input]\na = ['b']\n", "a number"},
      {"id = 1\n[input]\na = []\n", "1 to 16 numbers"},
      {"id = 1\nname = ''\n", "a text"},
      {"id = = 1\n", "expected TOML"},
  };
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    experiment e;
    assert_int_not_equal(read_text(&e, bad[i].text), 0);
    if (!strstr(status_text(), bad[i].complaint))
      fail_msg("\"%s\": expected \"%s\", found \"%s\"", bad[i].text, bad[i].complaint, status_text());
    status_reset();
  }
}

static void the_files_built_in_fit_their_methods(void **state) {
  (void)state;
  experiment *all;
  size_t n;
  assert_int_equal(experiments_open(&all, &n, ""), 0);
  assert_int_equal(n, FALSIFY_COUNT);
  for (size_t i = 0; i < n; i++) {
    assert_int_equal(all[i].id, (int)i + 1);
    assert_int_equal(falsify_check(&all[i]), 0);
  }
  free(all);
  experiment *folder;
  assert_int_equal(experiments_open(&folder, &n, MOE_SOURCE_DIR "/configs/falsify"), 0);
  assert_int_equal(n, FALSIFY_COUNT);
  free(folder);
  assert_int_not_equal(experiments_open(&folder, &n, MOE_SOURCE_DIR "/docs"), 0);
  assert_non_null(strstr(status_text(), "NNN*.toml"));
  status_reset();
}

// ---- the verdict ----

static experiment_verdict judge(double x, double y) {
  static experiment e;
  static experiment_result r;
  assert_int_equal(read_text(&e, GOOD), 0);
  r = (experiment_result){.settings = &e};
  experiment_add(&r, x, "%s", "x");
  experiment_add(&r, y, "%s", "y");
  return experiment_judge(&r) ? VERDICT_NONE : r.verdict;
}

static void a_verdict_follows_from_the_predictions(void **state) {
  (void)state;
  assert_int_equal(judge(1, 1e-7), VERDICT_SUPPORTED);
  assert_int_equal(judge(0.5, 1e-6), VERDICT_SUPPORTED);
  assert_int_equal(judge(2, -5), VERDICT_SUPPORTED);
  assert_int_equal(judge(0.4, 1e-7), VERDICT_REFUTED);
  assert_int_equal(judge(2.1, 1e-7), VERDICT_REFUTED);
  assert_int_equal(judge(1, 2e-6), VERDICT_REFUTED);
  assert_int_equal(judge(1, INFINITY), VERDICT_REFUTED);
  assert_int_equal(judge(NAN, 1e-7), VERDICT_NONE); // not a number: no verdict, an error
  assert_non_null(strstr(status_text(), "x: expected a figure"));
  status_reset();
}

static void a_figure_that_is_not_there_is_an_error(void **state) {
  (void)state;
  experiment e;
  assert_int_equal(read_text(&e, GOOD), 0);
  experiment_result *r = calloc(1, sizeof *r);
  r->settings = &e;
  experiment_add(r, 1, "x");
  assert_int_not_equal(experiment_judge(r), 0); // y
  status_reset();
  experiment_add(r, 0, "y");
  assert_int_equal(experiment_judge(r), 0);
  for (int i = 0; i < EXPERIMENT_FIGURES; i++) experiment_add(r, i, "figure_%d", i);
  assert_int_not_equal(experiment_judge(r), 0);
  assert_non_null(strstr(status_text(), "figures"));
  status_reset();
  experiment_result_close(r);
  free(r);
}

// Random edits of a good file: any answer will do, but it must be an answer, with a text when it is a
// refusal.
static void random_edits_get_an_answer(void **state) {
  (void)state;
  static const char ALPHABET[] = "\"'[]{}=.,#\n\\ \xff\x00 0a9-+_ue";
  srand(seed);
  int refused = 0;
  for (int round = 0; round < 3000; round++) {
    char text[sizeof GOOD];
    experiment e;
    memcpy(text, GOOD, sizeof GOOD);
    for (int edits = 1 + rand() % 4; edits; edits--)
      text[(size_t)rand() % (sizeof GOOD - 1)] = ALPHABET[(size_t)rand() % (sizeof ALPHABET - 1)];
    status result = experiment_read(&e, "test.toml", text, sizeof GOOD - 1);
    assert_true((result != 0) == (*status_text() != 0));
    refused += result != 0;
    status_reset();
  }
  assert_true(refused > 300 && refused < 3000);
}

// ---- flips ----

static double sample_normal(void) { // the sum of 12 uniform numbers, less 6
  double sum = -6;
  for (int i = 0; i < 12; i++) sum += (double)rand() / RAND_MAX;
  return sum;
}

static void the_chance_of_a_flip_of_two_is_phi(void **state) {
  (void)state;
  for (double margin = 0; margin < 6; margin += 0.25) {
    const double logits[2] = {0.3, 0.3 + margin};
    bool chosen[2];
    assert_true(fabs(flip_choose(chosen, logits, 2, 1) - margin) < 1e-12);
    assert_true(margin == 0 ? chosen[0] : chosen[1]);           // the lower index on a tie
    double wanted = erfc(margin / 0.7 / sqrt(2) / sqrt(2)) / 2; // of a difference of two: sqrt(2) times sigma
    assert_true(fabs(flip_chance(logits, chosen, 2, margin, 0.7) - wanted) < 1e-3);
  }
}

static void the_chance_of_a_flip_of_many_is_what_is_seen(void **state) {
  (void)state;
  enum { N = 12, K = 4, TRIALS = 40000 };
  srand(seed);
  for (int round = 0; round < 4; round++) {
    double logits[N], sigma = 0.05 + 0.1 * round;
    bool chosen[N], again[N];
    int flips = 0;
    for (int e = 0; e < N; e++) logits[e] = sample_normal();
    double margin = flip_choose(chosen, logits, N, K);
    for (int trial = 0; trial < TRIALS; trial++) {
      double moved[N];
      for (int e = 0; e < N; e++) moved[e] = logits[e] + sigma * sample_normal();
      flip_choose(again, moved, N, K);
      flips += memcmp(chosen, again, sizeof chosen) != 0;
    }
    double found = flip_chance(logits, chosen, N, margin, sigma), seen = (double)flips / TRIALS;
    double error = sqrt(seen * (1 - seen) / TRIALS); // and a margin for the tails of 12 uniform numbers
    if (fabs(found - seen) > 6 * error + 0.01) fail_msg("chance %g, seen %g", found, seen);
  }
  const double logits[3] = {1, 2, 3};
  bool all[3];
  assert_true(isinf(flip_choose(all, logits, 3, 3)) && all[0] && all[1] && all[2]);
  assert_true(flip_chance(logits, all, 3, INFINITY, 1) == 0);
}

int main(void) {
  seed = (unsigned)test_seed();
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(xorshift32_is_marsaglias),
      cmocka_unit_test(uniform_numbers_are_what_their_bits_say),
      cmocka_unit_test(draws_are_kept_by_number),
      cmocka_unit_test(a_file_is_read),
      cmocka_unit_test(a_terminal_does_not_obey_a_file),
      cmocka_unit_test(a_bad_file_is_refused_by_place),
      cmocka_unit_test(the_files_built_in_fit_their_methods),
      cmocka_unit_test(a_verdict_follows_from_the_predictions),
      cmocka_unit_test(a_figure_that_is_not_there_is_an_error),
      cmocka_unit_test(random_edits_get_an_answer),
      cmocka_unit_test(the_chance_of_a_flip_of_two_is_phi),
      cmocka_unit_test(the_chance_of_a_flip_of_many_is_what_is_seen),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
