#include "src/commands/compare.h"
#include "src/report/report_diff.h"
#include "src/report/trace_diff.h"
#include <string.h>
#include <sys/stat.h>

typedef struct {
  const char *path[2], *out;
} compare_args;

static status flush(FILE *out) {
  return fflush(out) ? FAIL("standard output: the comparison could not be written: %m") : 0;
}

static status compare_reports(bool *same, const compare_args *args) {
  recorded_report a, b;
  if (args->out) return REFUSE("compare: --out is for two traces, found reports");
  TRY(report_read(&a, args->path[0]));
  status result = report_read(&b, args->path[1]);
  if (!result) {
    result = report_diff(same, stdout, &a, &b);
    report_read_close(&b);
  }
  report_read_close(&a);
  return result ? result : flush(stdout);
}

static status compare_traces(bool *same, const compare_args *args) {
  recorded_trace a, b;
  TRY(trace_read(&a, args->path[0]));
  status result = trace_read(&b, args->path[1]);
  if (!result) {
    result = trace_diff(same, stdout, &a, &b, args->out);
    trace_read_close(&b);
  }
  trace_read_close(&a);
  return result ? result : flush(stdout);
}

// Of a folder; a file is a report, or else report_read says what it is.
static bool is_report_there(const char *path) {
  char file[4096];
  struct stat s;
  if (!stat(path, &s) && !S_ISDIR(s.st_mode)) return true;
  int n = snprintf(file, sizeof file, "%s/report.json", path);
  return n < (int)sizeof file && !stat(file, &s);
}

// What lies in the folders decides. *traces: two traces, else two reports.
static status choose(bool *traces, const compare_args *args) {
  bool has_report[2], has_trace[2];
  for (int i = 0; i < 2; i++) {
    has_report[i] = is_report_there(args->path[i]);
    has_trace[i] = trace_is_there(args->path[i]);
    if (has_report[i] && has_trace[i])
      return REFUSE("%s: holds a report and a trace: name its report.json, or the folder of one arm",
                    args->path[i]);
  }
  if (has_report[0] != has_report[1] && has_trace[0] != has_trace[1])
    return REFUSE("%s is a %s and %s a %s: expected two of a kind", args->path[0],
                  has_report[0] ? "report" : "trace", args->path[1], has_report[1] ? "report" : "trace");
  *traces = has_trace[0] || has_trace[1];
  return 0;
}

static status parse(compare_args *out, int n_args, char **args) {
  int n = 0;
  *out = (compare_args){.out = NULL};
  for (int i = 0; i < n_args; i++) {
    if (!strcmp(args[i], "--out") && !out->out && i + 1 < n_args)
      out->out = args[++i];
    else if (args[i][0] == '-' || n == 2)
      return REFUSE("compare: unknown argument \"%s\": expected A B [--out DIR]", args[i]);
    else
      out->path[n++] = args[i];
  }
  if (n == 2) return 0;
  return REFUSE("compare: expected two reports or traces, files or their folders, found %d arguments", n);
}

status compare_run(int n_args, char **args) {
  compare_args a;
  bool same = false, traces = false;
  TRY(parse(&a, n_args, args));
  TRY(choose(&traces, &a));
  TRY(traces ? compare_traces(&same, &a) : compare_reports(&same, &a));
  return same ? 0 : STATUS_DIFFERS;
}

void compare_print_options(FILE *out) {
  fprintf(
      out,
      "  A and B are report.json of two runs, or their folders; or two traces, or arms of traces "
      "(FOLDER/ARM),\n"
      "  of which one may be a folder of .npy that another program wrote, by llama.cpp's names. Exit code:\n"
      "  0 reports have the same bits in every pair of arms of one path, traces hold nothing that is off;\n"
      "  3 other bits, or a probe that is off; 2 the two cannot be compared, and why.\n"
      "  --out DIR        of traces: the figures of every probe, DIR/compare.json\n");
}
