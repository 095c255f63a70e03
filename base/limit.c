#include "base/limit.h"
#include "base/clock.h"
#include <limits.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char text[1024]; // of the limit that is set
static size_t length;
static int exit_code;

static struct {
  bool is_on;
  double since, seconds, turn;
  const char *who;
  char waits_for[768];
} start;

static void on_limit(int signal_number) {
  (void)signal_number;
  if (length && write(STDERR_FILENO, text, length) < 0) _Exit(exit_code);
  _Exit(exit_code);
}

static void arm_alarm(double seconds) {
  signal(SIGALRM, on_limit);
  alarm(seconds < 1 ? 1 : seconds > INT_MAX ? INT_MAX : (unsigned)ceil(seconds));
}

void limit_set(double seconds, int code, const char *format, ...) {
  va_list args;
  alarm(0); // the text changes
  va_start(args, format);
  int n = vsnprintf(text, sizeof text, format, args);
  va_end(args);
  length = n < 0 ? 0 : n < (int)sizeof text ? (size_t)n : sizeof text - 1;
  exit_code = code;
  arm_alarm(seconds);
}

void limit_clear(void) {
  alarm(0);
}

static void set_start(void) {
  double left = start.since + start.seconds + start.turn - clock_seconds();
  limit_set(left, 1, "%s: the start: after %g s, %s\n", start.who, start.seconds, start.waits_for);
}

void limit_start(double seconds) {
  if (!start.is_on) {
    start.is_on = true;
    start.since = clock_seconds();
    start.who = "moe_run";
    snprintf(start.waits_for, sizeof start.waits_for, "not started yet");
  }
  start.seconds = seconds;
  set_start();
}

void limit_stage(const char *who, const char *format, ...) {
  va_list args;
  if (!start.is_on) return;
  if (who) start.who = who;
  va_start(args, format);
  vsnprintf(start.waits_for, sizeof start.waits_for, format, args);
  va_end(args);
  set_start();
}

void limit_turn(double later) {
  start.turn = later;
}

void limit_started(void) {
  if (start.is_on) limit_clear();
  start.is_on = false;
}
