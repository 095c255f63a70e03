// forward: the forward pass, step by step. The only place where the order of the steps stands.
//
// A batch runs in one of four ways, chosen once, at forward_start; each way is a short sequence of named
// steps in forward.c. What crosses ranks, and where, stands there as well.
//
// Owns: the order, and what a batch needs on its way through it. The backend and the exchange are the arm's.
// Invariant: every rank takes its steps in the same order; how a batch runs changes no bit.
#pragma once
#include "dist/exchange.h"
#include "kernels/backend.h"
#include "src/run/token_shards.h"

typedef enum {
  BATCH_ALONE,         // one rank has every expert: nothing crosses ranks
  BATCH_REPLICATED,    // each shared rank computes the shared steps of every token
  BATCH_TOKEN_SHARDED, // each shared rank computes the shared steps of its own tokens: large batches
  BATCH_FIXED_PLACES,  // as replicated, small, all on devices: the host never learns the routing
} batch_way;

typedef struct { // how a batch runs
  batch_way way;
  token_batch rows; // its tokens in the order in which they are computed
  row_range owned;  // the rows whose shared steps this rank computes
} batch_plan;

typedef struct {
  backend *compute;
  exchange *ranks; // transfers what crosses ranks
  token_shards shards;
  bool is_shared;        // this rank computes the shared steps; otherwise only its experts
  const path_info *path; // of the shared steps
  int64_t hidden, kv_width, top_k, n_layers;
  bool takes_device; // the transport takes rows from where a device backend has them
  batch_plan batch;  // the last that forward_start chose

  // Someone looks at each layer: after it every shared rank has the routing, and all rows of the residual
  // stream, and a device has come to its end.
  bool is_watched;
  unsigned imposed; // parts of the routing that the next layer takes from `given` in place of its own
  routing given;    // in the order of batch.rows
  routing route; // of the last layer, in the order of batch.rows; where someone looks, or the host needs it
  int64_t *rows_of_rank; // [ranks] scratch
} forward_state;

// Local, the same on every rank. Chooses how the batch runs; the batch stays valid until the next start.
void forward_start(forward_state *f, const token_batch *batch);
// The batch's layers need nothing from the host, so that they can be captured.
bool forward_is_on_device(const forward_state *f);

// Collective: all three, of the batch of the last forward_start. The residual stream of the batch stays in
// the backend from one call to the next.
status forward_embed(forward_state *f);
status forward_layer(forward_state *f, int64_t layer);
// Logits of row[count] of batch.rows; on shared ranks.
status forward_head(forward_state *f, const int64_t *row, int64_t count);
