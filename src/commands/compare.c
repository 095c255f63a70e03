#include "src/commands/compare.h"
#include "src/report/report_diff.h"

static status compare(bool *same, const recorded_report *a, const recorded_report *b) {
  TRY(report_diff(same, stdout, a, b));
  return fflush(stdout) ? FAIL("standard output: the comparison could not be written: %m") : 0;
}

status compare_run(int n_args, char **args) {
  recorded_report a, b;
  bool same = false;
  if (n_args != 2)
    return REFUSE("compare: expected two reports, files or their folders, found %d arguments", n_args);
  TRY(report_read(&a, args[0]));
  status result = report_read(&b, args[1]);
  if (!result) {
    result = compare(&same, &a, &b);
    report_read_close(&b);
  }
  report_read_close(&a);
  return result ? result : same ? 0 : STATUS_DIFFERS;
}

void compare_print_options(FILE *out) {
  fprintf(
      out,
      "  A and B are report.json of two runs, or their folders. Exit code: 0 the same bits in every pair\n"
      "  of arms of one path, 3 other bits, 2 the two cannot be compared, and why.\n");
}
