// falsify_pass: the arms of run.arms over the run's tokens, for the experiments that need whole passes.
//
// Owns: the arms while it is open, and the tokens that are added to an input shorter than the experiment
// asks. Invariant: every rank calls the collective functions in the same order.
#pragma once
#include "src/lab/falsify_methods.h"
#include "src/run/arms_in_step.h"

typedef struct {
  job j; // a copy of the run's with the sequences below
  token_sequence *added;
  int64_t n_added; // sequences of drawn ids, after those of the input
  size_t n_arms, truth;
  bool only_truth;
  arm *arm[CONFIG_MAX_ARMS];
  char prefix[CONFIG_MAX_ARMS][EXPERIMENT_NAME]; // of its figures: the path; "" for the second arm of a path
} pass;

// Collective. Opens the arms (with only_truth: f64 alone), which keep the probes `points`. pass_close
// releases what there is, after an error too.
status pass_open(pass *p, falsify_lab *lab, experiment_result *out, uint32_t points, bool only_truth);
void pass_close(pass *p);
// Collective. All layers of all tokens in a mode of arms_in_step.h, the truth being the reference; no logits.
status pass_run(pass *p, parity_mode mode, const step_observer *observer);
bool pass_is_measured(const pass *p, size_t a); // not the truth, and the first arm of its path
