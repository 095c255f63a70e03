// engine: one arm, opened on this rank: its backend, its exchange, its clocks and its digests.
//
// Refuses to know: other arms, what the tokens mean, the report.
// Invariant: a digest covers every logit computed since the last engine_reset, whatever the batches were. On
// a rank that computes only experts (forward.is_shared is false) there are no logits and no digests.
#pragma once
#include "dist/topology.h"
#include "src/layer.h"
#include "src/model.h"
#include "src/plan.h"

enum { LOGIT_ROWS = 32 }; // logits are computed and consumed this many rows at a time

typedef struct {
  const char *name; // "q8k@cpu" or "ranks"
  const model *m;
  const plan *experts;
  comm *c;
  const topology *place;
  const char *transport, *row;
  const device_id *device; // that this rank takes, whatever its arm
  arm shared,
      own; // the path of the shared steps; this rank's experts, and its backend for all that it computes
  const bool *computes_shared; // [ranks] that compute the shared steps; NULL: all
  int64_t n_sequences, context, max_batch;
  bool kv_f16;
} engine_params;

typedef struct {
  engine_params params;
  forward_state forward;
  transport *carrier;
  int64_t vocabulary, n_layers;
  void *logits;           // [LOGIT_ROWS][vocabulary] reals of the shared path, of the last engine_head
  uint64_t *logit_digest; // [n_sequences]
  uint64_t *layer_digest; // [n_layers][n_sequences], but for
  uint64_t *part_digest;  // the same of this rank's tokens of dealt batches
  bool wants_logits;      // true from the start: engine_head brings the logits to `logits`
  double seconds;         // in the steps since engine_reset, digests and probes not counted
  double exchange_seconds_before;
} engine;

status engine_open(engine **out, const engine_params *params); // collective, and so is its outcome
void engine_close(engine *e);                                  // takes NULL

// Collective. One after the other: embed, each layer, then head for any of the batch's tokens, at most
// LOGIT_ROWS at a time.
status engine_embed(engine *e, const token_batch *batch);
status engine_layer(engine *e, int64_t layer, const token_batch *batch);
status engine_head(engine *e, const token_batch *batch, int64_t first, int64_t count);
// Embed and all layers.
status engine_forward(engine *e, const token_batch *batch);

// Local. Waits for a device backend; seconds and digests are complete only then. engine_head with
// wants_logits has done it already.
status engine_finish(engine *e);

// Collective, after engine_finish: what each shared rank has of dealt batches comes into all layers' digests.
status engine_add_parts(engine *e);

// Collective. `bytes` of `data` of the first shared rank come to those that compute only experts.
status engine_tell(engine *e, void *data, size_t bytes, const char *what);

// Row i of the last engine_head, widened to double. Shared ranks.
void engine_logits(const engine *e, int64_t i, double *out);

void engine_reset(engine *e);                    // forgets digests and clocks; KV caches are simply rewritten
double engine_exchange_seconds(const engine *e); // since engine_reset
uint64_t engine_digest(const engine *e);         // of the logits, all sequences
uint64_t engine_layer_digest(const engine *e, int64_t layer); // after engine_add_parts
