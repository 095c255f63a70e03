// mma_q8k: 16 rows of a K-quant block, as they lie in shared memory, times few Q8_K blocks on a warp's tensor
// cores.
//
// The kernels of many items unpack a weight to two operands that carry its scale; here the quants are the
// operand, and each group's exact sum is multiplied by its scale, which for few items is fewer instructions.
// Every element of `term` and of a sum that a lane holds lies as mma_k32 has it: rows lane / 4 and lane / 4 +
// 8, items 2 (lane % 4) and the next.
#pragma once
#include "kernels/cuda/products/block_q8k.cuh"

// The items' blocks in shared memory. Where fewer than ITEMS are wanted, what lies behind them is read as
// well, and gives results that nobody stores.
struct mma_items {
  const int8_t *qs; // of the block; pitch: to the next item's, an odd number of pieces of 16 bytes
  int pitch;
  const int8_t *sums; // [16] as dev_inputs::sums32
  int sums_pitch;
};

// Bytes from one row of weights to the next: an odd number of pieces of 16, so that the words of eight rows
// fall into all banks.
static __host__ __device__ __forceinline__ int mma_row_pitch(size_t row_bytes) {
  return (int)((row_bytes / 16) | 1) * 16;
}

// ---- exact sums ----
//
// A lane holds, of rows lane / 4 and lane / 4 + 8, the four elements from 4 (lane % 4) on of every 16, as
// K-quants store them.

// 64 elements of all items.
template <int ITEMS>
__device__ __forceinline__ void load_64(uint32_t (&in)[ITEMS / 8][4], const mma_items &items, int at) {
  int lane = threadIdx.x % WARP;
#pragma unroll
  for (int n = 0; n < ITEMS / 8; n++)
    ldmatrix_x4(in[n], items.qs + (n * 8 + lane % 8) * items.pitch + at + lane / 8 * 16);
}

// sum + the exact sums of a group of the two rows, times their scales.
__device__ __forceinline__ void add_scaled(int (&sum)[4], const int (&dot)[4], int scale0, int scale8) {
  sum[0] += scale0 * dot[0];
  sum[1] += scale0 * dot[1];
  sum[2] += scale8 * dot[2];
  sum[3] += scale8 * dot[3];
}

__device__ __forceinline__ int unsigned_byte(const uint32_t (&words)[2], int i) { // i: known when compiled
  return (int)byte_of(words[i / 4], i % 4);
}

__device__ __forceinline__ int signed_byte(const uint32_t (&words)[2], int i) {
  return (int8_t)(words[i / 4] >> i % 4 * 8);
}

// The two rows' block, of the types in blocks that follow each other: groups of 32.
template <weight_type TYPE, int ITEMS> struct block_sums {
  static_assert(TYPE == TYPE_Q4_K || TYPE == TYPE_Q5_K, "a new type needs its sums here");
  static constexpr bool HAS_FIFTH = TYPE == TYPE_Q5_K;
  static constexpr int BYTES = HAS_FIFTH ? sizeof(block_q5_K) : sizeof(block_q4_K),
                       QUANTS = HAS_FIFTH ? 48 : 16;

  static __device__ __forceinline__ void add(int (&sum)[ITEMS / 8][4], const uint8_t *row, int pitch, int b,
                                             int, const mma_items &items) {
    int part = threadIdx.x % 4;
    uint32_t scale[2][2], fifth[4];
    int high[ITEMS / 8][4] = {}; // of Q4_K's high nibbles where they are: 16 times their sums
    row += b * BYTES;
#pragma unroll
    for (int r = 0; r < 2; r++) {
      const uint8_t *block = row + r * 8 * pitch;
      uint4 head = *(const uint4 *)block;
      scales_and_mins s = block_scales_and_mins(head.y, head.z, head.w);
      scale[r][0] = s.scale[0];
      scale[r][1] = s.scale[1];
      fifth[r] = HAS_FIFTH ? word_at(block + 16 + part * 4) : 0;
      fifth[2 + r] = HAS_FIFTH ? word_at(block + 32 + part * 4) : 0;
    }
#pragma unroll
    for (int g = 0; g < 4; g++) {
      uint32_t in[ITEMS / 8][4], words[4];
      load_64<ITEMS>(in, items, 64 * g);
#pragma unroll
      for (int i = 0; i < 4; i++)
        words[i] = word_at(row + i % 2 * 8 * pitch + QUANTS + 32 * g + i / 2 * 16 + part * 4);
#pragma unroll
      for (int half = 0; half < 2; half++) {
        int s = 2 * g + half;
        uint32_t a[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
          if constexpr (HAS_FIFTH)
            a[i] = (words[i] >> half * 4 & 0x0f0f0f0fu) |
                   ((s < 4 ? fifth[i] << (4 - s) : fifth[i] >> (s - 4)) & 0x10101010u);
          else
            a[i] = words[i] & (half ? 0xf0f0f0f0u : 0x0f0f0f0fu);
        }
#pragma unroll
        for (int n = 0; n < ITEMS / 8; n++) {
          int dot[4] = {};
          mma_k32_unsigned(dot, a, in[n][2 * half], in[n][2 * half + 1]);
          add_scaled(half && !HAS_FIFTH ? high[n] : sum[n], dot, unsigned_byte(scale[0], s),
                     unsigned_byte(scale[1], s));
        }
      }
    }
#pragma unroll
    for (int n = 0; n < ITEMS / 8; n++)
#pragma unroll
      for (int c = 0; c < 4; c++) sum[n][c] += high[n][c] >> 4;
  }
};

// Groups of 16. A quant less its offset of 32, times 4, is a byte whose top bit is that of the quant,
// flipped: so the sums, 4 times too large, stay below 2^30.
template <int ITEMS> struct block_sums<TYPE_Q6_K, ITEMS> {
  static __device__ __forceinline__ void add(int (&sum)[ITEMS / 8][4], const uint8_t *row, int pitch, int b,
                                             int n_blocks, const mma_items &items) {
    int part = threadIdx.x % 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      uint32_t words[2][4], top[2][2], scale[2][2];
#pragma unroll
      for (int r = 0; r < 2; r++) {
        const uint8_t *at = row + r * 8 * pitch;
        uint2 scales = *(const uint2 *)(q6k_scales(at, n_blocks, b) + half * 8);
        scale[r][0] = scales.x;
        scale[r][1] = scales.y;
#pragma unroll
        for (int j = 0; j < 4; j++) words[r][j] = word_at(q6k_low(at, b) + half * 64 + j * 16 + part * 4);
#pragma unroll
        for (int j = 0; j < 2; j++)
          top[r][j] = word_at(q6k_high(at, n_blocks, b) + half * 32 + j * 16 + part * 4);
      }
#pragma unroll
      for (int high = 0; high < 2; high++) { // nibbles
        uint32_t in[ITEMS / 8][4];
        load_64<ITEMS>(in, items, 128 * half + 64 * high);
#pragma unroll
        for (int j = 0; j < 4; j++) {
          int run = 2 * high + j / 2; // of 32
          uint32_t a[2];
#pragma unroll
          for (int r = 0; r < 2; r++)
            a[r] = (((high ? words[r][j] >> 2 : words[r][j] << 2) & 0x3c3c3c3cu) |
                    (top[r][j % 2] << (6 - 2 * run) & 0xc0c0c0c0u)) ^
                   0x80808080u;
#pragma unroll
          for (int n = 0; n < ITEMS / 8; n++) {
            int dot[4] = {};
            mma_k16(dot, a, in[n][j]);
            add_scaled(sum[n], dot, signed_byte(scale[0], 4 * high + j), signed_byte(scale[1], 4 * high + j));
          }
        }
      }
    }
#pragma unroll
    for (int n = 0; n < ITEMS / 8; n++)
#pragma unroll
      for (int c = 0; c < 4; c++) sum[n][c] >>= 2;
  }
};

// ---- its terms ----

// What the float step needs of a row: scales, and four of the eight minimums on the first two lanes of four.
template <weight_type TYPE> struct row_scales {
  float d, dmin;
  uint32_t min;

  __device__ __forceinline__ void load(const uint8_t *row, int n_blocks, int b, int part) {
    dmin = 0;
    min = 0;
    if constexpr (TYPE == TYPE_Q6_K) {
      d = half_bits_to_f32(*(const uint16_t *)q6k_d(row, n_blocks, b));
    } else {
      uint4 head = *(const uint4 *)(row + b * block_sums<TYPE, 8>::BYTES);
      scales_and_mins s = block_scales_and_mins(head.y, head.z, head.w);
      d = half_bits_to_f32((uint16_t)(head.x & 0xffffu));
      dmin = half_bits_to_f32((uint16_t)(head.x >> 16));
      if (part < 2) min = part ? s.min[1] : s.min[0];
    }
  }
};

// The terms of 16 rows and all items, without dx. row: the lane's first; pitch: to the next.
template <weight_type TYPE, int ITEMS>
__device__ __forceinline__ void block_terms(float (&term)[ITEMS / 8][4], const uint8_t *row, int pitch, int b,
                                            int n_blocks, const mma_items &items) {
  int lane = threadIdx.x % WARP, part = lane % 4, sum[ITEMS / 8][4] = {};
  block_sums<TYPE, ITEMS>::add(sum, row, pitch, b, n_blocks, items);
  row_scales<TYPE> scales[2];
  scales[0].load(row, n_blocks, b, part);
  scales[1].load(row + 8 * pitch, n_blocks, b, part);
  const uint32_t min[2] = {scales[0].min, scales[1].min}; // 8 of 16 that mma_k16 takes
#pragma unroll
  for (int n = 0; n < ITEMS / 8; n++) {
    int min_low[4] = {}, min_high[4] = {};
    if constexpr (TYPE != TYPE_Q6_K) {
      const int8_t *of = items.sums + (n * 8 + lane / 4) * items.sums_pitch + part * 4;
      mma_k16(min_low, min, part < 2 ? *(const uint32_t *)of : 0);
      mma_k16(min_high, min, part < 2 ? *(const uint32_t *)(of + 8) : 0);
    }
#pragma unroll
    for (int c = 0; c < 4; c++)
      term[n][c] =
          block_value(scales[c / 2].d, scales[c / 2].dmin, sum[n][c], min_low[c] + (min_high[c] << 7));
  }
}
