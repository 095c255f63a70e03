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
#include "src/run/audit.h"
#include "src/run/output_shards.h"
#include "src/run/placement.h"

enum { LOGIT_ROWS = 32 }; // logits are computed and consumed this many rows at a time

typedef struct {
  const char *name; // "q8k@cpu" or "ranks"; kept by reference, as all that follows
  const model *m;
  const placement *experts;
  comm *c;
  const topology *place;
  transport_kind transport;
  attention_placement attention;
  bool peers;                  // GPUs of one host store into each other's memory, where they reach it
  const char *row;             // ISA row of the cpu backend: "auto" or a name
  const device_id *device;     // of this rank, whatever its arm
  arm_spec shared;             // path of the shared steps
  arm_spec local;              // path of this rank's experts, and its backend for all that it computes
  const bool *computes_shared; // [ranks] that compute the shared steps; NULL: all
  int reporting;               // the reporting rank: probes are gathered there; a shared rank
  int64_t n_sequences, context, max_batch; // KV caches, positions in each, tokens in the largest batch
  bool batch_may_shrink; // max_batch is halved until every rank's device has memory for it: arm_max_batch
  bool fits_team;        // run.threads leaves it to the backend how many threads compute
  bool kv_f16;
  const audit_params *audit; // read at open; NULL: no other rank's outputs are recomputed
} arm_params;

typedef struct arm arm;

status arm_open(arm **out, const arm_params *params); // collective; fails on every rank or on none
void arm_close(arm *a);                               // takes NULL

// ---- what it is: local ----

const char *arm_name(const arm *a);
const path_info *arm_path(const arm *a);        // of the shared steps
const path_info *arm_expert_path(const arm *a); // of this rank's experts
const backend_ops *arm_backend(const arm *a);   // for its name and kind; only the arm calls its steps
const char *arm_row(const arm *a);              // ISA row or device in use
const transport *arm_transport(const arm *a);
bool arm_has_peers(const arm *a);    // the ranks' GPUs store into each other's memory
const char *arm_peers(const arm *a); // "linked", or why GPUs do not reach each other's memory, or "": no GPUs
// Which of its batches had the outputs of attention and head divided among the ranks, and why.
void arm_attention(const arm *a, char *out, size_t bytes);
// With `hold` the choices that are open stay so, and their batches replicated, until it is called without.
void arm_hold_attention(arm *a, bool hold);
bool arm_attention_is_open(const arm *a, int64_t n); // for batches of n tokens it is still being timed
// The outputs, of `total`, that this rank computes in a batch of n tokens, or a head of n rows, as it is now.
output_range arm_outputs(const arm *a, output_kind kind, int64_t n, int64_t total, int64_t unit);
uint64_t arm_state_bytes(const arm *a); // KV caches and work space of this rank
bool arm_computes_shared(const arm *a); // this rank is a shared rank
int64_t arm_max_batch(const arm *a);    // tokens in the largest batch

// ---- the forward pass: collective ----

// One after the other: embed, each layer of that batch, then head for tokens first .. of it, at most
// LOGIT_ROWS at a time.
status arm_embed(arm *a, const token_batch *batch);
status arm_layer(arm *a, int64_t layer);
status arm_head(arm *a, int64_t first, int64_t count);
// Local, from arm_embed on: of the batch, in the order in which its rows are computed, those whose shared
// steps this rank computes. A view.
token_batch arm_owned_rows(const arm *a);
// Embed and all layers.
status arm_forward(arm *a, const token_batch *batch);

// Local. Waits for the device; only then are seconds and digests complete. An arm_head that copies logits to
// the host has waited already.
status arm_finish(arm *a);

// Collective, after arm_finish. Adds the shared ranks' parts of digests to those of every rank: of the layers
// of token-sharded batches, and of logits that stay in the backends and whose heads the ranks divide.
status arm_add_parts(arm *a);

// Collective. What the audit has recomputed since arm_open; share 0: there is none.
status arm_audit_coverage(const arm *a, audit_coverage *out);

// Collective. Broadcasts `bytes` of `data` from the first shared rank to the expert ranks. `what` stands in
// the error.
status arm_broadcast(arm *a, void *data, size_t bytes, const char *what);

// ---- logits: local, on shared ranks ----

void arm_keep_logits(arm *a, bool keep); // true from the start: arm_head copies them to the host
// Of the last arm_head: row i widened to double; and all of them as reals of the path, [count][vocabulary].
void arm_logits(const arm *a, int64_t i, double *out);
const void *arm_logit_rows(const arm *a);

// ---- watching each layer ----

// Local, the same call on every rank. From the next batch on, the functions below can read the routing and
// the residual stream after each arm_layer. False from the start: it costs a wait for the device in each
// layer.
void arm_watch_layers(arm *a, bool watch);
// Local, on shared ranks, of the last arm_layer: token t's experts and weights [top_k] in slot order, and its
// margin (routing in kernels/backend.h).
const expert_global *arm_experts(const arm *a, int64_t t);
const double *arm_weights(const arm *a, int64_t t);
double arm_margin(const arm *a, int64_t t);
// Local, on shared ranks, after arm_embed or an arm_layer that was watched: the residual stream of the
// batch's n tokens, [n][hidden], exact.
status arm_stream_read(arm *a, double *out);

// ---- imposing what comes next: local, the same call on every rank, after arm_embed of the batch ----
// On an expert rank `in` is not read and may be NULL.

// Sets the residual stream before the next arm_layer: [n][hidden] of the batch's tokens.
status arm_stream_write(arm *a, const double *in);
// The next arm_layer takes `parts` of the routing (ROUTING_EXPERTS, ROUTING_WEIGHTS) from `in`, [n][top_k] of
// the batch's tokens, instead of computing them; probes of the routing still show the computed one.
status arm_impose_routing(arm *a, unsigned parts, const routing *in);
// The same of a watched arm's choice alone: the next arm_layer takes these experts, [n][top_k] in any order,
// and keeps its slot order and weights. A slot whose expert is among them stays as it is; the others take, in
// the order of `in`, those that no slot has. So where the arm chooses the same experts, no bit changes.
status arm_impose_choice(arm *a, const expert_global *in);

// Local. Allocates room for the points (bits 1 << probe_point of backend_ops.settable) that will be imposed.
status arm_impose_open(arm *a, uint32_t points);
// The next arm_layer takes the probe's numbers from `in`, of the batch's tokens in order ([n][width], of a
// probe per slot [n][top_k][width]), in place of those that it computes; they are rounded to the real of the
// step. Read on every rank that computes the point: keys and values on all shared ranks, slots where their
// expert is. So `in` is the same on every rank, expert ranks included.
status arm_impose_probe(arm *a, probe_point point, const double *in);

// ---- probes ----

// Local. Allocates room for the points (bits 1 << probe_point) that will be wanted.
status arm_probes_open(arm *a, uint32_t points);
// Local, the same call on every rank. From the next step on these are kept; 0, from the start, costs nothing.
status arm_probes_want(arm *a, uint32_t points);
// Collective, after the step that the probe belongs to (arm_embed, arm_layer, arm_head). *out, on the
// reporting rank: the batch's tokens (of a head, its rows) in order, probe_width numbers each, or top_k times
// that for a probe per slot; valid until the next call. NULL on the other ranks.
status arm_probe_take(arm *a, probe_point point, const double **out);

// ---- clocks and digests: local ----

void arm_reset(arm *a);                    // clears digests and clocks; KV caches are overwritten later
double arm_seconds(const arm *a);          // in the steps since arm_reset; digests and probes not counted
double arm_exchange_seconds(const arm *a); // since arm_reset
uint64_t arm_digest(const arm *a);         // of the logits, all sequences
uint64_t arm_sequence_digest(const arm *a, int64_t sequence);
uint64_t arm_layer_digest(const arm *a, int64_t layer); // after arm_add_parts
// All digests, of the logits and of each layer, by sequence: to be kept (after arm_add_parts) and given back
// (after arm_reset) by a run that goes on.
size_t arm_digest_count(const arm *a);
void arm_digests_read(const arm *a, uint64_t *out);
void arm_digests_write(arm *a, const uint64_t *in);

// True: the exchange of a batch of n tokens is captured with the other steps, so arm_exchange_seconds lacks
// it.
bool arm_exchange_is_captured(const arm *a, int64_t n_tokens);
// Collective. *seconds: of one layer's exchange at fixed places, run alone.
status arm_measure_exchange(arm *a, double *seconds, int64_t n_tokens);
// Collective. *seconds: of an all-gather of `bytes` per rank by the arm's transport, run alone.
status arm_measure_link(arm *a, double *seconds, size_t bytes);
// Local, on shared ranks, after an arm_layer that was watched. Adds the bytes that each rank would have sent
// and received in it, had it not been watched: sent, received [ranks].
void arm_count_exchange(arm *a, int64_t layer, uint64_t *sent, uint64_t *received);
// Local. Of the last batch: the share of the layers' shared steps that is computed by the rank which computes
// most of them, and the same of a head of so many rows. 1: every rank computes all.
double arm_largest_share(const arm *a);
double arm_largest_head_share(const arm *a, int64_t rows);
uint64_t arm_exchange_bytes(const arm *a); // sent by this rank since arm_open (exchange_bytes_sent)

// Local. From here on the steps add what their phases take to `to`, whole after arm_finish; NULL: no more. An
// error where the backend does not report its phases.
status arm_phases_watch(arm *a, phase_times *to);
status arm_peaks(arm *a, backend_peaks *out);  // NaN where the backend does not know
int arm_threads(const arm *a, int64_t tokens); // that compute batches of so many tokens; 0: a device does
