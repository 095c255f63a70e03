// arm_results: what an arm has computed and what it took: digests, clocks, the exchange, the budget of a
// token.
#include "src/run/arm_struct.h"

// ---- clocks and digests ----

status arm_add_parts(arm *a) {
  if (a->forward.shards.n_shared == 1) return 0; // no batch was token-sharded
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

uint64_t arm_sequence_digest(const arm *a, int64_t sequence) {
  return a->digests.logits[sequence];
}

bool arm_exchange_is_captured(const arm *a, int64_t n_tokens) {
  return exchange_is_fixed(a->forward.ranks, n_tokens) && !a->forward.has_peers && !a->forward.audit;
}

status arm_measure_exchange(arm *a, double *seconds, int64_t n_tokens) {
  const forward_state *f = &a->forward;
  return exchange_measure_fixed(f->ranks, seconds, n_tokens * f->top_k,
                                (size_t)f->hidden * f->path->real_bytes);
}

// ---- the budget of a token ----

status arm_phases_watch(arm *a, phase_times *to) {
  backend *b = a->forward.compute;
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
