// quantize: floats to blocks of Q4_K and Q6_K, as ggml's quantize_row_q4_K_ref and quantize_row_q6_K_ref.
//
// Owns: the search for scales and minimums. Independent of: who needs weights (the laboratory does: no path
// quantises a weight).
// Invariant: the float operations and their order are those of ggml's reference built without contraction, so
// that the bytes are the same; tests/golden/ggml holds some of ggml's own.
#pragma once
#include "kernels/formats/types.h"
#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

// False: the type has no quantiser here.
bool quantize_has(weight_type type);

// x[n] into n / 256 blocks. type: one that quantize_has; n: a multiple of 256; x: finite.
void quantize_row(void *out, weight_type type, const float *x, size_t n);

#ifdef __cplusplus
}
#endif
