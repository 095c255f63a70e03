#include "kernels/formats/quantize.h"
#include "kernels/formats/half.h"
#include <string.h>

// To the nearest integer, ties to even; |x| < 2^22.
static int nearest(float x) {
  float shifted = x + 12582912.0f;
  return (int)(num_bits_f32(shifted) & 0x007fffffu) - 0x00400000;
}

static int clamp(int x, int low, int high) {
  return x < low ? low : x > high ? high : x;
}

// ---- Q4_K: a scale and a minimum for each 32 ----

enum { SUB_4 = 32, LEVELS_4 = 15, STEPS_4 = 20 }; // STEPS_4 + 1 trial scales

typedef struct {
  float scale, min; // w = scale * q - min
} affine;

typedef struct {
  float low, high, sum_w, sum_wx;
} sub_range;

static sub_range range_of(const float *x, const float *w) {
  sub_range r = {x[0], x[0], w[0], w[0] * x[0]};
  for (int i = 1; i < SUB_4; i++) {
    if (x[i] < r.low) r.low = x[i];
    if (x[i] > r.high) r.high = x[i];
    r.sum_w += w[i];
    r.sum_wx += w[i] * x[i];
  }
  if (r.low > 0) r.low = 0;
  return r;
}

static float weighted_error(const float *x, const float *w, const uint8_t *q, float scale, float low) {
  float sum = 0;
  for (int i = 0; i < SUB_4; i++) {
    float difference = scale * (float)q[i] + low - x[i];
    sum += w[i] * (difference * difference);
  }
  return sum;
}

static void levels(uint8_t *q, const float *x, float inverse, float low) {
  for (int i = 0; i < SUB_4; i++) q[i] = (uint8_t)clamp(nearest(inverse * (x[i] - low)), 0, LEVELS_4);
}

// The scale and minimum of least weighted error for given levels; false: there are none.
static bool fit_affine(affine *out, const float *x, const float *w, const uint8_t *q, const sub_range *r) {
  float sum_l = 0, sum_l2 = 0, sum_xl = 0;
  for (int i = 0; i < SUB_4; i++) {
    float l = (float)q[i];
    sum_l += w[i] * l;
    sum_l2 += w[i] * l * l;
    sum_xl += w[i] * l * x[i];
  }
  float determinant = r->sum_w * sum_l2 - sum_l * sum_l;
  if (!(determinant > 0)) return false;
  out->scale = (r->sum_w * sum_xl - r->sum_wx * sum_l) / determinant;
  out->min = (sum_l2 * r->sum_wx - sum_l * sum_xl) / determinant;
  if (out->min > 0) {
    out->min = 0;
    out->scale = sum_xl / sum_l2;
  }
  return true;
}

// Of the plain range and of 21 slightly other scales, each fitted, the one of least error; `kept` are its
// levels. As in ggml a fit that was taken moves the low end from which the next trials start.
static affine search_affine(uint8_t *kept, const float *x, const float *w) {
  uint8_t q[SUB_4];
  sub_range r = range_of(x, w);
  memset(kept, 0, SUB_4);
  if (r.high == r.low) return (affine){0, -r.low};
  float inverse = (float)LEVELS_4 / (r.high - r.low);
  affine best = {1 / inverse, r.low}, trial;
  levels(kept, x, inverse, r.low);
  float least = weighted_error(x, w, kept, best.scale, best.min);
  for (int step = 0; step <= STEPS_4; step++) {
    levels(q, x, (-1.0f + 0.1f * (float)step + (float)LEVELS_4) / (r.high - best.min), best.min);
    if (!fit_affine(&trial, x, w, q, &r)) continue;
    float error = weighted_error(x, w, q, trial.scale, trial.min);
    if (error < least) {
      least = error;
      best = trial;
      memcpy(kept, q, SUB_4);
    }
  }
  best.min = -best.min;
  return best;
}

// The fit is weighted by an element's size over the sub-block's.
static void weigh(float *w, const float *x) {
  float sum = 0;
  for (int i = 0; i < SUB_4; i++) sum += x[i] * x[i];
  float size = __builtin_sqrtf(sum / SUB_4);
  for (int i = 0; i < SUB_4; i++) w[i] = size + __builtin_fabsf(x[i]);
}

// Scale and minimum of sub-block j as 6 bits each; block_scale_min reads them.
static void pack_scale_min(uint8_t *packed, int j, int scale, int min) {
  if (j < 4) {
    packed[j] = (uint8_t)scale;
    packed[j + 4] = (uint8_t)min;
  } else {
    packed[j + 4] = (uint8_t)((scale & 15) | (min & 15) << 4);
    packed[j - 4] = (uint8_t)(packed[j - 4] | (scale >> 4) << 6);
    packed[j] = (uint8_t)(packed[j] | (min >> 4) << 6);
  }
}

static float largest_of(const affine *a, bool of_min) {
  float largest = 0;
  for (int j = 0; j < QK_K / SUB_4; j++) {
    float size = of_min ? a[j].min : a[j].scale;
    if (size > largest) largest = size;
  }
  return largest;
}

static void quantize_q4_K(block_q4_K *out, const float *x) {
  affine found[QK_K / SUB_4];
  uint8_t q[QK_K]; // the search's levels, which stay where the scale becomes 0
  float w[SUB_4];
  for (int j = 0; j < QK_K / SUB_4; j++) {
    weigh(w, x + SUB_4 * j);
    found[j] = search_affine(q + SUB_4 * j, x + SUB_4 * j, w);
  }
  float scale = largest_of(found, false), min = largest_of(found, true);
  float to_scale = scale > 0 ? 63.0f / scale : 0, to_min = min > 0 ? 63.0f / min : 0;
  memset(out, 0, sizeof *out);
  for (int j = 0; j < QK_K / SUB_4; j++) {
    int s = nearest(to_scale * found[j].scale), m = nearest(to_min * found[j].min);
    pack_scale_min(out->scales, j, s < 63 ? s : 63, m < 63 ? m : 63);
  }
  out->d = f32_to_half(scale / 63.0f);
  out->dmin = f32_to_half(min / 63.0f);
  for (int j = 0; j < QK_K / SUB_4; j++) {
    int s, m;
    block_scale_min(&s, &m, out->scales, j);
    float d = half_to_f32(out->d) * (float)s, base = half_to_f32(out->dmin) * (float)m;
    for (int i = SUB_4 * j; i < SUB_4 * (j + 1) && d != 0; i++)
      q[i] = (uint8_t)clamp(nearest((x[i] + base) / d), 0, LEVELS_4);
  }
  for (int i = 0; i < QK_K / 2; i++) { // 32 bytes hold a pair of sub-blocks
    int first = i / 32 * 64 + i % 32;
    out->qs[i] = (uint8_t)(q[first] | q[first + 32] << 4);
  }
}

// ---- Q6_K: a scale for each 16 ----

enum { SUB_6 = 16, HALF_6 = 32, TRIALS_6 = 9 };
static const float NO_SIZE = 1e-15f; // ggml's GROUP_MAX_EPS: what is smaller counts as 0

typedef struct {
  float lx, l2; // sums weighted by x^2: of level times x, of level squared
} fit_sums;

static fit_sums fit_levels(const float *x, float inverse) {
  fit_sums s = {0, 0};
  for (int i = 0; i < SUB_6; i++) {
    float l = (float)clamp(nearest(inverse * x[i]), -HALF_6, HALF_6 - 1), w = x[i] * x[i];
    s.lx += w * x[i] * l;
    s.l2 += w * l * l;
  }
  return s;
}

static void levels_6(uint8_t *q, const float *x, float inverse) {
  for (int i = 0; i < SUB_6; i++)
    q[i] = (uint8_t)(clamp(nearest(inverse * x[i]), -HALF_6, HALF_6 - 1) + HALF_6);
}

static float search_scale(uint8_t *kept, const float *x) {
  float extreme = 0, size = 0;
  for (int i = 0; i < SUB_6; i++)
    if (__builtin_fabsf(x[i]) > size) {
      size = __builtin_fabsf(x[i]);
      extreme = x[i];
    }
  memset(kept, 0, SUB_6);
  if (size < NO_SIZE) return 0;
  fit_sums s = fit_levels(x, -(float)HALF_6 / extreme);
  levels_6(kept, x, -(float)HALF_6 / extreme);
  float scale = s.l2 != 0 ? s.lx / s.l2 : 0, best = scale * s.lx;
  for (int trial = -TRIALS_6; trial <= TRIALS_6; trial++) {
    if (!trial) continue;
    float inverse = -((float)HALF_6 + 0.1f * (float)trial) / extreme;
    s = fit_levels(x, inverse);
    if (s.l2 > 0 && s.lx * s.lx > best * s.l2) {
      levels_6(kept, x, inverse);
      scale = s.lx / s.l2;
      best = scale * s.lx;
    }
  }
  return scale;
}

static void pack_q6_K(block_q6_K *out, const uint8_t *q) {
  for (int half = 0; half < 2; half++, q += 128)
    for (int i = 0; i < 32; i++) {
      uint8_t *low = out->ql + 64 * half + i;
      low[0] = (uint8_t)((q[i] & 15) | (q[i + 64] & 15) << 4);
      low[32] = (uint8_t)((q[i + 32] & 15) | (q[i + 96] & 15) << 4);
      out->qh[32 * half + i] =
          (uint8_t)(q[i] >> 4 | (q[i + 32] >> 4) << 2 | (q[i + 64] >> 4) << 4 | (q[i + 96] >> 4) << 6);
    }
}

static void quantize_q6_K(block_q6_K *out, const float *x) {
  float scale[QK_K / SUB_6], extreme = 0;
  uint8_t q[QK_K]; // as above
  memset(out, 0, sizeof *out);
  for (int j = 0; j < QK_K / SUB_6; j++) {
    scale[j] = search_scale(q + SUB_6 * j, x + SUB_6 * j);
    if (__builtin_fabsf(scale[j]) > __builtin_fabsf(extreme)) extreme = scale[j];
  }
  if (__builtin_fabsf(extreme) < NO_SIZE) return; // all bytes 0, as there
  float inverse = -128.0f / extreme;
  out->d = f32_to_half(1 / inverse);
  for (int j = 0; j < QK_K / SUB_6; j++) {
    int s = nearest(inverse * scale[j]);
    out->scales[j] = (int8_t)(s < 127 ? s : 127);
  }
  for (int j = 0; j < QK_K / SUB_6; j++) {
    float d = half_to_f32(out->d) * (float)out->scales[j];
    for (int i = SUB_6 * j; i < SUB_6 * (j + 1) && d != 0; i++)
      q[i] = (uint8_t)(clamp(nearest(x[i] / d), -HALF_6, HALF_6 - 1) + HALF_6);
  }
  pack_q6_K(out, q);
}

// ---- rows ----

bool quantize_has(weight_type type) {
  return type == TYPE_Q4_K || type == TYPE_Q6_K;
}

void quantize_row(void *out, weight_type type, const float *x, size_t n) {
  for (size_t b = 0; b < n / QK_K; b++)
    if (type == TYPE_Q4_K)
      quantize_q4_K((block_q4_K *)out + b, x + b * QK_K);
    else if (type == TYPE_Q6_K)
      quantize_q6_K((block_q6_K *)out + b, x + b * QK_K);
}
