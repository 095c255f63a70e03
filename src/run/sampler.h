// sampler: the next token from a row of logits.
//
// Invariant: a function of (logits, settings, seed, position) alone: the same on every rank, alone or in a
// batch.
#pragma once
#include "base/status.h"
#include <stdint.h>

typedef struct {
  double temperature; // 0: greedy
  int64_t top_k;      // 0: all
  double top_p;       // in (0, 1]
  uint64_t seed;
} sampler_settings;

typedef struct sampler sampler;

status sampler_open(sampler **out, const sampler_settings *settings, int64_t vocabulary);
void sampler_close(sampler *s); // takes NULL

// *token: the one after `position`, from logits[vocabulary]. Greedy takes the lower index on a tie. A logit
// that is not finite is an error.
status sampler_next(sampler *s, const double *logits, int64_t position, int32_t *token);
