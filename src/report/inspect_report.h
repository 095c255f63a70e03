// inspect_report: what a model file holds, whether a run would take it or not, as text or as JSON
// (docs/inspect.schema.json).
//
// Local: only the reporting rank calls it.
#pragma once
#include "src/run/job.h"
#include <stdio.h>

enum { INSPECT_SCHEMA = 1 };

typedef struct {
  int64_t experts; // of each layer
  uint64_t bytes;  // of them, over all layers
} rank_holding;

typedef struct {
  const model *m;
  const message_list *refusals; // why a run would refuse it; empty: it would not
  const message_list *warnings; // what its reports would repeat, apart from what the weights show
  const tokenizer *tokenizer;   // NULL: none that can be read
  const char *tokenizer_error;  // why it cannot be read; NULL: it can, or there is none
  const end_tokens *ends;
  const placement *experts;
  const rank_holding *ranks; // [n_ranks]; NULL: not known of a model that would be refused
  int n_ranks;
} inspection;

void inspect_print(FILE *out, const inspection *i);
status inspect_print_json(FILE *out, const inspection *i);
