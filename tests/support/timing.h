// What the programs that time kernels share (time_attention, time_law_cpu): they measure, and judge nothing.
#pragma once
#include "base/memory.h"
#include <stdlib.h>
#include <time.h>

// Of this thread alone, so that other work on the machine counts less.
static inline double thread_seconds(void) {
  struct timespec t;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static inline void *room(size_t bytes) { // never freed: the program ends soon
  void *p;
  if (memory_take(&p, bytes, 1, "a timing")) exit(1);
  return p;
}
