// arm_results: what an arm has computed and what it took: digests, clocks, the exchange, the budget of a
// token.
#include "src/run/arm_struct.h"
#include "src/run/exchange_count.h"

// ---- clocks and digests ----

status arm_add_parts(arm *a) {
  if (a->forward.shards.n_shared == 1) return 0; // no batch was token-sharded
  if (a->forward.outputs.possible[OUTPUTS_OF_HEAD]) TRY(digest_sums_add_part(&a->digests, a->params.c));
  return digest_sums_add_parts(&a->digests, a->params.c);
}

void arm_reset(arm *a) {
  digest_sums_reset(&a->digests);
  a->seconds = 0;
  a->exchange_seconds_before = exchange_seconds(a->forward.ranks);
}

double arm_exchange_seconds(const arm *a) {
  return exchange_seconds(a->forward.ranks) - a->exchange_seconds_before;
}

double arm_seconds(const arm *a) {
  return a->seconds;
}

uint64_t arm_digest(const arm *a) {
  return digest_sums_of_logits(&a->digests);
}

uint64_t arm_layer_digest(const arm *a, int64_t layer) {
  return digest_sums_of_layer(&a->digests, layer);
}

size_t arm_digest_count(const arm *a) {
  return (size_t)((a->n_layers + 1) * a->params.n_sequences);
}

void arm_digests_read(const arm *a, uint64_t *out) {
  digest_sums_read(&a->digests, out);
}

void arm_digests_write(arm *a, const uint64_t *in) {
  digest_sums_write(&a->digests, in);
}

token_batch arm_owned_rows(const arm *a) {
  token_batch rows = a->forward.batch.rows;
  const row_range own = a->forward.batch.owned;
  rows.n = own.count;
  rows.token += own.first;
  rows.sequence += own.first;
  rows.position += own.first;
  return rows;
}

uint64_t arm_sequence_digest(const arm *a, int64_t sequence) {
  return a->digests.logits[sequence];
}

bool arm_exchange_is_captured(const arm *a, int64_t n_tokens) {
  return exchange_is_fixed(a->forward.ranks, n_tokens) && !a->forward.has_peers && !a->forward.audit;
}

status arm_measure_exchange(arm *a, double *seconds, int64_t n_tokens) {
  const forward_state *f = &a->forward;
  return exchange_measure(f->ranks, seconds, (size_t)(n_tokens * f->top_k * f->hidden) * f->path->real_bytes);
}

status arm_measure_link(arm *a, double *seconds, size_t bytes) {
  return exchange_measure(a->forward.ranks, seconds, bytes);
}

void arm_count_exchange(arm *a, int64_t layer, uint64_t *sent, uint64_t *received) {
  exchange_count_layer(&a->forward, layer, sent, received);
}

// Of outputs that ranks divide, the largest part.
static double largest_part(const arm *a, int64_t total, int64_t unit) {
  int size = comm_size(a->params.c);
  int64_t most = 0;
  for (int r = 0; r < size; r++) {
    int64_t part = output_range_of(total, unit, r, size).count;
    most = part > most ? part : most;
  }
  return (double)most / (double)total;
}

double arm_largest_share(const arm *a) {
  const forward_state *f = &a->forward;
  int64_t most = 0;
  switch (f->batch.way) {
  case BATCH_OUTPUT_SHARDED:
    return largest_part(a, f->n_kv_heads, 1);
  case BATCH_TOKEN_SHARDED:
  case BATCH_SHARDED_AT_PEERS:
    for (int r = 0; r < f->shards.n_ranks; r++)
      if (f->shards.tokens_of_rank[r] > most) most = f->shards.tokens_of_rank[r];
    return (double)most / (double)f->batch.rows.n;
  case BATCH_ALONE:
  case BATCH_REPLICATED:
  case BATCH_FIXED_PLACES:
  case BATCH_AT_PEERS:
    break;
  }
  return 1;
}

double arm_largest_head_share(const arm *a, int64_t rows) {
  return forward_divides(&a->forward, OUTPUTS_OF_HEAD, rows) ? largest_part(a, a->vocabulary, OUTPUT_UNIT)
                                                             : 1;
}

uint64_t arm_exchange_bytes(const arm *a) {
  return exchange_bytes_sent(a->forward.ranks);
}

// ---- the budget of a token ----

status arm_phases_watch(arm *a, phase_times *to) {
  backend *b = a->forward.compute;
  // a device says itself what passed between its steps, by whatever transport
  exchange_log(a->forward.ranks, to && !backend_is_on_device(b->ops) ? to->exchanges : NULL);
  if (b->ops->phases_watch) return b->ops->phases_watch(b, to);
  return to ? REFUSE("bench.phases: the backend %s of %s does not report its phases",
                     backend_name(b->ops->kind), a->params.name)
            : 0;
}

status arm_peaks(arm *a, backend_peaks *out) {
  backend *b = a->forward.compute;
  *out = (backend_peaks){__builtin_nan(""), __builtin_nan("")};
  return b->ops->peaks ? b->ops->peaks(b, out) : 0;
}

int arm_threads(const arm *a, int64_t tokens) {
  backend *b = a->forward.compute;
  return b->ops->threads ? b->ops->threads(b, tokens) : 0;
}
