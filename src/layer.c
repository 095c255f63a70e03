#include "src/layer.h"

status forward_embed(forward_state *f, const token_batch *batch) {
  return f->is_shared ? f->compute->ops->embed(f->compute, batch) : 0;
}

// Each rank has computed its rows_of_rank; then those of `to` have all. A device's rows pass through the
// host. Every rank comes here, also one that neither gives nor takes, so that their collectives stay in step.
static status gather_rows(forward_state *f, row_kind kind, const int64_t *rows_of_rank, rank_set to,
                          int64_t layer) {
  backend *b = f->compute;
  const backend_ops *step = b->ops;
  int64_t first, count, all = exchange_own_rows(f->ranks, rows_of_rank, &first, &count);
  if (step->rows_read) TRY(step->rows_read(b, kind, first, count));
  TRY(exchange_gather(f->ranks, step->rows_host(b, kind), (size_t)f->hidden * f->path->real_bytes,
                      rows_of_rank, to, layer));
  if (!step->rows_write || !exchange_takes(f->ranks, to)) return 0;
  TRY(step->rows_write(b, kind, 0, first));
  return step->rows_write(b, kind, first + count, all - first - count);
}

// Of a large batch each shared rank takes some of the queries. A query costs its own two products (q and o)
// over `hidden` and the two of scores and values over the positions that it sees.
static status attend(forward_state *f, int64_t layer, const token_batch *batch) {
  backend *b = f->compute;
  int n_ranks = exchange_shared_count(f->ranks);
  if (n_ranks == 1 || batch->n < (int64_t)n_ranks * SPLIT_TOKENS)
    return f->is_shared ? b->ops->attention(b, layer, batch, 0, batch->n) : 0;
  int64_t first, count;
  for (int64_t t = 0; t < batch->n; t++) f->cost[t] = f->hidden + batch->position[t] + 1;
  exchange_split(f->ranks, f->tokens_of_rank, f->cost, batch->n);
  exchange_own_rows(f->ranks, f->tokens_of_rank, &first, &count);
  if (f->is_shared) TRY(b->ops->attention(b, layer, batch, first, count));
  return gather_rows(f, ROWS_RESIDUAL, f->tokens_of_rank, SHARED_RANKS, layer);
}

// The shared ranks each send a part of what the experts read, and of who computes what.
static status inform_expert_ranks(forward_state *f, int64_t layer, const token_batch *batch) {
  exchange_split(f->ranks, f->tokens_of_rank, NULL, batch->n);
  TRY(exchange_gather(f->ranks, f->route.expert, (size_t)f->top_k * sizeof *f->route.expert,
                      f->tokens_of_rank, EXPERT_RANKS, layer));
  return gather_rows(f, ROWS_NORMED, f->tokens_of_rank, EXPERT_RANKS, layer);
}

status forward_layer(forward_state *f, int64_t layer, const token_batch *batch) {
  backend *b = f->compute;
  const backend_ops *step = b->ops;
  bool alone = exchange_is_alone(f->ranks), on_device = step->finish && alone;
  routing *route = on_device && !f->wants_routing ? NULL : &f->route;
  TRY(attend(f, layer, batch)); // x += o(attention(norm(x))), then the same on every shared rank
  if (f->is_shared)             // the same on these, so all of them know who computes what
    TRY(step->route(b, layer, batch, route));
  if (exchange_has(f->ranks, EXPERT_RANKS)) TRY(inform_expert_ranks(f, layer, batch));
  const int64_t *row_of_slot =
      on_device ? NULL : exchange_plan(f->ranks, f->route.expert, batch->n * f->top_k);
  TRY(step->experts(b, layer, batch, route, row_of_slot)); // this rank's own experts only
  if (!alone) TRY(gather_rows(f, ROWS_SLOTS, exchange_rows_of_rank(f->ranks), SHARED_RANKS, layer));
  if (!f->is_shared) return 0;
  return step->combine(b, layer, batch, row_of_slot); // x += sum of the slots, in slot order
}

status forward_head(forward_state *f, int64_t first, int64_t count, void *logits) {
  return f->is_shared ? f->compute->ops->head(f->compute, first, count, logits) : 0;
}
