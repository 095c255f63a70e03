// quants: a block of a K-quant taken apart into its integers and scales.
//
// Source of the formats: kernels/formats/blocks.h. Written for reading, not for speed.
#pragma once
#include "kernels/formats/types.h"
#include <stdbool.h>

typedef struct {     // weight i of sub-block j: d * scale[j] * q[i] - dmin * min[j]
  int8_t q[QK_K];    // of Q6_K with its offset of 32 taken off
  int16_t scale[16]; // of each sub-block
  int16_t min[8];    // of Q4_K and Q5_K
  int width;         // of a sub-block: 32 or 16
  bool has_minimums;
  float d, dmin;
} quants;

bool quants_has_type(weight_type type); // one that unpacks: Q4_K, Q5_K, Q6_K

// out[n / 256]; n weights of a row.
void quants_unpack(quants *out, weight_type type, const void *row, int64_t n);

// Over sub-blocks: scale times the sum of q * x; and min times the sum of x. x[256], at most 127 each: exact.
int32_t quants_scaled_sum(const quants *w, const int8_t *x);
int32_t quants_minimum_sum(const quants *w, const int8_t *x);
// The scaled sum over elements 32 j .. 32 j + 31 alone, x[32].
int32_t quants_scaled_part(const quants *w, int j, const int8_t *x);
