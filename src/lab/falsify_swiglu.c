// Experiment 5: the exponential of SwiGLU, a polynomial against a GPU's approximate instruction.
#include "kernels/formats/numerics.h"
#include "src/lab/falsify_methods.h"
#include "src/lab/product_case.h"
#include <math.h>

typedef struct {
  int64_t n;
  uint32_t gate_seed, up_seed;
  const experiment_input *low, *high;
} swiglu_ranges;

// ex2.approx.ftz.f32 as CUDA's __expf uses it: the product with log2(e) is rounded to a float first, and
// then the instruction is taken to give the float nearest to 2^t (NVIDIA states 2 ulp, with the input's and
// output's subnormals flushed, which these ranges do not reach).
static float exp_by_ex2(float x) {
  float t = x * 1.4426950408889634f;
  return (float)exp2((double)t);
}

static float swiglu(float gate, float up, float exponential) {
  return gate / (1.0f + exponential) * up;
}

static double largest_difference(const swiglu_ranges *s, size_t range, int64_t draw) {
  uint32_t gates = product_draw_seed(s->gate_seed, draw), ups = product_draw_seed(s->up_seed, draw);
  float low = (float)s->low->value[range], high = (float)s->high->value[range];
  double largest = 0;
  for (int64_t i = 0; i < s->n; i++) {
    float gate = low + (high - low) * 0.5f * (xorshift32_uniform(&gates) + 1.0f),
          up = xorshift32_uniform(&ups);
    double a = (double)swiglu(gate, up, num_exp_f32(-gate)), b = (double)swiglu(gate, up, exp_by_ex2(-gate));
    double size = fmax(fmax(fabs(a), fabs(b)), 1e-30);
    largest = fmax(largest, fabs(a - b) / size);
  }
  return largest;
}

static status draw_swiglu(double *out, const void *context, int64_t draw) {
  const swiglu_ranges *s = context;
  for (size_t r = 0; r < s->low->count; r++) out[r] = largest_difference(s, r, draw);
  return 0;
}

// -20 as "m20".
static void name_range(char out[EXPERIMENT_NAME], double low, double high) {
  snprintf(out, EXPERIMENT_NAME, "%s%g_to_%s%g_max_rel", low < 0 ? "m" : "", fabs(low), high < 0 ? "m" : "",
           fabs(high));
}

status falsify_swiglu(falsify_lab *lab, experiment_result *out) {
  const experiment *e = out->settings;
  swiglu_ranges s = {experiment_integer(e, "n"), (uint32_t)experiment_integer(e, "gate_seed"),
                     (uint32_t)experiment_integer(e, "up_seed"), experiment_find_input(e, "low"),
                     experiment_find_input(e, "high")};
  if (s.low->count != s.high->count || !s.low->count || s.n < 1 || !s.gate_seed || !s.up_seed)
    return FAIL(
        "experiment %d: expected as many of input.low as of input.high, n >= 1 and seeds that are not 0",
        e->id);
  char names[EXPERIMENT_VALUES][EXPERIMENT_NAME];
  for (size_t r = 0; r < s.low->count; r++) name_range(names[r], s.low->value[r], s.high->value[r]);
  TRY(falsify_add_draws(lab, out, &(falsify_figures){names, (int64_t)s.low->count, draw_swiglu, &s}));
  double largest = 0;
  for (size_t r = 0; r < s.low->count; r++) largest = fmax(largest, experiment_figure_of(out, names[r]));
  experiment_add(out, largest, "largest_max_rel");
  experiment_note(
      out, "ex2.approx is a model on a CPU: exp2, rounded to nearest, of the rounded product x * log2(e)");
  return 0;
}
