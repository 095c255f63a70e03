// pair_figures: a run of arms in step (src/run/arms_in_step.h), measured pair by pair as it comes: layers,
// probes inside them, experts, logits; and what the account of the modes needs.
//
// Owns: the samples of one run, and room for one batch of one probe of each arm.
// Independent of: reports and files. Invariant: memory grows with layers x tokens x pairs (a few numbers
// each), never with layers x tokens x width or tokens x vocabulary; figures are the reporting rank's.
#pragma once
#include "src/measure/account.h"
#include "src/measure/pair_statistics.h"
#include "src/run/arms_in_step.h"

typedef struct {
  job *j;
  arm *const *arms;
  size_t n_arms, n_pairs, n_probes, reference;
  parity_mode mode;
  bool imposes;                   // some routing is imposed: then flips are those of the arm's own choice
  const pair_statistics *pair;    // [n_pairs] a and b alone are read
  probe_point probe[PROBE_COUNT]; // the n_probes wanted
  uint32_t wanted;                // bits of what is watched
  // on the reporting rank:
  double *stream[CONFIG_MAX_ARMS];        // [max_batch][hidden]
  expert_global *chosen[CONFIG_MAX_ARMS]; // [max_batch][top_k], by the arm itself
  double *logits[CONFIG_MAX_ARMS];        // [vocabulary]
  double *nll;                            // [n_arms] sums over positions with a next token
  pair_samples *samples;                  // [n_pairs]
  probe_samples *probes;                  // [n_pairs][n_probes]
  expert_samples *experts;                // [n_pairs], where a probe is per slot
  account_samples *accounts;              // [n_pairs], kept over the modes; NULL: no account
} pair_figures;

// Collective. pair[n_pairs], arms and accounts are kept by reference; probes: bits of probes of a layer.
// pair_figures_close releases what there is, after an error too.
status pair_figures_open(pair_figures *out, job *j, arm *const *arms, size_t n_arms,
                         const pair_statistics *pair, size_t n_pairs, parity_mode mode, bool imposes,
                         account_samples *accounts);
void pair_figures_close(pair_figures *f);

// The observer's calls; collective.
status pair_figures_embedded(void *figures, const token_batch *batch, int64_t first);
status pair_figures_layer(void *figures, int64_t layer, const token_batch *batch, int64_t first);
status pair_figures_logits(void *figures, const token_batch *batch, int64_t first, int64_t from,
                           int64_t count);

// Local, on the reporting rank, after the run. Fills out[n_pairs], whose layers arrays are the caller's; its
// probes and experts, which the caller frees, are new.
status pair_figures_reduce(const pair_figures *f, pair_statistics *out);
// The first point of the forward pass above its bound.
void pair_figures_first(pair_statistics *p, int64_t n_layers, const bound_list *bounds);
