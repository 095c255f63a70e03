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
  int64_t number;             // the sequence number of sequences[0] in the batches; 0 from batcher_open
  int64_t sequence, position; // where the next batch starts
  int32_t *token, *of_sequence, *at_position;
} batcher;

// At most `chunk` tokens to a batch; a batch may hold the end of one sequence and the start of the next.
// sequences[n_sequences] are kept by reference.
status batcher_open(batcher *out, const token_sequence *sequences, int64_t n_sequences, int64_t chunk);
void batcher_close(batcher *b); // takes NULL
// False: no tokens are left. *batch is a view, valid until the next call.
bool batcher_next(batcher *b, token_batch *batch);
