// blocks: the storage formats of weights and of rounded activations, as GGUF and ggml define them.
//
// Owns: the byte layout of each block type, its name, and how a row of it is dequantised.
// Source of the formats: ggml's ggml-common.h (block_q4_K, block_q5_K, block_q6_K, block_q8_0, block_q8_K).
// Invariant: a dequantised weight is one float, fixed by the format; each path computes with that weight.
#pragma once
#include "kernels/formats/numerics_base.h"
#include <assert.h>
#include <stdint.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { QK_K = 256, Q4K_SCALE_BYTES = 12, QK8_0 = 32 };

// The value of each member is ggml's type number in a GGUF.
typedef enum {
  TYPE_F32 = 0,
  TYPE_F16 = 1,
  TYPE_Q8_0 = 8,
  TYPE_Q4_K = 12,
  TYPE_Q5_K = 13,
  TYPE_Q6_K = 14,
  TYPE_BF16 = 30,
} weight_type;

typedef struct {
  uint16_t d; // f16 scale
  int8_t qs[QK8_0];
} block_q8_0;

typedef struct { // w = d * scale[j] * q - dmin * min[j], 8 sub-blocks j of 32
  uint16_t d, dmin;
  uint8_t scales[Q4K_SCALE_BYTES]; // 8 scales and 8 minimums of 6 bits
  uint8_t qs[QK_K / 2];            // 32 bytes a pair of sub-blocks: low nibbles the first, high the second
} block_q4_K;

typedef struct { // as Q4_K with a fifth bit
  uint16_t d, dmin;
  uint8_t scales[Q4K_SCALE_BYTES];
  uint8_t qh[QK_K / 8]; // bit j of byte l: fifth bit of element l of sub-block j
  uint8_t qs[QK_K / 2];
} block_q5_K;

typedef struct { // w = d * scale[j] * (q - 32), 16 sub-blocks j of 16
  uint8_t ql[QK_K / 2];
  uint8_t qh[QK_K / 4];
  int8_t scales[QK_K / 16];
  uint16_t d;
} block_q6_K;

typedef struct { // an activation block: x = d * qs; bsums[i] is the sum of qs[16 i .. 16 i + 15]
  float d;
  int8_t qs[QK_K];
  int16_t bsums[QK_K / 16];
} block_q8_K;

static_assert(sizeof(block_q8_0) == 34, "Q8_0 is 34 bytes");
static_assert(sizeof(block_q4_K) == 144, "Q4_K is 144 bytes");
static_assert(sizeof(block_q5_K) == 176, "Q5_K is 176 bytes");
static_assert(sizeof(block_q6_K) == 210, "Q6_K is 210 bytes");
static_assert(sizeof(block_q8_K) == 292, "Q8_K is 292 bytes");

// Scale and minimum of sub-block j of a Q4_K or Q5_K block. The first four of each are the low 6 bits of
// bytes j and j + 4; the last four have their low nibbles in bytes 8 to 11 and their top two bits above those
// of the first four.
NUM_FN void block_scale_min(int *scale, int *min, const uint8_t *packed, int j) {
  if (j < 4) {
    *scale = packed[j] & 63;
    *min = packed[j + 4] & 63;
  } else {
    *scale = (packed[j + 4] & 15) | (packed[j - 4] >> 6) << 4;
    *min = (packed[j + 4] >> 4) | (packed[j] >> 6) << 4;
  }
}

// What the program knows of a stored type. `elements` to a block of `bytes`; is_k_quant: activations are
// rounded to Q8_K for it on the path q8k.
typedef struct {
  weight_type type;
  const char *name;
  size_t elements, bytes;
  int is_k_quant;
} type_info;

const type_info *type_find(uint32_t ggml_type); // NULL: not one that the program computes with
const char *
type_name_any(uint32_t ggml_type); // a name also for types that are refused; "type 77" style for unknown

// Bytes of a row of n elements; n is a multiple of type->elements.
static inline size_t type_row_bytes(const type_info *type, size_t n) {
  return n / type->elements * type->bytes;
}

// out[n] = the row's weights as floats, bit for bit as ggml's dequantize_row_* without contraction.
void dequantize_row(float *out, weight_type type, const void *row, size_t n);

// Returns the index of the first block of the row whose scale (or F32/F16/BF16 value) is not finite, or -1.
int64_t row_first_not_finite(weight_type type, const void *row, size_t n);

#ifdef __cplusplus
}
#endif
