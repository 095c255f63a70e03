// checking: what the checks of a report share: counting, and taking numbers out of its tree. For
// report_check*.c.
#pragma once
#include "src/contract/report_check.h"
#include <jansson.h>
#include <math.h>

enum { CHECK_WHERE_BYTES = 112 };

typedef struct {
  verdict *v;
  const recorded_report *r;
  size_t n, failed;
} checking;

// Counts a check; one that fails is a line of the verdict.
#define EXPECT(c, good, where, ...)                                                                          \
  do {                                                                                                       \
    bool good_ = (good);                                                                                     \
    (c)->n++;                                                                                                \
    (c)->failed += !good_;                                                                                   \
    if (!good_) verdict_add((c)->v, VERDICT_STRUCTURE, "structure", where, false, __VA_ARGS__);              \
  } while (0)

static inline const json_t *root_of(const recorded_report *r) {
  return r->tree;
}

// A number, or null as NaN; a key that is missing or of another type is a failed check and NaN.
double check_number(checking *c, const json_t *object, const char *key, const char *where);
int64_t check_integer(checking *c, const json_t *object, const char *key, const char *where);  // failed: -1
const char *check_text(checking *c, const json_t *object, const char *key, const char *where); // failed: ""
void check_all_pairs(checking *c);                 // report_check_pairs.c
int64_t check_positions(const recorded_report *r); // of all sequences
// Both NaN, or equal.
static inline bool same_number(double a, double b) {
  return a == b || (isnan(a) && isnan(b));
}
