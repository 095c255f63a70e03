// layer: the forward pass, step by step. The only place where the order of the steps stands.
//
// Owns: nothing but the order. Backend, exchange, deal and routing arrays belong to the engine (engine.h).
// Invariant: every rank takes its steps in the same order. The `shared` steps of small batches give every
// shared rank the same bits; of large ones each shared rank computes the tokens that it was dealt.
#pragma once
#include "dist/exchange.h"
#include "kernels/backend.h"
#include "src/run/token_shards.h"

typedef struct {
  backend *compute;
  exchange *ranks;       // carries what crosses ranks
  token_shards shards;   // who computes which token
  bool is_shared;        // this rank computes the shared steps; otherwise only its experts
  const path_info *path; // of the shared steps
  int64_t hidden, kv_width, top_k, n_layers;
  int64_t *rows_of_rank; // [ranks] of what is split or dealt
  routing route;         // of the last layer, in the order of token_shards_rows
  bool wants_routing;    // false: a device backend may keep it to itself, and does not wait for it; true:
                         // after each layer every shared rank has all rows of the residual stream, too
  bool takes_device;     // the transport takes rows from where a device backend has them
} forward_state;

// Local, the same on every rank: the batch's layers need nothing from the host, so that they can be recorded.
bool forward_is_on_device(const forward_state *f, const token_batch *batch);

// Collective: all three. The residual stream of the batch stays in the backend from one call to the next.
status forward_embed(forward_state *f, const token_batch *batch);
status forward_layer(forward_state *f, int64_t layer, const token_batch *batch);
// logits[count][vocabulary] of rows[count] (token_shards_row) of the batch, reals of the path; on shared
// ranks.
status forward_head(forward_state *f, const int64_t *rows, int64_t count, void *logits);
