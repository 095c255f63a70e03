#include "src/run/forward.h"

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
  token_shards_cut(&f->shards, batch);
  status result = f->is_shared ? f->compute->ops->embed(f->compute, token_shards_rows(&f->shards, batch)) : 0;
  if (result) status_within("embedding");
  return result;
}

// ---- rows that cross ranks ----

static size_t row_bytes(const forward_state *f, row_kind kind) {
  if (kind == ROWS_EXPERTS) return (size_t)f->top_k * sizeof *f->route.expert;
  int64_t width = kind == ROWS_KEYS || kind == ROWS_VALUES ? f->kv_width : f->hidden;
  return (size_t)width * f->path->real_bytes;
}

static bool travels_from_device(const forward_state *f) {
  return f->compute->ops->rows_device && f->takes_device;
}

// Brings rows of a kind to the ranks that take them. A device's rows pass through the host, unless the
// transport takes them where they are. Every rank comes here, also one that neither gives nor takes, so that
// their collectives stay in step.
static status carry_rows(forward_state *f, row_kind kind, const row_range *range, int64_t layer) {
  backend *b = f->compute;
  const backend_ops *step = b->ops;
  size_t bytes = row_bytes(f, kind);
  if (travels_from_device(f))
    return exchange_transfer(f->ranks, step->rows_device(b, kind), step->stream(b), bytes, range, layer);
  if (kind == ROWS_EXPERTS) return exchange_transfer(f->ranks, f->route.expert, NULL, bytes, range, layer);
  row_range own = exchange_gives(f->ranks, range);
  if (step->rows_read)
    TRY(in_step(step->rows_read(b, kind, own.first, own.count), layer, "rows to the host"));
  TRY(exchange_transfer(f->ranks, step->rows_host(b, kind), NULL, bytes, range, layer));
  int size = exchange_size(f->ranks), rank = exchange_rank(f->ranks);
  for (int from = 0; from < size && step->rows_write; from++) {
    const row_range *in = &range[from * size + rank];
    if (from != rank && in->count)
      TRY(in_step(step->rows_write(b, kind, in->first, in->count), layer, "rows from the host"));
  }
  return 0;
}

// What each shared rank has of its own tokens of a dealt batch.
static status gather_rows(forward_state *f, row_kind kind, rank_set to, int64_t layer) {
  return carry_rows(f, kind, exchange_gather(f->ranks, f->shards.tokens_of_rank, to), layer);
}

// ---- the steps ----

// Of a dealt batch keys and values of all tokens come to every shared rank.
static status attend(forward_state *f, int64_t layer, const token_batch *batch, row_range own) {
  backend *b = f->compute;
  const backend_ops *step = b->ops;
  if (!token_shards_apply(&f->shards, batch->n))
    return f->is_shared ? in_step(step->attention(b, layer, batch), layer, "attention") : 0;
  if (f->is_shared)
    TRY(in_step(step->project(b, layer, batch, own.first, own.count), layer, "queries, keys and values"));
  TRY(gather_rows(f, ROWS_KEYS, SHARED_RANKS, layer));
  TRY(gather_rows(f, ROWS_VALUES, SHARED_RANKS, layer));
  return f->is_shared ? in_step(step->attend(b, layer, batch, own.first, own.count), layer, "attention") : 0;
}

// Routing that stays on the device comes to the host in inform, when it is that of all ranks' tokens.
static bool routes_on_device(const forward_state *f, const token_batch *batch) {
  return forward_is_on_device(f, batch) ||
         (token_shards_apply(&f->shards, batch->n) && travels_from_device(f) && !f->wants_routing);
}

// Every rank has computed the routing of its own tokens, and all get to know who computes what, and what the
// experts read.
static status inform_all(forward_state *f, int64_t layer, const token_batch *batch) {
  backend *b = f->compute;
  TRY(gather_rows(f, ROWS_NORMED, ALL_RANKS, layer));
  if (f->wants_routing) { // with its margins, and these are on the host alone
    const row_range *range = exchange_gather(f->ranks, f->shards.tokens_of_rank, ALL_RANKS);
    TRY(exchange_transfer_host(f->ranks, f->route.expert, row_bytes(f, ROWS_EXPERTS), range, layer));
    return exchange_transfer_host(f->ranks, f->route.margin, sizeof *f->route.margin, range, layer);
  }
  TRY(gather_rows(f, ROWS_EXPERTS, ALL_RANKS, layer));
  if (!travels_from_device(f)) return 0;
  return in_step(b->ops->routed(b, layer, batch, &f->route), layer, "routing to the host");
}

// The shared ranks, which know it all, each send a part of it to the expert ranks.
static status inform_expert_ranks(forward_state *f, int64_t layer, const token_batch *batch) {
  exchange_split(f->ranks, f->rows_of_rank, batch->n);
  const row_range *range = exchange_gather(f->ranks, f->rows_of_rank, EXPERT_RANKS);
  TRY(exchange_transfer_host(f->ranks, f->route.expert, row_bytes(f, ROWS_EXPERTS), range, layer));
  return carry_rows(f, ROWS_NORMED, range, layer);
}

static status inform(forward_state *f, int64_t layer, const token_batch *batch) {
  if (token_shards_apply(&f->shards, batch->n)) return inform_all(f, layer, batch);
  return exchange_count(f->ranks, EXPERT_RANKS) ? inform_expert_ranks(f, layer, batch) : 0;
}

// Row of each slot; of a dealt batch a slot is wanted by the rank of its token alone.
static const int64_t *place_slots(forward_state *f, const token_batch *batch) {
  bool dealt = token_shards_apply(&f->shards, batch->n);
  for (int r = 0; r < exchange_size(f->ranks) && dealt; r++)
    f->rows_of_rank[r] = f->shards.tokens_of_rank[r] * f->top_k;
  return exchange_place_slots(f->ranks, f->route.expert, batch->n * f->top_k, dealt ? f->rows_of_rank : NULL);
}

// The slots' outputs come to the shared ranks.
static status carry_slots(forward_state *f, int64_t layer, int64_t n_slots, bool fixed) {
  backend *b = f->compute;
  if (!fixed) return carry_rows(f, ROWS_SLOTS, exchange_slots(f->ranks), layer);
  return exchange_transfer_fixed(f->ranks, b->ops->rows_device(b, ROWS_SLOTS), b->ops->stream(b), n_slots,
                                 row_bytes(f, ROWS_SLOTS), layer);
}

// For the head, and for those who look at every layer.
static bool wants_all_rows(const forward_state *f, int64_t layer, const token_batch *batch) {
  return token_shards_apply(&f->shards, batch->n) && (layer == f->n_layers - 1 || f->wants_routing);
}

status forward_layer(forward_state *f, int64_t layer, const token_batch *given) {
  backend *b = f->compute;
  const backend_ops *step = b->ops;
  const token_batch *batch = token_shards_rows(&f->shards, given);
  row_range own = token_shards_owned(&f->shards, batch->n);
  bool alone = exchange_is_alone(f->ranks), on_device = forward_is_on_device(f, batch);
  bool places = !on_device && !(alone && step->finish); // the host knows the routing and places the rows
  routing *route = routes_on_device(f, batch) ? NULL : &f->route;
  TRY(attend(f, layer, batch, own)); // x += o(attention(norm(x))), of own rows from here on
  if (f->is_shared) TRY(in_step(step->route(b, layer, batch, own.first, own.count, route), layer, "route"));
  TRY(inform(f, layer, batch)); // all ranks know who computes what, unless the routing stays on the devices
  const int64_t *row_of_slot = places ? place_slots(f, batch) : NULL;
  // this rank's own experts only, of all rows
  TRY(in_step(step->experts(b, layer, batch, on_device ? NULL : &f->route, row_of_slot), layer, "experts"));
  if (!alone) TRY(carry_slots(f, layer, batch->n * f->top_k, on_device));
  if (f->is_shared) // x += sum of the slots, in slot order
    TRY(in_step(step->combine(b, layer, batch, own.first, own.count, row_of_slot), layer, "combine"));
  return wants_all_rows(f, layer, batch) ? gather_rows(f, ROWS_RESIDUAL, SHARED_RANKS, layer) : 0;
}

status forward_head(forward_state *f, const int64_t *rows, int64_t count, void *logits) {
  status result = f->is_shared ? f->compute->ops->head(f->compute, rows, count, logits) : 0;
  if (result) status_within("head");
  return result;
}
