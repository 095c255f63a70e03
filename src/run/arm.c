#include "src/run/arm.h"
#include "base/clock.h"
#include "base/memory.h"
#include "src/run/forward.h"
#include "src/run/probe_rows.h"
#include <stdlib.h>
#include <string.h>

struct arm {
  arm_params params;
  forward_state forward;
  transport *carrier;
  int64_t vocabulary, n_layers;
  bool keeps_logits;
  const void *logits;     // of the last arm_head, where it brought them to the host
  uint64_t *logit_digest; // [n_sequences]
  uint64_t *layer_digest; // [n_layers][n_sequences], but for
  uint64_t *part_digest;  // the same of this rank's tokens of token-sharded batches
  double seconds;
  double exchange_seconds_before;
  probe_rows probes;
  uint32_t probes_wanted;
  int64_t n_heads; // rows of the last arm_head
};

// ---- open and close ----

static status watch_device(void *context, double waited) {
  return transport_watch(((arm *)context)->carrier, waited);
}

static bool is_on_device(const arm *e) {
  return backend_is_on_device(e->params.own.backend);
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

static status open_routing(routing *out, size_t n_tokens, size_t slots) {
  TRY(TAKE(&out->expert, slots, "routing"));
  TRY(TAKE(&out->weight, slots, "routing"));
  return TAKE(&out->margin, n_tokens, "routing");
}

static void close_routing(routing *r) {
  free(r->expert);
  free(r->weight);
  free(r->margin);
}

static status open_arrays(arm *e) {
  const arm_params *p = &e->params;
  size_t n = (size_t)p->max_batch, slots = n * (size_t)e->forward.top_k;
  TRY(TAKE(&e->forward.rows_of_rank, (size_t)comm_size(p->c), "the rows of ranks"));
  TRY(open_routing(&e->forward.route, n, slots));
  TRY(open_routing(&e->forward.given, n, slots));
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
  e->keeps_logits = true;
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
  close_routing(&e->forward.route);
  close_routing(&e->forward.given);
  probe_rows_close(&e->probes);
  free(e->logit_digest);
  free(e->layer_digest);
  free(e->part_digest);
  free(e);
}

// ---- what it is ----

const char *arm_name(const arm *e) {
  return e->params.name;
}

const path_info *arm_path(const arm *e) {
  return e->forward.path;
}

const backend_ops *arm_backend(const arm *e) {
  return e->params.own.backend;
}

const char *arm_row(const arm *e) {
  return e->forward.compute->ops->row(e->forward.compute);
}

const transport *arm_transport(const arm *e) {
  return e->carrier;
}

uint64_t arm_state_bytes(const arm *e) {
  return e->forward.compute->ops->state_bytes(e->forward.compute);
}

bool arm_computes_shared(const arm *e) {
  return e->forward.is_shared;
}

// ---- the forward pass ----

static uint32_t points_of(const arm *e, probe_scope scope) {
  uint32_t points = 0;
  for (int p = 0; p < PROBE_COUNT; p++)
    if (probe_get((probe_point)p)->scope == scope) points |= e->probes_wanted & 1u << p;
  return points;
}

status arm_embed(arm *e, const token_batch *batch) {
  double start = clock_seconds();
  probe_rows_clear(&e->probes, points_of(e, PROBE_OF_BATCH));
  forward_start(&e->forward, batch);
  status result = forward_embed(&e->forward);
  e->seconds += clock_seconds() - start;
  return result;
}

static status digest_layer(arm *e, int64_t layer) {
  backend *b = e->forward.compute;
  const batch_plan *batch = &e->forward.batch;
  uint64_t *sums = batch->way == BATCH_TOKEN_SHARDED ? e->part_digest : e->layer_digest;
  return b->ops->digest(b, layer, &batch->rows, batch->owned.first, batch->owned.count,
                        sums + layer * e->params.n_sequences);
}

status arm_layer(arm *e, int64_t layer, const token_batch *batch) {
  double start = clock_seconds();
  (void)batch; // that of arm_embed
  probe_rows_clear(&e->probes, points_of(e, PROBE_OF_LAYER));
  status result = forward_layer(&e->forward, layer);
  e->forward.imposed = ROUTING_NOTHING;
  e->seconds += clock_seconds() - start;
  if (result) return result;
  if (e->forward.is_shared) TRY(digest_layer(e, layer));
  return e->forward.is_watched ? arm_finish(e) : 0; // the caller looks at the layer now
}

status arm_finish(arm *e) {
  backend *b = e->forward.compute;
  if (!is_on_device(e)) return 0;
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
  forward_start(&e->forward, batch);
  if (!forward_is_on_device(&e->forward) || e->probes_wanted) return run_steps(e, batch);
  double before = e->seconds, start = clock_seconds();
  TRY(b->ops->captured(b, batch, run_steps, e));
  e->seconds = before + clock_seconds() - start; // the steps' own clocks would count twice
  return 0;
}

status arm_head(arm *e, const token_batch *batch, int64_t first, int64_t count) {
  backend *b = e->forward.compute;
  const batch_plan *plan = &e->forward.batch;
  int64_t row[LOGIT_ROWS];
  e->n_heads = count;
  probe_rows_clear(&e->probes, points_of(e, PROBE_OF_HEAD));
  if (!e->forward.is_shared) return 0;
  for (int64_t i = 0; i < count; i++) row[i] = token_shards_row(&e->forward.shards, batch->n, first + i);
  double start = clock_seconds();
  TRY(forward_head(&e->forward, row, count));
  if (e->keeps_logits) TRY(b->ops->logits_read(b, count, &e->logits));
  e->seconds += clock_seconds() - start;
  TRY(b->ops->logits_digest(b, &plan->rows, row, count, e->logit_digest));
  return e->keeps_logits ? arm_finish(e) : 0;
}

status arm_broadcast(arm *e, void *data, size_t bytes, const char *what) {
  return exchange_broadcast(e->forward.ranks, data, bytes, what);
}

// ---- logits ----

void arm_keep_logits(arm *e, bool keep) {
  e->keeps_logits = keep;
}

const void *arm_logit_rows(const arm *e) {
  return e->logits;
}

void arm_logits(const arm *e, int64_t i, double *out) {
  bool wide = e->forward.path->real_bytes == sizeof(double);
  int64_t n = e->vocabulary;
  for (int64_t v = 0; v < n; v++)
    out[v] = wide ? ((const double *)e->logits)[i * n + v] : (double)((const float *)e->logits)[i * n + v];
}

// ---- looking at each layer, and setting what comes next ----

static int64_t row_of(const arm *e, int64_t t) {
  return token_shards_row(&e->forward.shards, e->forward.batch.rows.n, t);
}

// How many tokens from t on are neighbours as rows, too.
static int64_t neighbours(const arm *e, int64_t t) {
  int64_t n = 1, row = row_of(e, t);
  while (t + n < e->forward.batch.rows.n && row_of(e, t + n) == row + n) n++;
  return n;
}

void arm_watch_layers(arm *e, bool watch) {
  e->forward.is_watched = watch;
}

const expert_global *arm_experts(const arm *e, int64_t t) {
  return e->forward.route.expert + row_of(e, t) * e->forward.top_k;
}

const double *arm_weights(const arm *e, int64_t t) {
  return e->forward.route.weight + row_of(e, t) * e->forward.top_k;
}

double arm_margin(const arm *e, int64_t t) {
  return e->forward.route.margin[row_of(e, t)];
}

status arm_stream_read(arm *e, double *out) {
  backend *b = e->forward.compute;
  int64_t hidden = e->forward.hidden;
  for (int64_t t = 0, n; t < e->forward.batch.rows.n; t += n) {
    n = neighbours(e, t);
    TRY(b->ops->stream_read(b, row_of(e, t), n, out + t * hidden));
  }
  return 0;
}

status arm_stream_write(arm *e, const double *in) {
  backend *b = e->forward.compute;
  int64_t hidden = e->forward.hidden;
  for (int64_t t = 0, n; t < e->forward.batch.rows.n && e->forward.is_shared; t += n) {
    n = neighbours(e, t);
    TRY(b->ops->stream_write(b, row_of(e, t), n, in + t * hidden));
  }
  return 0;
}

status arm_impose_routing(arm *e, unsigned parts, const routing *in) {
  forward_state *f = &e->forward;
  int64_t k = f->top_k;
  if (parts & ROUTING_MARGINS || f->batch.way == BATCH_FIXED_PLACES)
    return FAIL("%s: a routing can be imposed on a watched arm only, and has no margins", e->params.name);
  for (int64_t t = 0; t < f->batch.rows.n && f->is_shared; t++) {
    int64_t to = row_of(e, t) * k, from = t * k;
    for (int64_t s = 0; s < k && parts & ROUTING_EXPERTS; s++) f->given.expert[to + s] = in->expert[from + s];
    for (int64_t s = 0; s < k && parts & ROUTING_WEIGHTS; s++) f->given.weight[to + s] = in->weight[from + s];
  }
  f->imposed = parts;
  return 0;
}

// ---- probes ----

status arm_probes_open(arm *e, uint32_t points) {
  const arm_params *p = &e->params;
  return probe_rows_open(&e->probes, p->c, p->reporting, &p->m->weights.shape, points, p->max_batch,
                         LOGIT_ROWS);
}

status arm_probes_want(arm *e, uint32_t points) {
  backend *b = e->forward.compute;
  probe_watch watch = {points, probe_rows_show, &e->probes};
  e->probes_wanted = points;
  return b->ops->probes_watch(b, &watch);
}

status arm_probe_take(arm *e, probe_point point, const double **out) {
  const forward_state *f = &e->forward;
  bool sharded = f->batch.way == BATCH_TOKEN_SHARDED;
  probe_order order = {f->batch.owned.first, f->batch.owned.count, sharded ? f->shards.row_of_token : NULL};
  bool of_head = probe_get(point)->scope == PROBE_OF_HEAD;
  return probe_rows_take(&e->probes, point, &order, of_head ? e->n_heads : f->batch.rows.n, f->top_k, out);
}

// ---- clocks and digests ----

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

double arm_seconds(const arm *e) {
  return e->seconds;
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

uint64_t arm_sequence_digest(const arm *e, int64_t sequence) {
  return e->logit_digest[sequence];
}

bool arm_exchange_is_captured(const arm *e, int64_t n_tokens) {
  return exchange_is_fixed(e->forward.ranks, n_tokens);
}

status arm_measure_exchange(arm *e, double *seconds, int64_t n_tokens) {
  const forward_state *f = &e->forward;
  return exchange_measure_fixed(f->ranks, seconds, n_tokens * f->top_k,
                                (size_t)f->hidden * f->path->real_bytes);
}
