// arms_in_step: several arms over the job's input, all taking a step before any takes the next, in one of
// four modes.
//
//   MODE_FREE     each arm goes its own way
//   MODE_TEACHER  the embedding's output, and every layer's input, is replaced by the reference arm's
//   residual
//                 stream, rounded to the arm's reals; so is the head's. What an arm keeps of it, its keys and
//                 values, it has computed itself from that stream, so they too carry local error only
//   MODE_FORCED   each layer takes the experts that the reference arm chose in this layer for this token
//                 (arm_impose_choice): where the arm chooses the same ones, nothing changes
//   MODE_LOCAL    both: what each layer's arithmetic does, whatever the router would have made of it
//
// Independent of: what is measured; an observer sees every step.
// Invariant: what an observer sees depends on model, tokens, arms and mode alone: not on ranks, token shards
// or cuts. The reference arm runs free in every mode.
#pragma once
#include "src/run/job.h"
#include "src/run/routes.h"

// Collective calls on every rank, each after all arms have taken the step. first: the batch's first token,
// counted over all sequences. The arms' streams, routings and logits can be read (src/run/arm.h). NULL: the
// step is not observed.
typedef struct {
  void *context;
  status (*embedded)(void *context, const token_batch *batch, int64_t first);
  status (*layer)(void *context, int64_t layer, const token_batch *batch, int64_t first);
  // Of the batch's tokens from, from + 1, ...: row i of the arms' logits is token from + i.
  status (*logits)(void *context, const token_batch *batch, int64_t first, int64_t from, int64_t count);
} step_observer;

typedef struct {
  job *j;
  arm *const *arms; // [n_arms], opened for the job's sequences
  size_t n_arms;
  size_t reference; // whose stream or routing is imposed
  parity_mode mode;
  const routes *imposed; // experts that every arm takes, in every mode; NULL: none
  bool without_logits;   // the heads are not computed, and the observer's `logits` is not called
  const char *what;      // that is under way, for the progress line; NULL: parity, or the mode
  step_observer observer;
} arms_in_step;

// Collective. Watches the arms' layers (arm_watch_layers) and leaves them watched; resets their digests and
// clocks before, so that after it they are of this run.
status arms_in_step_run(const arms_in_step *s);

// The truth, f64, where it runs, else the first arm.
size_t arms_reference(const arm_list *arms);
