// batcher: cuts token sequences into batches for the forward pass.
//
// Invariant: within a sequence positions ascend without a gap; how it is cut changes no result (the law).
#pragma once
#include "kernels/backend.h"

typedef struct {
  int32_t *tokens;
  int64_t n;
} token_sequence;

typedef struct {
  const token_sequence *sequences;
  int64_t n_sequences, chunk;
  int64_t number;             // that batches give to the first of `sequences`: 0 from batcher_open
  int64_t sequence, position; // where the next batch starts
  int32_t *token, *of_sequence, *at_position;
} batcher;

// At most `chunk` tokens to a batch; a batch may hold the end of one sequence and the start of the next.
status batcher_open(batcher *out, const token_sequence *sequences, int64_t n_sequences, int64_t chunk);
void batcher_close(batcher *f); // takes NULL
bool batcher_next(batcher *f,
                  token_batch *batch); // false: all given out; the batch is valid until the next call
