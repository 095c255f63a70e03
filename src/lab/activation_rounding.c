#include "src/lab/activation_rounding.h"
#include "base/memory.h"
#include "kernels/formats/half.h"
#include "kernels/formats/numerics.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { QK8_1 = 32 };

int64_t activation_block(activation_rounding rounding) {
  switch (rounding) {
  case ACTIVATIONS_F32:
  case ACTIVATIONS_F16:
    return 1;
  case ACTIVATIONS_Q8_K:
  case ACTIVATIONS_Q8_K_ABSMAX:
  case ACTIVATIONS_Q8_K_SPLIT:
    return QK_K;
  case ACTIVATIONS_Q8_1:
    return QK8_1;
  }
  __builtin_unreachable();
}

status rounded_row_open(rounded_row *r, int64_t n) {
  *r = (rounded_row){.n = n};
  TRY(TAKE(&r->value, (size_t)n, "rounded activations"));
  TRY(TAKE(&r->q, (size_t)n, "rounded activations"));
  TRY(TAKE(&r->d, (size_t)n, "rounded activations"));
  TRY(TAKE(&r->outlier, (size_t)n, "rounded activations"));
  return TAKE(&r->sum, (size_t)n, "rounded activations");
}

void rounded_row_close(rounded_row *r) {
  free(r->value);
  free(r->q);
  free(r->d);
  free(r->outlier);
  free(r->sum);
}

// The first element of largest magnitude.
static float extreme_of(const float *x, int64_t n) {
  float extreme = 0;
  for (int64_t i = 0; i < n; i++)
    if (fabsf(x[i]) > fabsf(extreme)) extreme = x[i];
  return extreme;
}

// ggml's quantize_row_q8_K_ref, as docs/paths.md has it. Returns the scale.
static float round_q8k(int8_t *q, const float *x) {
  float extreme = extreme_of(x, QK_K);
  memset(q, 0, QK_K);
  if (extreme == 0) return 0;
  float inverse = num_q8k_inverse_scale(extreme);
  for (int i = 0; i < QK_K; i++) q[i] = (int8_t)num_q8k_round(inverse, x[i]);
  return 1.0f / inverse;
}

// The magnitude of rank MOST_OUTLIERS + 1.
static float ordinary_magnitude(const float *x) {
  float top[MOST_OUTLIERS + 1] = {0}; // descending
  for (int i = 0; i < QK_K; i++) {
    int at = MOST_OUTLIERS;
    if (!(fabsf(x[i]) > top[at])) continue;
    for (; at > 0 && fabsf(x[i]) > top[at - 1]; at--) top[at] = top[at - 1];
    top[at] = fabsf(x[i]);
  }
  return top[MOST_OUTLIERS];
}

// docs/paths.md's outliers, and Q8_K of the rest. Returns the scale.
static float round_split(int8_t *q, float *outlier, const float *x) {
  float rest[QK_K], limit = num_outlier_limit(ordinary_magnitude(x));
  for (int i = 0; i < QK_K; i++) {
    outlier[i] = fabsf(x[i]) > limit ? x[i] : 0;
    rest[i] = fabsf(x[i]) > limit ? 0 : x[i];
  }
  return round_q8k(q, rest);
}

// d = max|x| / 127 and round(x / d), half away from zero: the known case's, and that of a Q8_1 block.
static float round_absmax(int8_t *q, const float *x, int64_t n) {
  float d = fabsf(extreme_of(x, n)) / 127.0f;
  for (int64_t i = 0; i < n; i++) q[i] = d == 0 ? 0 : (int8_t)roundf(x[i] / d);
  return d;
}

// ggml CUDA's quantize_q8_1: the quants by the float scale, which is then kept as f16.
static void round_q8_1(rounded_row *r, int64_t block, const float *x) {
  float sum = 0;
  for (int i = 0; i < QK8_1; i++) sum = sum + x[i];
  r->d[block] = half_to_f32(f32_to_half(round_absmax(r->q + block * QK8_1, x, QK8_1)));
  r->sum[block] = half_to_f32(f32_to_half(sum));
}

static void round_block(rounded_row *r, activation_rounding rounding, int64_t block, const float *x) {
  switch (rounding) {
  case ACTIVATIONS_F32:
    r->value[block] = *x;
    return;
  case ACTIVATIONS_F16:
    r->value[block] = half_to_f32(f32_to_half(*x));
    return;
  case ACTIVATIONS_Q8_K:
    r->d[block] = round_q8k(r->q + block * QK_K, x);
    break;
  case ACTIVATIONS_Q8_K_ABSMAX:
    r->d[block] = round_absmax(r->q + block * QK_K, x, QK_K);
    break;
  case ACTIVATIONS_Q8_K_SPLIT:
    r->d[block] = round_split(r->q + block * QK_K, r->outlier + block * QK_K, x);
    break;
  case ACTIVATIONS_Q8_1:
    round_q8_1(r, block, x);
    break;
  }
  int64_t n = activation_block(rounding);
  for (int64_t i = block * n; i < (block + 1) * n; i++) r->value[i] = r->d[block] * (float)r->q[i];
  for (int64_t i = block * n; i < (block + 1) * n && rounding == ACTIVATIONS_Q8_K_SPLIT; i++)
    if (r->outlier[i] != 0) r->value[i] = r->outlier[i];
}

void round_row(rounded_row *r, activation_rounding rounding, const float *x) {
  int64_t n = activation_block(rounding);
  for (int64_t block = 0; block < r->n / n; block++) round_block(r, rounding, block, x + block * n);
}
