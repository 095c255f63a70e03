#include "src/layer.h"

// A fault in a step says which one it was.
static status in_step(status result, int64_t layer, const char *step) {
  if (result) status_within("layer %lld, %s", (long long)layer, step);
  return result;
}

bool forward_is_on_device(const forward_state *f, const token_batch *batch) {
  return f->compute->ops->finish && !f->wants_routing &&
         (exchange_is_alone(f->ranks) || exchange_is_fixed(f->ranks, batch->n));
}

status forward_embed(forward_state *f, const token_batch *batch) {
  status result = f->is_shared ? f->compute->ops->embed(f->compute, batch) : 0;
  if (result) status_within("embedding");
  return result;
}

static size_t row_bytes(const forward_state *f) {
  return (size_t)f->hidden * f->path->real_bytes;
}

// Brings rows of a kind to the ranks that take them. A device's rows pass through the host, unless the
// transport takes them where they are. Every rank comes here, also one that neither gives nor takes, so that
// their collectives stay in step.
static status carry_rows(forward_state *f, row_kind kind, const row_range *range, int64_t layer) {
  backend *b = f->compute;
  const backend_ops *step = b->ops;
  if (step->rows_device && f->takes_device)
    return exchange_carry(f->ranks, step->rows_device(b, kind), step->stream(b), row_bytes(f), range, layer);
  row_range own = exchange_gives(f->ranks, range);
  if (step->rows_read)
    TRY(in_step(step->rows_read(b, kind, own.first, own.count), layer, "rows to the host"));
  TRY(exchange_carry(f->ranks, step->rows_host(b, kind), NULL, row_bytes(f), range, layer));
  int size = exchange_size(f->ranks), rank = exchange_rank(f->ranks);
  for (int from = 0; from < size && step->rows_write; from++) {
    const row_range *in = &range[from * size + rank];
    if (from != rank && in->count)
      TRY(in_step(step->rows_write(b, kind, in->first, in->count), layer, "rows from the host"));
  }
  return 0;
}

// Of a large batch each shared rank takes some of the queries.
static status attend(forward_state *f, int64_t layer, const token_batch *batch) {
  backend *b = f->compute;
  int n_ranks = exchange_count(f->ranks, SHARED_RANKS);
  if (n_ranks == 1 || batch->n < (int64_t)n_ranks * SPLIT_TOKENS)
    return f->is_shared ? in_step(b->ops->attention(b, layer, batch, 0, batch->n), layer, "attention") : 0;
  int64_t first = 0;
  exchange_split(f->ranks, f->tokens_of_rank, batch->n);
  for (int r = 0; r < exchange_rank(f->ranks); r++) first += f->tokens_of_rank[r];
  int64_t count = f->tokens_of_rank[exchange_rank(f->ranks)];
  if (f->is_shared) TRY(in_step(b->ops->attention(b, layer, batch, first, count), layer, "attention"));
  return carry_rows(f, ROWS_RESIDUAL, exchange_gather(f->ranks, f->tokens_of_rank, SHARED_RANKS), layer);
}

// The shared ranks each send a part of what the experts read, and of who computes what.
static status inform_expert_ranks(forward_state *f, int64_t layer, const token_batch *batch) {
  exchange_split(f->ranks, f->tokens_of_rank, batch->n);
  const row_range *range = exchange_gather(f->ranks, f->tokens_of_rank, EXPERT_RANKS);
  TRY(exchange_carry_host(f->ranks, f->route.expert, (size_t)f->top_k * sizeof *f->route.expert, range,
                          layer));
  return carry_rows(f, ROWS_NORMED, range, layer);
}

// The slots' outputs come to the shared ranks.
static status gather_slots(forward_state *f, int64_t layer, int64_t n_slots, bool fixed) {
  backend *b = f->compute;
  if (!fixed) return carry_rows(f, ROWS_SLOTS, exchange_slots(f->ranks), layer);
  return exchange_carry_fixed(f->ranks, b->ops->rows_device(b, ROWS_SLOTS), b->ops->stream(b), n_slots,
                              row_bytes(f), layer);
}

status forward_layer(forward_state *f, int64_t layer, const token_batch *batch) {
  backend *b = f->compute;
  const backend_ops *step = b->ops;
  bool alone = exchange_is_alone(f->ranks), on_device = forward_is_on_device(f, batch);
  bool places = !on_device && !(alone && step->finish); // the host knows the routing and places the rows
  routing *route = on_device ? NULL : &f->route;
  TRY(attend(f, layer, batch)); // x += o(attention(norm(x))), then the same on every shared rank
  if (f->is_shared)             // the same on these, so all of them know who computes what
    TRY(in_step(step->route(b, layer, batch, route), layer, "route"));
  if (exchange_has(f->ranks, EXPERT_RANKS)) TRY(inform_expert_ranks(f, layer, batch));
  const int64_t *row_of_slot =
      places ? exchange_plan(f->ranks, f->route.expert, batch->n * f->top_k, NULL) : NULL;
  // this rank's own experts only
  TRY(in_step(step->experts(b, layer, batch, route, row_of_slot), layer, "experts"));
  if (!alone) TRY(gather_slots(f, layer, batch->n * f->top_k, on_device));
  if (!f->is_shared) return 0;
  // x += sum of the slots, in slot order
  return in_step(step->combine(b, layer, batch, row_of_slot), layer, "combine");
}

status forward_head(forward_state *f, int64_t first, int64_t count, void *logits) {
  status result = f->is_shared ? f->compute->ops->head(f->compute, first, count, logits) : 0;
  if (result) status_within("head");
  return result;
}
