// row_statistics: the numbers of two tensors, row by row, summed up: how far they are apart, and how each
// looks.
//
// Owns: what a trace's comparison says of a probe (docs/trace.md). Pure. Memory does not grow with rows.
// Invariant: a NaN or infinity makes `finite` false and the distances NaN, never a plausible number.
#pragma once
#include "src/measure/metrics.h"

typedef struct { // of one tensor
  double amax, rms;
  // In blocks of 256 within rows, each block's largest magnitude over its second: 1 is an even block, 254 one
  // of which Q8_K leaves nothing but the largest element. Of the worst block; 0: rows have no whole block.
  double max_over_second;
} tensor_statistics;

typedef struct { // a against b, which is the reference
  int64_t rows, numbers;
  int64_t differing;                              // numbers of other bits
  double rel_l2, one_minus_cos, max_abs, max_rel; // of all numbers as one vector, as in metrics.h
  double worst_rel_l2;                            // of a row
  int64_t worst_row;                              // the first such, as it was numbered
  bool finite;
  tensor_statistics of[2];
} pair_statistics_of_rows;

typedef struct { // while rows are added
  pair_statistics_of_rows result;
  double difference2, square[2]; // of a - b; of a and b
} row_sums;

// Row number `row` of both, a[n] and b[n].
void row_sums_add(row_sums *s, int64_t row, const double *a, const double *b, int64_t n);
pair_statistics_of_rows row_sums_result(const row_sums *s);
