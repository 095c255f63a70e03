// placement: which ranks hold which expert of which layer. Pure: the same on every rank that is given the
// same.
//
// Invariant: in each layer every expert has a holder and every rank holds at least one expert, so that no
// rank idles by mistake. Which of several holders computes a slot follows from the slot (expert_map.h).
#pragma once
#include "kernels/backend.h"
#include "src/config/config_types.h"

typedef struct {
  int64_t n_layers, n_experts; // n_layers: of the arrays below; 1 where one map holds for every layer
  int n_ranks;
  int32_t *first;  // [n_layers * n_experts + 1]: an expert's holders in `holder`
  int32_t *holder; // ranks, of each expert ascending
  int32_t
      *local; // [n_layers * n_experts]: index among this rank's experts of the layer; -1: it does not hold it
  int rank;   // this one
  int64_t n_held; // experts of this rank in a layer: the most of any
  int64_t most_holders;
  uint64_t hash; // of the whole map
  // What job_placement chose, and from what.
  placement_kind kind;
  double counted_load, contiguous_load; // placement_load over experts.counts, of this one and of the
                                        // contiguous; 0: nothing was counted
  char reason[160];                     // of PLACEMENT_AUTO's choice; "": none was asked for
} placement;

// Local. list[list_length], for PLACEMENT_LIST: each expert's owner. speed[n_ranks], for PLACEMENT_BALANCED:
// experts per second, in any unit; experts are shared out in proportion, by largest remainder, at least one
// to a rank. One map for every layer, without replicas; PLACEMENT_COUNTED and PLACEMENT_AUTO are no such
// maps.
status placement_open(placement *out, placement_kind kind, const int32_t *list, size_t list_length,
                      const double *speed, int64_t n_experts, int n_ranks, int rank);
// Local. holds[n_layers][n_experts][n_ranks]: whether the rank holds the expert.
status placement_open_held(placement *out, const bool *holds, int64_t n_layers, int64_t n_experts,
                           int n_ranks, int rank);
void placement_close(placement *p); // takes NULL
const char *placement_name(placement_kind kind);

// A view for a backend of this rank.
expert_map placement_map(const placement *p);

static inline int64_t placement_index(const placement *p, int64_t layer, int64_t expert) {
  return (p->n_layers == 1 ? 0 : layer * p->n_experts) + expert;
}

// The rank that computes each slot of a token: rank[top_k].
static inline void placement_ranks(int32_t *rank, const placement *p, int64_t layer,
                                   const expert_global *expert, int64_t top_k, int32_t sequence,
                                   int32_t position) {
  token_ranks(rank, &expert->id, top_k, p->first + placement_index(p, layer, 0), p->holder, sequence,
              position);
}

// The lowest of an expert's holders.
static inline int32_t placement_first_holder(const placement *p, int64_t layer, int64_t expert) {
  return p->holder[p->first[placement_index(p, layer, expert)]];
}

// Whether this rank holds it, and whether as the first of its holders, so that what is summed over ranks
// counts each expert once.
static inline bool placement_is_held(const placement *p, int64_t layer, int64_t expert) {
  return p->local[placement_index(p, layer, expert)] >= 0;
}
static inline bool placement_is_first(const placement *p, int64_t layer, int64_t expert) {
  return placement_first_holder(p, layer, expert) == p->rank;
}

// Of all ranks and layers of a model of n_layers: holders beyond the first of each expert.
int64_t placement_replicas(const placement *p, int64_t n_layers);
