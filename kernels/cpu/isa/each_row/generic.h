// generic: every kernel of the cpu backend in portable C, static, so that each ISA row's file compiles it for
// its instruction set and replaces what it does better. This is the readable reference of docs/paths.md.
#pragma once
#include "kernels/cpu/row.h"
#include "kernels/formats/each_row/dequantize.h"
#include "kernels/formats/half.h"
#include "kernels/formats/numerics.h"
#include <string.h>

#define REAL       float
#define REAL_FN(x) x##_f32
#define NUM(x)     num_##x##_f32
#define REAL_SQRT  __builtin_sqrtf
#include "kernels/cpu/isa/each_row/generic_real.h"
#undef REAL
#undef REAL_FN
#undef NUM
#undef REAL_SQRT

#define REAL       double
#define REAL_FN(x) x##_f64
#define NUM(x)     num_##x##_f64
#define REAL_SQRT  __builtin_sqrt
#include "kernels/cpu/isa/each_row/generic_real.h"
#undef REAL
#undef REAL_FN
#undef NUM
#undef REAL_SQRT

#include "kernels/cpu/isa/each_row/generic_exact.h"

static inline void quantize_q8k_generic(block_q8_K *out, const float *x, int64_t n) {
  for (int64_t b = 0; b < n / QK_K; b++, x += QK_K, out++) {
    float extreme = 0, magnitude = 0;
    for (int i = 0; i < QK_K; i++) {
      float m = __builtin_fabsf(x[i]);
      if (m > magnitude) { // the first of largest magnitude gives the sign
        magnitude = m;
        extreme = x[i];
      }
    }
    memset(out, 0, sizeof *out);
    if (magnitude == 0) continue;
    float inverse = num_q8k_inverse_scale(extreme);
    for (int i = 0; i < QK_K; i++) {
      int32_t q = num_q8k_round(inverse, x[i]);
      out->qs[i] = (int8_t)q;
      out->bsums[i / 16] = (int16_t)(out->bsums[i / 16] + q);
    }
    out->d = 1.0f / inverse;
  }
}

// sum + dx * (d * isum - dmin * msum): one block's term of a Q4_K or Q5_K product. An integer becomes a float
// once, after the whole block: the sum passes 2^24, so a partial conversion would round twice.
static inline float term_min(float sum, float d, float dmin, float dx, int32_t isum, int32_t msum) {
  return num_fma_f32(dx, num_fma_f32(d, (float)isum, -(dmin * (float)msum)), sum);
}

static inline float term(float sum, float d, float dx, int32_t isum) {
  return num_fma_f32(dx, d * (float)isum, sum);
}

static inline int32_t min_sum(const uint8_t *scales, const block_q8_K *x) {
  int32_t msum = 0;
  for (int j = 0; j < 8; j++) {
    int scale, min;
    block_scale_min(&scale, &min, scales, j);
    msum += min * (x->bsums[2 * j] + x->bsums[2 * j + 1]);
  }
  return msum;
}

// The sum over sub-blocks of scale times products. fifth: the fifth bits of Q5_K's quants; NULL: Q4_K.
static inline int32_t scaled_sum(const uint8_t *scales, const uint8_t *qs, const uint8_t *fifth,
                                 const block_q8_K *x) {
  int32_t isum = 0;
  for (int j = 0; j < 8; j++) {
    int scale, min, part = 0, shift = 4 * (j & 1);
    block_scale_min(&scale, &min, scales, j);
    for (int l = 0; l < 32; l++) {
      int q = (qs[j / 2 * 32 + l] >> shift & 15) | (fifth ? (fifth[l] >> j & 1) << 4 : 0);
      part += q * x->qs[j * 32 + l];
    }
    isum += scale * part;
  }
  return isum;
}

static float dot_q4k_q8k_generic(const void *row, const block_q8_K *x, int64_t n) {
  const block_q4_K *w = (const block_q4_K *)row;
  float sum = 0;
  for (int64_t b = 0; b < n / QK_K; b++, w++, x++)
    sum = term_min(sum, half_to_f32(w->d), half_to_f32(w->dmin), x->d, scaled_sum(w->scales, w->qs, NULL, x),
                   min_sum(w->scales, x));
  return sum;
}

static float dot_q5k_q8k_generic(const void *row, const block_q8_K *x, int64_t n) {
  const block_q5_K *w = (const block_q5_K *)row;
  float sum = 0;
  for (int64_t b = 0; b < n / QK_K; b++, w++, x++)
    sum = term_min(sum, half_to_f32(w->d), half_to_f32(w->dmin), x->d, scaled_sum(w->scales, w->qs, w->qh, x),
                   min_sum(w->scales, x));
  return sum;
}

static float dot_q6k_q8k_generic(const void *row, const block_q8_K *x, int64_t n) {
  const block_q6_K *w = (const block_q6_K *)row;
  float sum = 0;
  for (int64_t b = 0; b < n / QK_K; b++, w++, x++) {
    int32_t isum = 0;
    for (int j = 0; j < QK_K / 16; j++) { // half = j / 8, quarter = j / 2 % 4 of ggml's interleaving
      const uint8_t *low = w->ql + j / 8 * 64 + (j / 2 & 1) * 32 + (j & 1) * 16;
      const uint8_t *high = w->qh + j / 8 * 32 + (j & 1) * 16;
      int low_shift = (j / 4 & 1) * 4, high_shift = (j / 2 & 3) * 2, part = 0;
      for (int l = 0; l < 16; l++) {
        int q = ((low[l] >> low_shift & 15) | (high[l] >> high_shift & 3) << 4) - 32;
        part += q * x->qs[j * 16 + l];
      }
      isum += w->scales[j] * part;
    }
    sum = term(sum, half_to_f32(w->d), x->d, isum);
  }
  return sum;
}

typedef float (*dot_q8k)(const void *row, const block_q8_K *x, int64_t n);

static inline void product_q8k_with(dot_q8k dot, float *const *out, const matrix *rows,
                                    const block_q8_K *const *x, int64_t n_tokens) {
  size_t row_bytes = type_row_bytes(type_find(rows->type), (size_t)rows->cols);
  for (int64_t r = 0; r < rows->rows; r++)
    for (int64_t t = 0; t < n_tokens; t++)
      out[t][r] = dot((const char *)rows->data + (size_t)r * row_bytes, x[t], rows->cols);
}

static inline void product_q8k_generic(float *const *out, const matrix *rows, const block_q8_K *const *x,
                                       int64_t n_tokens) {
  switch (rows->type) {
  case TYPE_Q4_K:
    product_q8k_with(dot_q4k_q8k_generic, out, rows, x, n_tokens);
    return;
  case TYPE_Q5_K:
    product_q8k_with(dot_q5k_q8k_generic, out, rows, x, n_tokens);
    return;
  case TYPE_Q6_K:
    product_q8k_with(dot_q6k_q8k_generic, out, rows, x, n_tokens);
    return;
    CASES_WITHOUT_Q8K
    break;
  }
  __builtin_trap(); // the arm was refused
}

#include "kernels/cpu/isa/each_row/unpacked.h"
#include "kernels/cpu/isa/each_row/outliers.h"
#include "kernels/cpu/isa/each_row/blocks_32.h"
