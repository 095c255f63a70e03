// probe_statistics: one pair's metrics at the probes inside each layer, and its map of layers x experts.
//
// Independent of: arms, ranks and which probes there are; it is given rows.
// Invariant: what is kept is three numbers a probe, layer and position, and a few for each expert of each
// layer; no row is kept.
#pragma once
#include "kernels/backend.h"
#include "src/measure/metrics.h"

typedef struct { // of one position
  double rel_l2, one_minus_cos, max_abs;
  bool has; // false: nothing was comparable, as where no slot has the same expert
} probe_sample;

typedef struct {
  int64_t n_layers, n_positions;
  probe_sample *at; // [n_layers][n_positions]
} probe_samples;

typedef struct {
  probe_point point;
  int32_t layer;
  int64_t n;                             // positions that were comparable; 0: the spreads are NaN
  spread rel_l2, one_minus_cos, max_abs; // over these
} probe_statistics;

status probe_samples_open(probe_samples *out, int64_t n_layers, int64_t n_positions);
void probe_samples_close(probe_samples *s); // takes NULL
// a against the reference b: width numbers.
void probe_samples_add(probe_samples *s, int64_t layer, int64_t position, const double *a, const double *b,
                       int64_t width);
// Fills all of *out but the point.
status probe_samples_reduce(const probe_samples *s, int64_t layer, probe_statistics *out);

// ---- experts ----

typedef struct {           // an expert of a layer
  int64_t hits_a, hits_b;  // slots in which a, b chose it
  int64_t matched;         // positions where both did: the errors are over these
  double difference, norm; // sums of ||a - b||^2 and ||b||^2 over the slots' outputs
  double worst_rel_l2;     // the largest rel_l2 of one slot; 0 where none matched
  bool finite;             // false: a NaN or infinity was seen
} expert_sample;

typedef struct {
  int64_t n_layers, n_experts;
  expert_sample *at; // [n_layers][n_experts]
  double *joined[2]; // [top_k][width] scratch
} expert_samples;

// width: of a slot's output, or of the widest per-slot probe that probe_slots_add gets.
status expert_samples_open(expert_samples *out, int64_t n_layers, int64_t n_experts, int64_t top_k,
                           int64_t width);
void expert_samples_close(expert_samples *s); // takes NULL
// One position: the k slots of a and b with their experts, and the width numbers of each slot.
void expert_samples_add(expert_samples *s, int64_t layer, const double *a, const double *b, int64_t width,
                        const expert_global *experts_a, const expert_global *experts_b, int64_t k);
// A probe per slot at one position: the slots that both have, in b's order, as one vector.
void probe_slots_add(probe_samples *s, expert_samples *scratch, int64_t layer, int64_t position,
                     const double *a, const double *b, int64_t width, const expert_global *experts_a,
                     const expert_global *experts_b, int64_t k);

// sqrt(difference / norm); 0 where none matched, NaN where it is not finite.
double expert_rel_l2(const expert_sample *e);
