// forward: the forward pass, step by step. The only place where the order of the steps stands.
//
// A batch runs in one of seven ways, chosen once, at forward_start. Each way is a short sequence of named
// steps in forward.c (layer_alone, layer_replicated, layer_output_sharded, layer_token_sharded,
// layer_fixed_places, layer_at_peers, layer_sharded_at_peers), which shows where rows cross ranks.
//
// Owns: the order, and what a batch needs on its way through it. The backend and the exchange are the arm's.
// Invariant: every rank takes its steps in the same order; the way in which a batch runs changes no bit.
#pragma once
#include "dist/exchange.h"
#include "kernels/backend.h"
#include "src/run/audit.h"
#include "src/run/output_shards.h"
#include "src/run/placement.h"
#include "src/run/token_shards.h"

typedef enum {
  BATCH_ALONE,          // one rank has every expert: nothing crosses ranks
  BATCH_REPLICATED,     // each shared rank computes the shared steps of every token
  BATCH_OUTPUT_SHARDED, // each rank computes some outputs of the shared steps, of every token: small batches
  BATCH_TOKEN_SHARDED,  // each shared rank computes the shared steps of its share of the tokens: large
                        // batches, and small ones where that is quicker
  BATCH_FIXED_PLACES,   // as replicated, for small batches with all ranks on devices: the routing stays there
  BATCH_AT_PEERS,       // the same where devices store into each other's memory: the exchange is in the step
  BATCH_SHARDED_AT_PEERS, // as token-sharded, likewise: the host does not need the routing
} batch_way;

static inline bool batch_is_sharded(batch_way way) { // each shared rank has rows of its own
  switch (way) {
  case BATCH_TOKEN_SHARDED:
  case BATCH_SHARDED_AT_PEERS:
    return true;
  case BATCH_ALONE:
  case BATCH_REPLICATED:
  case BATCH_OUTPUT_SHARDED:
  case BATCH_FIXED_PLACES:
  case BATCH_AT_PEERS:
    break;
  }
  return false;
}

typedef struct { // how a batch runs
  batch_way way;
  token_batch rows; // its tokens in the order in which they are computed (a view)
  row_range owned;  // the rows whose shared steps this rank computes; of replicated batches all
} batch_plan;

typedef struct {
  backend *compute;
  exchange *ranks; // transfers what crosses ranks
  const placement *experts;
  token_shards shards;
  output_shards outputs;
  bool is_shared;        // a shared rank; false: an expert rank, which computes only its experts
  const path_info *path; // of the shared steps
  int64_t hidden, kv_width, n_heads, n_kv_heads, vocabulary, top_k, n_layers;
  bool takes_device;  // the transport transfers rows from device memory
  bool all_on_device; // and every rank's backend has its rows there
  bool has_peers;     // and stores into the memory of all others (backend_ops.peers_open)
  batch_plan batch;   // of the last forward_start

  // Each layer is watched: after it every shared rank has the routing on the host and all rows of the
  // residual stream.
  bool is_watched;
  bool is_probed; // probes are shown or imposed, so slots' outputs are to lie on the rank that computes them
  unsigned imposed; // parts of the routing that the next layer takes from `given` instead of computing them
  bool imposes_set; // of the experts it takes only those that it lacks, in place of those that it should not
                    // have
  routing given;    // in the order of batch.rows
  routing route;    // on the host, of the last layer, in the order of batch.rows: as parts_for_host has it
  int64_t *rows_of_rank; // [ranks] scratch
  int32_t *rank_of_slot; // [max_batch][top_k] scratch
  slot_range own_slots;  // of the last layer that placed them
  audit *audit;          // recomputes other ranks' slots; NULL: nobody does. On all ranks or on none
} forward_state;

// Local, the same on every rank. Chooses how the batch runs. The batch is kept by reference until the next
// start.
void forward_start(forward_state *f, const token_batch *batch);
// Local. How a batch of n tokens runs that is not watched.
batch_way forward_way(const forward_state *f, int64_t n_tokens);
size_t forward_row_bytes(const forward_state *f, row_kind kind); // as transports send it
// Local. The rank that computes each slot of the layer, [n][top_k] in the order of batch.rows, of the experts
// in `route`; valid until the next call.
const int32_t *forward_ranks_of_slots(forward_state *f, int64_t layer);
// Local. Whether a batch of n tokens has these divided among the ranks, as output_shards has it.
bool forward_divides(const forward_state *f, output_kind kind, int64_t n);
// Local. Of a layer the batch's steps ask for attention, route and moe only (backend_ops.captured).
bool forward_asks_whole_layers(const forward_state *f);
// Local. True: the batch's layers run on the device without the host, so they can be captured in a graph.
bool forward_is_on_device(const forward_state *f);

// For the batch of the last forward_start, whose residual stream stays in the backend from one call to the
// next.
status forward_embed(forward_state *f);                // local
status forward_layer(forward_state *f, int64_t layer); // collective
// Local, on shared ranks. Logits of row[count] of batch.rows, which stay in the backend.
status forward_head(forward_state *f, const int64_t *row, int64_t count);
// Collective, where forward_divides has it. This rank's part of them; with `joins` all of them afterwards.
status forward_head_part(forward_state *f, const int64_t *row, int64_t count, bool joins);
// Local. What an all-gather of the parts of n rows transfers; valid until the next exchange_gather.
const row_range *forward_parts(forward_state *f, row_kind kind, int64_t n);
