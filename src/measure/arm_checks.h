// arm_checks: what one arm's tensors keep whatever its path: weights that sum to 1, experts that exist,
// finite numbers, layers that do something. It gathers them row by row, for the report.
//
// Independent of: arms, ranks and other arms' numbers; it is given rows.
// Invariant: memory is one batch's streams and two numbers a layer.
#pragma once
#include "kernels/backend.h"

typedef struct {
  double weight_sum_error;           // largest |sum of a token's routing weights - 1|
  int32_t least_expert, most_expert; // ids chosen
  bool distinct_experts;             // no token has one expert twice
  bool finite;                       // every number of streams, weights and logits
  int64_t n_layers, width;
  double *layer_rms;    // [n_layers] smallest rms over positions of the residual stream after the layer
  double *layer_update; // [n_layers] the same of what the layer adds: the stream after it minus that before
  double *before;       // [max_batch][width] the streams before the next layer
} arm_checks;

status arm_checks_open(arm_checks *out, int64_t n_layers, int64_t width, int64_t max_batch);
void arm_checks_close(arm_checks *c); // takes a zeroed one

// Token t of the batch after the embedding: stream[width].
void arm_checks_embedded(arm_checks *c, int64_t t, const double *stream);
// The same token after a layer, with its k experts and weights.
void arm_checks_layer(arm_checks *c, int64_t layer, int64_t t, const double *stream,
                      const expert_global *experts, const double *weights, int64_t k);
void arm_checks_logits(arm_checks *c, const double *logits, int64_t n);
