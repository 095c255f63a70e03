// seed: the one seed of a test program's random inputs, drawn or given back.
//
// Owns: MOE_SEED. Invariant: it is printed at the start and again at the end of a program that fails, so that
// the output of a failure alone is enough to have it again: MOE_SEED=N ctest -R NAME. CI fixes it (.ci/run).
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

static inline void seed_tell_failure(int code, void *seed) {
  enum { SKIPPED = 77 };
  if (code && code != SKIPPED)
    fprintf(stderr, "the same inputs again: MOE_SEED=%llu\n", (unsigned long long)*(uint64_t *)seed);
}

// MOE_SEED where it is set, else drawn from the clock. A number that is short enough to type.
static inline uint64_t test_seed(void) {
  static uint64_t seed;
  const char *given = getenv("MOE_SEED");
  char *end = NULL;
  struct timespec now;
  clock_gettime(CLOCK_REALTIME, &now);
  seed = ((uint64_t)now.tv_sec * 1000000007u + (uint64_t)now.tv_nsec) % 1000000000u;
  if (given && *given) seed = strtoull(given, &end, 10);
  if (end && *end) {
    fprintf(stderr, "MOE_SEED: expected a number, found \"%s\"\n", given);
    exit(2);
  }
  printf("MOE_SEED=%llu\n", (unsigned long long)seed);
  fflush(stdout);
  on_exit(seed_tell_failure, &seed);
  return seed;
}

// For generators whose state must have bits everywhere and not be 0.
static inline uint64_t test_seed_bits(void) {
  return (test_seed() + 1) * 0x9e3779b97f4a7c15u | 1;
}
