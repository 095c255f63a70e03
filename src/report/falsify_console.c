#include "src/report/falsify_report.h"
#include <inttypes.h>
#include <math.h>
#include <string.h>

enum { WIDTH = 116, INDENT = 11 }; // columns of a line; of the text after its label

// The text after a label of INDENT columns, broken between words.
static void print_text(FILE *out, const char *label, const char *text) {
  int at = fprintf(out, "  %-*s", INDENT - 2, label);
  while (*text) {
    int n = (int)strcspn(text, " ");
    if (at + n > WIDTH && at > INDENT) at = fprintf(out, "\n%*s", INDENT, "") - 1;
    at += fprintf(out, "%.*s", n, text);
    text += n;
    while (*text == ' ') text++;
    if (*text && at < WIDTH) at += fprintf(out, " ");
  }
  fputc('\n', out);
}

static void print_number(FILE *out, double x) {
  if (isnan(x))
    fprintf(out, " %10s", "");
  else if (x == floor(x) && fabs(x) < 1e7)
    fprintf(out, " %10.0f", x);
  else
    fprintf(out, " %10.3e", x);
}

static void print_figure(FILE *out, const experiment_result *r, const experiment_figure *f) {
  static const char *const ENDS[] = {"p01", "median", "p99"};
  double known = experiment_known(r->settings, f->name);
  fprintf(out, "    %-30s", f->name);
  print_number(out, f->value);
  for (int i = 0; i < 3; i++) print_number(out, experiment_of_draws(r, f->name, ENDS[i]));
  double quantile = experiment_of_draws(r, f->name, "quantile");
  if (isnan(quantile))
    fprintf(out, " %7s", "");
  else
    fprintf(out, " %6.1f%%", 100 * quantile);
  if (!isnan(known)) {
    double place = experiment_of_draws(r, f->name, "known_quantile");
    fprintf(out, " %10.3e", known);
    if (!isnan(place)) fprintf(out, " at %.1f%%", 100 * place);
  }
  fputc('\n', out);
}

static void print_bounds(FILE *out, const experiment_result *r) {
  char text[EXPERIMENT_TEXT];
  for (size_t i = 0; i < r->settings->n_bounds; i++) {
    experiment one = {.bounds = {r->settings->bounds[i]}, .n_bounds = 1};
    double figure = experiment_figure_of(r, one.bounds[0].figure);
    experiment_bound_text(text, sizeof text, &one);
    fprintf(out, "  %-*s%s: %s, found %.4g\n", INDENT - 2, i ? "" : "predicts", text,
            experiment_bound_holds(&one.bounds[0], figure) ? "holds" : "fails", figure);
  }
}

void falsify_print_heading(FILE *out, const char *model) {
  fprintf(out, "moe_run falsify\n  file    %s\n", model);
}

void falsify_print(FILE *out, const experiment_result *r) {
  size_t n = r->n_figures < EXPERIMENT_FIGURES ? r->n_figures : EXPERIMENT_FIGURES;
  fprintf(out, "\n%03d %s: %s  (%.1f s)\n", r->settings->id, r->settings->name,
          experiment_verdict_name(r->verdict), r->seconds);
  print_text(out, "claim", r->settings->hypothesis);
  print_text(out, "method", r->method);
  for (size_t i = 0; i < r->n_notes; i++) print_text(out, "note", r->notes[i]);
  print_bounds(out, r);
  fprintf(out, "    %-30s %10s %10s %10s %10s %7s %10s\n", "figure", "found", "1%", "median", "99%", "at",
          "known");
  for (size_t i = 0; i < n; i++)
    if (!r->figures[i].of_draws) print_figure(out, r, &r->figures[i]);
}

void falsify_print_verdicts(FILE *out, const experiment_result *results, size_t n) {
  fputs("\nVerdicts\n", out);
  for (size_t i = 0; i < n; i++)
    fprintf(out, "  %03d  %-24s %s\n", results[i].settings->id, results[i].settings->name,
            experiment_verdict_name(results[i].verdict));
}
