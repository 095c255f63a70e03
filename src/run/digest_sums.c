#include "src/run/digest_sums.h"
#include "base/memory.h"
#include <stdlib.h>
#include <string.h>

static size_t layer_count(const digest_sums *d) {
  return (size_t)(d->n_layers * d->n_sequences);
}

status digest_sums_open(digest_sums *out, int64_t n_layers, int64_t n_sequences, int n_ranks) {
  *out = (digest_sums){.n_layers = n_layers, .n_sequences = n_sequences};
  TRY(TAKE(&out->logits, (size_t)n_sequences, "digests"));
  TRY(TAKE(&out->part, (size_t)n_sequences, "digests"));
  TRY(TAKE(&out->all, (size_t)(n_sequences * n_ranks), "digests"));
  TRY(TAKE(&out->layers, layer_count(out), "digests"));
  return TAKE(&out->parts, layer_count(out), "digests");
}

void digest_sums_close(digest_sums *d) {
  free(d->logits);
  free(d->layers);
  free(d->parts);
  free(d->part);
  free(d->all);
}

void digest_sums_reset(digest_sums *d) {
  memset(d->logits, 0, (size_t)d->n_sequences * sizeof *d->logits);
  memset(d->part, 0, (size_t)d->n_sequences * sizeof *d->part);
  memset(d->layers, 0, layer_count(d) * sizeof *d->layers);
  memset(d->parts, 0, layer_count(d) * sizeof *d->parts);
}

status digest_sums_add_parts(digest_sums *d, comm *c) {
  size_t n = layer_count(d), size = (size_t)comm_size(c);
  uint64_t *all;
  TRY(TAKE(&all, size * n, "the sum of digests"));
  status result = comm_allgather(c, all, d->parts, n * sizeof *all, "the sum of layers' digests");
  for (size_t i = 0; i < size * n && !result; i++) d->layers[i % n] += all[i];
  if (!result) memset(d->parts, 0, n * sizeof *d->parts);
  free(all);
  return result;
}

status digest_sums_add_part(digest_sums *d, comm *c) {
  size_t n = (size_t)d->n_sequences;
  TRY(comm_allgather(c, d->all, d->part, n * sizeof *d->all, "the sum of logits' digests"));
  for (size_t i = 0; i < n * (size_t)comm_size(c); i++) d->logits[i % n] += d->all[i];
  memset(d->part, 0, n * sizeof *d->part);
  return 0;
}

static uint64_t sum_of(const uint64_t *x, int64_t n) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < n; i++) sum += x[i];
  return sum;
}

uint64_t digest_sums_of_logits(const digest_sums *d) {
  return sum_of(d->logits, d->n_sequences);
}

uint64_t digest_sums_of_layer(const digest_sums *d, int64_t layer) {
  return sum_of(d->layers + layer * d->n_sequences, d->n_sequences);
}

void digest_sums_read(const digest_sums *d, uint64_t *out) {
  memcpy(out, d->logits, (size_t)d->n_sequences * sizeof *out);
  memcpy(out + d->n_sequences, d->layers, layer_count(d) * sizeof *out);
}

void digest_sums_write(digest_sums *d, const uint64_t *in) {
  memcpy(d->logits, in, (size_t)d->n_sequences * sizeof *in);
  memcpy(d->layers, in + d->n_sequences, layer_count(d) * sizeof *in);
}
