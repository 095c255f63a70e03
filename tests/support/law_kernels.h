// law_kernels: the float sums of products on AVX-512, as docs/paths.md orders them and without any order, for
// time_law_cpu.c.
#pragma once
#include "kernels/cpu/row.h"

typedef struct {
  void (*vector)(float *out, const matrix *rows, const block_q8_K *x, const void *ahead); // one token
  void (*product)(float *const *out, const matrix *rows, const block_q8_K *const *x, int64_t n_tokens);
} law_kernels;

extern const law_kernels law_ordered, law_free;
