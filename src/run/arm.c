#include "src/run/arm.h"
#include "src/run/arm_struct.h"
#include "base/clock.h"
#include "base/memory.h"
#include "dist/timeline.h"
#include "src/run/batch_fit.h"
#include "src/run/digest_sums.h"
#include "src/run/forward.h"
#include "src/run/peer_links.h"
#include "src/run/probe_given.h"
#include "src/run/probe_rows.h"
#include "src/run/routing_room.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// ---- open and close ----

static status watch_device(void *context, double waited) {
  return transport_watch(((arm *)context)->transport, waited);
}

static bool is_on_device(const arm *a) {
  return backend_is_on_device(a->params.local.backend);
}

// Of the largest batch whose outputs are divided: larger ones are token-sharded.
static int64_t parts_tokens(const arm *a) {
  int64_t n = (int64_t)SHARD_LEAST_TOKENS * comm_size(a->params.c) - 1;
  return n < a->params.max_batch ? n : a->params.max_batch;
}

static bool divides_outputs(const arm *a) {
  const output_shards *o = &a->forward.outputs;
  return o->possible[OUTPUTS_OF_LAYERS] && !o->by_tokens;
}

static backend_params params_of_backend(arm *a) {
  const arm_params *p = &a->params;
  return (backend_params){
      .weights = &p->m->weights,
      .shared = p->shared.path->kind,
      .experts = p->local.path->kind,
      .map = placement_map(p->experts),
      .n_sequences = p->n_sequences,
      .context = p->context,
      .max_batch = p->max_batch,
      .max_logit_rows = LOGIT_ROWS,
      .kv_f16 = p->kv_f16,
      .computes_shared = a->forward.is_shared,
      .threads = topology_threads(p->place),
      .fits_team = p->fits_team,
      .host_rank = comm_host_rank(p->c),
      .row = p->row,
      .rank = comm_rank(p->c),
      .n_ranks = comm_size(p->c),
      .fixed_tokens = a->forward.ranks && exchange_is_fixed(a->forward.ranks, 1) ? FIXED_TOKENS : 0,
      .has_peers = a->may_have_peers,
      .parts_tokens = divides_outputs(a) ? parts_tokens(a) : 0,
      .parts_head = a->forward.outputs.possible[OUTPUTS_OF_HEAD],
      .watch = watch_device,
      .watch_context = a,
  };
}

static status open_backend(arm *a) {
  backend_params b = params_of_backend(a);
  return a->params.local.backend->open(&a->forward.compute, &b);
}

static status fit_batch(arm *a) {
  backend_params b = params_of_backend(a);
  if (!a->params.batch_may_shrink) return 0;
  b.fixed_tokens = FIXED_TOKENS; // whether it is so is known with the exchange; it takes little
  return batch_fit(&a->params.max_batch, a->params.c, a->params.local.backend, &b, a->params.name);
}

static status open_arrays(arm *a) {
  const arm_params *p = &a->params;
  size_t n = (size_t)p->max_batch, slots = n * (size_t)a->forward.top_k;
  TRY(TAKE(&a->forward.rows_of_rank, (size_t)comm_size(p->c), "the rows of ranks"));
  TRY(TAKE(&a->forward.rank_of_slot, slots, "the ranks of slots"));
  TRY(routing_open(&a->forward.route, n, slots));
  TRY(routing_open(&a->forward.given, n, slots));
  return digest_sums_open(&a->digests, a->n_layers, p->n_sequences, comm_size(p->c));
}

// Local; arm_open has all ranks agree on the outcome.
static status open_parts(arm *a) {
  const arm_params *p = &a->params;
  int64_t slots = p->max_batch * a->forward.top_k;
  TRY(exchange_open(&a->forward.ranks, p->c, a->transport, p->computes_shared, slots));
  TRY(token_shards_open(&a->forward.shards, p->computes_shared, comm_size(p->c), comm_rank(p->c),
                        p->max_batch));
  a->forward.takes_device = transport_takes_device(a->transport);
  a->forward.all_on_device = transport_all_on_device(a->transport);
  a->may_have_peers =
      p->peers && !p->audit && exchange_is_fixed(a->forward.ranks, 1) &&
      peer_links_apply(p->c, p->local.backend); // an audit needs the slots where the host sees them
  TRY(open_backend(a));
  if (p->audit) TRY(audit_open(&a->forward.audit, p->audit));
  return open_arrays(a);
}

// Of the largest array of rows that the transport finds in host memory.
static size_t host_bytes(const arm *a) {
  const forward_state *f = &a->forward;
  int64_t slots = f->top_k * f->hidden, widest = slots > f->kv_width ? slots : f->kv_width;
  int64_t reals = a->params.max_batch * widest;
  const model_shape *s = &a->params.m->weights.shape;
  int64_t heads = divides_outputs(a) ? parts_tokens(a) * (s->n_heads + 2 * s->n_kv_heads) * s->head_dim : 0,
          logits = f->outputs.possible[OUTPUTS_OF_HEAD] ? LOGIT_ROWS * s->vocabulary : 0;
  reals = heads > reals ? heads : reals;
  reals = logits > reals ? logits : reals;
  return is_on_device(a) ? 0 : (size_t)reals * f->path->real_bytes;
}

static status link_peers(arm *a) {
  forward_state *f = &a->forward;
  if (!a->may_have_peers) return 0;
  TRY(peer_links_open(&f->has_peers, a->peers, sizeof a->peers, a->params.c, f->compute));
  if (f->has_peers) snprintf(a->peers, sizeof a->peers, "linked");
  return 0;
}

// Collective. Whether the shared steps may be divided among the ranks.
static status open_outputs(arm *a) {
  const arm_params *p = &a->params;
  output_ability mine = {.outputs = p->local.backend->heads_part, .head = p->local.backend->head_part};
  bool all_shared = true;
  for (int r = 0; r < comm_size(p->c) && p->computes_shared; r++)
    all_shared = all_shared && p->computes_shared[r];
  if (!all_shared) snprintf(mine.why_not, sizeof mine.why_not, "some ranks compute only experts");
  return output_shards_open(&a->forward.outputs, p->c, p->attention, &mine, parts_tokens(a));
}

status arm_open(arm **out, const arm_params *params) {
  arm *a = *out = NULL;
  TRY(memory_take((void **)&a, 1, sizeof *a, "an arm"));
  const model_shape *s = &params->m->weights.shape;
  a->params = *params;
  a->vocabulary = s->vocabulary;
  a->n_layers = s->n_layers;
  a->forward.path = path_for(params->shared.path->kind, &params->m->weights);
  a->forward.experts = params->experts;
  a->forward.hidden = s->hidden;
  a->forward.kv_width = s->n_kv_heads * s->head_dim;
  a->forward.n_heads = s->n_heads;
  a->forward.n_kv_heads = s->n_kv_heads;
  a->forward.vocabulary = s->vocabulary;
  a->forward.top_k = s->top_k;
  a->forward.n_layers = s->n_layers;
  a->forward.is_shared = !params->computes_shared || params->computes_shared[comm_rank(params->c)];
  a->keeps_logits = true;
  status result;
  TRY_DONE(result,
           transport_choose(&a->transport, params->c, params->transport, params->device, is_on_device(a)));
  TRY_DONE(result, open_outputs(a));
  // before the backend, which plans with the device memory that the transport has left
  TRY_DONE(result, transport_start(a->transport, host_bytes(a)));
  TRY_DONE(result, fit_batch(a));
  TRY_DONE(result, comm_agree(params->c, open_parts(a), params->name));
  TRY_DONE(result, link_peers(a));
  *out = a;
done:
  if (result) arm_close(a);
  return result;
}

void arm_close(arm *a) {
  if (!a) return;
  if (a->forward.compute) a->forward.compute->ops->close(a->forward.compute);
  exchange_close(a->forward.ranks);
  token_shards_close(&a->forward.shards);
  transport_close(a->transport);
  audit_close(a->forward.audit);
  free(a->forward.rows_of_rank);
  free(a->forward.rank_of_slot);
  routing_close(&a->forward.route);
  routing_close(&a->forward.given);
  probe_rows_close(&a->probes);
  probe_given_close(&a->given);
  digest_sums_close(&a->digests);
  free(a);
}

// ---- what it is ----

const char *arm_name(const arm *a) {
  return a->params.name;
}

const path_info *arm_path(const arm *a) {
  return a->forward.path;
}

const path_info *arm_expert_path(const arm *a) {
  return a->params.local.path;
}

const backend_ops *arm_backend(const arm *a) {
  return a->params.local.backend;
}

const char *arm_row(const arm *a) {
  return a->forward.compute->ops->row(a->forward.compute);
}

const transport *arm_transport(const arm *a) {
  return a->transport;
}

bool arm_has_peers(const arm *a) {
  return a->forward.has_peers;
}

const char *arm_peers(const arm *a) {
  return a->peers;
}

void arm_attention(const arm *a, char *out, size_t bytes) {
  output_shards_tell(&a->forward.outputs, out, bytes);
}

void arm_hold_attention(arm *a, bool hold) {
  a->forward.outputs.held = hold;
}

bool arm_attention_is_open(const arm *a, int64_t n) {
  const output_shards *o = &a->forward.outputs;
  int64_t rows = n < LOGIT_ROWS ? n : LOGIT_ROWS;
  return output_shards_are_timed(o, OUTPUTS_OF_LAYERS, n) ||
         output_shards_are_timed(o, OUTPUTS_OF_HEAD, rows);
}

output_range arm_outputs(const arm *a, output_kind kind, int64_t n, int64_t total, int64_t unit) {
  const output_shards *o = &a->forward.outputs;
  if (!output_shards_apply(o, kind, n) || (kind == OUTPUTS_OF_LAYERS && o->by_tokens))
    return (output_range){0, total};
  return output_range_of(total, unit, comm_rank(a->params.c), comm_size(a->params.c));
}

uint64_t arm_state_bytes(const arm *a) {
  return a->forward.compute->ops->state_bytes(a->forward.compute);
}

int64_t arm_max_batch(const arm *a) {
  return a->params.max_batch;
}

bool arm_computes_shared(const arm *a) {
  return a->forward.is_shared;
}

// ---- the forward pass ----

uint32_t arm_points_of(const arm *a, probe_scope scope) {
  uint32_t points = 0;
  for (int p = 0; p < PROBE_COUNT; p++)
    if (probe_get((probe_point)p)->scope == scope) points |= a->probes_wanted & 1u << p;
  return points;
}

// The batch has been started.
static status embed_rows(arm *a) {
  double start = clock_seconds();
  timeline_label(a->params.name);
  probe_rows_clear(&a->probes, arm_points_of(a, PROBE_OF_BATCH));
  status result = forward_embed(&a->forward);
  a->seconds += clock_seconds() - start;
  return result;
}

status arm_embed(arm *a, const token_batch *batch) {
  forward_start(&a->forward, batch);
  return embed_rows(a);
}

static status digest_layer(arm *a, int64_t layer) {
  backend *b = a->forward.compute;
  const batch_plan *batch = &a->forward.batch;
  uint64_t *sums = batch_is_sharded(batch->way) ? a->digests.parts : a->digests.layers;
  span_start(SPAN_DIGEST, layer);
  status result = b->ops->digest(b, layer, &batch->rows, batch->owned.first, batch->owned.count,
                                 sums + layer * a->params.n_sequences);
  span_end(SPAN_NO_AMOUNT);
  return result;
}

// The backend shows and takes what is wanted and given now.
static status watch_probes(arm *a) {
  backend *b = a->forward.compute;
  probe_watch watch = {a->probes_wanted, probe_rows_show,    &a->probes,
                       a->given.points,  probe_given_impose, &a->given};
  return b->ops->probes_watch(b, &watch);
}

status arm_layer(arm *a, int64_t layer) {
  double start = clock_seconds();
  timeline_label(a->params.name);
  probe_rows_clear(&a->probes, arm_points_of(a, PROBE_OF_LAYER));
  status result = forward_layer(&a->forward, layer);
  a->forward.imposed = ROUTING_NOTHING;
  a->seconds += clock_seconds() - start;
  if (result) return result;
  if (a->given.points) {
    a->given.points = 0;
    TRY(watch_probes(a));
  }
  if (a->forward.is_shared) TRY(digest_layer(a, layer));
  return a->forward.is_watched ? arm_finish(a) : 0; // the caller reads the layer now
}

status arm_finish(arm *a) {
  backend *b = a->forward.compute;
  if (!is_on_device(a)) return 0;
  double start = clock_seconds();
  span_start(SPAN_WAIT_DEVICE, SPAN_NO_LAYER);
  status result = b->ops->finish(b);
  span_end(SPAN_NO_AMOUNT);
  if (result) status_within("the end of a batch");
  a->seconds += clock_seconds() - start;
  return result;
}

static status run_steps(void *context, const token_batch *rows) {
  arm *a = (arm *)context;
  (void)rows; // those of the batch that was started
  TRY(embed_rows(a));
  for (int64_t layer = 0; layer < a->n_layers; layer++) TRY(arm_layer(a, layer));
  return 0;
}

static status run_batch(arm *a, const token_batch *batch) {
  backend *b = a->forward.compute;
  forward_start(&a->forward, batch);
  const token_batch *rows = &a->forward.batch.rows;
  if (!forward_is_on_device(&a->forward) || a->probes_wanted) return run_steps(a, rows);
  double before = a->seconds, start = clock_seconds();
  TRY(b->ops->captured(b, rows, a->forward.batch.way, forward_asks_whole_layers(&a->forward), run_steps, a));
  a->seconds = before + clock_seconds() - start; // the steps' own clocks would count twice
  return 0;
}

status arm_forward(arm *a, const token_batch *batch) {
  timeline_label(a->params.name);
  forward_state *f = &a->forward;
  bool timed = !f->is_probed && output_shards_are_timed(&f->outputs, OUTPUTS_OF_LAYERS, batch->n);
  if (timed) TRY(arm_finish(a)); // a device may still be at earlier work
  double start = timed ? clock_seconds() : 0;
  span_start(SPAN_BATCH, SPAN_NO_LAYER);
  status result = run_batch(a, batch);
  span_end(batch->n);
  if (result || !timed) return result;
  TRY(arm_finish(a));
  return output_shards_note(&f->outputs, OUTPUTS_OF_LAYERS, batch->n, clock_seconds() - start);
}

status arm_audit_coverage(const arm *a, audit_coverage *out) {
  *out = (audit_coverage){.share = 0};
  return a->forward.audit ? audit_cover(a->forward.audit, out) : 0;
}

status arm_broadcast(arm *a, void *data, size_t bytes, const char *what) {
  return exchange_broadcast(a->forward.ranks, data, bytes, what);
}

// ---- logits ----

void arm_keep_logits(arm *a, bool keep) {
  a->keeps_logits = keep;
}

const void *arm_logit_rows(const arm *a) {
  return a->logits;
}

void arm_logits(const arm *a, int64_t i, double *out) {
  bool wide = a->forward.path->real_bytes == sizeof(double);
  int64_t n = a->vocabulary;
  for (int64_t v = 0; v < n; v++)
    out[v] = wide ? ((const double *)a->logits)[i * n + v] : (double)((const float *)a->logits)[i * n + v];
}

// ---- watching each layer, and imposing what comes next ----

static int64_t row_of(const arm *a, int64_t t) {
  return token_shards_row(&a->forward.shards, t);
}

// How many tokens from t on have consecutive rows.
static int64_t consecutive_rows(const arm *a, int64_t t) {
  int64_t n = 1, row = row_of(a, t);
  while (t + n < a->forward.batch.rows.n && row_of(a, t + n) == row + n) n++;
  return n;
}

void arm_watch_layers(arm *a, bool watch) {
  a->forward.is_watched = watch;
}

const expert_global *arm_experts(const arm *a, int64_t t) {
  return a->forward.route.expert + row_of(a, t) * a->forward.top_k;
}

const double *arm_weights(const arm *a, int64_t t) {
  return a->forward.route.weight + row_of(a, t) * a->forward.top_k;
}

double arm_margin(const arm *a, int64_t t) {
  return a->forward.route.margin[row_of(a, t)];
}

status arm_stream_read(arm *a, double *out) {
  backend *b = a->forward.compute;
  int64_t hidden = a->forward.hidden;
  for (int64_t t = 0, n; t < a->forward.batch.rows.n; t += n) {
    n = consecutive_rows(a, t);
    TRY(b->ops->stream_read(b, row_of(a, t), n, out + t * hidden));
  }
  return 0;
}

status arm_stream_write(arm *a, const double *in) {
  backend *b = a->forward.compute;
  int64_t hidden = a->forward.hidden;
  for (int64_t t = 0, n; t < a->forward.batch.rows.n && a->forward.is_shared; t += n) {
    n = consecutive_rows(a, t);
    TRY(b->ops->stream_write(b, row_of(a, t), n, in + t * hidden));
  }
  return 0;
}

status arm_impose_routing(arm *a, unsigned parts, const routing *in) {
  forward_state *f = &a->forward;
  int64_t k = f->top_k;
  bool on_device = f->batch.way == BATCH_FIXED_PLACES || f->batch.way == BATCH_AT_PEERS;
  if (parts & ROUTING_MARGINS || on_device)
    return FAIL("%s: a routing can be imposed on a watched arm only, and has no margins", a->params.name);
  for (int64_t t = 0; t < f->batch.rows.n && f->is_shared; t++) {
    int64_t to = row_of(a, t) * k, from = t * k;
    for (int64_t s = 0; s < k && parts & ROUTING_EXPERTS; s++) f->given.expert[to + s] = in->expert[from + s];
    for (int64_t s = 0; s < k && parts & ROUTING_WEIGHTS; s++) f->given.weight[to + s] = in->weight[from + s];
  }
  f->imposed = parts;
  f->imposes_set = false;
  return 0;
}

status arm_impose_choice(arm *a, const expert_global *in) {
  routing given = {.expert = (expert_global *)in}; // read only
  if (!a->forward.is_watched)
    return FAIL("%s: a choice of experts is imposed on a watched arm", a->params.name);
  TRY(arm_impose_routing(a, ROUTING_EXPERTS, &given));
  a->forward.imposes_set = true;
  return 0;
}

status arm_impose_open(arm *a, uint32_t points) {
  const arm_params *p = &a->params;
  for (int i = 0; i < PROBE_COUNT; i++)
    if ((points & ~arm_backend(a)->settable) >> i & 1)
      return FAIL("%s: its backend cannot take the probe %s from outside", p->name,
                  probe_get((probe_point)i)->name);
  if (points) a->forward.is_probed = true;
  return probe_given_open(&a->given, &p->m->weights.shape, points, p->max_batch);
}

status arm_impose_probe(arm *a, probe_point point, const double *in) {
  const given_store *s = &a->given.store[point];
  if (!s->room)
    return FAIL("%s: the probe %s was not opened for imposing", a->params.name, probe_get(point)->name);
  for (int64_t t = 0; t < a->forward.batch.rows.n; t++)
    probe_given_set(&a->given, point, row_of(a, t), in + t * s->each * s->width);
  a->given.points |= 1u << point;
  return watch_probes(a);
}

// ---- probes ----

status arm_probes_open(arm *a, uint32_t points) {
  const arm_params *p = &a->params;
  return probe_rows_open(&a->probes, p->c, p->reporting, &p->m->weights.shape, points, p->max_batch,
                         LOGIT_ROWS);
}

status arm_probes_want(arm *a, uint32_t points) {
  a->probes_wanted = points;
  if (points) a->forward.is_probed = true;
  return watch_probes(a);
}

status arm_probe_take(arm *a, probe_point point, const double **out) {
  const forward_state *f = &a->forward;
  bool sharded = batch_is_sharded(f->batch.way);
  probe_order order = {f->batch.owned.first, f->batch.owned.count, sharded ? f->shards.row_of_token : NULL};
  bool of_head = probe_get(point)->scope == PROBE_OF_HEAD;
  return probe_rows_take(&a->probes, point, &order, of_head ? a->n_head_rows : f->batch.rows.n, f->top_k,
                         out);
}
