// input: what input.* names, as token sequences.
//
// Independent of: ranks. job.c checks, with input_hash, that all have read the same.
#pragma once
#include "src/config/config_types.h"
#include "src/model/model.h"
#include "src/run/batcher.h"
#include "src/text/tokenizer.h"

typedef struct { // lengths, in tokens
  int64_t total, longest;
  int64_t which; // the longest sequence, the first on a tie
} input_size;

// (*out)[*n] sequences, each with at least one token, every id in the model's vocabulary. t NULL: the model
// has no tokenizer, and input as text is an error. input_close releases what there is, after an error too.
status input_open(token_sequence **out, int64_t *n, const config *c, const model *m, const tokenizer *t);
void input_close(token_sequence *sequences, int64_t n);

// Token t of sequence s where tokens are drawn, not read (bench, screen): the same for every arm, rank and
// cut; no constant, so that experts are used as in a text.
int32_t input_drawn(uint64_t seed, int64_t vocabulary, int64_t s, int64_t t);

input_size input_measure(const token_sequence *sequences, int64_t n);
uint64_t input_hash(const token_sequence *sequences, int64_t n); // of all tokens and of where sequences end
