#include "src/run/arm.h"
#include "base/clock.h"
#include "base/memory.h"
#include <stdlib.h>
#include <string.h>

static status watch_device(void *context, double waited) {
  return transport_watch(((arm *)context)->carrier, waited);
}

static bool is_on_device(const arm *e) {
  return e->params.own.backend->finish != NULL;
}

static status open_backend(arm *e) {
  const arm_params *p = &e->params;
  backend_params b = {
      .weights = &p->m->weights,
      .shared = p->shared.path->kind,
      .experts = p->own.path->kind,
      .local = p->experts->local,
      .n_sequences = p->n_sequences,
      .context = p->context,
      .max_batch = p->max_batch,
      .max_logit_rows = LOGIT_ROWS,
      .kv_f16 = p->kv_f16,
      .computes_shared = e->forward.is_shared,
      .threads = topology_threads(p->place),
      .host_rank = comm_host_rank(p->c),
      .row = p->row,
      .rank = comm_rank(p->c),
      .n_ranks = comm_size(p->c),
      .rank_of_expert = p->experts->rank_of_expert,
      .fixed_tokens = exchange_is_fixed(e->forward.ranks, 1) ? FIXED_TOKENS : 0,
      .watch = watch_device,
      .watch_context = e,
  };
  return p->own.backend->open(&e->forward.compute, &b);
}

static status open_arrays(arm *e) {
  const arm_params *p = &e->params;
  int64_t slots = p->max_batch * e->forward.top_k;
  TRY(TAKE(&e->forward.rows_of_rank, (size_t)comm_size(p->c), "the rows of ranks"));
  TRY(TAKE(&e->forward.route.expert, (size_t)slots, "routing"));
  TRY(TAKE(&e->forward.route.margin, (size_t)p->max_batch, "routing"));
  if (e->forward.is_shared)
    TRY(memory_take(&e->logits, (size_t)(LOGIT_ROWS * e->vocabulary), e->forward.path->real_bytes, "logits"));
  TRY(TAKE(&e->logit_digest, (size_t)p->n_sequences, "digests"));
  TRY(TAKE(&e->layer_digest, (size_t)(e->n_layers * p->n_sequences), "digests"));
  return TAKE(&e->part_digest, (size_t)(e->n_layers * p->n_sequences), "digests");
}

// What is this rank's own; all ranks agree on the outcome.
static status open_parts(arm *e) {
  const arm_params *p = &e->params;
  TRY(exchange_open(&e->forward.ranks, p->c, e->carrier, p->experts->rank_of_expert, p->computes_shared,
                    p->max_batch * e->forward.top_k));
  TRY(token_shards_open(&e->forward.shards, p->computes_shared, comm_size(p->c), comm_rank(p->c),
                        p->max_batch));
  e->forward.takes_device = transport_takes_device(e->carrier);
  TRY(open_backend(e));
  return open_arrays(e);
}

// Of the rows of a kind that a transport for devices finds in host memory.
static size_t host_bytes(const arm *e) {
  const forward_state *f = &e->forward;
  int64_t slots = f->top_k * f->hidden, widest = slots > f->kv_width ? slots : f->kv_width;
  return is_on_device(e) ? 0 : (size_t)(e->params.max_batch * widest) * f->path->real_bytes;
}

status arm_open(arm **out, const arm_params *params) {
  *out = NULL;
  arm *e;
  TRY(memory_take((void **)&e, 1, sizeof *e, "an arm"));
  const model_shape *s = &params->m->weights.shape;
  e->params = *params;
  e->vocabulary = s->vocabulary;
  e->n_layers = s->n_layers;
  e->forward.path = params->shared.path;
  e->forward.hidden = s->hidden;
  e->forward.kv_width = s->n_kv_heads * s->head_dim;
  e->forward.top_k = s->top_k;
  e->forward.n_layers = s->n_layers;
  e->forward.is_shared = !params->computes_shared || params->computes_shared[comm_rank(params->c)];
  e->wants_logits = true;
  status result;
  TRY_DONE(result,
           transport_choose(&e->carrier, params->c, params->transport, params->device, is_on_device(e)));
  // first, so that the backend's plan finds what the transport has left of a device's memory
  TRY_DONE(result, transport_start(e->carrier, host_bytes(e)));
  TRY_DONE(result, comm_agree(params->c, open_parts(e), params->name));
  *out = e;
done:
  if (result) arm_close(e);
  return result;
}

void arm_close(arm *e) {
  if (!e) return;
  if (e->forward.compute) e->forward.compute->ops->close(e->forward.compute);
  exchange_close(e->forward.ranks);
  token_shards_close(&e->forward.shards);
  transport_close(e->carrier);
  free(e->forward.rows_of_rank);
  free(e->forward.route.expert);
  free(e->forward.route.margin);
  free(e->logits);
  free(e->logit_digest);
  free(e->layer_digest);
  free(e->part_digest);
  free(e);
}

status arm_embed(arm *e, const token_batch *batch) {
  double start = clock_seconds();
  status result = forward_embed(&e->forward, batch);
  e->seconds += clock_seconds() - start;
  return result;
}

static status digest_layer(arm *e, int64_t layer, const token_batch *batch) {
  backend *b = e->forward.compute;
  const token_shards *d = &e->forward.shards;
  row_range own = token_shards_owned(d, batch->n);
  uint64_t *sums = token_shards_apply(d, batch->n) ? e->part_digest : e->layer_digest;
  return b->ops->digest(b, layer, token_shards_rows(d, batch), own.first, own.count,
                        sums + layer * e->params.n_sequences);
}

status arm_layer(arm *e, int64_t layer, const token_batch *batch) {
  double start = clock_seconds();
  TRY(forward_layer(&e->forward, layer, batch));
  e->seconds += clock_seconds() - start;
  if (e->forward.is_shared) TRY(digest_layer(e, layer, batch));
  return e->forward.wants_routing ? arm_finish(e) : 0; // the caller looks at the layer now
}

status arm_finish(arm *e) {
  backend *b = e->forward.compute;
  if (!b->ops->finish) return 0;
  double start = clock_seconds();
  status result = b->ops->finish(b);
  if (result) status_within("the end of a batch");
  e->seconds += clock_seconds() - start;
  return result;
}

static status run_steps(void *context, const token_batch *batch) {
  arm *e = (arm *)context;
  TRY(arm_embed(e, batch));
  for (int64_t layer = 0; layer < e->n_layers; layer++) TRY(arm_layer(e, layer, batch));
  return 0;
}

status arm_forward(arm *e, const token_batch *batch) {
  backend *b = e->forward.compute;
  if (!b->ops->recorded || !forward_is_on_device(&e->forward, batch)) return run_steps(e, batch);
  double before = e->seconds, start = clock_seconds();
  TRY(b->ops->recorded(b, batch, run_steps, e));
  e->seconds = before + clock_seconds() - start; // the steps' own clocks would count twice
  return 0;
}

status arm_broadcast(arm *e, void *data, size_t bytes, const char *what) {
  return exchange_broadcast(e->forward.ranks, data, bytes, what);
}

static const char *logit_row(const arm *e, int64_t i) {
  return (const char *)e->logits + (size_t)(i * e->vocabulary) * e->forward.path->real_bytes;
}

static void digest_logits(arm *e, const token_batch *batch, int64_t first, int64_t count) {
#pragma omp parallel for num_threads(topology_threads(e->params.place))
  for (int64_t i = 0; i < count; i++) {
    uint64_t sum = 0;
    digest_row(&sum, e->forward.path, -1, batch->position[first + i], logit_row(e, i), (size_t)e->vocabulary);
#pragma omp atomic
    e->logit_digest[batch->sequence[first + i]] += sum;
  }
}

status arm_head(arm *e, const token_batch *batch, int64_t first, int64_t count) {
  backend *b = e->forward.compute;
  bool on_device = b->ops->finish != NULL;
  int64_t rows[LOGIT_ROWS];
  if (!e->forward.is_shared) return 0;
  for (int64_t i = 0; i < count; i++) rows[i] = token_shards_row(&e->forward.shards, batch->n, first + i);
  double start = clock_seconds();
  TRY(forward_head(&e->forward, rows, count, on_device && !e->wants_logits ? NULL : e->logits));
  e->seconds += clock_seconds() - start;
  if (on_device) {
    TRY(b->ops->logits_digest(b, rows, count, e->logit_digest));
    return e->wants_logits ? arm_finish(e) : 0;
  }
  digest_logits(e, batch, first, count);
  return 0;
}

void arm_logits(const arm *e, int64_t i, double *out) {
  const char *row = logit_row(e, i);
  bool wide = e->forward.path->real_bytes == sizeof(double);
  for (int64_t v = 0; v < e->vocabulary; v++)
    out[v] = wide ? ((const double *)(const void *)row)[v] : (double)((const float *)(const void *)row)[v];
}

status arm_add_parts(arm *e) {
  int size = comm_size(e->params.c);
  size_t n = (size_t)(e->n_layers * e->params.n_sequences);
  uint64_t *all;
  if (e->forward.shards.n_shared == 1) return 0; // nothing was dealt
  TRY(TAKE(&all, (size_t)size * n, "the sum of digests"));
  status result =
      comm_allgather(e->params.c, all, e->part_digest, n * sizeof *all, "the sum of layers' digests");
  for (size_t i = 0; i < (size_t)size * n && !result; i++) e->layer_digest[i % n] += all[i];
  if (!result) memset(e->part_digest, 0, n * sizeof *e->part_digest);
  free(all);
  return result;
}

void arm_reset(arm *e) {
  memset(e->logit_digest, 0, (size_t)e->params.n_sequences * sizeof *e->logit_digest);
  memset(e->layer_digest, 0, (size_t)(e->n_layers * e->params.n_sequences) * sizeof *e->layer_digest);
  memset(e->part_digest, 0, (size_t)(e->n_layers * e->params.n_sequences) * sizeof *e->part_digest);
  e->seconds = 0;
  e->exchange_seconds_before = exchange_seconds(e->forward.ranks);
}

double arm_exchange_seconds(const arm *e) {
  return exchange_seconds(e->forward.ranks) - e->exchange_seconds_before;
}

static uint64_t sum_of(const uint64_t *x, int64_t n) {
  uint64_t sum = 0;
  for (int64_t i = 0; i < n; i++) sum += x[i];
  return sum;
}

uint64_t arm_digest(const arm *e) {
  return sum_of(e->logit_digest, e->params.n_sequences);
}

uint64_t arm_layer_digest(const arm *e, int64_t layer) {
  return sum_of(e->layer_digest + layer * e->params.n_sequences, e->params.n_sequences);
}
