#include "src/run/token_shards.h"
#include "base/memory.h"
#include <stdlib.h>

static bool is_shared(const token_shards *s, int rank) {
  return !s->shared || s->shared[rank];
}

status token_shards_open(token_shards *out, const bool *shared, int n_ranks, int rank, int64_t max_batch) {
  *out = (token_shards){.rank = rank, .n_ranks = n_ranks, .shared = shared};
  for (int r = 0; r < n_ranks; r++) out->n_shared += is_shared(out, r);
  TRY(TAKE(&out->tokens_of_rank, (size_t)n_ranks, "the token shards"));
  TRY(TAKE(&out->next, (size_t)n_ranks, "the token shards"));
  if (out->n_shared < 2) return 0;
  TRY(TAKE(&out->token, (size_t)max_batch, "the token shards"));
  TRY(TAKE(&out->sequence, (size_t)max_batch, "the token shards"));
  TRY(TAKE(&out->position, (size_t)max_batch, "the token shards"));
  return TAKE(&out->row_of_token, (size_t)max_batch, "the token shards");
}

void token_shards_close(token_shards *s) {
  if (!s) return;
  free(s->tokens_of_rank);
  free(s->next);
  free(s->token);
  free(s->sequence);
  free(s->position);
  free(s->row_of_token);
}

bool token_shards_apply(const token_shards *s, int64_t n) {
  return s->n_shared > 1 && n >= (int64_t)s->n_shared * SHARD_LEAST_TOKENS;
}

// The shared rank that computes the block after one of `rank`'s.
static int next_shared(const token_shards *s, int rank) {
  do rank = (rank + 1) % s->n_ranks;
  while (!is_shared(s, rank));
  return rank;
}

static void count_tokens(token_shards *s, int64_t n, int64_t block) {
  int64_t first = 0;
  for (int r = 0; r < s->n_ranks; r++) s->tokens_of_rank[r] = 0;
  for (int64_t t = 0, r = next_shared(s, -1); t < n; t += block, r = next_shared(s, (int)r))
    s->tokens_of_rank[r] += n - t < block ? n - t : block;
  for (int r = 0; r < s->n_ranks; first += s->tokens_of_rank[r++]) s->next[r] = first;
}

static bool are_apart(const token_batch *batch) {
  if (batch->n > APART_MOST_TOKENS) return false;
  for (int64_t t = 0; t < batch->n; t++)
    for (int64_t u = 0; u < t; u++)
      if (batch->sequence[u] == batch->sequence[t]) return false;
  return true;
}

void token_shards_cut(token_shards *s, const token_batch *batch, bool cut) {
  bool large = token_shards_apply(s, batch->n);
  int64_t block = large ? SHARD_BLOCK_TOKENS : 1;
  s->is_cut = cut;
  s->is_apart = cut && are_apart(batch);
  if (!cut) return;
  count_tokens(s, batch->n, block);
  for (int64_t t = 0, r = -1; t < batch->n; t++) {
    if (t % block == 0) r = next_shared(s, (int)r);
    int64_t row = s->next[r]++;
    s->row_of_token[t] = (int32_t)row;
    s->token[row] = batch->token[t];
    s->sequence[row] = batch->sequence[t];
    s->position[row] = batch->position[t];
  }
  s->rows = (token_batch){batch->n, s->token, s->sequence, s->position};
}

const token_batch *token_shards_rows(const token_shards *s, const token_batch *batch) {
  return s->is_cut ? &s->rows : batch;
}

row_range token_shards_owned(const token_shards *s, int64_t n) {
  row_range owned = {0, n};
  if (!s->is_cut) return owned;
  for (int r = 0; r < s->rank; r++) owned.first += s->tokens_of_rank[r];
  owned.count = s->tokens_of_rank[s->rank];
  return owned;
}

int64_t token_shards_row(const token_shards *s, int64_t t) {
  return s->is_cut ? s->row_of_token[t] : t;
}
