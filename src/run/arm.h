// arm: one side of a comparison, opened on this rank: its backend, its exchange, its clocks and its digests.
//
// Independent of: other arms, what the tokens mean, the report.
// Invariant: a digest covers every logit computed since the last arm_reset, whatever the batches were. On a
// rank that computes only experts (arm_computes_shared is false) there are no logits and no digests.
#pragma once
#include "dist/topology.h"
#include "dist/transport.h"
#include "kernels/backend.h"
#include "src/model/model.h"
#include "src/run/placement.h"

enum { LOGIT_ROWS = 32 }; // logits are computed and consumed this many rows at a time

typedef struct {
  const char *name; // "q8k@cpu" or "ranks"; kept by reference, as all that follows
  const model *m;
  const placement *experts;
  comm *c;
  const topology *place;
  transport_kind transport;
  const char *row;
  const device_id *device;     // that this rank takes, whatever its arm
  arm_spec shared;             // path of the shared steps
  arm_spec own;                // path of this rank's experts, and its backend for all that it computes
  const bool *computes_shared; // [ranks] that compute the shared steps; NULL: all
  int reporting;               // the rank that takes probes; it computes the shared steps
  int64_t n_sequences, context, max_batch;
  bool kv_f16;
} arm_params;

typedef struct arm arm;

status arm_open(arm **out, const arm_params *params); // collective, and so is its outcome
void arm_close(arm *e);                               // takes NULL

// ---- what it is: local ----

const char *arm_name(const arm *e);
const path_info *arm_path(const arm *e);      // of the shared steps
const backend_ops *arm_backend(const arm *e); // for its name and kind; its steps are the arm's own affair
const char *arm_row(const arm *e);            // ISA row or device in use
const transport *arm_transport(const arm *e);
uint64_t arm_state_bytes(const arm *e);
bool arm_computes_shared(const arm *e);

// ---- the forward pass: collective ----

// One after the other: embed, each layer, then head for any of the batch's tokens, at most LOGIT_ROWS at a
// time.
status arm_embed(arm *e, const token_batch *batch);
status arm_layer(arm *e, int64_t layer, const token_batch *batch);
status arm_head(arm *e, const token_batch *batch, int64_t first, int64_t count);
// Embed and all layers.
status arm_forward(arm *e, const token_batch *batch);

// Local. Waits for a device; seconds and digests are complete only then. arm_head, where it brings logits to
// the host, has done it already.
status arm_finish(arm *e);

// Collective, after arm_finish: what each shared rank has of token-sharded batches comes into all layers'
// digests.
status arm_add_parts(arm *e);

// Collective. `bytes` of `data` of the first shared rank come to those that compute only experts.
status arm_broadcast(arm *e, void *data, size_t bytes, const char *what);

// ---- logits: local, on shared ranks ----

void arm_keep_logits(arm *e, bool keep); // true from the start: arm_head brings them to the host
// Of the last arm_head: row i widened to double; and all of them as reals of the path, [count][vocabulary].
void arm_logits(const arm *e, int64_t i, double *out);
const void *arm_logit_rows(const arm *e);

// ---- looking at each layer ----

// Local, the same on every rank. From the next batch on the routing and the residual stream after each
// arm_layer are there for the functions below; false from the start, since it costs a wait for the device in
// each layer.
void arm_watch_layers(arm *e, bool watch);
// Local, on shared ranks, of the last arm_layer: token t's experts and weights [top_k] in slot order, its
// margin.
const expert_global *arm_experts(const arm *e, int64_t t);
const double *arm_weights(const arm *e, int64_t t);
double arm_margin(const arm *e, int64_t t);
// Local, on shared ranks, after arm_embed or an arm_layer that was watched: the residual stream of the
// batch's n tokens, [n][hidden], exact.
status arm_stream_read(arm *e, double *out);

// ---- setting what comes next: the same call on every rank, after arm_embed of the batch ----
// A rank that computes only experts does not read `in`, which may be NULL there.

// The residual stream before the next arm_layer: [n][hidden] of the batch's tokens.
status arm_stream_write(arm *e, const double *in);
// The next arm_layer takes `parts` of the routing (ROUTING_EXPERTS, ROUTING_WEIGHTS) from `in`, [n][top_k] of
// the batch's tokens, in place of its own; the probes of the routing still show its own.
status arm_impose_routing(arm *e, unsigned parts, const routing *in);

// ---- probes ----

// Local. Makes room for the points (bits 1 << probe_point) that will be wanted.
status arm_probes_open(arm *e, uint32_t points);
// Local, the same on every rank. From the next step on these are kept; 0 from the start: probes cost nothing.
status arm_probes_want(arm *e, uint32_t points);
// Collective, after the step that the probe belongs to (arm_embed, arm_layer, arm_head). *out, on the
// reporting rank: the batch's tokens (of a head, its rows) in order, probe_width numbers each, top_k times as
// many of a probe per slot; valid until the next call. NULL on the others.
status arm_probe_take(arm *e, probe_point point, const double **out);

// ---- clocks and digests: local ----

void arm_reset(arm *e);                    // forgets digests and clocks; KV caches are simply rewritten
double arm_seconds(const arm *e);          // in the steps since arm_reset; digests and probes not counted
double arm_exchange_seconds(const arm *e); // since arm_reset
uint64_t arm_digest(const arm *e);         // of the logits, all sequences
uint64_t arm_sequence_digest(const arm *e, int64_t sequence);
uint64_t arm_layer_digest(const arm *e, int64_t layer); // after arm_add_parts

// The exchange of a batch of n tokens is captured with the other steps, so it has no clock of its own.
bool arm_exchange_is_captured(const arm *e, int64_t n_tokens);
status arm_measure_exchange(arm *e, double *seconds, int64_t n_tokens); // collective: one layer's, on its own
