// expert_map: which rank computes a slot. Each layer has a map of its own from experts to the ranks that hold
// them, and an expert may have several holders (replicas).
//
// Owns: the rule by which a slot goes to one of its expert's holders, one source for host and device.
// Independent of: how a map was chosen (src/run/placement.h), ranks that run.
// Invariant: the rule reads nothing but the token's sequence and position and the expert: so every rank
// knows without asking, and decoding, prompts and any cut of a prompt choose alike. No bit depends on it.
#pragma once
#include "kernels/formats/numerics_base.h"
#include <stdbool.h>
#include <stdint.h>

typedef struct __attribute__((aligned(8))) { // an expert of a layer, as one rank has it; one load
  int32_t local; // index among the experts of the layer that this rank holds; below 0: it does not hold it
  int16_t place,
      holders; // this rank's place among the expert's holders, in ascending order; how many they are
} expert_share;

// Of a slot's token and expert. Sequences that decode at one position, successive positions of one sequence
// and the experts of one token have different turns.
NUM_FN uint32_t slot_turn(int32_t sequence, int32_t position, int32_t expert) {
  return (uint32_t)sequence + (uint32_t)position + (uint32_t)expert;
}

// Which of an expert's holders computes the slot, in ascending order of ranks.
NUM_FN uint32_t slot_holder(uint32_t turn, int32_t holders) {
  return holders == 1 ? 0 : turn % (uint32_t)holders;
}

// The index here of the expert that this rank is to compute for the slot; below 0: another rank does.
NUM_FN int32_t slot_member(expert_share s, uint32_t turn) {
  return slot_holder(turn, s.holders) == (uint32_t)s.place ? s.local : -1;
}

typedef struct {             // of all layers, as one rank sees them; views
  const expert_share *share; // [n_layers][n_experts], or [n_experts] where every layer's are the same
  bool is_same;
  // For SLOTS_AT_FIXED, else NULL: expert e of layer l (0 with is_same), at i = l * n_experts + e, is held by
  // the ranks holder[first[i] .. first[i + 1] - 1], in ascending order.
  const int32_t *first, *holder;
} expert_map;

static inline const expert_share *expert_map_layer(const expert_map *m, int64_t layer, int64_t n_experts) {
  return m->share + (m->is_same ? 0 : layer * n_experts);
}

// How many experts of the layer this rank holds, and the most of any layer.
static inline int64_t expert_map_held(const expert_map *m, int64_t layer, int64_t n_experts) {
  const expert_share *share = expert_map_layer(m, layer, n_experts);
  int64_t n = 0;
  for (int64_t e = 0; e < n_experts; e++) n += share[e].local >= 0;
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

// Whether some expert has more than one holder.
static inline bool expert_map_has_replicas(const expert_map *m, int64_t n_layers, int64_t n_experts) {
  bool any = false;
  for (int64_t i = 0; i < (m->is_same ? 1 : n_layers) * n_experts; i++) any = any || m->share[i].holders > 1;
  return any;
}

// Shares of a rank that has every expert alone.
static inline expert_map expert_map_of_all(expert_share *room, int64_t n_experts) {
  for (int64_t e = 0; e < n_experts; e++) room[e] = (expert_share){(int32_t)e, 0, 1};
  return (expert_map){room, true, NULL, NULL};
}
