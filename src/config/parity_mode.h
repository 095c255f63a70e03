// parity_mode: the ways to run the arms of a comparison, by name. What each does: src/run/arms_in_step.h.
#pragma once

#include <stdbool.h>

typedef enum {
  MODE_FREE,
  MODE_FORCED,
  MODE_TEACHER,
  MODE_LOCAL
} parity_mode; // in the order in which they run
enum { MODE_COUNT = MODE_LOCAL + 1 };

const char *parity_mode_name(parity_mode mode);    // "free"
bool parity_mode_imposes_stream(parity_mode mode); // of the truth, on every other arm
bool parity_mode_imposes_routing(parity_mode mode);
