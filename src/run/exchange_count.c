#include "src/run/exchange_count.h"

typedef struct {
  forward_state *f;
  int64_t layer;
  bool at_peers; // rows are stored into the memory of other devices
  uint64_t *sent, *received;
} count;

static void add_table(const count *c, const row_range *range, size_t row_bytes) {
  int size = exchange_size(c->f->ranks);
  for (int from = 0; from < size; from++)
    for (int to = 0; to < size; to++) {
      uint64_t bytes = from == to ? 0 : (uint64_t)range[from * size + to].count * row_bytes;
      c->sent[from] += bytes;
      c->received[to] += bytes;
    }
}

static size_t bytes_of(const count *c, row_kind kind) {
  backend *b = c->f->compute;
  return c->at_peers ? b->ops->peers_row_bytes(b, kind) : forward_row_bytes(c->f, kind);
}

static void add_gather(const count *c, row_kind kind, rank_set to) {
  add_table(c, exchange_gather(c->f->ranks, c->f->shards.tokens_of_rank, to), bytes_of(c, kind));
}

// slots_of_rank: whose tokens they belong to; NULL: each shared rank receives all.
static void add_slots(const count *c, const int64_t *slots_of_rank) {
  forward_state *f = c->f;
  exchange_place_slots(f->ranks, forward_ranks_of_slots(f, c->layer), f->batch.rows.n * f->top_k,
                       slots_of_rank);
  add_table(c, exchange_slots(f->ranks), forward_row_bytes(f, ROWS_SLOTS));
}

static void add_replicated(const count *c) {
  forward_state *f = c->f;
  if (exchange_count(f->ranks, EXPERT_RANKS)) {
    exchange_split(f->ranks, f->rows_of_rank, f->batch.rows.n);
    const row_range *range = exchange_gather(f->ranks, f->rows_of_rank, EXPERT_RANKS);
    add_table(c, range, forward_row_bytes(f, ROWS_EXPERTS) + forward_row_bytes(f, ROWS_NORMED));
  }
  add_slots(c, NULL);
}

static void add_token_sharded(const count *c) {
  forward_state *f = c->f;
  add_gather(c, ROWS_KEYS, SHARED_RANKS);
  add_gather(c, ROWS_VALUES, SHARED_RANKS);
  add_gather(c, ROWS_NORMED, ALL_RANKS);
  add_gather(c, ROWS_EXPERTS, ALL_RANKS);
  for (int r = 0; r < exchange_size(f->ranks); r++)
    f->rows_of_rank[r] = f->shards.tokens_of_rank[r] * f->top_k;
  add_slots(c, f->rows_of_rank);
  if (c->layer == f->n_layers - 1) add_gather(c, ROWS_RESIDUAL, SHARED_RANKS);
}

static void add_parts(const count *c, row_kind kind) {
  add_table(c, forward_parts(c->f, kind, c->f->batch.rows.n), forward_row_bytes(c->f, kind));
}

// Every rank's slots, used or not, go to all others.
static void add_fixed(const count *c) {
  forward_state *f = c->f;
  for (int r = 0; r < exchange_size(f->ranks); r++) f->rows_of_rank[r] = f->batch.rows.n * f->top_k;
  add_table(c, exchange_gather(f->ranks, f->rows_of_rank, ALL_RANKS), forward_row_bytes(f, ROWS_SLOTS));
}

void exchange_count_layer(forward_state *f, int64_t layer, uint64_t *sent, uint64_t *received) {
  count c = {f, layer, false, sent, received};
  switch (forward_way(f, f->batch.rows.n)) {
  case BATCH_ALONE:
    break;
  case BATCH_REPLICATED:
  case BATCH_AT_PEERS:
    add_replicated(&c);
    break;
  case BATCH_OUTPUT_SHARDED:
    add_parts(&c, PARTS_HEADS);
    add_parts(&c, PARTS_OUTPUT);
    add_replicated(&c);
    break;
  case BATCH_SHARDED_AT_PEERS:
    c.at_peers = true;
    add_token_sharded(&c);
    break;
  case BATCH_TOKEN_SHARDED:
    add_token_sharded(&c);
    break;
  case BATCH_FIXED_PLACES:
    add_fixed(&c);
    break;
  }
}
