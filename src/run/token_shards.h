// token_shards: which of a large batch's tokens each shared rank computes.
//
// Owns: the batch in the order in which its rows are computed. Independent of: how rows are transferred, and
// whether smaller batches are worth it (output_shards.h).
// Invariant: the same on every rank. Each rank's rows are contiguous, in the order of ranks, and among them
// the positions of a sequence ascend. Blocks of tokens are assigned round-robin, so that every rank has the
// same share of every stretch of positions, and with it the same work in attention.
#pragma once
#include "dist/exchange.h"
#include "kernels/backend.h"

enum {
  SHARD_BLOCK_TOKENS = 16,  // to a block: at least as many as a task of attention takes
  APART_MOST_TOKENS = 1024, // of a batch that is looked at for it: is_apart
  SHARD_LEAST_TOKENS = 64,  // to a rank; below, transferring rows may cost more than computing them on each
};

typedef struct {
  int rank, n_ranks, n_shared;
  const bool *shared;                   // [n_ranks]; NULL: all
  bool is_cut;                          // the last batch
  bool is_apart;                        // and no two of its tokens are of one sequence
  token_batch rows;                     // of the last batch that was sharded; what follows is of it too
  int64_t *tokens_of_rank;              // [n_ranks]
  int64_t *next;                        // [n_ranks] the row of each rank's next token
  int32_t *token, *sequence, *position; // [max_batch] of `rows`
  int32_t *row_of_token;                // [max_batch]
} token_shards;

// All functions are local. shared[n_ranks], NULL: all, is kept by reference. max_batch: tokens.
status token_shards_open(token_shards *out, const bool *shared, int n_ranks, int rank, int64_t max_batch);
void token_shards_close(token_shards *s); // takes NULL

// True: a batch of n tokens is always sharded, because it is large and there are several shared ranks.
bool token_shards_apply(const token_shards *s, int64_t n);
// Shards it, or with `cut` false leaves it whole. A small batch has at least a token to each shared rank.
void token_shards_cut(token_shards *s, const token_batch *batch, bool cut);

// Of the batch of n tokens of the last token_shards_cut: its rows in the order in which they are computed (a
// view); which of them this rank computes; the row of its token t. Where it is not sharded, the batch itself,
// all rows, and t.
const token_batch *token_shards_rows(const token_shards *s, const token_batch *batch);
row_range token_shards_owned(const token_shards *s, int64_t n);
int64_t token_shards_row(const token_shards *s, int64_t t);
