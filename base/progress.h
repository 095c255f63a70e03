// progress: prints the progress of long work on standard error: one line, rewritten, on a terminal, else
// plain lines.
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

// on false: prints nothing. what and unit are kept by reference; total, done: in units.
progress progress_start(bool on, const char *what, const char *unit, int64_t total);
void progress_at(progress *p, int64_t done);
void progress_end(progress *p); // clears the line; before anything else is printed
