// placement_counted: experts on ranks by how often a text chose each of them in each layer, and replicas of
// the hot ones.
//
// Owns: the search. Independent of: files, ranks that run: the same counts give the same placement
// everywhere. Invariant: but for replicas ranks hold as many experts as they would contiguously, so memory
// does not change.
//
// What a layer costs is the load of its busiest rank: counts are those of tokens, all experts cost the same,
// and the holders of an expert share its tokens evenly. Owners are chosen by the loads of the whole text,
// which are mostly even then. Replicas are for batches, in which a hot expert is chosen now more and now less
// often: they are chosen by each rank's load and its standard deviation in a batch of decoding, with tokens
// that are independent of each other.
#pragma once
#include "base/status.h"
#include <stdint.h>

typedef struct {
  const int64_t *counts; // [n_layers][n_experts]
  int64_t n_tokens;      // that were counted
  int64_t n_layers, n_experts;
  int n_ranks;
  const int *group;             // [n_ranks]: all holders of an expert are of one group; NULL: all ranks are
  int64_t per_layer;            // experts that a rank may hold in each layer beyond its own
  uint64_t bytes;               // that these may take on a rank, over all layers; UINT64_MAX: any
  const uint64_t *expert_bytes; // [n_layers] of one expert; read where `bytes` is a limit
} placement_question;

enum { REPLICAS_ANY = INT32_MAX }; // as per_layer: no limit

// Local. holds[n_layers][n_experts][n_ranks]. Without replicas: a map for each layer, of which no two experts
// of different ranks can change places and lessen the busiest rank's load. Then replicas as
// placement_replicate.
status placement_count(bool *holds, const placement_question *q);
// Adds replicas to holds, in which every expert has one holder: always the one, or the two that two ranks
// take of each other, that lessen the busiest rank's load in a batch most (per byte, where bytes are the
// limit).
status placement_replicate(bool *holds, const placement_question *q);
// Local. The sum over layers of the busiest rank's load, over that of the mean rank's: 1 is even.
status placement_load(double *out, const bool *holds, const placement_question *q);
status placement_load_contiguous(double *out,
                                 const placement_question *q); // that of the contiguous placement
