// engine: one arm, opened on this rank: its backend, its exchange, its clocks and its digests.
//
// Refuses to know: other arms, what the tokens mean, the report.
// Invariant: a digest covers every logit computed since the last arm_reset, whatever the batches were. On
// a rank that computes only experts (forward.is_shared is false) there are no logits and no digests.
#pragma once
#include "dist/topology.h"
#include "src/run/forward.h"
#include "src/model/model.h"
#include "src/run/placement.h"

enum { LOGIT_ROWS = 32 }; // logits are computed and consumed this many rows at a time

typedef struct {
  const char *name; // "q8k@cpu" or "ranks"
  const model *m;
  const placement *experts;
  comm *c;
  const topology *place;
  transport_kind transport;
  const char *row;
  const device_id *device; // that this rank takes, whatever its arm
  arm_spec shared,
      own; // the path of the shared steps; this rank's experts, and its backend for all that it computes
  const bool *computes_shared; // [ranks] that compute the shared steps; NULL: all
  int64_t n_sequences, context, max_batch;
  bool kv_f16;
} arm_params;

typedef struct {
  arm_params params;
  forward_state forward;
  transport *carrier;
  int64_t vocabulary, n_layers;
  void *logits;           // [LOGIT_ROWS][vocabulary] reals of the shared path, of the last arm_head
  uint64_t *logit_digest; // [n_sequences]
  uint64_t *layer_digest; // [n_layers][n_sequences], but for
  uint64_t *part_digest;  // the same of this rank's tokens of dealt batches
  bool wants_logits;      // true from the start: arm_head brings the logits to `logits`
  double seconds;         // in the steps since arm_reset, digests and probes not counted
  double exchange_seconds_before;
} arm;

status arm_open(arm **out, const arm_params *params); // collective, and so is its outcome
void arm_close(arm *e);                               // takes NULL

// Collective. One after the other: embed, each layer, then head for any of the batch's tokens, at most
// LOGIT_ROWS at a time.
status arm_embed(arm *e, const token_batch *batch);
status arm_layer(arm *e, int64_t layer, const token_batch *batch);
status arm_head(arm *e, const token_batch *batch, int64_t first, int64_t count);
// Embed and all layers.
status arm_forward(arm *e, const token_batch *batch);

// Local. Waits for a device backend; seconds and digests are complete only then. arm_head with
// wants_logits has done it already.
status arm_finish(arm *e);

// Collective, after arm_finish: what each shared rank has of dealt batches comes into all layers' digests.
status arm_add_parts(arm *e);

// Collective. `bytes` of `data` of the first shared rank come to those that compute only experts.
status arm_broadcast(arm *e, void *data, size_t bytes, const char *what);

// Row i of the last arm_head, widened to double. Shared ranks.
void arm_logits(const arm *e, int64_t i, double *out);

void arm_reset(arm *e);                    // forgets digests and clocks; KV caches are simply rewritten
double arm_exchange_seconds(const arm *e); // since arm_reset
uint64_t arm_digest(const arm *e);         // of the logits, all sequences
uint64_t arm_layer_digest(const arm *e, int64_t layer); // after arm_add_parts
