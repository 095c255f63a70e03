// Long because the order of the steps stands in one place.
#include "src/run/forward.h"
#include "dist/timeline.h"

// ---- how a batch runs ----

static bool backend_on_device(const forward_state *f) {
  return backend_is_on_device(f->compute->ops);
}

bool forward_divides(const forward_state *f, output_kind kind, int64_t n) {
  return !f->is_probed && output_shards_apply(&f->outputs, kind, n);
}

static batch_way choose_way(const forward_state *f, int64_t n_tokens, bool watched) {
  bool at_peers = f->has_peers && !watched && !f->is_probed && !f->audit;
  bool divided = forward_divides(f, OUTPUTS_OF_LAYERS, n_tokens);
  if (exchange_is_alone(f->ranks)) return BATCH_ALONE;
  if (token_shards_apply(&f->shards, n_tokens) || (divided && f->outputs.by_tokens))
    return at_peers ? BATCH_SHARDED_AT_PEERS : BATCH_TOKEN_SHARDED;
  if (divided) return BATCH_OUTPUT_SHARDED;
  if (!exchange_is_fixed(f->ranks, n_tokens) || watched || f->audit) return BATCH_REPLICATED;
  return at_peers ? BATCH_AT_PEERS : BATCH_FIXED_PLACES;
}

batch_way forward_way(const forward_state *f, int64_t n_tokens) {
  return choose_way(f, n_tokens, false);
}

void forward_start(forward_state *f, const token_batch *batch) {
  batch_way way = choose_way(f, batch->n, f->is_watched);
  token_shards_cut(&f->shards, batch, batch_is_sharded(way));
  f->batch = (batch_plan){
      .way = way,
      .rows = *token_shards_rows(&f->shards, batch),
      .owned = token_shards_owned(&f->shards, batch->n),
  };
}

bool forward_is_on_device(const forward_state *f) {
  if (!backend_on_device(f) || f->is_watched) return false;
  switch (f->batch.way) {
  case BATCH_ALONE:
  case BATCH_FIXED_PLACES:
  case BATCH_AT_PEERS:
  case BATCH_SHARDED_AT_PEERS:
    return true;
  case BATCH_REPLICATED:
  case BATCH_OUTPUT_SHARDED:
  case BATCH_TOKEN_SHARDED:
    break;
  }
  return false;
}

bool forward_asks_whole_layers(const forward_state *f) {
  switch (f->batch.way) {
  case BATCH_ALONE:
  case BATCH_AT_PEERS:
    return true;
  case BATCH_FIXED_PLACES:
  case BATCH_SHARDED_AT_PEERS:
  case BATCH_REPLICATED:
  case BATCH_OUTPUT_SHARDED:
  case BATCH_TOKEN_SHARDED:
    break;
  }
  return false;
}

// ---- the steps: those of kernels/backend.h, each named in its error ----

static status end_step(status result, int64_t layer, const char *step) {
  span_end(SPAN_NO_AMOUNT);
  if (result) status_within("layer %lld, %s", (long long)layer, step);
  return result;
}

// A call to the backend as a span of the timeline.
#define IN_STEP(kind, call, layer, step) (span_start(kind, layer), end_step(call, layer, step))

static status attention(forward_state *f, int64_t layer) {
  backend *b = f->compute;
  return IN_STEP(SPAN_ATTENTION, b->ops->attention(b, layer, &f->batch.rows), layer, "attention");
}

static status moe(forward_state *f, int64_t layer) {
  backend *b = f->compute;
  return IN_STEP(SPAN_MOE, b->ops->moe(b, layer, &f->batch.rows), layer, "router and experts");
}

static status project(forward_state *f, int64_t layer) {
  backend *b = f->compute;
  row_range owned = f->batch.owned;
  return IN_STEP(SPAN_PROJECT, b->ops->project(b, layer, &f->batch.rows, owned.first, owned.count), layer,
                 "queries, keys and values");
}

static status attend(forward_state *f, int64_t layer) {
  backend *b = f->compute;
  row_range owned = f->batch.owned;
  return IN_STEP(SPAN_ATTEND, b->ops->attend(b, layer, &f->batch.rows, owned.first, owned.count), layer,
                 "attention");
}

static status attend_apart(forward_state *f, int64_t layer) {
  backend *b = f->compute;
  row_range owned = f->batch.owned;
  return IN_STEP(SPAN_ATTEND, b->ops->attend_apart(b, layer, &f->batch.rows, owned.first, owned.count), layer,
                 "attention");
}

static status cache_others(forward_state *f, int64_t layer) {
  backend *b = f->compute;
  row_range owned = f->batch.owned;
  return IN_STEP(SPAN_ATTEND, b->ops->cache_others(b, layer, &f->batch.rows, owned.first, owned.count), layer,
                 "keys and values of other ranks");
}

static status experts_up(forward_state *f, int64_t layer) {
  backend *b = f->compute;
  return IN_STEP(SPAN_EXPERTS_UP, b->ops->experts_up(b, layer, &f->batch.rows), layer,
                 "experts, gate and up");
}

static status experts_down(forward_state *f, int64_t layer, const slot_places *places) {
  backend *b = f->compute;
  return IN_STEP(SPAN_EXPERTS_DOWN, b->ops->experts_down(b, layer, &f->batch.rows, places), layer,
                 "experts, down");
}

static status combine(forward_state *f, int64_t layer, const slot_places *places) {
  backend *b = f->compute;
  row_range owned = f->batch.owned;
  return IN_STEP(SPAN_COMBINE, b->ops->combine(b, layer, &f->batch.rows, owned.first, owned.count, places),
                 layer, "combine");
}

// ---- the routing ----

// The parts that are copied to the host: the experts where it places slots, all where the layer is watched.
static unsigned parts_for_host(const forward_state *f) {
  if (f->is_watched) return ROUTING_EXPERTS | ROUTING_WEIGHTS | ROUTING_MARGINS;
  switch (f->batch.way) {
  case BATCH_REPLICATED:
  case BATCH_OUTPUT_SHARDED:
  case BATCH_TOKEN_SHARDED:
    return ROUTING_EXPERTS;
  case BATCH_ALONE:
  case BATCH_FIXED_PLACES:
  case BATCH_AT_PEERS:
  case BATCH_SHARDED_AT_PEERS:
    break;
  }
  return ROUTING_NOTHING;
}

static status routing_fetch(forward_state *f, int64_t layer, row_range rows, unsigned parts) {
  backend *b = f->compute;
  return IN_STEP(SPAN_ROUTING, b->ops->routing_fetch(b, rows.first, rows.count, parts), layer,
                 "routing to the host");
}

static status routing_wait(forward_state *f, int64_t layer) {
  backend *b = f->compute;
  return IN_STEP(SPAN_ROUTING, b->ops->routing_wait(b, &f->route), layer, "routing to the host");
}

static bool has_expert(const expert_global *experts, int64_t k, int32_t id) {
  for (int64_t i = 0; i < k; i++)
    if (experts[i].id == id) return true;
  return false;
}

// One token: given[k] becomes own[k], but for the slots whose expert is not in given: these take, in the
// order of given, the experts that own lacks.
static void merge_experts(expert_global *given, const expert_global *own, int64_t k) {
  expert_global lacking[MAX_TOP_K], merged[MAX_TOP_K];
  int64_t n = 0, taken = 0;
  for (int64_t i = 0; i < k; i++)
    if (!has_expert(own, k, given[i].id)) lacking[n++] = given[i];
  for (int64_t i = 0; i < k; i++)
    merged[i] = has_expert(given, k, own[i].id) || taken == n ? own[i] : lacking[taken++];
  for (int64_t i = 0; i < k; i++) given[i] = merged[i];
}

// Needs the host: the owned rows' own choice.
static status merge_imposed(forward_state *f, int64_t layer) {
  row_range owned = f->batch.owned;
  TRY(routing_fetch(f, layer, owned, ROUTING_EXPERTS));
  TRY(routing_wait(f, layer));
  for (int64_t r = owned.first; r < owned.first + owned.count; r++)
    merge_experts(f->given.expert + r * f->top_k, f->route.expert + r * f->top_k, f->top_k);
  return 0;
}

// Routes the owned rows, then overwrites what is imposed.
static status route(forward_state *f, int64_t layer) {
  backend *b = f->compute;
  row_range owned = f->batch.owned;
  TRY(IN_STEP(SPAN_ROUTE,
              b->ops->route(b, layer, &f->batch.rows, owned.first, owned.count, parts_for_host(f)), layer,
              "route"));
  if (!f->imposed) return 0;
  if (f->imposes_set) TRY(merge_imposed(f, layer));
  return IN_STEP(SPAN_ROUTING, b->ops->routing_write(b, owned.first, owned.count, f->imposed, &f->given),
                 layer, "the imposed routing");
}

static status routing_write(forward_state *f, int64_t layer) {
  backend *b = f->compute;
  return IN_STEP(SPAN_ROUTING, b->ops->routing_write(b, 0, f->batch.rows.n, ROUTING_EXPERTS, &f->route),
                 layer, "routing from other ranks");
}

static status routing_arrived(forward_state *f, int64_t layer) {
  backend *b = f->compute;
  return IN_STEP(SPAN_ROUTING, b->ops->routing_arrived(b, &f->batch.rows), layer, "routing from other ranks");
}

// ---- rows that cross ranks ----

size_t forward_row_bytes(const forward_state *f, row_kind kind) {
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
  case PARTS_HEADS: // its queries, a key and a value
    return (size_t)((f->n_heads / f->n_kv_heads + 2) * (f->kv_width / f->n_kv_heads)) * f->path->real_bytes;
  case PARTS_OUTPUT:
  case PARTS_LOGITS:
    return f->path->real_bytes;
  }
  return 0;
}

static bool transfers_from_device(const forward_state *f) {
  return backend_on_device(f) && f->takes_device;
}

// How every rank gathers the experts of a token-sharded batch: in device memory, or else in host memory. The
// same on all ranks, so it must not depend on this rank's backend.
static bool gathers_experts_on_device(const forward_state *f) {
  return f->all_on_device && !f->is_watched;
}

// Transfers rows of a kind between ranks: range[from][to]. A device's rows are staged in host memory, unless
// the transport takes them from the device. Every rank calls it, also one that neither sends nor receives, so
// that their collectives stay in step.
static status transfer(forward_state *f, row_kind kind, const row_range *range, int64_t layer) {
  backend *b = f->compute;
  const backend_ops *step = b->ops;
  size_t bytes = forward_row_bytes(f, kind);
  if (transfers_from_device(f))
    return exchange_transfer(f->ranks, step->rows_device(b, kind), step->stream(b), bytes, range, layer);
  row_range sent = exchange_sent_rows(f->ranks, range);
  TRY(IN_STEP(SPAN_ROWS_READ, step->rows_read(b, kind, sent.first, sent.count), layer, "rows to the host"));
  TRY(exchange_transfer(f->ranks, step->rows_host(b, kind), NULL, bytes, range, layer));
  int size = exchange_size(f->ranks), rank = exchange_rank(f->ranks);
  for (int from = 0; from < size; from++) {
    const row_range *in = &range[from * size + rank];
    if (from != rank && in->count)
      TRY(IN_STEP(SPAN_ROWS_WRITE, step->rows_write(b, kind, in->first, in->count), layer,
                  "rows from the host"));
  }
  return 0;
}

// All-gathers the rows of a token-sharded batch, each from the shared rank that computed it.
static status gather(forward_state *f, row_kind kind, rank_set to, int64_t layer) {
  return transfer(f, kind, exchange_gather(f->ranks, f->shards.tokens_of_rank, to), layer);
}

// The same for an array of the routing in host memory, `bytes` a row.
static status gather_on_host(forward_state *f, void *rows, size_t bytes, rank_set to, int64_t layer) {
  const row_range *range = exchange_gather(f->ranks, f->shards.tokens_of_rank, to);
  return exchange_transfer_host(f->ranks, rows, bytes, range, layer);
}

// Every rank gets, of all rows of a token-sharded batch, the experts and the input of the experts
// (ROWS_NORMED). Where the experts are gathered on the devices, the caller waits for the host's copy after
// experts_up.
static status gather_routing(forward_state *f, int64_t layer) {
  row_range all = {0, f->batch.rows.n};
  size_t k = (size_t)f->top_k;
  TRY(gather(f, ROWS_NORMED, ALL_RANKS, layer));
  if (gathers_experts_on_device(f)) {
    TRY(gather(f, ROWS_EXPERTS, ALL_RANKS, layer));
    TRY(routing_fetch(f, layer, all, ROUTING_EXPERTS)); // copied while the device starts on the experts
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

// Expert ranks get the experts and the input of the experts of all rows: an equal part from each shared rank.
static status send_routing(forward_state *f, int64_t layer) {
  if (!exchange_count(f->ranks, EXPERT_RANKS)) return 0;
  exchange_split(f->ranks, f->rows_of_rank, f->batch.rows.n);
  const row_range *range = exchange_gather(f->ranks, f->rows_of_rank, EXPERT_RANKS);
  TRY(exchange_transfer_host(f->ranks, f->route.expert, forward_row_bytes(f, ROWS_EXPERTS), range, layer));
  TRY(transfer(f, ROWS_NORMED, range, layer));
  return f->is_shared ? 0 : routing_write(f, layer);
}

const int32_t *forward_ranks_of_slots(forward_state *f, int64_t layer) {
  const token_batch *rows = &f->batch.rows;
  for (int64_t t = 0; t < rows->n; t++)
    placement_ranks(f->rank_of_slot + t * f->top_k, f->experts, layer, f->route.expert + t * f->top_k,
                    f->top_k, rows->sequence[t], rows->position[t]);
  return f->rank_of_slot;
}

// Assigns each slot its row. Slots of a token-sharded batch are received only by the rank of their token.
static slot_places place_slots(forward_state *f, int64_t layer) {
  bool sharded = batch_is_sharded(f->batch.way);
  for (int r = 0; r < exchange_size(f->ranks) && sharded; r++)
    f->rows_of_rank[r] = f->shards.tokens_of_rank[r] * f->top_k;
  const int64_t *row_of_slot =
      exchange_place_slots(f->ranks, forward_ranks_of_slots(f, layer), f->batch.rows.n * f->top_k,
                           sharded ? f->rows_of_rank : NULL);
  row_range own = exchange_own_slots(f->ranks);
  f->own_slots = (slot_range){own.first, own.count};
  return (slot_places){.order = SLOTS_PLACED, .row_of_slot = row_of_slot, .own = &f->own_slots};
}

// Transfers the slots' outputs to the shared ranks, as place_slots has them.
static status transfer_slots(forward_state *f, int64_t layer) {
  return transfer(f, ROWS_SLOTS, exchange_slots(f->ranks), layer);
}

// Needs this rank's slots, received: some of other ranks are recomputed here.
static status audit_slots(forward_state *f, int64_t layer, const slot_places *places) {
  if (!f->audit || !f->is_shared) return 0;
  bool sharded = f->batch.way == BATCH_TOKEN_SHARDED;
  const audited_rows rows = {f->compute,      f->batch.owned.first, f->batch.owned.count, sharded,
                             f->route.expert, f->rank_of_slot,      places->row_of_slot};
  return audit_layer(f->audit, layer, &rows);
}

// All-gathers the slots' outputs between devices, whole: which rows are used, only the devices know.
static status transfer_fixed_slots(forward_state *f, int64_t layer) {
  backend *b = f->compute;
  return exchange_transfer_fixed(f->ranks, b->ops->rows_device(b, ROWS_SLOTS), b->ops->stream(b),
                                 f->batch.rows.n * f->top_k, forward_row_bytes(f, ROWS_SLOTS), layer);
}

// All-gathers rows of several kinds of a token-sharded batch between devices that store into each other's
// memory.
static status gather_at_peers(forward_state *f, const row_kind *kinds, int count, int64_t layer) {
  backend *b = f->compute;
  return IN_STEP(SPAN_PEERS, b->ops->peers_gather(b, kinds, count, f->shards.tokens_of_rank), layer,
                 "exchange");
}

// ---- outputs that ranks divide ----

// The outputs that ranks divide in so many rows are `total`, in whole units.
static void count_parts(forward_state *f, int64_t n, int64_t total, int64_t unit) {
  int size = exchange_size(f->ranks);
  for (int r = 0; r < size; r++) f->rows_of_rank[r] = n * output_range_of(total, unit, r, size).count;
}

const row_range *forward_parts(forward_state *f, row_kind kind, int64_t n) {
  bool heads = kind == PARTS_HEADS;
  int64_t total = heads ? f->n_kv_heads : kind == PARTS_OUTPUT ? f->hidden : f->vocabulary;
  count_parts(f, n, total, heads ? 1 : OUTPUT_UNIT);
  return exchange_gather(f->ranks, f->rows_of_rank, ALL_RANKS);
}

// A rank whose device stores into the others' memory first waits until none still reads the parts before.
static status gather_parts(forward_state *f, row_kind kind, int64_t n, int64_t layer) {
  backend *b = f->compute;
  const row_range *range = forward_parts(f, kind, n);
  if (!f->has_peers) return transfer(f, kind, range, layer);
  TRY(b->ops->peers_gather(b, NULL, 0, f->rows_of_rank));
  return IN_STEP(SPAN_PEERS, b->ops->peers_gather(b, &kind, 1, f->rows_of_rank), layer, "exchange");
}

// x += o(attention), each rank its heads, then its rows of o.
static status attention_in_parts(forward_state *f, int64_t layer) {
  backend *b = f->compute;
  const token_batch *rows = &f->batch.rows;
  TRY(IN_STEP(SPAN_ATTENTION, b->ops->heads_part(b, layer, rows), layer, "attention"));
  TRY(gather_parts(f, PARTS_HEADS, rows->n, layer));
  TRY(IN_STEP(SPAN_ATTENTION, b->ops->output_part(b, layer, rows), layer, "output of attention"));
  TRY(gather_parts(f, PARTS_OUTPUT, rows->n, layer));
  return IN_STEP(SPAN_ATTENTION, b->ops->output_add(b, rows), layer, "output of attention");
}

// ---- a layer, in each of the seven ways ----

// One rank: nothing crosses ranks.
static status layer_alone(forward_state *f, int64_t layer) {
  static const slot_places in_order = {.order = SLOTS_IN_ORDER};
  TRY(attention(f, layer));
  if (!f->is_watched && !f->imposed) return moe(f, layer);
  TRY(route(f, layer));
  TRY(routing_fetch(f, layer, f->batch.owned, parts_for_host(f)));
  TRY(experts_up(f, layer));
  TRY(experts_down(f, layer, &in_order));
  TRY(combine(f, layer, &in_order));
  return routing_wait(f, layer);
}

// Each shared rank computes the shared steps of every token, to the same bits. The slots' outputs cross
// ranks, and before that the routing, to the expert ranks.
static status experts_replicated(forward_state *f, int64_t layer) {
  row_range all = {0, f->batch.rows.n};
  if (f->is_shared) {
    TRY(route(f, layer));
    TRY(routing_fetch(f, layer, all, parts_for_host(f)));
    TRY(experts_up(f, layer)); // a device computes them while the routing is copied to the host
    TRY(routing_wait(f, layer));
  }
  TRY(send_routing(f, layer));
  if (!f->is_shared) TRY(experts_up(f, layer));
  slot_places places = place_slots(f, layer);
  TRY(experts_down(f, layer, &places));
  TRY(transfer_slots(f, layer));
  TRY(audit_slots(f, layer, &places));
  return f->is_shared ? combine(f, layer, &places) : 0;
}

static status layer_replicated(forward_state *f, int64_t layer) {
  if (f->is_shared) TRY(attention(f, layer));
  return experts_replicated(f, layer);
}

// As replicated, but for attention, of which each rank computes a part, so that its weights are read once by
// all ranks together.
static status layer_output_sharded(forward_state *f, int64_t layer) {
  TRY(attention_in_parts(f, layer));
  return experts_replicated(f, layer);
}

// Each shared rank computes the shared steps of its share of the tokens. Keys and values are gathered on the
// shared ranks, the routing and the input of the experts on all; each slot's output goes to the rank of its
// token. After the last layer (for the head) and a watched one, the residual stream is gathered on the shared
// ranks.
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
  if (gathers_experts_on_device(f)) TRY(routing_wait(f, layer)); // fetched in gather_routing
  slot_places places = place_slots(f, layer);
  TRY(experts_down(f, layer, &places));
  TRY(transfer_slots(f, layer));
  TRY(audit_slots(f, layer, &places));
  if (f->is_shared) TRY(combine(f, layer, &places));
  bool wants_all_rows = layer == f->n_layers - 1 || f->is_watched;
  return wants_all_rows ? gather(f, ROWS_RESIDUAL, SHARED_RANKS, layer) : 0;
}

// As replicated, but the slots' rows follow from the batch alone (SLOTS_AT_FIXED), so the routing stays on
// the devices and the host never waits.
static status layer_fixed_places(forward_state *f, int64_t layer) {
  static const slot_places fixed = {.order = SLOTS_AT_FIXED};
  TRY(attention(f, layer));
  TRY(route(f, layer));
  TRY(experts_up(f, layer));
  TRY(experts_down(f, layer, &fixed));
  TRY(transfer_fixed_slots(f, layer));
  return combine(f, layer, &fixed);
}

// As fixed places, but rows cross ranks inside the step, as the ranks' devices compute them.
static status layer_at_peers(forward_state *f, int64_t layer) {
  TRY(attention(f, layer));
  return moe(f, layer);
}

// As token-sharded, but each rank's device stores rows into the others' memory, slots as it computes them:
// where they go follows from their tokens, so the host does not need the routing and does not wait. Where no
// two tokens are of one sequence, no rank's attention needs the keys and values of others, which then come
// along with the routing: two exchanges in place of three.
static status layer_sharded_at_peers(forward_state *f, int64_t layer) {
  static const row_kind late[] = {ROWS_NORMED, ROWS_EXPERTS, ROWS_KEYS, ROWS_VALUES},
                        residual[] = {ROWS_RESIDUAL};
  const slot_places sent = {.order = SLOTS_SENT, .tokens_of_rank = f->shards.tokens_of_rank};
  bool apart = f->shards.is_apart;
  TRY(project(f, layer));
  if (!apart) TRY(gather_at_peers(f, late + 2, 2, layer));
  TRY(apart ? attend_apart(f, layer) : attend(f, layer));
  TRY(route(f, layer));
  TRY(gather_at_peers(f, late, apart ? 4 : 2, layer));
  if (apart) TRY(cache_others(f, layer));
  TRY(routing_arrived(f, layer));
  TRY(experts_up(f, layer));
  TRY(experts_down(f, layer, &sent));
  TRY(combine(f, layer, &sent));
  return layer == f->n_layers - 1 ? gather_at_peers(f, residual, 1, layer) : 0;
}

static status run_layer(forward_state *f, int64_t layer) {
  switch (f->batch.way) {
  case BATCH_ALONE:
    return layer_alone(f, layer);
  case BATCH_REPLICATED:
    return layer_replicated(f, layer);
  case BATCH_OUTPUT_SHARDED:
    return layer_output_sharded(f, layer);
  case BATCH_TOKEN_SHARDED:
    return layer_token_sharded(f, layer);
  case BATCH_FIXED_PLACES:
    return layer_fixed_places(f, layer);
  case BATCH_AT_PEERS:
    return layer_at_peers(f, layer);
  case BATCH_SHARDED_AT_PEERS:
    return layer_sharded_at_peers(f, layer);
  }
  return FAIL("a batch runs in an unknown way");
}

status forward_layer(forward_state *f, int64_t layer) {
  span_start(SPAN_LAYER, layer);
  status result = run_layer(f, layer);
  span_end(SPAN_NO_AMOUNT);
  return result;
}

// ---- before and after the layers ----

// Before a rank stores into the others' memory: none is still computing the batch before. For one token that
// is the backend's: its kernels for it have memory of their own, and without these it meets by itself.
static status meet_peers(forward_state *f) {
  backend *b = f->compute;
  bool small = f->batch.way == BATCH_AT_PEERS && f->batch.rows.n > 1;
  bool stores = small || f->batch.way == BATCH_SHARDED_AT_PEERS;
  return stores ? b->ops->peers_gather(b, NULL, 0, f->shards.tokens_of_rank) : 0;
}

status forward_embed(forward_state *f) {
  backend *b = f->compute;
  span_start(SPAN_EMBED, SPAN_NO_LAYER);
  status result = f->is_shared ? b->ops->embed(b, &f->batch.rows) : 0;
  if (!result) result = meet_peers(f);
  span_end(SPAN_NO_AMOUNT);
  if (result) status_within("embedding");
  return result;
}

status forward_head(forward_state *f, const int64_t *row, int64_t count) {
  backend *b = f->compute;
  span_start(SPAN_HEAD, SPAN_NO_LAYER);
  status result = f->is_shared ? b->ops->head(b, &f->batch.rows, row, count) : 0;
  span_end(count);
  if (result) status_within("head");
  return result;
}

static status head_in_parts(forward_state *f, const int64_t *row, int64_t count, bool joins) {
  backend *b = f->compute;
  span_start(SPAN_HEAD, SPAN_NO_LAYER);
  status result = b->ops->head_part(b, &f->batch.rows, row, count);
  span_end(count);
  if (result || !joins) return result;
  TRY(gather_parts(f, PARTS_LOGITS, count, f->n_layers));
  return b->ops->logits_join(b, count);
}

status forward_head_part(forward_state *f, const int64_t *row, int64_t count, bool joins) {
  status result = head_in_parts(f, row, count, joins);
  if (result) status_within("head");
  return result;
}
