#include "base/stolen_time.h"
#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

double stolen_seconds_from(const char *path) {
  uint64_t stolen;
  FILE *f = fopen(path, "re");
  if (!f) return __builtin_nan("");
  // user, nice, system, idle, waiting for devices, interrupts, soft interrupts, stolen
  int found = fscanf(f, "cpu %*u %*u %*u %*u %*u %*u %*u %" SCNu64, &stolen);
  fclose(f);
  return found == 1 ? (double)stolen / (double)sysconf(_SC_CLK_TCK) : __builtin_nan("");
}

double stolen_seconds(void) {
  return stolen_seconds_from("/proc/stat");
}
