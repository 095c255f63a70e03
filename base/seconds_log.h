// seconds_log: how long each of a sequence of events took, for who compares them between ranks.
//
// Independent of: what the events are. Invariant: `sum` is of all events, also of those that had no room.
#pragma once
#include <stdint.h>

typedef struct {
  double *seconds; // [room] of the caller
  int64_t n, room; // n may be larger than room
  double sum;
} seconds_log;

static inline void seconds_log_add(seconds_log *log, double seconds) { // NULL: nobody asks
  if (!log) return;
  if (log->n < log->room) log->seconds[log->n] = seconds;
  log->n++;
  log->sum += seconds;
}
