// console: what the files that print the report share. For them alone.
#pragma once
#include "src/report/report.h"
#include <math.h>
#include <string.h>

typedef struct {
  char text[24];
} cell;

static inline cell format(const char *how, double x) {
  cell c;
  if (isfinite(x))
    snprintf(c.text, sizeof c.text, how, x);
  else
    snprintf(c.text, sizeof c.text, "%s", isnan(x) ? "nan" : x > 0 ? "inf" : "-inf");
  return c;
}

static inline cell
small(double x) { // a divergence: three digits and an exponent; an exact zero looks like one
  return x == 0 ? (cell){"0"} : format("%.2e", x);
}

static inline cell optional(const char *how, double x) {
  return isnan(x) ? (cell){"-"} : format(how, x);
}

static inline int widest(int least, const char *text) {
  int n = (int)strlen(text);
  return n > least ? n : least;
}

// The tables of pairs, of modes and of the account.
void report_print_divergences(const report *r, FILE *out);
