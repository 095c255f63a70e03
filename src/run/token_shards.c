#include "src/run/token_shards.h"
#include "base/memory.h"
#include <stdlib.h>

static bool shares(const token_shards *d, int rank) {
  return !d->shared || d->shared[rank];
}

status token_shards_open(token_shards *out, const bool *shared, int n_ranks, int rank, int64_t max_batch) {
  *out = (token_shards){.rank = rank, .n_ranks = n_ranks, .shared = shared};
  for (int r = 0; r < n_ranks; r++) out->n_shared += shares(out, r);
  TRY(TAKE(&out->tokens_of_rank, (size_t)n_ranks, "the token shards"));
  TRY(TAKE(&out->next, (size_t)n_ranks, "the token shards"));
  if (!token_shards_apply(out, max_batch)) return 0;
  TRY(TAKE(&out->token, (size_t)max_batch, "the token shards"));
  TRY(TAKE(&out->sequence, (size_t)max_batch, "the token shards"));
  TRY(TAKE(&out->position, (size_t)max_batch, "the token shards"));
  return TAKE(&out->row_of_token, (size_t)max_batch, "the token shards");
}

void token_shards_close(token_shards *d) {
  if (!d) return;
  free(d->tokens_of_rank);
  free(d->next);
  free(d->token);
  free(d->sequence);
  free(d->position);
  free(d->row_of_token);
}

bool token_shards_apply(const token_shards *d, int64_t n) {
  return d->n_shared > 1 && n >= (int64_t)d->n_shared * SHARD_LEAST_TOKENS;
}

// The rank of the block after that of `rank`'s.
static int next_shared(const token_shards *d, int rank) {
  do rank = (rank + 1) % d->n_ranks;
  while (!shares(d, rank));
  return rank;
}

static void count_tokens(token_shards *d, int64_t n) {
  int64_t first = 0;
  for (int r = 0; r < d->n_ranks; r++) d->tokens_of_rank[r] = 0;
  for (int64_t t = 0, r = next_shared(d, -1); t < n; t += SHARD_BLOCK_TOKENS, r = next_shared(d, (int)r))
    d->tokens_of_rank[r] += n - t < SHARD_BLOCK_TOKENS ? n - t : SHARD_BLOCK_TOKENS;
  for (int r = 0; r < d->n_ranks; first += d->tokens_of_rank[r++]) d->next[r] = first;
}

void token_shards_cut(token_shards *d, const token_batch *batch) {
  if (!token_shards_apply(d, batch->n)) return;
  count_tokens(d, batch->n);
  for (int64_t t = 0, r = -1; t < batch->n; t++) {
    if (t % SHARD_BLOCK_TOKENS == 0) r = next_shared(d, (int)r);
    int64_t row = d->next[r]++;
    d->row_of_token[t] = (int32_t)row;
    d->token[row] = batch->token[t];
    d->sequence[row] = batch->sequence[t];
    d->position[row] = batch->position[t];
  }
  d->rows = (token_batch){batch->n, d->token, d->sequence, d->position};
}

const token_batch *token_shards_rows(const token_shards *d, const token_batch *batch) {
  return token_shards_apply(d, batch->n) ? &d->rows : batch;
}

row_range token_shards_owned(const token_shards *d, int64_t n) {
  row_range own = {0, n};
  if (!token_shards_apply(d, n)) return own;
  for (int r = 0; r < d->rank; r++) own.first += d->tokens_of_rank[r];
  own.count = d->tokens_of_rank[d->rank];
  return own;
}

int64_t token_shards_row(const token_shards *d, int64_t n, int64_t t) {
  return token_shards_apply(d, n) ? d->row_of_token[t] : t;
}
