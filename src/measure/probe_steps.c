#include "src/measure/probe_steps.h"
#include "base/memory.h"
#include "kernels/formats/half.h"
#include "kernels/formats/numerics.h"
#include <math.h>
#include <stdlib.h>

static const double NORM_EPSILON = 1e-6; // Qwen3's
enum { Q8_0_BLOCK = 32 };

// ---- the graph ----

static const step_info STEPS[PROBE_COUNT] = {
    [PROBE_INP_EMBD] = {.kind = STEP_LOOKUP},
    [PROBE_ATTN_NORM] = {STEP_NORM, 1, {PROBE_L_OUT}, false, false},
    [PROBE_QCUR] = {STEP_PRODUCT, 1, {PROBE_ATTN_NORM}, false, true},
    [PROBE_KCUR] = {STEP_PRODUCT, 1, {PROBE_ATTN_NORM}, false, true},
    [PROBE_VCUR] = {STEP_PRODUCT, 1, {PROBE_ATTN_NORM}, false, true},
    [PROBE_KQV_OUT] = {STEP_ATTENTION, 3, {PROBE_QCUR, PROBE_KCUR, PROBE_VCUR}, false, false},
    [PROBE_FFN_INP] = {STEP_PRODUCT, 2, {PROBE_KQV_OUT, PROBE_L_OUT}, true, true},
    [PROBE_FFN_NORM] = {STEP_NORM, 1, {PROBE_FFN_INP}, false, false},
    [PROBE_FFN_MOE_LOGITS] = {STEP_PRODUCT, 1, {PROBE_FFN_NORM}, false, false},
    [PROBE_FFN_MOE_TOPK] = {STEP_SELECT, 1, {PROBE_FFN_MOE_LOGITS}, false, false},
    [PROBE_FFN_MOE_WEIGHTS_NORM] =
        {STEP_WEIGHTS, 2, {PROBE_FFN_MOE_LOGITS, PROBE_FFN_MOE_TOPK}, false, false},
    [PROBE_FFN_MOE_GATE] = {STEP_PRODUCT, 1, {PROBE_FFN_NORM}, false, true},
    [PROBE_FFN_MOE_UP] = {STEP_PRODUCT, 1, {PROBE_FFN_NORM}, false, true},
    [PROBE_FFN_MOE_SWIGLU] = {STEP_SWIGLU, 2, {PROBE_FFN_MOE_GATE, PROBE_FFN_MOE_UP}, false, false},
    [PROBE_FFN_MOE_DOWN] = {STEP_PRODUCT, 1, {PROBE_FFN_MOE_SWIGLU}, false, true},
    [PROBE_FFN_MOE_OUT] = {STEP_COMBINE, 2, {PROBE_FFN_MOE_WEIGHTS_NORM, PROBE_FFN_MOE_DOWN}, false, false},
    [PROBE_L_OUT] = {STEP_ADD, 2, {PROBE_FFN_INP, PROBE_FFN_MOE_OUT}, false, false},
    [PROBE_RESULT_NORM] = {STEP_NORM, 1, {PROBE_L_OUT}, false, false},
    [PROBE_RESULT_OUTPUT] = {STEP_PRODUCT, 1, {PROBE_RESULT_NORM}, false, true},
};

const step_info *step_of(probe_point point) {
  return &STEPS[point];
}

const char *step_name(step_kind kind) {
  static const char *const NAMES[STEP_KINDS] = {
      [STEP_LOOKUP] = "lookup", [STEP_NORM] = "norm",       [STEP_PRODUCT] = "product",
      [STEP_SELECT] = "top k",  [STEP_WEIGHTS] = "weights", [STEP_ATTENTION] = "attention",
      [STEP_SWIGLU] = "swiglu", [STEP_COMBINE] = "combine", [STEP_ADD] = "add",
  };
  return NAMES[kind];
}

// ---- rounding of activations ----

const char *input_rounding_name(input_rounding r) {
  static const char *const NAMES[INPUT_ROUNDINGS] = {
      [INPUT_AS_IT_IS] = "none", [INPUT_F16] = "f16", [INPUT_Q8_0] = "Q8_0", [INPUT_Q8K] = "Q8_K"};
  return NAMES[r];
}

input_rounding input_rounding_of_path(path_kind path) {
  switch (path) {
  case PATH_F64:
  case PATH_F32:
    return INPUT_AS_IT_IS;
  case PATH_Q8K:
  case PATH_Q8K_SPLIT: // rounds no more than that: its outliers are taken out
    return INPUT_Q8K;
  }
  __builtin_unreachable();
}

static double through_f16(double x) {
  return (double)half_to_f32(f32_to_half((float)x));
}

static void round_block_q8k(double *x) {
  float extreme = 0;
  for (int i = 0; i < QK_K; i++)
    if (fabs(x[i]) > (double)fabsf(extreme)) extreme = (float)x[i];
  if (extreme == 0 || !isfinite(extreme)) return;
  float inverse = num_q8k_inverse_scale(extreme);
  for (int i = 0; i < QK_K; i++)
    x[i] = (double)num_q8k_round(inverse, (float)x[i]) * (double)(1.0f / inverse);
}

static void round_block_q8_0(double *x) {
  double largest = 0;
  for (int i = 0; i < Q8_0_BLOCK; i++) largest = fmax(largest, fabs(x[i]));
  if (largest == 0 || !isfinite(largest)) return;
  double step = largest / 127;
  for (int i = 0; i < Q8_0_BLOCK; i++) x[i] = round(x[i] / step) * through_f16(step);
}

void input_round(double *x, int64_t n, input_rounding r) {
  switch (r) {
  case INPUT_AS_IT_IS:
    return;
  case INPUT_F16:
    for (int64_t i = 0; i < n; i++) x[i] = through_f16(x[i]);
    return;
  case INPUT_Q8_0:
    for (int64_t i = 0; i < n && n % Q8_0_BLOCK == 0; i += Q8_0_BLOCK) round_block_q8_0(x + i);
    return;
  case INPUT_Q8K:
    for (int64_t i = 0; i < n && n % QK_K == 0; i += QK_K) round_block_q8k(x + i);
    return;
  }
  __builtin_unreachable();
}

// ---- steps of one row ----

static void add_to(residual *r, double difference, double scale) {
  r->error2 += difference * difference;
  r->scale2 += scale * scale;
}

residual residual_swiglu(const double *out, const double *gate, const double *up, int64_t n) {
  residual r = {0, 0};
  for (int64_t i = 0; i < n; i++) {
    double expected = num_silu_f64(gate[i]) * up[i];
    add_to(&r, out[i] - expected, expected);
  }
  return r;
}

residual residual_combine(const double *out, const double *weight, const double *slots, int64_t k,
                          int64_t n) {
  residual r = {0, 0};
  for (int64_t i = 0; i < n; i++) {
    double sum = 0, magnitude = 0;
    for (int64_t s = 0; s < k; s++) {
      double part = weight[s] * slots[s * n + i];
      sum += part;
      magnitude += fabs(part);
    }
    add_to(&r, out[i] - sum, magnitude);
  }
  return r;
}

residual residual_add(const double *out, const double *a, const double *b, int64_t n) {
  residual r = {0, 0};
  for (int64_t i = 0; i < n; i++) add_to(&r, out[i] - (a[i] + b[i]), fabs(a[i]) + fabs(b[i]));
  return r;
}

static bool is_id(double x, int64_t n) {
  return x >= 0 && x < (double)n && x == floor(x);
}

residual residual_weights(const double *weight, const double *expert, const double *logits, int64_t k,
                          int64_t n) {
  residual r = {0, 0};
  double largest = -INFINITY, sum = 0;
  for (int64_t s = 0; s < k; s++)
    if (!is_id(expert[s], n)) return (residual){1, 1};
  for (int64_t s = 0; s < k; s++) largest = fmax(largest, logits[(int64_t)expert[s]]);
  for (int64_t s = 0; s < k; s++) sum += exp(logits[(int64_t)expert[s]] - largest);
  for (int64_t s = 0; s < k; s++) {
    double expected = exp(logits[(int64_t)expert[s]] - largest) / sum;
    add_to(&r, weight[s] - expected, expected);
  }
  return r;
}

residual residual_select(const double *expert, const double *logits, int64_t k, int64_t n) {
  double largest = 0, gap = 0, before = INFINITY;
  for (int64_t e = 0; e < n; e++) largest = fmax(largest, fabs(logits[e]));
  for (int64_t s = 0; s < k; s++) {
    if (!is_id(expert[s], n)) return (residual){1, 1};
    for (int64_t t = 0; t < s; t++)
      if (expert[t] == expert[s]) return (residual){1, 1};
    gap = fmax(gap, logits[(int64_t)expert[s]] - before);
    before = logits[(int64_t)expert[s]];
  }
  for (int64_t e = 0; e < n; e++) {
    bool chosen = false;
    for (int64_t s = 0; s < k; s++) chosen = chosen || expert[s] == (double)e;
    if (!chosen) gap = fmax(gap, logits[e] - before);
  }
  gap = largest > 0 ? gap / largest : 0;
  return (residual){gap * gap, 1};
}

// ---- attention ----

static void attend_head(residual *r, const double *out, const double *q, const double *keys,
                        const double *values, const int64_t *key, int64_t n_keys, int64_t row_width,
                        int64_t head_dim, double *scores) {
  double largest = -INFINITY, sum = 0;
  for (int64_t j = 0; j < n_keys; j++) {
    const double *k = keys + key[j] * row_width;
    scores[j] = 0;
    for (int64_t d = 0; d < head_dim; d++) scores[j] += q[d] * k[d];
    largest = fmax(largest, scores[j]);
  }
  for (int64_t j = 0; j < n_keys; j++) sum += scores[j] = exp(scores[j] - largest);
  for (int64_t d = 0; d < head_dim; d++) {
    double expected = 0;
    for (int64_t j = 0; j < n_keys; j++) expected += scores[j] / sum * values[key[j] * row_width + d];
    add_to(r, out[d] - expected, expected);
  }
}

residual residual_attention(const double *out, const double *q, const double *keys, const double *values,
                            const int64_t *key, int64_t n_keys, const head_shape *s, double *scores) {
  residual r = {0, 0};
  int64_t group = s->n_heads / s->n_kv_heads, width = s->n_kv_heads * s->head_dim;
  for (int64_t h = 0; h < s->n_heads; h++) {
    int64_t at = h / group * s->head_dim;
    attend_head(&r, out + h * s->head_dim, q + h * s->head_dim, keys + at, values + at, key, n_keys, width,
                s->head_dim, scores);
  }
  return r;
}

// ---- RMS norm ----

status norm_fit_open(norm_fit *out, int64_t n) {
  *out = (norm_fit){.n = n, .epsilon = NORM_EPSILON};
  TRY(TAKE(&out->weight, (size_t)n, "a norm's weights"));
  return TAKE(&out->square, (size_t)n, "a norm's weights");
}

void norm_fit_close(norm_fit *f) {
  free(f->weight);
  free(f->square);
  *f = (norm_fit){.n = 0};
}

static double mean_square(const double *x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
  return sum / (double)n;
}

static double inverse_rms(const norm_fit *f, const double *x) {
  return 1 / sqrt(mean_square(x, f->n) + f->epsilon);
}

void norm_fit_add(norm_fit *f, const double *out, const double *in) {
  double scale = inverse_rms(f, in);
  for (int64_t i = 0; i < f->n; i++) {
    double unit = in[i] * scale;
    f->weight[i] += unit * out[i];
    f->square[i] += unit * unit;
  }
}

void norm_fit_solve(norm_fit *f) {
  for (int64_t i = 0; i < f->n; i++) {
    f->weight[i] = f->square[i] > 0 ? f->weight[i] / f->square[i] : 0;
    f->square[i] = 0;
  }
}

// A row says 1 / scale^2 = a (mean square + epsilon), with an `a` that the weights leave open.
void norm_fit_scale(norm_fit *f, const double *out, const double *in) {
  double product = 0, square = 0, x = mean_square(in, f->n);
  for (int64_t i = 0; i < f->n; i++) {
    double weighted = f->weight[i] * in[i];
    product += out[i] * weighted;
    square += weighted * weighted;
  }
  if (product <= 0) return;
  double y = square / product * (square / product);
  f->rows++;
  f->x += x;
  f->y += y;
  f->xx += x * x;
  f->xy += x * y;
}

void norm_fit_solve_epsilon(norm_fit *f) {
  double spread = f->rows * f->xx - f->x * f->x, slope = f->rows * f->xy - f->x * f->y;
  if (f->rows > 1 && spread > 1e-12 * f->xx && slope > 0) {
    slope /= spread;
    f->epsilon = fmax((f->y - slope * f->x) / (f->rows * slope), 0);
  }
  f->rows = f->x = f->y = f->xx = f->xy = 0;
  for (int64_t i = 0; i < f->n; i++) f->weight[i] = 0;
}

residual residual_norm(const norm_fit *f, const double *out, const double *in) {
  residual r = {0, 0};
  double scale = inverse_rms(f, in);
  for (int64_t i = 0; i < f->n; i++) {
    double expected = f->weight[i] * in[i] * scale;
    add_to(&r, out[i] - expected, expected);
  }
  return r;
}
