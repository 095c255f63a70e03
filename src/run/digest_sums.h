// digest_sums: the digests of an arm's logits and layers, as sums by sequence.
//
// Independent of: what is digested (digest_row in kernels/backend.h).
#pragma once
#include "dist/comm.h"

typedef struct {
  int64_t n_layers, n_sequences;
  uint64_t *logits; // [n_sequences]
  uint64_t *layers; // [n_layers][n_sequences], of batches whose every row this rank computed
  uint64_t *parts;  // [n_layers][n_sequences], of this rank's rows of token-sharded batches
  uint64_t *part;   // [n_sequences] of this rank's part of some rows of logits
  uint64_t *all;    // [ranks][n_sequences] room
} digest_sums;

status digest_sums_open(digest_sums *out, int64_t n_layers, int64_t n_sequences, int n_ranks);
void digest_sums_close(digest_sums *d); // takes a zeroed one
void digest_sums_reset(digest_sums *d);
// Collective. Adds every rank's parts to the layers' digests.
status digest_sums_add_parts(digest_sums *d, comm *c);

// Collective. Adds every rank's `part` to the logits' digests, and clears it.
status digest_sums_add_part(digest_sums *d, comm *c);

uint64_t digest_sums_of_logits(const digest_sums *d); // all sequences
uint64_t digest_sums_of_layer(const digest_sums *d, int64_t layer);

// All of logits and layers, [(n_layers + 1) * n_sequences], to be kept and given back.
void digest_sums_read(const digest_sums *d, uint64_t *out);
void digest_sums_write(digest_sums *d, const uint64_t *in);
