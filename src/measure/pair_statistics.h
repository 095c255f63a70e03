// pair_statistics: gathers one pair's metrics position by position and reduces them for the report.
//
// Independent of: arms and ranks; it is given rows. Invariant: every position counts, position 0
// included.
#pragma once
#include "kernels/backend.h"
#include "src/measure/distribution.h"
#include "src/measure/probe_statistics.h"

typedef struct {
  int32_t layer;
  spread rel_l2, one_minus_cos, max_abs, max_rel, max_ulp; // over positions
  int64_t router_flips;   // experts chosen by one and not by the other, summed over positions
  int64_t flipped_tokens; // positions with at least one
  double flip_margin;   // largest margin (b's probability of slot k minus slot k+1) among flipped positions;
                        // NaN: none
  double min_margin;    // smallest such margin over all positions
  int64_t same_experts; // positions without a flip in this layer, and the worst of them alone:
  double same_rel_l2, same_one_minus_cos; // NaN: there is none, or one is not finite
} layer_statistics;

typedef struct { // the first point of the forward pass whose worst rel_l2 is above its bound
  bool found;
  int32_t layer;
  probe_point point;
  double rel_l2, bound;
  int64_t position; // of the worst
} first_above;

typedef struct {
  size_t a, b;                                                 // indices into arms; b is the reference
  spread rel_l2, one_minus_cos, max_abs, max_rel, max_ulp, kl; // logits, over positions
  double top1_agreement;                                       // share of positions
  double top1_error;        // its standard error: sqrt(share (1 - share) / (positions - 1))
  distribution kl_spread;   // over positions
  distribution delta_p;     // change of the right token's probability, over positions with a next token
  distribution nll_delta;   // nll of a minus that of b, over the same: the mean is log(ppl a / ppl b)
  int64_t flat_a, flat_b;   // positions at which all logits of a, of b are equal: no agreement
  double perplexity_delta;  // perplexity of a minus that of b; NaN: no position has a next token
  layer_statistics *layers; // [n_layers]
  probe_statistics *probes; // [n_layers][n_probes], in the order of the forward pass; NULL: none
  size_t n_probes;          // of a layer
  expert_sample *experts;   // [n_layers][n_experts]; NULL: not measured
  first_above first;
  bool finite; // false: a NaN or infinity was seen somewhere
} pair_statistics;

typedef struct { // of one position in one layer
  metrics row;
  int flips;
  double margin; // of the reference
} layer_point;

typedef struct {
  int64_t n_layers, n_positions;
  layer_point *layer;    // [n_layers][n_positions]
  logit_metrics *logits; // [n_positions]
  bool *has_target;      // [n_positions]
} pair_samples;

status pair_samples_open(pair_samples *out, int64_t n_layers, int64_t n_positions);
void pair_samples_close(pair_samples *s); // takes NULL

// a against the reference b: hidden numbers of the residual stream, and the k chosen experts.
void pair_samples_layer(pair_samples *s, int64_t layer, int64_t position, const double *a, const double *b,
                        int64_t hidden, const expert_global *experts_a, const expert_global *experts_b, int k,
                        double margin_b);
// target: the token that follows in the same sequence, or -1.
void pair_samples_logits(pair_samples *s, int64_t position, const double *a, const double *b, int64_t n,
                         int64_t target);

// Fills all of *out but a, b and its layers array, which is the caller's.
status pair_samples_reduce(const pair_samples *s, pair_statistics *out);
int64_t pair_samples_flips(const pair_samples *s, int64_t position); // over all layers
