// parity_mode: the ways to run the arms of a comparison, by name. What each does: src/run/arms_in_step.h.
#pragma once

typedef enum { MODE_FREE, MODE_FORCED, MODE_TEACHER } parity_mode; // in the order in which they run
enum { MODE_COUNT = MODE_TEACHER + 1 };

const char *parity_mode_name(parity_mode mode); // "free"
