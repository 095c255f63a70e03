// Tests of base/stolen_time.h and of what bench's table says of it.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "base/stolen_time.h"
#include "src/report/bench_report.h"

static double from_text(const char *text) {
  char path[] = "/tmp/stolen_time.XXXXXX";
  int fd = mkstemp(path);
  assert_true(fd >= 0);
  assert_int_equal(write(fd, text, strlen(text)), (int)strlen(text));
  close(fd);
  double seconds = stolen_seconds_from(path);
  unlink(path);
  return seconds;
}

static void test_files(void **state) {
  (void)state;
  assert_true(sysconf(_SC_CLK_TCK) == 100); // what proc(5) counts in on Linux
  assert_true(from_text("cpu  1 2 3 4 5 6 7 1234 8 9\ncpu0 1 2 3 4 5 6 7 99 8 9\n") == 12.34);
  assert_true(from_text("cpu  1 2 3 4 5 6 7 0 0 0\n") == 0);
  assert_true(from_text("cpu  18446744073709551615 2 3 4 5 6 7 100 0 0\n") == 1);
  assert_true(isnan(from_text("cpu  1 2 3 4\n"))); // Linux before 2.6.11
  assert_true(isnan(from_text("")));
  assert_true(isnan(from_text("intr 1 2 3 4 5 6 7 8 9\n")));
  assert_true(isnan(stolen_seconds_from("/nonexistent/stat")));
}

static void test_this_host(void **state) {
  (void)state;
  double before = stolen_seconds(), after = stolen_seconds();
  assert_true(isnan(before) ? isnan(after) : before >= 0 && after >= before && after < 1e12);
}

// The table of two rows of 100 tokens a run; of the first nothing is known to be stolen.
static const char *table_of(double *rate, double *stolen, size_t n) {
  static char text[4096];
  bench_row row = {.arm = "q8k@cpu",
                   .row_name = "portable",
                   .decode = true,
                   .tokens = 100,
                   .batch = 1,
                   .n = n,
                   .rate = rate,
                   .stolen_seconds = stolen,
                   .bytes_per_token = NAN,
                   .exchange_seconds = NAN};
  double none[4] = {0};
  bench_row rows[2] = {row, row};
  rows[0].stolen_seconds = none;
  bench_report r = {.model = "m", .types = "F32", .cpu = "c", .ranks = 1, .rows = rows, .n_rows = 2};
  memset(text, 0, sizeof text);
  FILE *f = fmemopen(text, sizeof text - 1, "w");
  assert_non_null(f);
  bench_report_print(&r, BENCH_MD, f);
  fclose(f);
  return text;
}

static void expect_line(const char *line, double *stolen, size_t n) {
  double rate[] = {50, 100, 25, 80};
  const char *text = table_of(rate, stolen, n);
  if (!strstr(text, line)) fail_msg("no \"%s\" in:\n%s", line, text);
  assert_true(rate[0] == 50 && rate[1] == 100 && rate[2] == 25 && rate[3] == 80); // runs keep their order
}

static void test_table(void **state) {
  (void)state;
  double rate[] = {50, 100, 25, 80};
  expect_line("|\n\nq8k@cpu, tg100: 0.50 s of the cores' time stolen in 2 of 4 runs, together 8.25 s; "
              "the other 2: 90.00 tok/s (80.00 to 100.00)\n",
              (double[]){0.3, 0, 0.2, 0}, 4);
  expect_line("stolen in 3 of 4 runs, together 8.25 s; the other 1: 25.00 tok/s (25.00 to 25.00)\n",
              (double[]){0.03, 0.03, 0, 0.03}, 4);
  expect_line("\nq8k@cpu, tg100: 2.00 s of the cores' time stolen in 2 of 2 runs, together 3.00 s\n",
              (double[]){1, 1}, 2);
  assert_null(strstr(table_of(rate, (double[]){0.08, 0, 0, 0}, 4), "stolen")); // under a hundredth of 8.25 s
  assert_null(strstr(table_of(rate, (double[]){0, 0, 0, 0}, 4), "stolen"));
  assert_null(strstr(table_of(rate, (double[]){NAN, 5, NAN, 5}, 4), "stolen")); // not known
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_files),
      cmocka_unit_test(test_this_host),
      cmocka_unit_test(test_table),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
