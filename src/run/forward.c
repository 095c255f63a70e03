#include "src/run/forward.h"

// ---- how a batch runs ----

static bool backend_on_device(const forward_state *f) {
  return backend_is_on_device(f->compute->ops);
}

static batch_way choose_way(const forward_state *f, int64_t n_tokens) {
  if (exchange_is_alone(f->ranks)) return BATCH_ALONE;
  if (token_shards_apply(&f->shards, n_tokens)) return BATCH_TOKEN_SHARDED;
  return exchange_is_fixed(f->ranks, n_tokens) && !f->is_watched ? BATCH_FIXED_PLACES : BATCH_REPLICATED;
}

void forward_start(forward_state *f, const token_batch *batch) {
  token_shards_cut(&f->shards, batch);
  f->batch = (batch_plan){
      .way = choose_way(f, batch->n),
      .rows = *token_shards_rows(&f->shards, batch),
      .owned = token_shards_owned(&f->shards, batch->n),
  };
}

bool forward_is_on_device(const forward_state *f) {
  bool stays = f->batch.way == BATCH_ALONE || f->batch.way == BATCH_FIXED_PLACES;
  return backend_on_device(f) && stays && !f->is_watched;
}

// ---- the steps, each of which says which one it was where it fails ----

static status in_step(status result, int64_t layer, const char *step) {
  if (result) status_within("layer %lld, %s", (long long)layer, step);
  return result;
}

static status attention(forward_state *f, int64_t layer) {
  backend *b = f->compute;
  return in_step(b->ops->attention(b, layer, &f->batch.rows), layer, "attention");
}

static status moe(forward_state *f, int64_t layer) {
  backend *b = f->compute;
  return in_step(b->ops->moe(b, layer, &f->batch.rows), layer, "router and experts");
}

static status project(forward_state *f, int64_t layer) {
  backend *b = f->compute;
  row_range owned = f->batch.owned;
  return in_step(b->ops->project(b, layer, &f->batch.rows, owned.first, owned.count), layer,
                 "queries, keys and values");
}

static status attend(forward_state *f, int64_t layer) {
  backend *b = f->compute;
  row_range owned = f->batch.owned;
  return in_step(b->ops->attend(b, layer, &f->batch.rows, owned.first, owned.count), layer, "attention");
}

static status experts_up(forward_state *f, int64_t layer) {
  backend *b = f->compute;
  return in_step(b->ops->experts_up(b, layer, &f->batch.rows), layer, "experts, gate and up");
}

static status experts_down(forward_state *f, int64_t layer, const slot_places *places) {
  backend *b = f->compute;
  return in_step(b->ops->experts_down(b, layer, &f->batch.rows, places), layer, "experts, down");
}

static status combine(forward_state *f, int64_t layer, const slot_places *places) {
  backend *b = f->compute;
  row_range owned = f->batch.owned;
  return in_step(b->ops->combine(b, layer, &f->batch.rows, owned.first, owned.count, places), layer,
                 "combine");
}

// ---- the routing ----

// What the host is told of it: experts where it places slots, all of it where someone looks.
static unsigned parts_for_host(const forward_state *f) {
  if (f->is_watched) return ROUTING_EXPERTS | ROUTING_WEIGHTS | ROUTING_MARGINS;
  bool places = f->batch.way == BATCH_REPLICATED || f->batch.way == BATCH_TOKEN_SHARDED;
  return places ? ROUTING_EXPERTS : ROUTING_NOTHING;
}

// Routes owned rows, or takes the routing that was given for them.
static status route(forward_state *f, int64_t layer) {
  backend *b = f->compute;
  row_range owned = f->batch.owned;
  TRY(in_step(b->ops->route(b, layer, &f->batch.rows, owned.first, owned.count, parts_for_host(f)), layer,
              "route"));
  if (!f->imposed) return 0;
  return in_step(b->ops->routing_write(b, owned.first, owned.count, f->imposed, &f->given), layer,
                 "the given routing");
}

static status routing_fetch(forward_state *f, int64_t layer, row_range rows, unsigned parts) {
  backend *b = f->compute;
  return in_step(b->ops->routing_fetch(b, rows.first, rows.count, parts), layer, "routing to the host");
}

static status routing_wait(forward_state *f, int64_t layer) {
  backend *b = f->compute;
  return in_step(b->ops->routing_wait(b, &f->route), layer, "routing to the host");
}

static status routing_write(forward_state *f, int64_t layer) {
  backend *b = f->compute;
  return in_step(b->ops->routing_write(b, 0, f->batch.rows.n, ROUTING_EXPERTS, &f->route), layer,
                 "routing from other ranks");
}

static status routing_arrived(forward_state *f, int64_t layer) {
  backend *b = f->compute;
  return in_step(b->ops->routing_arrived(b, &f->batch.rows), layer, "routing from other ranks");
}

// ---- rows that cross ranks ----

static size_t row_bytes(const forward_state *f, row_kind kind) {
  switch (kind) {
  case ROWS_EXPERTS:
    return (size_t)f->top_k * sizeof *f->route.expert;
  case ROWS_KEYS:
  case ROWS_VALUES:
    return (size_t)f->kv_width * f->path->real_bytes;
  case ROWS_RESIDUAL:
  case ROWS_NORMED:
  case ROWS_SLOTS:
    return (size_t)f->hidden * f->path->real_bytes;
  }
  return 0;
}

static bool travels_from_device(const forward_state *f) {
  return backend_on_device(f) && f->takes_device;
}

// Brings rows of a kind to the ranks that take them. A device's rows pass through the host, unless the
// transport takes them where they are. Every rank comes here, also one that neither gives nor takes, so that
// their collectives stay in step.
static status transfer(forward_state *f, row_kind kind, const row_range *range, int64_t layer) {
  backend *b = f->compute;
  const backend_ops *step = b->ops;
  size_t bytes = row_bytes(f, kind);
  if (travels_from_device(f))
    return exchange_transfer(f->ranks, step->rows_device(b, kind), step->stream(b), bytes, range, layer);
  row_range given = exchange_gives(f->ranks, range);
  TRY(in_step(step->rows_read(b, kind, given.first, given.count), layer, "rows to the host"));
  TRY(exchange_transfer(f->ranks, step->rows_host(b, kind), NULL, bytes, range, layer));
  int size = exchange_size(f->ranks), rank = exchange_rank(f->ranks);
  for (int from = 0; from < size; from++) {
    const row_range *in = &range[from * size + rank];
    if (from != rank && in->count)
      TRY(in_step(step->rows_write(b, kind, in->first, in->count), layer, "rows from the host"));
  }
  return 0;
}

// What each shared rank has of its own tokens of a token-sharded batch.
static status gather(forward_state *f, row_kind kind, rank_set to, int64_t layer) {
  return transfer(f, kind, exchange_gather(f->ranks, f->shards.tokens_of_rank, to), layer);
}

// The same of the routing on the host: [rows][top_k] or [rows] of `each` bytes an element.
static status gather_on_host(forward_state *f, void *rows, size_t bytes, rank_set to, int64_t layer) {
  const row_range *range = exchange_gather(f->ranks, f->shards.tokens_of_rank, to);
  return exchange_transfer_host(f->ranks, rows, bytes, range, layer);
}

// Of a token-sharded batch every rank learns who computes what, and what the experts read.
static status gather_routing(forward_state *f, int64_t layer) {
  row_range all = {0, f->batch.rows.n};
  size_t k = (size_t)f->top_k;
  TRY(gather(f, ROWS_NORMED, ALL_RANKS, layer));
  if (travels_from_device(f) && !f->is_watched) {
    TRY(gather(f, ROWS_EXPERTS, ALL_RANKS, layer));
    TRY(routing_fetch(f, layer, all, ROUTING_EXPERTS)); // on its way while the experts start
    return routing_arrived(f, layer);
  }
  if (f->is_shared) {
    TRY(routing_fetch(f, layer, f->batch.owned, parts_for_host(f)));
    TRY(routing_wait(f, layer));
  }
  TRY(gather_on_host(f, f->route.expert, k * sizeof *f->route.expert, ALL_RANKS, layer));
  if (f->is_watched) {
    TRY(gather_on_host(f, f->route.weight, k * sizeof *f->route.weight, SHARED_RANKS, layer));
    TRY(gather_on_host(f, f->route.margin, sizeof *f->route.margin, SHARED_RANKS, layer));
  }
  return routing_write(f, layer);
}

// The shared ranks, which know the routing, each send a part of it to the expert ranks.
static status send_routing(forward_state *f, int64_t layer) {
  if (!exchange_count(f->ranks, EXPERT_RANKS)) return 0;
  exchange_split(f->ranks, f->rows_of_rank, f->batch.rows.n);
  const row_range *range = exchange_gather(f->ranks, f->rows_of_rank, EXPERT_RANKS);
  TRY(exchange_transfer_host(f->ranks, f->route.expert, row_bytes(f, ROWS_EXPERTS), range, layer));
  TRY(transfer(f, ROWS_NORMED, range, layer));
  return f->is_shared ? 0 : routing_write(f, layer);
}

// Row of each slot; of a token-sharded batch only the rank of its token takes it.
static slot_places place_slots(forward_state *f) {
  bool sharded = f->batch.way == BATCH_TOKEN_SHARDED;
  for (int r = 0; r < exchange_size(f->ranks) && sharded; r++)
    f->rows_of_rank[r] = f->shards.tokens_of_rank[r] * f->top_k;
  return (slot_places){SLOTS_PLACED,
                       exchange_place_slots(f->ranks, &f->route.expert->id, f->batch.rows.n * f->top_k,
                                            sharded ? f->rows_of_rank : NULL)};
}

// The slots' outputs come to the shared ranks.
static status transfer_slots(forward_state *f, int64_t layer) {
  return transfer(f, ROWS_SLOTS, exchange_slots(f->ranks), layer);
}

static status transfer_fixed_slots(forward_state *f, int64_t layer) {
  backend *b = f->compute;
  return exchange_transfer_fixed(f->ranks, b->ops->rows_device(b, ROWS_SLOTS), b->ops->stream(b),
                                 f->batch.rows.n * f->top_k, row_bytes(f, ROWS_SLOTS), layer);
}

// ---- a layer, in each of the four ways ----

// Nothing crosses ranks.
static status layer_alone(forward_state *f, int64_t layer) {
  static const slot_places in_order = {SLOTS_IN_ORDER, NULL};
  TRY(attention(f, layer));
  if (!f->is_watched && !f->imposed) return moe(f, layer);
  TRY(route(f, layer));
  TRY(routing_fetch(f, layer, f->batch.owned, parts_for_host(f)));
  TRY(experts_up(f, layer));
  TRY(experts_down(f, layer, &in_order));
  TRY(combine(f, layer, &in_order));
  return routing_wait(f, layer);
}

// Each shared rank computes the shared steps of every token, to the same bits; the slots cross ranks.
static status layer_replicated(forward_state *f, int64_t layer) {
  row_range all = {0, f->batch.rows.n};
  if (f->is_shared) {
    TRY(attention(f, layer));
    TRY(route(f, layer));
    TRY(routing_fetch(f, layer, all, parts_for_host(f)));
    TRY(experts_up(f, layer)); // a device works on them while the routing comes to the host
    TRY(routing_wait(f, layer));
  }
  TRY(send_routing(f, layer)); // with what the experts read, to ranks that compute only experts
  if (!f->is_shared) TRY(experts_up(f, layer));
  slot_places places = place_slots(f);
  TRY(experts_down(f, layer, &places));
  TRY(transfer_slots(f, layer));
  return f->is_shared ? combine(f, layer, &places) : 0;
}

// Each shared rank computes the shared steps of its own tokens. Keys and values cross to the shared ranks,
// the routing and what the experts read to all, each slot to the rank of its token; in the end, for the head
// or for someone who looks, the residual stream.
static status layer_token_sharded(forward_state *f, int64_t layer) {
  if (f->is_shared) TRY(project(f, layer));
  TRY(gather(f, ROWS_KEYS, SHARED_RANKS, layer));
  TRY(gather(f, ROWS_VALUES, SHARED_RANKS, layer));
  if (f->is_shared) {
    TRY(attend(f, layer));
    TRY(route(f, layer));
  }
  TRY(gather_routing(f, layer));
  TRY(experts_up(f, layer));
  if (travels_from_device(f) && !f->is_watched) TRY(routing_wait(f, layer));
  slot_places places = place_slots(f);
  TRY(experts_down(f, layer, &places));
  TRY(transfer_slots(f, layer));
  if (f->is_shared) TRY(combine(f, layer, &places));
  bool wants_all_rows = layer == f->n_layers - 1 || f->is_watched;
  return wants_all_rows ? gather(f, ROWS_RESIDUAL, SHARED_RANKS, layer) : 0;
}

// As replicated, with every rank's slots at places that follow from the batch alone, so that the routing
// stays on the devices.
static status layer_fixed_places(forward_state *f, int64_t layer) {
  static const slot_places fixed = {SLOTS_AT_FIXED, NULL};
  TRY(attention(f, layer));
  TRY(route(f, layer));
  TRY(experts_up(f, layer));
  TRY(experts_down(f, layer, &fixed));
  TRY(transfer_fixed_slots(f, layer));
  return combine(f, layer, &fixed);
}

status forward_layer(forward_state *f, int64_t layer) {
  switch (f->batch.way) {
  case BATCH_ALONE:
    return layer_alone(f, layer);
  case BATCH_REPLICATED:
    return layer_replicated(f, layer);
  case BATCH_TOKEN_SHARDED:
    return layer_token_sharded(f, layer);
  case BATCH_FIXED_PLACES:
    return layer_fixed_places(f, layer);
  }
  return FAIL("a batch runs in an unknown way");
}

// ---- before and after the layers ----

status forward_embed(forward_state *f) {
  backend *b = f->compute;
  status result = f->is_shared ? b->ops->embed(b, &f->batch.rows) : 0;
  if (result) status_within("embedding");
  return result;
}

status forward_head(forward_state *f, const int64_t *row, int64_t count) {
  backend *b = f->compute;
  status result = f->is_shared ? b->ops->head(b, &f->batch.rows, row, count) : 0;
  if (result) status_within("head");
  return result;
}
