// falsify_methods: for falsify.c and the methods alone.
//
// A local method runs on the reporting rank, the others wait for it; a collective one runs on all ranks, and
// adds figures on the reporting rank alone.
#pragma once
#include "src/lab/draws.h"
#include "src/lab/falsify.h"
#include "src/lab/product_operations.h"
#include "src/measure/metrics.h"

typedef status (*falsify_method)(falsify_lab *lab, experiment_result *out);

status falsify_reduction_order(falsify_lab *lab, experiment_result *out); // 1
status falsify_distributions(falsify_lab *lab, experiment_result *out);   // 2
status falsify_chain(falsify_lab *lab, experiment_result *out);           // 3
status falsify_real_q6k(falsify_lab *lab, experiment_result *out);        // 4
status falsify_swiglu(falsify_lab *lab, experiment_result *out);          // 5
status falsify_two_arms(falsify_lab *lab, experiment_result *out);        // 6
status falsify_three_arms(falsify_lab *lab, experiment_result *out);      // 7
status falsify_outliers(falsify_lab *lab, experiment_result *out);        // 8; collective
status falsify_experts(falsify_lab *lab, experiment_result *out);         // 9; collective
status falsify_routing(falsify_lab *lab, experiment_result *out);         // 10; collective

// ---- shared by the methods ----

// The pair of sum orders whose figures stand beside the known case's Q6_K kernels in 1 to 3: OF_PAIRWISE
// (products rounded, halves of halves), OF_LANES. Theirs are not known; docs/falsify.md says how this pair
// was found.
extern const product_operation OF_TRUTH, OF_ASCENDING, OF_LANES, OF_PAIRWISE, OF_Q8K, OF_Q8K_ABSMAX;

int falsify_threads(const falsify_lab *lab);
int64_t falsify_draws(const falsify_lab *lab,
                      const experiment *e); // input.draws, unless the run says otherwise

// Runs the draws and adds for each name: the figure of draw 0, and over all draws <name>_p01, _median, _p99,
// _quantile (of draw 0) and, where the file has a known figure, _known_quantile.
typedef struct {
  char (*name)[EXPERIMENT_NAME]; // [n]
  int64_t n;
  draw_function draw;
  const void *context;
} falsify_figures;
status falsify_add_draws(falsify_lab *lab, experiment_result *out, const falsify_figures *f);
// The same of values[n_figures][n_draws] that are there; sorts them.
void falsify_add_values(experiment_result *out, char (*name)[EXPERIMENT_NAME], size_t n_figures,
                        double *values, size_t n_draws);
status falsify_add_draws_of(experiment_result *out, int64_t n_draws, int threads, const falsify_figures *f);

// Synthetic weights: uniform floats of the seed, quantised row by row. out: rows * cols / 256 blocks.
status falsify_make_weights(void *out, weight_type type, int64_t rows, int64_t cols, uint32_t seed);
double falsify_largest(const double *x, int64_t n); // max |x|
// An arm's path and backend as a figure's prefix: "q8k@cpu" gives "q8k".
void falsify_prefix(char out[EXPERIMENT_NAME], const arm_choice *a);
