// weight_at: one weight of a row as a float, bit for bit as dequantize_row (kernels/formats/types.h) has it.
#pragma once
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/planes_q6k.cuh"
#include "kernels/formats/few_bits.h"

// Element i of a row of `cols`. Q6_K rows lie as planes.
__device__ __forceinline__ float weight_at(weight_type type, const uint8_t *row, int i, int cols) {
  switch (type) {
  case TYPE_F32:
    return ((const float *)row)[i];
  case TYPE_F16:
    return half_bits_to_f32(((const uint16_t *)row)[i]);
  case TYPE_BF16:
    return bf16_to_f32(((const uint16_t *)row)[i]);
  case TYPE_Q8_0: {
    const block_q8_0 *b = (const block_q8_0 *)row + i / QK8_0;
    return half_bits_to_f32(b->d) * (float)b->qs[i % QK8_0];
  }
  case TYPE_Q4_K: {
    const block_q4_K *b = (const block_q4_K *)row + i / QK_K;
    int at = i % QK_K, j = at / 32, scale, min;
    block_scale_min(&scale, &min, b->scales, j);
    int q = b->qs[j / 2 * 32 + at % 32] >> 4 * (j & 1) & 15;
    return half_bits_to_f32(b->d) * (float)scale * (float)q - half_bits_to_f32(b->dmin) * (float)min;
  }
  case TYPE_Q5_K: {
    const block_q5_K *b = (const block_q5_K *)row + i / QK_K;
    int at = i % QK_K, j = at / 32, scale, min;
    block_scale_min(&scale, &min, b->scales, j);
    int q = (b->qs[j / 2 * 32 + at % 32] >> 4 * (j & 1) & 15) | (b->qh[at % 32] >> j & 1) << 4;
    return half_bits_to_f32(b->d) * (float)scale * (float)q - half_bits_to_f32(b->dmin) * (float)min;
  }
  case TYPE_Q6_K: {
    int n = cols / QK_K, b = i / QK_K, at = i % QK_K, half = at / 128, quarter = at / 32 % 4, l = at % 32;
    int low = q6k_low(row, b)[half * 64 + (quarter & 1) * 32 + l] >> 4 * (quarter / 2) & 15;
    int high = q6k_high(row, n, b)[half * 32 + l] >> 2 * quarter & 3;
    int scale = (int8_t)q6k_scales(row, n, b)[at / 16];
    uint16_t d = *(const uint16_t *)q6k_d(row, n, b);
    return half_bits_to_f32(d) * (float)scale * (float)((low | high << 4) - 32);
  }
#define WEIGHT_AT_REAL(name, block)
#define WEIGHT_AT_Q8K(name, block)
#define WEIGHT_AT_BYTES(name, block)
#define WEIGHT_AT_UNPACKED(name, block)                                                                      \
  case TYPE_##name: {                                                                                        \
    const block_##block *b = (const block_##block *)row + i / QK_K;                                          \
    return weight_of_parts(factors_##block(b), parts_##block(b, i % QK_K));                                  \
  }
#define WEIGHT_AT_Q8_0(name, block)                                                                          \
  case TYPE_##name: {                                                                                        \
    const block_##block *b = (const block_##block *)row + i / QK_32;                                         \
    return weight_of_quant(factors_##block(b), quant_##block(b, i % QK_32));                                 \
  }
#define WEIGHT_AT_Q8_1(name, block)                      WEIGHT_AT_Q8_0(name, block)
#define WEIGHT_AT(name, number, block, elements, on_q8k) WEIGHT_AT_##on_q8k(name, block)
    WEIGHT_TYPES(WEIGHT_AT)
#undef WEIGHT_AT
#undef WEIGHT_AT_Q8_1
#undef WEIGHT_AT_Q8_0
#undef WEIGHT_AT_UNPACKED
#undef WEIGHT_AT_BYTES
#undef WEIGHT_AT_Q8K
#undef WEIGHT_AT_REAL
  }
  return 0;
}
