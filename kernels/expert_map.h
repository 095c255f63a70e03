// expert_map: which rank computes a slot. Each layer has a map of its own from experts to the ranks that hold
// them, and an expert may have several holders (replicas).
//
// Owns: the rule by which a slot goes to one of its expert's holders, one source for host and device.
// Independent of: how a map was chosen (src/run/placement.h), ranks that run.
// Invariant: the rule reads nothing but one token's sequence, position and experts: so every rank knows
// without asking, and decoding, prompts and any cut of a prompt choose alike. No bit depends on it.
#pragma once
#include "kernels/formats/numerics_base.h"
#include <stdbool.h>
#include <stdint.h>

typedef struct {        // of all layers; views
  bool is_same;         // every layer's map is that of layer 0, the only one in the arrays
  bool has_replicas;    // some expert has more than one holder
  const int32_t *local; // [n_layers][n_experts]: index among the experts of the layer that this rank holds;
                        // below 0: it does not hold it
  const int32_t *first, *holder; // expert e of layer l is held by holder[first[i] .. first[i + 1] - 1],
                                 // ascending, with i = l * n_experts + e. NULL: nobody asks for ranks
} expert_map;

static inline int64_t expert_map_at(const expert_map *m, int64_t layer,
                                    int64_t n_experts) { // of its expert 0
  return m->is_same ? 0 : layer * n_experts;
}

// How many experts of the layer this rank holds, and the most of any layer.
static inline int64_t expert_map_held(const expert_map *m, int64_t layer, int64_t n_experts) {
  const int32_t *local = m->local + expert_map_at(m, layer, n_experts);
  int64_t n = 0;
  for (int64_t e = 0; e < n_experts; e++) n += local[e] >= 0;
  return n;
}
static inline int64_t expert_map_most(const expert_map *m, int64_t n_layers, int64_t n_experts) {
  int64_t most = 0;
  for (int64_t l = 0; l < (m->is_same ? 1 : n_layers); l++) {
    int64_t n = expert_map_held(m, l, n_experts);
    most = n > most ? n : most;
  }
  return most;
}

// The map of a rank that has every expert alone.
static inline expert_map expert_map_of_all(int32_t *room, int64_t n_experts) {
  for (int64_t e = 0; e < n_experts; e++) room[e] = (int32_t)e;
  return (expert_map){true, false, room, NULL, NULL};
}

// ---- the rule ----

// rank[top_k] = which rank computes each slot of a token. A slot whose expert has one holder is its. Then the
// others, in slot order: the holder with the fewest of the token's slots so far; of equals the first in
// ascending order, from the holder on whose number is (sequence + position) modulo the holders. first: of the
// layer.
NUM_FN void token_ranks(int32_t *rank, const int32_t *expert, int64_t top_k, const int32_t *first,
                        const int32_t *holder, int32_t sequence, int32_t position) {
  uint32_t turn = (uint32_t)sequence + (uint32_t)position;
  for (int64_t k = 0; k < top_k; k++)
    rank[k] = first[expert[k] + 1] - first[expert[k]] == 1 ? holder[first[expert[k]]] : -1;
  for (int64_t k = 0; k < top_k; k++) {
    const int32_t *of = holder + first[expert[k]];
    uint32_t holders = (uint32_t)(first[expert[k] + 1] - first[expert[k]]);
    int32_t best = -1;
    int64_t fewest = top_k + 1;
    if (holders == 1) continue;
    for (uint32_t i = 0; i < holders; i++) {
      int32_t r = of[(turn + i) % holders];
      int64_t has = 0;
      for (int64_t j = 0; j < top_k; j++) has += rank[j] == r;
      if (has >= fewest) continue;
      fewest = has;
      best = r;
    }
    rank[k] = best;
  }
}
