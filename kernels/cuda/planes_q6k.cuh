// planes_q6k: how a row of Q6_K lies on the device. Its blocks of 210 bytes are not aligned, so a row of n
// blocks is four planes: ql [n][128], qh [n][64], scales [n][16], d [n] (f16), padded to 16 bytes.
//
// Owns: where each plane begins. Independent of: who reads it.
#pragma once
#include "kernels/formats/blocks.h"

static inline size_t q6k_row_bytes(int64_t cols) {
  size_t n = (size_t)(cols / QK_K);
  return n * 208 + (n * 2 + 15) / 16 * 16;
}

// What belongs to block b of a row of n.
template <typename Byte> __device__ __forceinline__ Byte *q6k_low(Byte *row, int b) {
  return row + b * 128;
}

template <typename Byte> __device__ __forceinline__ Byte *q6k_high(Byte *row, int n, int b) {
  return row + n * 128 + b * 64;
}

template <typename Byte> __device__ __forceinline__ Byte *q6k_scales(Byte *row, int n, int b) {
  return row + n * 192 + b * 16;
}

template <typename Byte> __device__ __forceinline__ Byte *q6k_d(Byte *row, int n, int b) {
  return row + n * 208 + b * 2;
}
