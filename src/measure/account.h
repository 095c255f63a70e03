// account: of one pair, how much of the last residual stream's difference is local error of which layers, how
// much compounding, how much flips (defined in docs/metrics.md).
//
// All are energies: squared norms of differences over the squared norm of the truth's last stream, mean over
// positions. Independent of: arms and how they are run; it is given rows. Invariant: local + interference +
// compounding + flips = total, but for rounding; rows are kept for one batch only.
#pragma once
#include "src/measure/distribution.h"
#include <stdbool.h>

typedef enum {
  ACCOUNT_ADDS_UP,    // no part is below 0: the parts are shares of the whole
  ACCOUNT_NEGATIVE,   // one is, by more than two standard errors: parts cancel, and none is a share
  ACCOUNT_NOTHING,    // the arms do not differ: there is nothing to share out
  ACCOUNT_NOT_FINITE, // a NaN or infinity was seen
} account_verdict;

const char *account_verdict_name(account_verdict v); // "adds up"

typedef struct {    // of one layer, mean over positions
  estimate local;   // the energy of its local error alone
  double increment; // by how much the energy of the carried sum grows when its error is added
} account_layer;

typedef struct {
  size_t a, b; // indices into arms
  account_verdict verdict;
  estimate total;         // the free run's difference after the last layer
  estimate forced;        // that of the run with the truth's routing
  estimate embedding;     // local error of the embedding alone
  estimate local;         // the sum of the embedding's and the layers' energies, each alone, without flips
  estimate interference;  // energy of the sum of these errors, carried by the stream alone, minus `local`
  estimate compounding;   // forced minus the energy of that sum: how later layers answer
  estimate flips;         // total minus forced
  estimate local_flips;   // energies of the local errors in which the arms chose other experts, each alone;
                          // they are in none of the four parts above but by what they cause: flips
  int64_t flipped_points; // how many of these layers x positions there are
  account_layer *layers;  // [n_layers]; the caller's
} account;

typedef enum { ACCOUNT_FREE, ACCOUNT_FORCED } account_run;

typedef struct {
  int64_t n_layers, n_positions, width;
  double *truth;   // [n_positions] ||truth||^2 after the last layer
  double *run[2];  // by account_run: [n_positions] ||a - b||^2 after the last layer
  double *local;   // [n_layers + 1][n_positions] ||error||^2 of the embedding and of each layer
  double *carried; // [n_layers + 1][n_positions] ||sum of the errors up to here||^2
  double *flipped; // [n_positions] sum of ||error||^2 where the experts differ; these are 0 in `local`
  int64_t flipped_points;
  double *sum; // [max_batch][width] that sum, of the batch at hand
} account_samples;

// width: of the residual stream. max_batch: positions in the largest batch.
status account_samples_open(account_samples *out, int64_t n_layers, int64_t n_positions, int64_t max_batch,
                            int64_t width);
void account_samples_close(account_samples *s); // takes NULL

// In any order of runs and positions. row: the position's row in its batch. a, b, truth: [width].
// After the last layer of a run in which the arms keep their own streams.
void account_samples_run(account_samples *s, account_run run, int64_t position, const double *a,
                         const double *b, const double *truth);
// In the run in which each step starts from the truth's stream: after the embedding (step 0), then after
// each layer l (step l + 1), in ascending order. flips: the two chose other experts, so the error is no
// rounding.
void account_samples_local(account_samples *s, int64_t step, int64_t position, int64_t row, const double *a,
                           const double *b, bool flips);

// Fills all of *out but a, b and its layers array.
status account_samples_reduce(const account_samples *s, account *out);
