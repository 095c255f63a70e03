// activation_rounding: a row of activations as an operation takes it: rounded, or as it is.
#pragma once
#include "src/lab/product_operations.h"

typedef struct {
  int64_t n;
  float *value;   // [n] what each activation is worth after rounding
  int8_t *q;      // [n] of the Q8 roundings
  float *d;       // [n / block] their scales
  float *outlier; // [n] of q8k_split: an outlier as it is in its place, elsewhere 0
  float *sum;     // [n / 32] of Q8_1: the sum of the unrounded activations of a block, as f16 holds it
} rounded_row;

int64_t activation_block(activation_rounding rounding); // elements that share a scale; 1: none do

status rounded_row_open(rounded_row *r, int64_t n);
void rounded_row_close(rounded_row *r);
// x[n]; n is a multiple of the rounding's block.
void round_row(rounded_row *r, activation_rounding rounding, const float *x);
