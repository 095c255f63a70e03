#include "src/deal.h"
#include "base/memory.h"
#include <stdlib.h>

static bool shares(const deal *d, int rank) {
  return !d->shared || d->shared[rank];
}

status deal_open(deal *out, const bool *shared, int n_ranks, int rank, int64_t max_batch) {
  *out = (deal){.rank = rank, .n_ranks = n_ranks, .shared = shared};
  for (int r = 0; r < n_ranks; r++) out->n_shared += shares(out, r);
  TRY(TAKE(&out->tokens_of_rank, (size_t)n_ranks, "the dealt tokens"));
  TRY(TAKE(&out->next, (size_t)n_ranks, "the dealt tokens"));
  if (!deal_has(out, max_batch)) return 0;
  TRY(TAKE(&out->token, (size_t)max_batch, "the dealt tokens"));
  TRY(TAKE(&out->sequence, (size_t)max_batch, "the dealt tokens"));
  TRY(TAKE(&out->position, (size_t)max_batch, "the dealt tokens"));
  return TAKE(&out->row_of_token, (size_t)max_batch, "the dealt tokens");
}

void deal_close(deal *d) {
  if (!d) return;
  free(d->tokens_of_rank);
  free(d->next);
  free(d->token);
  free(d->sequence);
  free(d->position);
  free(d->row_of_token);
}

bool deal_has(const deal *d, int64_t n) {
  return d->n_shared > 1 && n >= (int64_t)d->n_shared * DEAL_LEAST;
}

// The rank of the block after that of `rank`'s.
static int next_shared(const deal *d, int rank) {
  do rank = (rank + 1) % d->n_ranks;
  while (!shares(d, rank));
  return rank;
}

static void count_tokens(deal *d, int64_t n) {
  int64_t first = 0;
  for (int r = 0; r < d->n_ranks; r++) d->tokens_of_rank[r] = 0;
  for (int64_t t = 0, r = next_shared(d, -1); t < n; t += DEAL_TOKENS, r = next_shared(d, (int)r))
    d->tokens_of_rank[r] += n - t < DEAL_TOKENS ? n - t : DEAL_TOKENS;
  for (int r = 0; r < d->n_ranks; first += d->tokens_of_rank[r++]) d->next[r] = first;
}

void deal_batch(deal *d, const token_batch *batch) {
  if (!deal_has(d, batch->n)) return;
  count_tokens(d, batch->n);
  for (int64_t t = 0, r = -1; t < batch->n; t++) {
    if (t % DEAL_TOKENS == 0) r = next_shared(d, (int)r);
    int64_t row = d->next[r]++;
    d->row_of_token[t] = (int32_t)row;
    d->token[row] = batch->token[t];
    d->sequence[row] = batch->sequence[t];
    d->position[row] = batch->position[t];
  }
  d->rows = (token_batch){batch->n, d->token, d->sequence, d->position};
}

const token_batch *deal_rows(const deal *d, const token_batch *batch) {
  return deal_has(d, batch->n) ? &d->rows : batch;
}

row_range deal_own(const deal *d, int64_t n) {
  row_range own = {0, n};
  if (!deal_has(d, n)) return own;
  for (int r = 0; r < d->rank; r++) own.first += d->tokens_of_rank[r];
  own.count = d->tokens_of_rank[d->rank];
  return own;
}

int64_t deal_row(const deal *d, int64_t n, int64_t t) {
  return deal_has(d, n) ? d->row_of_token[t] : t;
}
