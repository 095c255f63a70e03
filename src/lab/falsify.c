#include "src/lab/falsify.h"
#include "base/clock.h"
#include "base/memory.h"
#include "kernels/formats/quantize.h"
#include "src/lab/falsify_methods.h"
#include "src/lab/product_case.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

// ---- the table ----

typedef struct {
  falsify_method run;
  bool collective;
  const char *inputs[12]; // that the file gives; NULL-terminated
  const char *method;
} method_row;

static const method_row METHODS[FALSIFY_COUNT] = {
    {falsify_reduction_order,
     false,
     {"rows", "cols", "weights_seed", "activations_seed", "draws"},
     "One Q6_K product of uniform floats: the dequantised weights times f32 activations, summed in halves "
     "of halves (a), in 32 lanes and a tree (b: a warp, the path f32), and in one ascending chain. rel is "
     "max |a - b| / max |a|."},
    {falsify_distributions,
     false,
     {"rows", "cols", "weights_seed", "activations_seed", "draws"},
     "As 1 with activations of four kinds: uniform; log-normal, sign(u1) * 0.1 * exp(4 u2), u2 in "
     "[-0.5, 0.5]; uniform with 5 % times 5; uniform with 5 % times 100. The figure is max_rel, max |a - b| "
     "/ max(|a|, |b|, 1e-30). Then the same with Q4_K weights, and for both types the path q8k (activations "
     "rounded to Q8_K) against the truth in doubles."},
    {falsify_chain,
     false,
     {"size", "steps", "weights_seed", "seed_step", "activations_seed", "draws"},
     "A vector goes through N square matrices, made unit length after each, once in each of the two sum "
     "orders "
     "of 1 and once rounded to Q8_K before each product, and is compared after N steps. A draw has "
     "activations of its own, and starts at another one of the matrices."},
    {falsify_real_q6k,
     false,
     {"tensor", "bytes", "rows", "cols", "activations_seed", "draws", "known_layers", "known_n_layers"},
     "The first bytes of a real Q6_K tensor, cut as a slab of rows, times uniform activations in the "
     "sum orders of 1; then the first bytes of every Q6_K matrix of the model. And which of the known "
     "case's layers of low cosine have Q6_K at all, by the mix of Q4_K_M: the chance of as many or "
     "more if the choice were blind."},
    {falsify_swiglu,
     false,
     {"n", "gate_seed", "up_seed", "low", "high", "draws"},
     "silu(gate) * up with this program's exp against ex2.approx, for gates uniform in each range and "
     "up uniform in [-1, 1]; the figure is max |a - b| / max(|a|, |b|, 1e-30). ex2.approx is modelled "
     "as exp2, rounded to the nearest float, of the rounded product x * log2(e); where there is a GPU "
     "its own instruction is tried too."},
    {falsify_two_arms,
     false,
     {"tensor", "bytes", "rows", "cols", "activations_seed", "draws"},
     "The first bytes of a real Q4_K tensor, cut as a slab of rows, times uniform activations: A, "
     "fused Q4_K x Q8_K (A1 with the known case's rounding), and C, the path f32 where the GPU is. "
     "With two arms there is only A - C. Then both against the truth in doubles."},
    {falsify_three_arms,
     false,
     {"tensor", "bytes", "rows", "cols", "activations_seed", "draws"},
     "The slab of 6: A, fused Q4_K x Q8_K as ggml rounds (A1: d = max|x| / 127, half away from zero); "
     "B, dequantised weights and a plain f32 sum; C, the path f32 where the GPU is; pair by pair, and "
     "each against the truth."},
    {falsify_outliers,
     true,
     {"rows", "cols", "weights_seed", "activations_seed", "outlier", "quiet", "ratio", "tokens",
      "tokens_seed", "draws"},
     "Q4_K product of uniform floats with one channel of the activations set to the outlier and its "
     "weights made quiet, as trained ones are: q8k against the truth, without the outlier, with it, "
     "and with the blocks whose largest magnitude stands `ratio` times above the second left in f32. "
     "Then the activations of the model itself at the four places where q8k rounds: the blocks that "
     "stand out, and the rounding error with and without f32 for these."},
    {falsify_experts,
     true,
     {"tokens", "tokens_seed"},
     "Each layer of every arm starts from the truth's stream and takes the truth's routing (parity's local "
     "mode). The error of an expert is the rel_l2 of its outputs over all tokens that chose it, of a "
     "layer that of what the layer adds to the stream. Tokens: the input's, then ids drawn from the "
     "seed."},
    {falsify_routing,
     true,
     {"tokens", "tokens_seed", "bins"},
     "Free run. For every token and layer: the margin is the truth's logit of the last chosen expert "
     "less that of the best one left out; the error's size s is sqrt(2) times the standard deviation "
     "over experts of the arm's router logits less the truth's. The model: every logit has a normal "
     "error of its own, of standard deviation s / sqrt(2); the chance that the chosen set changes is "
     "then an integral. Observed and predicted changes of the set, by bins of margin / s."},
};

static size_t count_inputs(const method_row *m) {
  size_t n = 0;
  while (m->inputs[n]) n++;
  return n;
}

status falsify_check(const experiment *e) {
  if (e->id < 1 || e->id > FALSIFY_COUNT)
    return REFUSE("experiment %d: expected one of 1 to %d", e->id, FALSIFY_COUNT);
  const method_row *m = &METHODS[e->id - 1];
  return experiment_check_inputs(e, m->inputs, count_inputs(m));
}

bool falsify_runs_arms(const experiment *e) {
  return METHODS[e->id - 1].collective;
}

status falsify_run(falsify_lab *lab, const experiment *e, experiment_result *out) {
  char what[32];
  const method_row *m = &METHODS[e->id - 1];
  bool reports = job_is_reporting(lab->j);
  double start = clock_seconds();
  *out = (experiment_result){.settings = e, .method = m->method};
  snprintf(what, sizeof what, "experiment %d", e->id);
  if (m->collective)
    TRY(m->run(lab, out));
  else
    TRY(job_agree(lab->j, reports ? m->run(lab, out) : 0, what));
  if (experiment_find_input(e, "draws")) experiment_add(out, (double)falsify_draws(lab, e), "draws");
  out->seconds = clock_seconds() - start;
  return job_agree(lab->j, reports ? experiment_judge(out) : 0, what);
}

// ---- shared by the methods ----

#define HERE(activations, inner, order)                                                                      \
  { {ACTIVATIONS_##activations, WEIGHTS_F32, INNER_##inner, ORDER_##order, WHERE_HERE}, 0 }
const product_operation OF_TRUTH = HERE(F32, DOUBLE, ASCENDING), OF_ASCENDING = HERE(F32, FLOAT, ASCENDING),
                        OF_LANES = HERE(F32, FLOAT, LANES), OF_PAIRWISE = HERE(F32, FLOAT, PAIRWISE),
                        OF_Q8K = HERE(Q8_K, INTEGER, ASCENDING),
                        OF_Q8K_ABSMAX = HERE(Q8_K_ABSMAX, INTEGER, ASCENDING);

int falsify_threads(const falsify_lab *lab) {
  return topology_threads(lab->j->place);
}

int64_t falsify_draws(const falsify_lab *lab, const experiment *e) {
  int64_t n = lab->draws ? lab->draws : experiment_integer(e, "draws");
  return n > 1 ? n : 1;
}

static void add_figure(experiment_result *out, const char *name, double *x, size_t n) {
  double first = x[0], known = experiment_known(out->settings, name);
  experiment_add(out, first, "%s", name);
  if (n == 1) return;
  double mine = draws_quantile(x, n, first), its = draws_quantile(x, n, known);
  experiment_add_of_draws(out, draws_at(x, n, 0.01), name, "p01");
  experiment_add_of_draws(out, draws_at(x, n, 0.5), name, "median");
  experiment_add_of_draws(out, draws_at(x, n, 0.99), name, "p99");
  experiment_add_of_draws(out, mine, name, "quantile");
  if (!isnan(known)) experiment_add_of_draws(out, its, name, "known_quantile");
}

void falsify_add_values(experiment_result *out, char (*name)[EXPERIMENT_NAME], size_t n_figures,
                        double *values, size_t n_draws) {
  for (size_t i = 0; i < n_figures; i++) add_figure(out, name[i], values + i * n_draws, n_draws);
}

status falsify_add_draws_of(experiment_result *out, int64_t n_draws, int threads, const falsify_figures *f) {
  size_t n = (size_t)n_draws;
  double *values;
  TRY(TAKE(&values, (size_t)f->n * n, "draws"));
  status result = draws_run(values, f->n, n_draws, threads, f->draw, f->context);
  if (!result) falsify_add_values(out, f->name, (size_t)f->n, values, n);
  free(values);
  return result;
}

status falsify_add_draws(falsify_lab *lab, experiment_result *out, const falsify_figures *f) {
  return falsify_add_draws_of(out, falsify_draws(lab, out->settings), falsify_threads(lab), f);
}

status falsify_make_weights(void *out, weight_type type, int64_t rows, int64_t cols, uint32_t seed) {
  float *w;
  TRY(TAKE(&w, (size_t)(rows * cols), "synthetic weights"));
  for (int64_t i = 0; i < rows * cols; i++) w[i] = xorshift32_uniform(&seed);
  quantize_row(out, type, w, (size_t)(rows * cols));
  free(w);
  return 0;
}

double falsify_largest(const double *x, int64_t n) {
  double largest = 0;
  for (int64_t i = 0; i < n; i++) largest = fabs(x[i]) > largest ? fabs(x[i]) : largest;
  return largest;
}

void falsify_prefix(char out[EXPERIMENT_NAME], const arm_choice *a) {
  snprintf(out, EXPERIMENT_NAME, "%.*s", (int)strcspn(a->name, "@"), a->name);
}
