// layer: the forward pass, step by step. The only place where the order of the steps stands.
//
// Owns: nothing but the order. Backend, exchange and routing arrays belong to the engine (engine.h).
// Invariant: every rank takes its steps in the same order; `shared` steps give every shared rank the same
// bits.
#pragma once
#include "dist/exchange.h"
#include "kernels/backend.h"

enum { SPLIT_TOKENS = 64 }; // to a rank; below, carrying the rows costs more than computing them again

typedef struct {
  backend *compute;
  exchange *ranks;       // carries what crosses ranks
  bool is_shared;        // this rank computes the shared steps; otherwise only its experts
  const path_info *path; // of the shared steps
  int64_t hidden, top_k;
  int64_t *tokens_of_rank; // [ranks] of the last split
  routing route;           // of the last layer
  bool wants_routing;      // false: a device backend may keep it to itself, and does not wait for it
  bool takes_device;       // the transport takes rows from where a device backend has them
} forward_state;

// Local, the same on every rank: the batch's layers need nothing from the host, so that they can be recorded.
bool forward_is_on_device(const forward_state *f, const token_batch *batch);

// Collective: all three. The residual stream of the batch stays in the backend from one call to the next.
status forward_embed(forward_state *f, const token_batch *batch);
status forward_layer(forward_state *f, int64_t layer, const token_batch *batch);
// logits[count][vocabulary] of batch rows first .. first + count - 1, reals of the path; on shared ranks.
status forward_head(forward_state *f, int64_t first, int64_t count, void *logits);
