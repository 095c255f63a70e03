// block_q8k: a K-quant block times a Q8_K block, on four lanes of a warp, each of which has a quarter of the
// block's elements in its registers.
//
// Owns: where a quarter's bits lie in each block type. Independent of: which rows and blocks a warp takes.
// Invariant: sums of integers are exact in any order; the float steps are those of docs/paths.md.
#pragma once
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/planes_q6k.cuh"

// One block's term: d * isum - dmin * msum. With dmin = 0 and msum = 0 the fma adds a negative zero, so it is
// Q6_K's d * isum to the bit.
__device__ __forceinline__ float block_value(float d, float dmin, int isum, int msum) {
  return num_fma_f32(d, (float)isum, -(dmin * (float)msum));
}

__device__ __forceinline__ int dot16(uint4 w, int4 x, int sum) {
  sum = dp4a_unsigned(w.x, x.x, sum);
  sum = dp4a_unsigned(w.y, x.y, sum);
  sum = dp4a_unsigned(w.z, x.z, sum);
  return dp4a_unsigned(w.w, x.w, sum);
}

__device__ __forceinline__ uint4 and4(uint4 v, int shift, uint32_t mask) {
  return make_uint4(v.x >> shift & mask, v.y >> shift & mask, v.z >> shift & mask, v.w >> shift & mask);
}

__device__ __forceinline__ uint4 or4(uint4 a, uint4 b, int shift) {
  return make_uint4(a.x | b.x << shift, a.y | b.y << shift, a.z | b.z << shift, a.w | b.w << shift);
}

__device__ __forceinline__ uint32_t byte_of(uint32_t word, int i) { // i: a constant after unrolling
  return __byte_perm(word, 0, 0x4440u + (uint32_t)i);
}

// How weights are read: from device memory once, by streaming loads that leave the L1 cache to the
// activations; or from shared memory, where a copy has put them.
struct from_device {
  template <typename T> __device__ __forceinline__ static T load(const uint8_t *at) {
    return __ldcs((const T *)at);
  }
};
struct from_shared {
  template <typename T> __device__ __forceinline__ static T load(const uint8_t *at) { return *(const T *)at; }
};

// ---- a quarter of a block as it lies in memory ----

template <weight_type TYPE> struct quarter; // only of types whose products read Q8_K

// A statement with the constant TYPE, which is the matrix's type; nothing for a type whose products do not
// read Q8_K. A new one that does has no case yet, and does not compile.
#define FOR_Q8K_TYPE(type, ...)                                                                              \
  switch (type) {                                                                                            \
    Q8K_TYPE_CASE(TYPE_Q4_K, __VA_ARGS__)                                                                    \
    Q8K_TYPE_CASE(TYPE_Q5_K, __VA_ARGS__)                                                                    \
    Q8K_TYPE_CASE(TYPE_Q6_K, __VA_ARGS__)                                                                    \
    CASES_WITHOUT_Q8K                                                                                        \
    break;                                                                                                   \
  }
#define Q8K_TYPE_CASE(type, ...)                                                                             \
  case type: {                                                                                               \
    constexpr weight_type TYPE = type;                                                                       \
    __VA_ARGS__;                                                                                             \
    break;                                                                                                   \
  }

template <> struct quarter<TYPE_Q4_K> {
  uint4 head, low[2]; // head: d, dmin, 12 bytes of scales and minimums
};

template <> struct quarter<TYPE_Q5_K> { uint4 head, low[2], high[2]; };

template <> struct quarter<TYPE_Q6_K> { // of a row in planes
  uint4 low[2], high;
  uint2 scales; // 8 of the half block
  uint16_t d;
};

// Lane q of block b of a row of n_blocks.
template <weight_type TYPE, typename From = from_device>
__device__ __forceinline__ quarter<TYPE> load_quarter(const uint8_t *row, int n_blocks, int b, int q) {
  quarter<TYPE> w;
  if constexpr (TYPE ==
                TYPE_Q6_K) { // planes_q6k.cuh written out: through its functions nvcc makes other code
    const uint8_t *low = row + b * 128 + q / 2 * 64 + (q & 1) * 16;
    w.low[0] = From::template load<uint4>(low);
    w.low[1] = From::template load<uint4>(low + 32);
    w.high = From::template load<uint4>(row + n_blocks * 128 + b * 64 + q / 2 * 32 + (q & 1) * 16);
    w.scales = From::template load<uint2>(row + n_blocks * 192 + b * 16 + q / 2 * 8);
    w.d = From::template load<uint16_t>(row + n_blocks * 208 + b * 2);
  } else {
    static_assert(TYPE == TYPE_Q4_K || TYPE == TYPE_Q5_K, "a new type needs a layout here");
    const uint8_t *block = row + (size_t)b * (TYPE == TYPE_Q4_K ? sizeof(block_q4_K) : sizeof(block_q5_K));
    const uint8_t *low = block + (TYPE == TYPE_Q4_K ? 16 : 48) + 32 * q;
    w.head = From::template load<uint4>(block);
    w.low[0] = From::template load<uint4>(low);
    w.low[1] = From::template load<uint4>(low + 16);
    if constexpr (TYPE == TYPE_Q5_K) {
      w.high[0] = From::template load<uint4>(block + 16);
      w.high[1] = From::template load<uint4>(block + 32);
    }
  }
  return w;
}

// ---- its numbers ----

// Where run i of 16 elements of lane q starts: Q4_K and Q5_K pair the nibbles of a 64-element chunk, Q6_K
// those of a half block.
__device__ __forceinline__ int run_start(weight_type type, int q, int i) {
  return block_has_minimums(type) ? 64 * q + 16 * i : q / 2 * 128 + (q & 1) * 16 + i * 32;
}

struct quarter_quants { // four runs of 16 elements, unsigned (Q6_K: before the offset of 32)
  uint4 run[4];
};

template <weight_type TYPE>
__device__ __forceinline__ quarter_quants quants_of(const quarter<TYPE> &w, int q) {
  constexpr uint32_t nibble = 0x0f0f0f0fu;
  quarter_quants r;
  if constexpr (TYPE == TYPE_Q6_K) {
    constexpr uint32_t two = 0x03030303u;
    r.run[0] = or4(and4(w.low[0], 0, nibble), and4(w.high, 0, two), 4);
    r.run[1] = or4(and4(w.low[1], 0, nibble), and4(w.high, 2, two), 4);
    r.run[2] = or4(and4(w.low[0], 4, nibble), and4(w.high, 4, two), 4);
    r.run[3] = or4(and4(w.low[1], 4, nibble), and4(w.high, 6, two), 4);
  } else {
    static_assert(TYPE == TYPE_Q4_K || TYPE == TYPE_Q5_K, "a new type needs its quants here");
    for (int i = 0; i < 4; i++) {
      r.run[i] = and4(w.low[i % 2], i / 2 * 4, nibble);
      if constexpr (TYPE == TYPE_Q5_K)
        r.run[i] = or4(r.run[i], and4(w.high[i % 2], 2 * q + i / 2, 0x01010101u), 4);
    }
  }
  return r;
}

// The scales and minimums (block_scales_and_mins) of lane q's two sub-blocks: the lower byte the first.
__device__ __forceinline__ void scales_of_pair(uint32_t *scale, uint32_t *min, uint4 head, int q) {
  int shift = (q & 1) * 16;
  uint32_t a = head.y >> shift, b = head.z >> shift, c = head.w >> shift;
  *scale = q < 2 ? a & 0x3f3fu : (c & 0x0f0fu) | (a >> 2 & 0x3030u);
  *min = q < 2 ? b & 0x3f3fu : (c >> 4 & 0x0f0fu) | (b >> 2 & 0x3030u);
}

__device__ __forceinline__ int scale_q6(uint2 scales, int q, int i) { // of run i
  return (int8_t)((i < 2 ? scales.x : scales.y) >> (16 * (i & 1) + 8 * (q & 1)));
}

// ---- times a quarter of an activation block ----

struct quarter_inputs { // the lane's four runs of 16 activations and their sums; but for Q6_K of two runs
                        // each
  int4 x[4];
  int bsum[4];
};

__device__ __forceinline__ quarter_inputs load_inputs(weight_type type, const int8_t *qs,
                                                      const int16_t *bsums, int q) {
  quarter_inputs r;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    int start = run_start(type, q, i);
    r.x[i] = *(const int4 *)(qs + start);
    r.bsum[i] = bsums[start / 16];
  }
  if (block_has_minimums(type)) {
    r.bsum[0] += r.bsum[1];
    r.bsum[1] = r.bsum[2] + r.bsum[3];
  }
  return r;
}

// The quarter's part of the block's integer sums: of quants times scales, and of minimums (0 where the type
// has none).
template <weight_type TYPE>
__device__ __forceinline__ void quarter_sums(int *isum_out, int *msum_out, const quarter<TYPE> &w,
                                             const quarter_inputs &in, int q) {
  int isum = 0, msum = 0;
  if constexpr (TYPE == TYPE_Q6_K) {
    quarter_quants v = quants_of<TYPE>(w, q);
#pragma unroll
    for (int i = 0; i < 4; i++) {
      int scale = scale_q6(w.scales, q, i);
      isum += scale * dot16(v.run[i], in.x[i], 0);
      msum += scale * in.bsum[i];
    }
    isum -= 32 * msum; // the quants' offset
    msum = 0;
  } else {
    static_assert(TYPE == TYPE_Q4_K || TYPE == TYPE_Q5_K, "a new type needs its term here");
    uint32_t scale, min;
    scales_of_pair(&scale, &min, w.head, q);
    int first, second;
    if constexpr (TYPE == TYPE_Q4_K) { // high nibbles where they are: 16 times their sum
      first =
          dot16(and4(w.low[1], 0, 0x0f0f0f0fu), in.x[1], dot16(and4(w.low[0], 0, 0x0f0f0f0fu), in.x[0], 0));
      second =
          dot16(and4(w.low[1], 0, 0xf0f0f0f0u), in.x[3], dot16(and4(w.low[0], 0, 0xf0f0f0f0u), in.x[2], 0)) >>
          4;
    } else {
      quarter_quants v = quants_of<TYPE>(w, q);
      first = dot16(v.run[1], in.x[1], dot16(v.run[0], in.x[0], 0));
      second = dot16(v.run[3], in.x[3], dot16(v.run[2], in.x[2], 0));
    }
    isum = (int)(scale & 255) * first + (int)(scale >> 8) * second;
    msum = (int)(min & 255) * in.bsum[0] + (int)(min >> 8) * in.bsum[1];
  }
  *isum_out = isum;
  *msum_out = msum;
}

// d and dmin of a block's quarter.
template <weight_type TYPE> __device__ __forceinline__ float2 factors_of(const quarter<TYPE> &w) {
  if constexpr (TYPE == TYPE_Q6_K)
    return make_float2(half_bits_to_f32(w.d), 0.0f);
  else
    return make_float2(half_bits_to_f32((uint16_t)(w.head.x & 0xffffu)),
                       half_bits_to_f32((uint16_t)(w.head.x >> 16)));
}

// The block's term, on all four of its lanes.
template <weight_type TYPE>
__device__ __forceinline__ float block_term(const quarter<TYPE> &w, const quarter_inputs &in, int q) {
  int isum, msum;
  quarter_sums<TYPE>(&isum, &msum, w, in, q);
  float2 d = factors_of<TYPE>(w);
#pragma unroll
  for (int step = 1; step <= 2; step++) {
    isum += __shfl_xor_sync(~0u, isum, step);
    if (block_has_minimums(TYPE)) msum += __shfl_xor_sync(~0u, msum, step);
  }
  return block_value(d.x, d.y, isum, msum);
}

// y + the terms of GROUPS blocks of the lane's row, ascending, each times its dx. The warp holds 8 / GROUPS
// rows, a block to four lanes; `sub` is the lane's row, `count` how many of the blocks exist.
template <int GROUPS>
__device__ __forceinline__ float add_terms(float y, float term, const float *dx, int count, int sub) {
#pragma unroll
  for (int j = 0; j < GROUPS; j++) {
    float t = __shfl_sync(~0u, term, (sub * GROUPS + j) * 4);
    if (j < count) y = num_fma_f32(dx[j], t, y);
  }
  return y;
}
