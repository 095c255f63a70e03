// probe_steps: what each probe is computed from, and how, as far as probes alone can tell.
//
// Owns: the graph of probes; each step that needs no weights, recomputed in double from a trace's own
// numbers; the rounding of activations before a product. Pure: no files, no ranks, no model. Invariant: a
// residual is what a step's result differs from its own recomputation, never from another trace, so it holds
// no error of the inputs: only the step's own rounding, or a fault of the step.
#pragma once
#include "kernels/backend.h"

typedef enum {
  STEP_LOOKUP,    // of nothing that is probed: a row of the embedding
  STEP_NORM,      // RMS norm times weights, which follow from the rows themselves
  STEP_PRODUCT,   // with a matrix, which probes do not tell
  STEP_ATTENTION, // softmax(q k) v, causal
  STEP_SELECT,    // the top k of the logits
  STEP_WEIGHTS,   // their softmax, renormalised
  STEP_SWIGLU,    // silu(gate) * up
  STEP_COMBINE,   // the slots' weighted sum
  STEP_ADD,
} step_kind;
enum { STEP_KINDS = STEP_ADD + 1, STEP_INPUTS = 3 };

typedef struct {
  step_kind kind;
  int n_inputs;
  // PROBE_L_OUT as an input is the stream before the layer: that of the layer before, or the embedding.
  probe_point input[STEP_INPUTS];
  bool adds_stream; // a product that the probe holds as stream + product
  bool rounds;      // its input is rounded where an arm rounds activations; not before the router
} step_info;

const step_info *step_of(probe_point point);
const char *step_name(step_kind kind); // "norm", "product", ...

typedef enum { INPUT_AS_IT_IS, INPUT_F16, INPUT_Q8_0, INPUT_Q8K } input_rounding;
enum { INPUT_ROUNDINGS = INPUT_Q8K + 1 };
const char *input_rounding_name(input_rounding r); // "Q8_K", ...
input_rounding input_rounding_of_path(path_kind path);

// x[n] as a product of this rounding reads it, in place. Where n is not a multiple of the format's block,
// nothing is rounded.
void input_round(double *x, int64_t n, input_rounding r);

typedef struct {         // of one row: how far a result is from its recomputation, and against what that is
  double error2, scale2; // squared L2 norms; the residual is sqrt(error2 / scale2)
} residual;

// out[n] against silu(gate[n]) * up[n].
residual residual_swiglu(const double *out, const double *gate, const double *up, int64_t n);
// out[n] against the sum over k of weight[k] * slot[k][n]; scale: the sum of magnitudes.
residual residual_combine(const double *out, const double *weight, const double *slots, int64_t k, int64_t n);
// out[n] against a[n] + b[n].
residual residual_add(const double *out, const double *a, const double *b, int64_t n);
// weight[k] against softmax(logits[n]) at expert[k], over their sum.
residual residual_weights(const double *weight, const double *expert, const double *logits, int64_t k,
                          int64_t n);
// By how much a logit that was not chosen, or stands later, passes one that was, over the largest logit's
// magnitude; 1 where ids repeat or are none. Squared, over 1.
residual residual_select(const double *expert, const double *logits, int64_t k, int64_t n);

typedef struct {
  int64_t n_heads, n_kv_heads, head_dim;
} head_shape;

// Of one query out[n_heads][head_dim] over keys 0 .. n_keys - 1 of its sequence, each [n_kv_heads][head_dim];
// q is times 1/sqrt(head_dim) already. key[i]: row of token i of the sequence in keys and values.
// scores[n_keys]: scratch.
residual residual_attention(const double *out, const double *q, const double *keys, const double *values,
                            const int64_t *key, int64_t n_keys, const head_shape *s, double *scores);

// RMS norm: of out = w * in / sqrt(mean of in^2 + epsilon) weights and epsilon follow from one trace's rows.
typedef struct {
  int64_t n;
  double epsilon, *weight, *square; // [n] sums while rows are added
  double rows, x, y, xx, xy;        // sums over rows of norm_fit_scale
} norm_fit;

status norm_fit_open(norm_fit *out, int64_t n); // with Qwen3's epsilon
void norm_fit_close(norm_fit *f);
// The weights by least squares: every row, then solve; again for another epsilon.
void norm_fit_add(norm_fit *f, const double *out, const double *in);
void norm_fit_solve(norm_fit *f);
// The epsilon for these weights: every row, then solve. It stays where the rows do not tell.
void norm_fit_scale(norm_fit *f, const double *out, const double *in);
void norm_fit_solve_epsilon(norm_fit *f);
// out[n] of any trace against the weights.
residual residual_norm(const norm_fit *f, const double *out, const double *in);
