#include "base/progress.h"
#include "base/clock.h"
#include <stdio.h>
#include <unistd.h>

progress progress_start(bool on, const char *what, const char *unit, int64_t total) {
  double now = clock_seconds();
  return (progress){.on = on, .what = what, .unit = unit, .total = total, .start = now, .last = now};
}

void progress_at(progress *p, int64_t done) {
  bool terminal = p->on && isatty(STDERR_FILENO);
  double now = clock_seconds();
  if (!p->on || now - p->last < (terminal ? 0.2 : 10)) return;
  double rate = (double)done / (now - p->start), left = rate > 0 ? (double)(p->total - done) / rate : 0;
  fprintf(stderr, "%s%s: %lld of %lld %s, %.1f/s, %.0f s left%s", terminal ? "\r\033[K" : "", p->what,
          (long long)done, (long long)p->total, p->unit, rate, left, terminal ? "" : "\n");
  fflush(stderr);
  p->last = now;
  p->shown = terminal;
}

void progress_end(progress *p) {
  if (p->shown) fprintf(stderr, "\r\033[K");
  p->shown = false;
}
