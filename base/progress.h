// progress: says on standard error how far long work has come: one line, rewritten, on a terminal, plain
// lines otherwise.
#pragma once
#include <stdbool.h>
#include <stdint.h>

typedef struct {
  bool on;
  const char *what, *unit;
  int64_t total;
  double start, last;
  bool shown;
} progress;

progress progress_start(bool on, const char *what, const char *unit, int64_t total);
void progress_at(progress *p, int64_t done);
void progress_end(progress *p);
