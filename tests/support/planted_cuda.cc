// planted_cuda: which of the faults of plant_cuda.py is switched on, by MOE_PLANTED. A name that is none ends
// the run, and none at all is the program as it is.
#include "planted.h"
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
