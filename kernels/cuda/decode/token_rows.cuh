// token_rows: rows of K-quant matrices that lie in shared memory times a rounded row of activations there, by
// one warp.
//
// Owns: how a rounded row lies there, the two ways of laying a warp's lanes over rows. Independent of: how
// either came there, which rows are whose. The bits of stream_rows (decode_rows.cuh).
#pragma once
#include "kernels/cuda/products/block_q8k.cuh"
#include "kernels/cuda/round_q8k.cuh"
#include <type_traits>

static __host__ __device__ constexpr int pad_to(int n, int multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

// ---- a lane's eight numbers ----

__device__ __forceinline__ void load_8(float v[8], const float *from) {
  float4 x = *(const float4 *)from, y = *(const float4 *)(from + 4);
  v[0] = x.x, v[1] = x.y, v[2] = x.z, v[3] = x.w;
  v[4] = y.x, v[5] = y.y, v[6] = y.z, v[7] = y.w;
}
__device__ __forceinline__ void store_8(float *to, const float v[8]) {
  *(float4 *)to = make_float4(v[0], v[1], v[2], v[3]);
  *(float4 *)(to + 4) = make_float4(v[4], v[5], v[6], v[7]);
}

// sum32 of squares of a row of n floats, on the lanes of one warp; N: its blocks of 256, or 0.
template <int N> __device__ __forceinline__ float sum_of_row(const float *x, int n) {
  if constexpr (N > 0) { // all loads before the chain
    float v[N * QK_K / WARP], sum = 0;
#pragma unroll
    for (int i = 0; i < N * QK_K / WARP; i++) v[i] = x[WARP * i + threadIdx.x % WARP];
#pragma unroll
    for (int i = 0; i < N * QK_K / WARP; i++) sum = num_fma_f32(v[i], v[i], sum);
    return warp_tree(sum);
  } else
    return sum_of_squares(x, n);
}

// ---- a rounded row ----

// Pieces of 16 activations in four planes, piece p of a block in plane p % 4, so that the four runs of a lane
// of a quarter (block_q8k.cuh) are loaded without bank conflicts; then the blocks' scales. N: how many
// blocks, where the kernel is compiled for it; else 0.
template <int N> struct shared_row {
  uint8_t *qs;
  float *d; // padded to a multiple of 8
  int count;
  __device__ __forceinline__ int blocks() const { return N ? N : count; }
};

static __host__ __device__ constexpr int plane_bytes(int n_blocks) {
  return n_blocks * 64 + 16;
}

static __host__ __device__ constexpr int shared_row_bytes(int n_blocks) {
  return 4 * plane_bytes(n_blocks) + pad_to(n_blocks, 8) * (int)sizeof(float);
}

template <int N> __device__ __forceinline__ shared_row<N> shared_row_at(uint8_t *memory, int n_blocks) {
  int n = N ? N : n_blocks;
  return {memory, (float *)(memory + 4 * plane_bytes(n)), n};
}

__device__ __forceinline__ int piece_offset(int n_blocks, int block, int piece) {
  return piece % 4 * plane_bytes(n_blocks) + (block * 4 + piece / 4) * 16;
}

// The warp's 256 numbers, lane l with elements 8 l .. 8 l + 7, as block `block`.
template <int N>
__device__ __forceinline__ void round_into(const shared_row<N> &to, int block, const float v[8]) {
  int lane = threadIdx.x % WARP;
  rounded_lane r = round_lane(v);
  *(uint2 *)(to.qs + piece_offset(to.blocks(), block, lane / 2) + lane % 2 * 8) = r.quants;
  if (lane == 0) to.d[block] = r.d;
}

__device__ __forceinline__ int sum16(int4 x) {
  constexpr int ones = 0x01010101;
  return __dp4a(x.x, ones, __dp4a(x.y, ones, __dp4a(x.z, ones, __dp4a(x.w, ones, 0))));
}

template <weight_type TYPE, int N>
__device__ __forceinline__ quarter_inputs shared_inputs(const shared_row<N> &in, int block, int q) {
  quarter_inputs r;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    r.x[i] = *(const int4 *)(in.qs + piece_offset(in.blocks(), block, run_start(TYPE, q, i) / 16));
    r.bsum[i] = sum16(r.x[i]);
  }
  if (block_has_minimums(TYPE)) {
    r.bsum[0] += r.bsum[1];
    r.bsum[1] = r.bsum[2] + r.bsum[3];
  }
  return r;
}

// ---- rows of weights ----

__device__ __forceinline__ uint32_t token_row_bytes(weight_type type, int n_blocks) {
  return type == TYPE_Q4_K   ? (uint32_t)n_blocks * (uint32_t)sizeof(block_q4_K)
         : type == TYPE_Q5_K ? (uint32_t)n_blocks * (uint32_t)sizeof(block_q5_K)
                             : (uint32_t)(n_blocks * 208 + pad_to(2 * n_blocks, 16)); // planes_q6k.cuh
}

// From row to row where rows lie side by side in shared memory (tall_rows): rows of Q6_K that are multiples
// of all banks would lie in each other's way.
static __host__ __device__ constexpr int row_pitch(int bytes) {
  return bytes % 128 ? bytes : bytes + 32;
}

// d and dmin of block b of a row.
template <weight_type TYPE>
__device__ __forceinline__ float2 row_factors(const uint8_t *row, int n_blocks, int b) {
  if constexpr (TYPE == TYPE_Q6_K)
    return make_float2(half_bits_to_f32(*(const uint16_t *)(row + n_blocks * 208 + b * 2)), 0.0f);
  else {
    uint32_t both =
        *(const uint32_t *)(row + b * (int)(TYPE == TYPE_Q4_K ? sizeof(block_q4_K) : sizeof(block_q5_K)));
    return make_float2(half_bits_to_f32((uint16_t)(both & 0xffffu)),
                       half_bits_to_f32((uint16_t)(both >> 16)));
  }
}

// The sums over four lanes of ROWS numbers each: lane q of the four gets that of number q % ROWS.
template <int ROWS> __device__ __forceinline__ int sum_of_lanes(const int (&v)[ROWS], int q) {
  static_assert(ROWS == 1 || ROWS == 2 || ROWS == 4);
  if constexpr (ROWS == 4) {
    bool high = q & 2, odd = q & 1;
    int a = (high ? v[2] : v[0]) + __shfl_xor_sync(~0u, high ? v[0] : v[2], 2);
    int b = (high ? v[3] : v[1]) + __shfl_xor_sync(~0u, high ? v[1] : v[3], 2);
    return (odd ? b : a) + __shfl_xor_sync(~0u, odd ? a : b, 1);
  } else {
    int sum = v[0];
    if constexpr (ROWS == 2)
      sum = (q & 1 ? v[1] : v[0]) + __shfl_xor_sync(~0u, q & 1 ? v[0] : v[1], 1);
    else
      sum += __shfl_xor_sync(~0u, sum, 1);
    return sum + __shfl_xor_sync(~0u, sum, 2);
  }
}

// Eight blocks side by side, ROWS rows one after the other: lane l gets row l % ROWS.
template <weight_type TYPE, int ROWS, typename Row, int N>
__device__ __forceinline__ float wide_rows(const Row &row, const shared_row<N> &in) {
  [[maybe_unused]] constexpr int UNROLLED = N ? (N + 7) / 8 : 1;
  int lane = threadIdx.x % WARP, q = lane % 4, n = in.blocks();
  float y = 0;
#pragma unroll UNROLLED
  for (int from = 0; from < n; from += 8) {
    int b = min(from + lane / 4, n - 1), isum[ROWS], msum[ROWS];
    quarter_inputs x = shared_inputs<TYPE>(in, b, q);
#pragma unroll
    for (int r = 0; r < ROWS; r++)
      quarter_sums<TYPE>(&isum[r], &msum[r], load_quarter<TYPE, from_shared>(row(r), n, b, q), x, q);
    float2 d = row_factors<TYPE>(row(q % ROWS), n, b);
    int i = sum_of_lanes<ROWS>(isum, q), m = block_has_minimums(TYPE) ? sum_of_lanes<ROWS>(msum, q) : 0;
    float term = block_value(d.x, d.y, i, m);
#pragma unroll
    for (int j = 0; j < 8; j++) {
      float t = __shfl_sync(~0u, term, j * 4 + lane % ROWS);
      if (from + j < n) y = num_fma_f32(in.d[from + j], t, y);
    }
  }
  return y;
}

// Eight rows side by side: lanes 4 r .. 4 r + 3 get row r.
template <weight_type TYPE, typename Row, int N>
__device__ __forceinline__ float tall_rows(const Row &row, const shared_row<N> &in) {
  int lane = threadIdx.x % WARP, q = lane % 4, n = in.blocks();
  const uint8_t *mine = row(lane / 4);
  float y = 0;
#pragma unroll 3
  for (int b = 0; b < n; b++) {
    quarter_inputs x = shared_inputs<TYPE>(in, b, q);
    float term = block_term<TYPE>(load_quarter<TYPE, from_shared>(mine, n, b, q), x, q);
    y = num_fma_f32(in.d[b], term, y);
  }
  return y;
}

// Rows of a tile, and the lane of row r of one: short rows go side by side, so that no lane is without a
// block.
static __host__ __device__ constexpr int tile_rows_of(int n_blocks) {
  return n_blocks < 4 ? 8 : 4;
}

__device__ __forceinline__ int tile_lane(int n_blocks, int r) {
  return n_blocks < 4 ? 4 * r : r;
}

// The types that a matrix may have, where a kernel is compiled for fewer than all: less code to fetch.
enum type_set { ALL_TYPES, Q4_OR_Q6, Q4_ALONE };

// f(constant) of the type.
template <type_set TYPES, typename F> __device__ __forceinline__ float of_type(weight_type type, const F &f) {
  float y = 0;
  if constexpr (TYPES == Q4_ALONE)
    y = f(std::integral_constant<weight_type, TYPE_Q4_K>());
  else if constexpr (TYPES == Q4_OR_Q6)
    y = type == TYPE_Q4_K ? f(std::integral_constant<weight_type, TYPE_Q4_K>())
                          : f(std::integral_constant<weight_type, TYPE_Q6_K>());
  else {
    FOR_Q8K_TYPE(type, (y = f(std::integral_constant<weight_type, TYPE>())))
  }
  return y;
}

// A tile of rows row(0 .. tile_rows_of - 1).
template <type_set TYPES, typename Row, int N>
__device__ __forceinline__ float tile_product(weight_type type, const Row &row, const shared_row<N> &in) {
  if (in.blocks() < 4)
    return of_type<TYPES>(type, [&](auto t) { return tall_rows<decltype(t)::value>(row, in); });
  return of_type<TYPES>(type, [&](auto t) { return wide_rows<decltype(t)::value, 4>(row, in); });
}

// ---- scalars ----

// num_exp_f32 without branches, to the bit.
__device__ __forceinline__ float exp_straight(float x) {
  float y = num_exp_in_range_f32(fminf(fmaxf(x, -104.0f), 89.0f));
  y = x > 88.72284f ? __uint_as_float(0x7f800000u) : x < -103.97208f ? 0.0f : y;
  return x != x ? x : y;
}

__device__ __forceinline__ float silu_straight(float x) { // num_silu_f32
  return x / (1.0f + exp_straight(-x));
}
