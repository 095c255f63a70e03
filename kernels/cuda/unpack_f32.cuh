// unpack_f32: weights as floats, eight at a time: of a row of any type, 64 elements are a pair of steps of
// sum32's 32 lanes, and a quad is four neighbouring lanes' weights of one pair.
//
// Owns: where a quad's bits lie in each type. Independent of: who multiplies them with what. Invariant: bit
// for bit as dequantize_row (kernels/blocks.c); d * scale * q is exact, so one fma rounds as the definition's
// product and difference do together.
#pragma once
#include "kernels/cuda/device.cuh"

// Elements 256 b + 64 pair + 32 s + 4 t + 0 .. 3, s = 0, 1, as they lie in memory.
template <weight_type TYPE> struct quad;

struct quad_place {
  int n_blocks, b, pair, t; // of the row; the quad's
};

__device__ __forceinline__ uint32_t word_at(const uint8_t *at) {
  return *(const uint32_t *)at;
}

// Byte k of `bytes` as a float plus 2^23: the exponent of 2^23 above it.
__device__ __forceinline__ float byte_above_2_23(uint32_t bytes, int k) {
  return __uint_as_float(__byte_perm(bytes, 0x4b000000u, 0x7440u | (uint32_t)k));
}

// ---- K-quants: the quants' words, and two steps' scales ----

struct pair_scales {
  float step[2], base[2]; // w = step * q - base
};

// Of Q4_K and Q5_K from the block's first 16 bytes.
__device__ __forceinline__ pair_scales scales_of(uint4 head, int pair) {
  float d = half_bits_to_f32((uint16_t)(head.x & 0xffffu)), dmin = half_bits_to_f32((uint16_t)(head.x >> 16));
  uint32_t scale = pair < 2 ? head.y & 0x3f3f3f3fu : (head.w & 0x0f0f0f0fu) | (head.y >> 2 & 0x30303030u);
  uint32_t min = pair < 2 ? head.z & 0x3f3f3f3fu : (head.w >> 4 & 0x0f0f0f0fu) | (head.z >> 2 & 0x30303030u);
  pair_scales r;
#pragma unroll
  for (int s = 0; s < 2; s++) {
    r.step[s] = d * (float)(scale >> (16 * (pair & 1) + 8 * s) & 63);
    r.base[s] = dmin * (float)(min >> (16 * (pair & 1) + 8 * s) & 63);
  }
  return r;
}

__device__ __forceinline__ void scale_quants(float w[2][4], const uint32_t quants[2], const pair_scales &m) {
#pragma unroll
  for (int s = 0; s < 2; s++)
#pragma unroll
    for (int k = 0; k < 4; k++)
      w[s][k] = num_fma_f32(m.step[s], byte_above_2_23(quants[s], k) - 8388608.0f, -m.base[s]);
}

template <> struct quad<TYPE_Q4_K> {
  uint4 head;
  uint32_t low;
};

__device__ __forceinline__ void load_quad(quad<TYPE_Q4_K> *q, const uint8_t *row, quad_place at) {
  const uint8_t *block = row + at.b * (int)sizeof(block_q4_K);
  q->head = *(const uint4 *)block;
  q->low = word_at(block + 16 + 32 * at.pair + 4 * at.t);
}

__device__ __forceinline__ void unpack_quad(float w[2][4], const quad<TYPE_Q4_K> &q, quad_place at) {
  uint32_t quants[2] = {q.low & 0x0f0f0f0fu, q.low >> 4 & 0x0f0f0f0fu};
  scale_quants(w, quants, scales_of(q.head, at.pair));
}

template <> struct quad<TYPE_Q5_K> {
  uint4 head;
  uint32_t low, high;
};

__device__ __forceinline__ void load_quad(quad<TYPE_Q5_K> *q, const uint8_t *row, quad_place at) {
  const uint8_t *block = row + at.b * (int)sizeof(block_q5_K);
  q->head = *(const uint4 *)block;
  q->low = word_at(block + 48 + 32 * at.pair + 4 * at.t);
  q->high = word_at(block + 16 + 4 * at.t);
}

__device__ __forceinline__ void unpack_quad(float w[2][4], const quad<TYPE_Q5_K> &q, quad_place at) {
  uint32_t high = q.high >> 2 * at.pair;
  uint32_t quants[2] = {(q.low & 0x0f0f0f0fu) | (high & 0x01010101u) << 4,
                        (q.low >> 4 & 0x0f0f0f0fu) | (high >> 1 & 0x01010101u) << 4};
  scale_quants(w, quants, scales_of(q.head, at.pair));
}

template <> struct quad<TYPE_Q6_K> { // of a row in planes (weights.cu)
  uint32_t low[2], high, scales;     // scales: [step][half of the 32]
  uint16_t d;
};

__device__ __forceinline__ void load_quad(quad<TYPE_Q6_K> *q, const uint8_t *row, quad_place at) {
  int half = at.pair / 2;
  q->low[0] = word_at(row + at.b * 128 + half * 64 + 4 * at.t);
  q->low[1] = word_at(row + at.b * 128 + half * 64 + 32 + 4 * at.t);
  q->high = word_at(row + at.n_blocks * 128 + at.b * 64 + half * 32 + 4 * at.t);
  q->scales = word_at(row + at.n_blocks * 192 + at.b * 16 + 4 * at.pair);
  q->d = *(const uint16_t *)(row + at.n_blocks * 208 + at.b * 2);
}

__device__ __forceinline__ void unpack_quad(float w[2][4], const quad<TYPE_Q6_K> &q, quad_place at) {
  int shift = 4 * (at.pair & 1);
  uint32_t high = q.high >> shift;
  float d = half_bits_to_f32(q.d);
#pragma unroll
  for (int s = 0; s < 2; s++) {
    uint32_t quants = (q.low[s] >> shift & 0x0f0f0f0fu) | (high >> 2 * s & 0x03030303u) << 4;
    float step = d * (float)(int8_t)(q.scales >> (16 * s + 8 * (at.t / 4)));
#pragma unroll
    for (int k = 0; k < 4; k++) w[s][k] = step * (byte_above_2_23(quants, k) - (8388608.0f + 32));
  }
}

// ---- other types ----

template <> struct quad<TYPE_Q8_0> {
  uint16_t d[2], q[2][2]; // blocks of 34 bytes: aligned to 2
};

__device__ __forceinline__ void load_quad(quad<TYPE_Q8_0> *q, const uint8_t *row, quad_place at) {
#pragma unroll
  for (int s = 0; s < 2; s++) {
    const uint16_t *block = (const uint16_t *)(row + (at.b * 8 + at.pair * 2 + s) * (int)sizeof(block_q8_0));
    q->d[s] = block[0];
    q->q[s][0] = block[1 + 2 * at.t];
    q->q[s][1] = block[2 + 2 * at.t];
  }
}

__device__ __forceinline__ void unpack_quad(float w[2][4], const quad<TYPE_Q8_0> &q, quad_place) {
#pragma unroll
  for (int s = 0; s < 2; s++) {
    uint32_t from_0 = ((uint32_t)q.q[s][0] | (uint32_t)q.q[s][1] << 16) ^ 0x80808080u; // plus 128
#pragma unroll
    for (int k = 0; k < 4; k++)
      w[s][k] = half_bits_to_f32(q.d[s]) * (byte_above_2_23(from_0, k) - (8388608.0f + 128));
  }
}

template <> struct quad<TYPE_F32> { float4 w[2]; };

__device__ __forceinline__ void load_quad(quad<TYPE_F32> *q, const uint8_t *row, quad_place at) {
#pragma unroll
  for (int s = 0; s < 2; s++) q->w[s] = ((const float4 *)row)[at.b * 64 + at.pair * 16 + s * 8 + at.t];
}

__device__ __forceinline__ void unpack_quad(float w[2][4], const quad<TYPE_F32> &q, quad_place) {
#pragma unroll
  for (int s = 0; s < 2; s++) w[s][0] = q.w[s].x, w[s][1] = q.w[s].y, w[s][2] = q.w[s].z, w[s][3] = q.w[s].w;
}

struct quad_of_halves {
  uint2 w[2];
};
template <> struct quad<TYPE_F16> : quad_of_halves {};
template <> struct quad<TYPE_BF16> : quad_of_halves {};

__device__ __forceinline__ void load_quad(quad_of_halves *q, const uint8_t *row, quad_place at) {
#pragma unroll
  for (int s = 0; s < 2; s++) q->w[s] = ((const uint2 *)row)[at.b * 64 + at.pair * 16 + s * 8 + at.t];
}

template <typename Widen>
__device__ __forceinline__ void unpack_halves(float w[2][4], const quad_of_halves &q, Widen widen) {
#pragma unroll
  for (int s = 0; s < 2; s++) {
    w[s][0] = widen((uint16_t)(q.w[s].x & 0xffffu)), w[s][1] = widen((uint16_t)(q.w[s].x >> 16));
    w[s][2] = widen((uint16_t)(q.w[s].y & 0xffffu)), w[s][3] = widen((uint16_t)(q.w[s].y >> 16));
  }
}

__device__ __forceinline__ void unpack_quad(float w[2][4], const quad<TYPE_F16> &q, quad_place) {
  unpack_halves(w, q, [](uint16_t h) { return half_bits_to_f32(h); });
}

__device__ __forceinline__ void unpack_quad(float w[2][4], const quad<TYPE_BF16> &q, quad_place) {
  unpack_halves(w, q, [](uint16_t h) { return bf16_to_f32(h); });
}
