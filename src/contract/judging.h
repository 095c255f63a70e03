// judging: the parts of judge.h, for judge*.c.
#pragma once
#include "src/contract/judge.h"
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <string.h>

enum { JUDGE_WHERE_BYTES = 112 };

// A number of a report's object; NaN where it is null, or not there.
static inline double figure_of(const json_t *object, const char *key) {
  const json_t *x = json_object_get(object, key);
  return json_is_number(x) ? json_number_value(x) : (double)NAN;
}

// Each adds its lines; fails where the report lacks what the contract asks for.
status judge_invariants(verdict *v, const contract *c, const recorded_report *r); // judge_arms.c
status judge_exact(verdict *v, const contract *c, const recorded_report *r);      // judge_arms.c
status judge_gate(verdict *v, const contract *c, const contract_gate *g,
                  const recorded_report *r); // judge_gates.c
