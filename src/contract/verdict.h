// verdict: what was found, line by line: each check and gate with its figure, bound, distance and outcome.
//
// Independent of: what is checked. Local.
#pragma once
#include "src/contract/contract.h"
#include <stdio.h>

enum { VERDICT_REASON_BYTES = 320 };

typedef enum { VERDICT_STRUCTURE, VERDICT_INVARIANT, VERDICT_EXACT, VERDICT_GATE } verdict_kind;

typedef struct {
  verdict_kind kind;
  char name[128], where[112];
  bool has_bound, is_most; // is_most: figure <= bound
  double figure, bound, margin, used;
  bool holds;
  char
      reason[VERDICT_REASON_BYTES]; // why it does not hold, or what was compared; "" where the numbers say it
  const falsifier_list *falsifiers; // of the contract's gate; NULL: none
} verdict_line;

typedef struct {
  verdict_line *line; // [n]
  size_t n, room, failed;
  status out_of_memory; // a line was lost: nothing may be said
} verdict;

void verdict_close(verdict *v);

// A check without a figure. reason may be NULL where it holds.
void verdict_add(verdict *v, verdict_kind kind, const char *name, const char *where, bool holds,
                 const char *reason, ...) __attribute__((format(printf, 6, 7)));
// A figure against a bound; NaN never holds.
void verdict_add_bound(verdict *v, verdict_kind kind, const char *name, const char *where,
                       const metric_info *m, double figure, double bound, bool is_most,
                       const falsifier_list *falsifiers);

typedef struct { // of the report, for the head
  const char *path, *command;
  uint64_t fingerprint, input;
  size_t n_ranks;
} verdict_report;

// Gates of many layers are printed as their worst place and those that fail; verdict_write has all of them.
void verdict_print(FILE *out, const verdict *v, const contract *c, const verdict_report *r);
// Writes DIR/verify.json.
status verdict_write(const verdict *v, const contract *c, const verdict_report *r, const char *dir);
