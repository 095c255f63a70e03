// Experiment 5: the exponential of SwiGLU, a polynomial against a GPU's approximate instruction.
#include "base/memory.h"
#include "kernels/formats/numerics.h"
#include "src/lab/falsify_methods.h"
#include "src/lab/product_case.h"
#include <math.h>
#include <stdlib.h>

typedef struct {
  int64_t n;
  uint32_t gate_seed, up_seed;
  const experiment_input *low, *high;
} swiglu_ranges;

static float swiglu(float gate, float up, float exponential) {
  return gate / (1.0f + exponential) * up;
}

// CUDA's __expf(-gate) is ex2.approx of this: the product with log2(e), rounded to a float first.
static float exponent_of(float gate) {
  return -gate * 1.4426950408889634f;
}

// The instruction is taken to give the float nearest to 2^t (NVIDIA states 2 ulp, with the input's and
// output's subnormals flushed, which these ranges do not reach).
static float exp2_model(float t) {
  return (float)exp2((double)t);
}

static void draw_range(float *gate, float *up, const swiglu_ranges *s, size_t range, int64_t draw) {
  uint32_t gates = product_draw_seed(s->gate_seed, draw), ups = product_draw_seed(s->up_seed, draw);
  float low = (float)s->low->value[range], high = (float)s->high->value[range];
  for (int64_t i = 0; i < s->n; i++) {
    gate[i] = low + (high - low) * 0.5f * (xorshift32_uniform(&gates) + 1.0f);
    up[i] = xorshift32_uniform(&ups);
  }
}

static double largest_difference(const float *gate, const float *up, const float *exponential, int64_t n) {
  double largest = 0;
  for (int64_t i = 0; i < n; i++) {
    double a = (double)swiglu(gate[i], up[i], num_exp_f32(-gate[i])),
           b = (double)swiglu(gate[i], up[i], exponential[i]);
    largest = fmax(largest, fabs(a - b) / fmax(fmax(fabs(a), fabs(b)), 1e-30));
  }
  return largest;
}

typedef struct {
  float *gate, *up, *exponential;
} swiglu_room;

static status room_open(swiglu_room *r, int64_t n) {
  *r = (swiglu_room){NULL, NULL, NULL};
  TRY(TAKE(&r->gate, (size_t)n, "gates"));
  TRY(TAKE(&r->up, (size_t)n, "gates"));
  return TAKE(&r->exponential, (size_t)n, "gates");
}

static void room_close(swiglu_room *r) {
  free(r->gate);
  free(r->up);
  free(r->exponential);
}

static status draw_swiglu(double *out, const void *context, int64_t draw) {
  const swiglu_ranges *s = context;
  swiglu_room r;
  status result = room_open(&r, s->n);
  for (size_t range = 0; range < s->low->count && !result; range++) {
    draw_range(r.gate, r.up, s, range, draw);
    for (int64_t i = 0; i < s->n; i++) r.exponential[i] = exp2_model(exponent_of(r.gate[i]));
    out[range] = largest_difference(r.gate, r.up, r.exponential, s->n);
  }
  room_close(&r);
  return result;
}

// ---- on a GPU: the instruction itself, for the known seeds ----

static double ulps_apart(float a, float b) { // of positive floats
  return fabs((double)num_bits_f32(a) - (double)num_bits_f32(b));
}

static status add_device(experiment_result *out, const swiglu_ranges *s, char (*names)[EXPERIMENT_NAME],
                         const backend_ops *gpu) {
  swiglu_room r;
  double ulps = 0;
  status result;
  TRY_DONE(result, room_open(&r, s->n));
  for (size_t range = 0; range < s->low->count; range++) {
    draw_range(r.gate, r.up, s, range, 0);
    for (int64_t i = 0; i < s->n; i++) r.exponential[i] = exponent_of(r.gate[i]);
    TRY_DONE(result, gpu->exp2_approx(r.exponential, r.exponential, s->n));
    experiment_add(out, largest_difference(r.gate, r.up, r.exponential, s->n), "device_%s", names[range]);
    for (int64_t i = 0; i < s->n; i++)
      ulps = fmax(ulps, ulps_apart(r.exponential[i], exp2_model(exponent_of(r.gate[i]))));
  }
  experiment_add(out, ulps, "device_model_max_ulp");
done:
  room_close(&r);
  return result;
}

static const backend_ops *find_device(void) {
  for (const backend_ops *const *b = backend_table(); *b; b++)
    if ((*b)->exp2_approx && (*b)->devices && (*b)->devices() > 0) return *b;
  return NULL;
}

// ---- the experiment ----

// -20 as "m20".
static void name_range(char out[EXPERIMENT_NAME], double low, double high) {
  snprintf(out, EXPERIMENT_NAME, "%s%g_to_%s%g_max_rel", low < 0 ? "m" : "", fabs(low), high < 0 ? "m" : "",
           fabs(high));
}

static void add_largest(experiment_result *out, char (*names)[EXPERIMENT_NAME], size_t n) {
  double largest = 0;
  for (size_t r = 0; r < n; r++) {
    char device[EXPERIMENT_NAME + 8];
    snprintf(device, sizeof device, "device_%.40s", names[r]);
    largest = fmax(largest, fmax(experiment_figure_of(out, names[r]), experiment_figure_of(out, device)));
  }
  experiment_add(out, largest, "largest_max_rel");
}

status falsify_swiglu(falsify_lab *lab, experiment_result *out) {
  const experiment *e = out->settings;
  const backend_ops *device = find_device();
  swiglu_ranges s = {experiment_integer(e, "n"), (uint32_t)experiment_integer(e, "gate_seed"),
                     (uint32_t)experiment_integer(e, "up_seed"), experiment_find_input(e, "low"),
                     experiment_find_input(e, "high")};
  if (s.low->count != s.high->count || !s.low->count || s.n < 1 || !s.gate_seed || !s.up_seed)
    return REFUSE(
        "experiment %d: expected as many of input.low as of input.high, n >= 1 and seeds that are not 0",
        e->id);
  char names[EXPERIMENT_VALUES][EXPERIMENT_NAME];
  for (size_t r = 0; r < s.low->count; r++) name_range(names[r], s.low->value[r], s.high->value[r]);
  TRY(falsify_add_draws(lab, out, &(falsify_figures){names, (int64_t)s.low->count, draw_swiglu, &s}));
  if (device) TRY(add_device(out, &s, names, device));
  add_largest(out, names, s.low->count);
  experiment_note(out,
                  "ex2.approx is a model: exp2, rounded to nearest, of the rounded product x * log2(e)%s",
                  device ? "; device_ figures are of the instruction itself" : "");
  return 0;
}
