// avx512_row: what the row avx512_vnni lends to a row that does better in some products. Defined in its file,
// once.
#pragma once
#include "kernels/cpu/row.h"

extern const real_ops ops_avx512; // of floats
bool usable_avx512_vnni(void);
void quantize_q8k_avx512(block_q8_K *out, const float *x, int64_t n);
void product_q8k_avx512(float *const *out, const matrix *m, const block_q8_K *const *x, int64_t n_tokens);
