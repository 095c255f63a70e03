// planted_cuda: which of the faults of plant_cuda.py is switched on, by MOE_PLANTED. A name that is none ends
// the run, and none at all is the program as it is.
#include "planted.h"
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

static enum planted_name named(const char *name) {
  static const char *const names[] = {PLANTED_NAMES};
  for (size_t i = 0; i < sizeof names / sizeof *names; i++)
    if (!strcmp(names[i], name ? name : "")) return (enum planted_name)i;
  fprintf(stderr, "MOE_PLANTED=%s: no such fault\n", name);
  exit(2);
}

enum planted_name planted_now = named(getenv("MOE_PLANTED"));

// Numbers of one product as they are computed, on the one thread that emulates them.
extern "C" bool planted_strikes(void) {
  static const char *const rank = getenv("OMPI_COMM_WORLD_RANK"), *const wanted = getenv("MOE_PLANTED_RANK"),
                           *const rate = getenv("MOE_PLANTED_RATE");
  static uint64_t state = 0x9e3779b97f4a7c15u;
  if (!rate || atoi(rank ? rank : "0") != atoi(wanted ? wanted : "0")) return false;
  state ^= state << 13;
  state ^= state >> 7;
  state ^= state << 17;
  return (double)(state >> 11) * 0x1p-53 < atof(rate);
}
