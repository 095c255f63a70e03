// avx512_row: the kernels of avx512_vnni that another ISA row uses too; row_avx512_vnni.c defines them.
#pragma once
#include "kernels/cpu/row.h"

extern const real_ops ops_avx512; // of floats
extern const exact_ops exact_ops_avx512;
bool usable_avx512_vnni(void);
void quantize_q8k_avx512(block_q8_K *out, const float *x, int64_t n);
void product_q8k_avx512(float *const *out, const matrix *m, const block_q8_K *const *x, int64_t n_tokens);
