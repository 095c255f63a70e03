// derive_draft: the figures of the draws, gate by gate, and the draft of a contract from them. For derive.c.
// Local, on the reporting rank.
#pragma once
#include "src/contract/bound_fit.h"
#include "src/measure/pair_statistics.h"
#include "src/run/job.h"

typedef struct {
  size_t a, b; // indices into run.arms
  parity_mode mode;
  const char *metric;
  bool is_logits;
  probe_point probe; // where not: PROBE_L_OUT is the layer's residual stream
  int32_t layer;
  double *figure; // [n_draws]
  size_t n_seen;  // of them; fewer where a draw had nothing to compare, as no slot of the same expert
  bound_fit fit;
  size_t alarms; // draws of the checks above the bound
} derived_gate;

typedef struct {
  derived_gate *gate; // [n]
  size_t n, room, n_draws;
} derive_gates;

// The figures of one pair in one draw, those of draw 0 first: its gates are those of all draws.
status derive_gates_add(derive_gates *g, const pair_statistics *pair, parity_mode mode, size_t n_layers,
                        size_t draw);
// Bounds from the first n_fit draws, tried on the others; prints both, and writes the draft.
status derive_gates_propose(derive_gates *g, const job *j, const char *run, size_t n_fit);
void derive_gates_close(derive_gates *g);
