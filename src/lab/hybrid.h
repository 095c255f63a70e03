// hybrid: a forward pass of an arm a in which one part is computed as in an arm b, on a's inputs.
//
// Two arms stand side by side. Where a step changes hands, its inputs are imposed on the arm that computes
// it, and its output on the one that goes on (arm.h): the residual stream, queries, keys, values, the output
// of attention, the routing, the experts' activations and outputs. So the result is that of a forward pass
// with this part exchanged, to the bit.
//
// Owns: the steps as parts, and what is handed over. Independent of: what is concluded from it.
// Invariant: with no part it is a, with every part it is b; a step takes its own norm and rounding with it,
// and attention its cache.
#pragma once
#include "src/run/job.h"

typedef enum {
  STEP_EMBED,
  STEP_QKV,       // norm, q, k, v, norm of heads, RoPE
  STEP_ATTENTION, // cache, scores, softmax, values
  STEP_O,         // o, and its sum with the residual stream
  STEP_ROUTER,    // norm, router, choice, weights
  STEP_GATE_UP,   // norm, gate, up
  STEP_SWIGLU,    // silu(gate) * up
  STEP_DOWN,      // down, and the slots' weighted sum with the residual stream
  STEP_HEAD,      // norm, output
} model_step;
enum {
  MODEL_STEPS = STEP_HEAD + 1,
  STEPS_OF_EXPERTS = 1 << STEP_GATE_UP | 1 << STEP_SWIGLU | 1 << STEP_DOWN,
  STEPS_OF_LAYER = 1 << STEP_QKV | 1 << STEP_ATTENTION | 1 << STEP_O | 1 << STEP_ROUTER | STEPS_OF_EXPERTS,
  STEPS_ALL = STEPS_OF_LAYER | 1 << STEP_EMBED | 1 << STEP_HEAD,
};

const char *model_step_name(model_step step); // "gate and up"

typedef struct {
  unsigned steps;                   // bits 1 << model_step
  int64_t first_layer, end_layer;   // of the steps of layers
  int64_t first_expert, end_expert; // of gate, up and down; 0 to n_experts: all. Fewer: of these steps alone,
                                    // and without the slots' sum
} model_part;

typedef struct hybrid hybrid;

// Collective. a and b are open, of models of one shape, for the sequences of j; they are watched and probed
// from here on. Takes neither.
status hybrid_open(hybrid **out, job *j, arm *a, arm *b);
void hybrid_close(hybrid *h); // takes NULL

// What a pass shows, on the reporting rank: a position's logits [vocabulary], and a layer's choice of it
// [top_k].
typedef struct {
  void (*logits)(void *context, int64_t position, const double *logits);
  void (*experts)(void *context, int64_t layer, int64_t position, const expert_global *experts);
  void *context;
} hybrid_show;

// Collective. The whole input, with `part` computed as in b. Positions count over all sequences in the order
// of the batches.
status hybrid_pass(hybrid *h, const model_part *part, const hybrid_show *show);
