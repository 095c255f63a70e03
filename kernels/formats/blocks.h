// blocks: the storage formats of weights and of rounded activations, as GGUF and ggml define them.
//
// Owns: the list of weight types and the byte layout of each one's blocks.
// Independent of: who computes with them.
// Source of the formats: ggml's ggml-common.h (block_q4_K, block_q5_K, block_q6_K, block_q8_0, block_q8_K,
// ...). Invariant: a dequantised weight is one float, fixed by the format; each path computes with that
// weight.
#pragma once
#include "kernels/formats/numerics_base.h"
#include <assert.h>
#include <stdint.h>
#include <stddef.h>

enum { QK_K = 256, Q4K_SCALE_BYTES = 12, QK8_0 = 32, QK_32 = 32 };

// The types of weights, a line each: ROW(name, number, block, elements, on_q8k).
//   name      TYPE_name is its member of weight_type
//   number    ggml's type number in a GGUF
//   block     block_<block> is a block in memory, is_finite_<block> (types.c) whether all its weights are
//   finite elements  weights to a block on_q8k    what its products on the path q8k read, and what its
//   kernels are made of:
//             REAL      the path's reals; dequantize_<block> (each_row/dequantize.h)
//             Q8K       Q8_K; dequantize_<block>, and products of its own on every ISA row and on CUDA
//             UNPACKED  Q8_K; factors_<block> and parts_<block> (few_bits.h)
//             Q8_0      Q8_0; factors_<block> and quant_<block> (few_bits.h): 32 quants, w = d * q
//             Q8_1      Q8_1; the same, w = d * q + m
//             BYTES     as Q8_0, and CUDA has products of its own with reals
//
// The compiler names what a new line lacks. With UNPACKED, Q8_0 or Q8_1 that is those two functions and
// is_finite_<block>: every path, ISA row and backend then computes with the type. An ISA row that can do
// better for it has one function more (avx512_panel.h, avx2_panel.h).
#define WEIGHT_TYPES(ROW)                                                                                    \
  ROW(F32, 0, f32, 1, REAL)                                                                                  \
  ROW(F16, 1, f16, 1, REAL)                                                                                  \
  ROW(BF16, 30, bf16, 1, REAL)                                                                               \
  ROW(Q8_0, 8, q8_0, QK8_0, BYTES)                                                                           \
  ROW(Q4_K, 12, q4_K, QK_K, Q8K)                                                                             \
  ROW(Q5_K, 13, q5_K, QK_K, Q8K)                                                                             \
  ROW(Q6_K, 14, q6_K, QK_K, Q8K)                                                                             \
  ROW(Q2_K, 10, q2_K, QK_K, UNPACKED)                                                                        \
  ROW(Q3_K, 11, q3_K, QK_K, UNPACKED)                                                                        \
  ROW(IQ4_XS, 23, iq4_xs, QK_K, UNPACKED)                                                                    \
  ROW(IQ4_NL, 20, iq4_nl, QK_32, Q8_0)                                                                       \
  ROW(Q4_0, 2, q4_0, QK_32, Q8_0)                                                                            \
  ROW(Q4_1, 3, q4_1, QK_32, Q8_1)                                                                            \
  ROW(Q5_0, 6, q5_0, QK_32, Q8_0)                                                                            \
  ROW(Q5_1, 7, q5_1, QK_32, Q8_1)                                                                            \
  ROW(MXFP4, 39, mxfp4, QK_32, Q8_0)

#define WEIGHT_TYPE_MEMBER(name, number, block, elements, on_q8k) TYPE_##name = number,
typedef enum { WEIGHT_TYPES(WEIGHT_TYPE_MEMBER) } weight_type;
#undef WEIGHT_TYPE_MEMBER

// Labels for a switch over the types, which has no default: those whose products do not read Q8K by kernels
// of their own, and those that have no kernels of their own at all.
#define CASES_WITHOUT_Q8K                                       WEIGHT_TYPES(CASE_WITHOUT_Q8K)
#define CASES_OF_FEW_BITS                                       WEIGHT_TYPES(CASE_OF_FEW_BITS)
#define CASE_WITHOUT_Q8K(name, number, block, elements, on_q8k) CASE_WITHOUT_Q8K_##on_q8k(name)
#define CASE_OF_FEW_BITS(name, number, block, elements, on_q8k) CASE_OF_FEW_BITS_##on_q8k(name)
#define CASE_OF_TYPE(name)                                      case TYPE_##name:
#define CASE_WITHOUT_Q8K_REAL                                   CASE_OF_TYPE
#define CASE_WITHOUT_Q8K_UNPACKED                               CASE_OF_TYPE
#define CASE_WITHOUT_Q8K_BYTES                                  CASE_OF_TYPE
#define CASE_WITHOUT_Q8K_Q8_0                                   CASE_OF_TYPE
#define CASE_WITHOUT_Q8K_Q8_1                                   CASE_OF_TYPE
#define CASE_WITHOUT_Q8K_Q8K(name)
#define CASES_OF_32                                       WEIGHT_TYPES(CASE_OF_32) // in blocks of 32
#define CASE_OF_32(name, number, block, elements, on_q8k) CASE_OF_32_##on_q8k(name)
#define CASE_OF_32_BYTES                                  CASE_OF_TYPE
#define CASE_OF_32_Q8_0                                   CASE_OF_TYPE
#define CASE_OF_32_Q8_1                                   CASE_OF_TYPE
#define CASE_OF_32_REAL(name)
#define CASE_OF_32_Q8K(name)
#define CASE_OF_32_UNPACKED(name)
#define CASE_OF_FEW_BITS_UNPACKED CASE_OF_TYPE
#define CASE_OF_FEW_BITS_Q8_0     CASE_OF_TYPE
#define CASE_OF_FEW_BITS_Q8_1     CASE_OF_TYPE
#define CASE_OF_FEW_BITS_REAL(name)
#define CASE_OF_FEW_BITS_BYTES(name)
#define CASE_OF_FEW_BITS_Q8K(name)

// The forms in which a product reads its activations; types.h describes them.
typedef enum {
  ACTIVATION_REAL, // the path's reals
  ACTIVATION_Q8K,  // block_q8_K
  ACTIVATION_Q8_0, // block_q8_32
} activation_form;
#define ACTIVATION_UNPACKED ACTIVATION_Q8K
#define ACTIVATION_BYTES    ACTIVATION_Q8_0
#define ACTIVATION_Q8_1     ACTIVATION_Q8_0 // of which the products also read the sum

// ---- blocks of weights ----

typedef float block_f32;
typedef uint16_t block_f16, block_bf16;

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

typedef struct {             // w = d * scale[j] * q - dmin * min[j], 16 sub-blocks j of 16
  uint8_t scales[QK_K / 16]; // low nibble the scale, high the minimum
  uint8_t qs[QK_K / 4];      // 32 bytes a half of 128: bit pair g of byte l is element 32 g + l of the half
  uint16_t d, dmin;
} block_q2_K;

typedef struct {           // w = d * (scale[j] - 32) * (q - 4), 16 sub-blocks j of 16
  uint8_t hmask[QK_K / 8]; // bit g of byte l: third bit of element 32 g + l
  uint8_t qs[QK_K / 4];    // the lower two, as in Q2_K
  uint8_t scales[12];      // 6 bits each: 8 bytes of low nibbles, then 4 bytes of bit pairs
  uint16_t d;
} block_q3_K;

typedef struct { // w = d * (scale[j] - 32) * iq4_values[q], 8 sub-blocks j of 32
  uint16_t d;
  uint16_t scales_h;           // bit pair j: the upper two of scale j
  uint8_t scales_l[QK_K / 64]; // nibble j: the lower four
  uint8_t qs[QK_K / 2];        // 16 bytes a sub-block: low nibbles its first half, high the second
} block_iq4_xs;

// Of 32: low nibbles of the 16 bytes the first half, high nibbles the second.
typedef struct { // w = d * iq4_values[q]
  uint16_t d;
  uint8_t qs[QK_32 / 2];
} block_iq4_nl;

typedef struct { // w = d * (q - 8)
  uint16_t d;
  uint8_t qs[QK_32 / 2];
} block_q4_0;

typedef struct { // w = d * q + m
  uint16_t d, m;
  uint8_t qs[QK_32 / 2];
} block_q4_1;

typedef struct { // w = d * (q - 16)
  uint16_t d;
  uint8_t qh[QK_32 / 8]; // bit i: fifth bit of element i
  uint8_t qs[QK_32 / 2];
} block_q5_0;

typedef struct { // w = d * q + m
  uint16_t d, m;
  uint8_t qh[QK_32 / 8];
  uint8_t qs[QK_32 / 2];
} block_q5_1;

typedef struct { // w = 2^(e - 128) * fp4_values[q]: E8M0 and E2M1 of the OCP microscaling formats
  uint8_t e;
  uint8_t qs[QK_32 / 2];
} block_mxfp4;

static_assert(sizeof(block_q2_K) == 84, "Q2_K is 84 bytes");
static_assert(sizeof(block_q3_K) == 110, "Q3_K is 110 bytes");
static_assert(sizeof(block_iq4_xs) == 136, "IQ4_XS is 136 bytes");
static_assert(sizeof(block_iq4_nl) == 18 && sizeof(block_q4_0) == 18, "IQ4_NL and Q4_0 are 18 bytes");
static_assert(sizeof(block_q4_1) == 20 && sizeof(block_q5_0) == 22, "Q4_1 is 20 bytes, Q5_0 is 22");
static_assert(sizeof(block_q5_1) == 24 && sizeof(block_mxfp4) == 17, "Q5_1 is 24 bytes, MXFP4 is 17");

// ---- a block of rounded activations ----

typedef struct { // x = d * qs; bsums[i] is the sum of qs[16 i .. 16 i + 15]
  float d;
  int8_t qs[QK_K];
  int16_t bsums[QK_K / 16];
} block_q8_K;

// x = d * qs. ggml's Q8_0 and Q8_1 in one: their f16 scale d and, for products with weights that have an m,
// the f16 sum s of the rounded activations, both widened. `sum` is that of qs.
typedef struct {
  float d, s;
  int32_t sum;
  int8_t qs[QK_32];
} block_q8_32;

// Of a block the path q8k_split takes out at most so many elements before it is rounded (num_outlier_limit).
enum { MOST_OUTLIERS = 8 };

static_assert(sizeof(block_q8_0) == 34, "Q8_0 is 34 bytes");
static_assert(sizeof(block_q4_K) == 144, "Q4_K is 144 bytes");
static_assert(sizeof(block_q5_K) == 176, "Q5_K is 176 bytes");
static_assert(sizeof(block_q6_K) == 210, "Q6_K is 210 bytes");
static_assert(sizeof(block_q8_K) == 292, "Q8_K is 292 bytes");

// Of a type whose products read Q8K: a minimum for each sub-block, or one offset for all quants.
NUM_FN int block_has_minimums(weight_type type) {
  switch (type) {
  case TYPE_Q4_K:
  case TYPE_Q5_K:
    return 1;
  case TYPE_Q6_K:
    return 0;
    CASES_WITHOUT_Q8K
    break;
  }
  return 0;
}

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

// The same of all eight sub-blocks at once: that of sub-block j is byte j % 4 of word j / 4. The bytes come
// as three words, the first in the lowest bits.
typedef struct {
  uint32_t scale[2], min[2];
} scales_and_mins;

NUM_FN scales_and_mins block_scales_and_mins(uint32_t bytes_0, uint32_t bytes_4, uint32_t bytes_8) {
  scales_and_mins s;
  s.scale[0] = bytes_0 & 0x3f3f3f3fu;
  s.min[0] = bytes_4 & 0x3f3f3f3fu;
  s.scale[1] = (bytes_8 & 0x0f0f0f0fu) | (bytes_0 >> 2 & 0x30303030u);
  s.min[1] = (bytes_8 >> 4 & 0x0f0f0f0fu) | (bytes_4 >> 2 & 0x30303030u);
  return s;
}
