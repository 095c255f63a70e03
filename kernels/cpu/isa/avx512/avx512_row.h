// avx512_row: the kernels of avx512_vnni that another ISA row uses too; row_avx512_vnni.c defines them.
#pragma once
#include "kernels/cpu/row.h"

enum { FLOATS = 16 }; // in a register

extern const real_ops ops_avx512; // of floats
bool usable_avx512_vnni(void);
void quantize_q8k_avx512(block_q8_K *out, const float *x, int64_t n);
void split_q8k_avx512(block_q8_K *out, const float *x, int64_t n);
void add_outliers_avx512(float *const *out, const matrix *rows, const block_q8_K *const *x, int64_t n_tokens);
void product_q8_0_avx512(float *const *out, const matrix *m, const block_q8_K *const *x, int64_t n_tokens);
void product_q8k_avx512(float *const *out, const matrix *m, const block_q8_K *const *x, int64_t n_tokens);
