// wgmma_rows: a warp's 16 rows of a K-quant block as wgmma_k32 and mma_k32 take them, unpacked in registers.
//
// A lane holds, of rows l / 4 and l / 4 + 8, four elements from 4 (l % 4) on and four from 16 on of every 32:
// as K-quants store them, so a lane reads words of the block and no weight crosses lanes. scale * quant is
// two operands of bytes whose sums are exact, v = low + SPLIT * high:
//   Q4_K, Q5_K  the scale's low and high three bits times the quant: at most 217, so four products are one
//               multiplication of a word without carries
//   Q6_K        low and high byte of the 16-bit product
#pragma once
#include "kernels/cuda/products/block_q8k.cuh"

// Of the types that these kernels unpack, and no other: a new one does not compile. BYTES: of a row's block
// in shared memory, so that the words of eight rows fall into all banks.
template <weight_type TYPE> struct wgmma_shape;
template <> struct wgmma_shape<TYPE_Q4_K> {
  static constexpr int BYTES = 144, SPLIT = 8;
  static constexpr bool HIGH_IS_SIGNED = false;
};
template <> struct wgmma_shape<TYPE_Q5_K> {
  static constexpr int BYTES = 176, SPLIT = 8;
  static constexpr bool HIGH_IS_SIGNED = false;
};
template <> struct wgmma_shape<TYPE_Q6_K> {
  static constexpr int BYTES = 240, SPLIT = 256;
  static constexpr bool HIGH_IS_SIGNED = true;
};

static constexpr int Q6_HIGH = 128, Q6_SCALES = 192, Q6_D = 208; // places in a row's block in shared memory

// The two rows' block. `low`, then `high` give rows' elements 32 s .. 32 s + 31; s ascends from 0. The words
// of the next steps are loaded when the last of these are used, so that no step waits for them.
template <weight_type TYPE> struct wgmma_rows {
  const uint8_t *row[2]; // at the lane's first word
  uint32_t scale_low[2][2], scale_high[2][2], words[4], fifth[4], quants[4];

  __device__ __forceinline__ void start(const uint8_t *row0, const uint8_t *row1, int part) {
    row[0] = row0 + (TYPE == TYPE_Q4_K ? 16 : 48) + 4 * part;
    row[1] = row1 + (TYPE == TYPE_Q4_K ? 16 : 48) + 4 * part;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      uint4 head = *(const uint4 *)(r ? row1 : row0);
      scales_and_mins s = block_scales_and_mins(head.y, head.z, head.w);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        scale_low[r][i] = s.scale[i] & 0x07070707u;
        scale_high[r][i] = s.scale[i] >> 3 & 0x07070707u;
      }
      if constexpr (TYPE == TYPE_Q5_K) {
        fifth[r] = word_at(row[r] - 32);
        fifth[2 + r] = word_at(row[r] - 16);
      }
    }
    load(0);
  }

  __device__ __forceinline__ void load(int s) { // for s and s + 1
#pragma unroll
    for (int i = 0; i < 4; i++) words[i] = word_at(row[i % 2] + 16 * s + i / 2 * 16);
  }

  __device__ __forceinline__ void low(int s, uint32_t (&out)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
      quants[i] = words[i] >> s % 2 * 4 & 0x0f0f0f0fu;
      if constexpr (TYPE == TYPE_Q5_K)
        quants[i] |= (s < 4 ? fifth[i] << (4 - s) : fifth[i] >> (s - 4)) & 0x10101010u;
      out[i] = quants[i] * byte_of(scale_low[i % 2][s / 4], s % 4);
    }
    if (s % 2 == 1 && s < 7) load(s + 1);
  }

  __device__ __forceinline__ void high(int s, uint32_t (&out)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) out[i] = quants[i] * byte_of(scale_high[i % 2][s / 4], s % 4);
  }
};

template <> struct wgmma_rows<TYPE_Q6_K> {
  const uint8_t *row[2];
  int lane_part;
  uint32_t words[8], top[4], scales[2][2], upper[4]; // of half a block; of the step

  __device__ __forceinline__ void start(const uint8_t *row0, const uint8_t *row1, int part) {
    row[0] = row0;
    row[1] = row1;
    lane_part = part;
    load(0);
  }

  __device__ __forceinline__ void load(int half) {
#pragma unroll
    for (int r = 0; r < 2; r++) {
      uint2 both = *(const uint2 *)(row[r] + Q6_SCALES + half * 8);
      scales[r][0] = both.x;
      scales[r][1] = both.y;
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      const uint8_t *at = row[i % 2] + 4 * lane_part + i / 2 * 16;
      words[i] = word_at(at + half * 64);
      words[4 + i] = word_at(at + half * 64 + 32);
      top[i] = word_at(at + Q6_HIGH + half * 32);
    }
  }

  __device__ __forceinline__ void low(int s, uint32_t (&out)[4]) {
    int run = s % 4;
#pragma unroll
    for (int i = 0; i < 4; i++) {
      uint32_t q = (words[run % 2 * 4 + i] >> run / 2 * 4 & 0x0f0f0f0fu) |
                   ((run < 2 ? top[i] << (4 - 2 * run) : top[i] >> (2 * run - 4)) & 0x30303030u);
      int scale = (int8_t)(scales[i % 2][run / 2] >> (run % 2 * 16 + i / 2 * 8));
      // 16 bits of (q - 32) * scale + 2^15 each: the offset keeps the lower one from borrowing, and is gone
      // when the top bit is flipped
      uint32_t bias = (uint32_t)(32768 - 32 * scale) * 0x00010001u;
      uint32_t even = __byte_perm(q, 0, 0x4240) * (uint32_t)scale + bias,
               odd = __byte_perm(q, 0, 0x4341) * (uint32_t)scale + bias;
      out[i] = __byte_perm(even, odd, 0x6240);
      upper[i] = __byte_perm(even, odd, 0x7351) ^ 0x80808080u;
    }
    if (s == 3) load(1);
  }

  __device__ __forceinline__ void high(int, uint32_t (&out)[4]) {
#pragma unroll
    for (int i = 0; i < 4; i++) out[i] = upper[i];
  }
};
