// audit_coverage: how much of the other ranks' work an audit has recomputed (audit.h), for a report.
#pragma once
#include <stdint.h>

typedef struct {                 // of all ranks, since audit_open
  double share;                  // 0: there was no audit
  int64_t slots, slots_seen;     // recomputed, and all of other ranks
  int64_t experts, experts_used; // of pairs (layer, expert): recomputed at least once, and used at all
  int64_t ranks, ranks_used;     // of which a slot was recomputed, and whose experts computed any
  double seconds;                // of the rank that took longest
} audit_coverage;
