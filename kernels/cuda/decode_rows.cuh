// decode_rows: rows of K-quant matrices times one rounded row of activations, for the kernels of one token.
//
// Owns: the rounded row in shared memory, how a warp takes its rows. Refuses to know: which rows are whose.
#pragma once
#include "kernels/cuda/block_q8k.cuh"
#include "kernels/cuda/decode_launch.cuh"
#include "kernels/cuda/round_q8k.cuh"

static constexpr int WARPS = 8, THREADS = WARPS * WARP;
static constexpr int MOST_EXPERTS = THREADS; // decode_experts.cu chooses with a thread an expert

// ---- activations in shared memory ----

struct rounded_row { // Q8_K planes of one row
  int8_t *qs;
  float *d; // padded to a multiple of 8
  int16_t *bsums;
};

static __host__ __device__ constexpr int pad8(int n) {
  return (n + 7) / 8 * 8;
}

static __host__ __device__ constexpr size_t rounded_bytes(int width) {
  return (size_t)width + (size_t)width / 8 + (size_t)pad8(width / QK_K) * sizeof(float);
}

__device__ __forceinline__ rounded_row rounded_at(uint8_t *memory, int width) {
  return {(int8_t *)memory, (float *)(memory + width + width / 8), (int16_t *)(memory + width)};
}

__device__ __forceinline__ void load8(float v[8], const float *from) {
  float4 a = *(const float4 *)from, b = *(const float4 *)(from + 4);
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
  v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

__device__ __forceinline__ void round_to(const rounded_row &to, int block, const float v[8]) {
  round_block(v, to.qs + block * QK_K, to.d + block, to.bsums + block * (QK_K / 16), nullptr);
}

// sum32 of squares by one warp, on all its lanes
__device__ __forceinline__ float sum_of_squares(const float *x, int n) {
  float sum = 0;
#pragma unroll 16
  for (int i = threadIdx.x % WARP; i < n; i += WARP) sum = num_fma_f32(x[i], x[i], sum);
  return warp_tree(sum);
}

// ---- rows of K-quant matrices times one rounded row ----

// Passes of a warp that are in its registers at once, for as many as MATRICES * STEPS parts each. The latency
// of one row's chain of shuffles is hidden by the others of its batch, so a batch has no branches: rows
// beyond the last repeat it.
template <weight_type TYPE> __host__ __device__ constexpr int batch_of(int parts, int at_once) {
  static_assert(TYPE == TYPE_Q4_K || TYPE == TYPE_Q5_K || TYPE == TYPE_Q6_K, "measured for each type");
  int most = TYPE == TYPE_Q4_K ? 5 : TYPE == TYPE_Q6_K ? 4 : 3, n = most / parts;
  return n < 1 ? 1 : n * at_once > WARP ? WARP / at_once : n;
}

static constexpr uint32_t AHEAD_BYTES = 16 << 10; // of a warp's rows

struct row_range { // rows 0 .. n_rows - 1 of up to two matrices of one shape
  const uint8_t *rows[2];
  uint32_t row_bytes;
  int n_rows, n_blocks;
};

// The warp's rows times `in`. Weights of the first batch are asked for at once, then `prepare` runs, which
// makes `in`. Of each batch, row first + l reaches lane l of flush(first, results).
template <weight_type TYPE, int GROUPS, int STEPS, int MATRICES, typename Prepare, typename Flush>
__device__ __forceinline__ void stream_rows(const row_range &w, const rounded_row &in, Prepare prepare,
                                            Flush flush) {
  constexpr int at_once = 8 / GROUPS, BATCH = batch_of<TYPE>(STEPS * MATRICES, at_once),
                ROWS = BATCH * at_once;
  int lane = threadIdx.x % WARP, q = lane % 4, g = lane / 4 % GROUPS, sub = lane / (4 * GROUPS);
  quarter<TYPE> part[BATCH][STEPS][MATRICES];
  auto load = [&](int first, int from) { // rows first .., blocks from ..
#pragma unroll
    for (int r = 0; r < BATCH; r++)
#pragma unroll
      for (int s = 0; s < STEPS; s++)
#pragma unroll
        for (int m = 0; m < MATRICES; m++) {
          int row = min(first + r * at_once + sub, w.n_rows - 1),
              b = min(from + s * GROUPS + g, w.n_blocks - 1);
          part[r][s][m] = load_quarter<TYPE>(w.rows[m] + (size_t)row * w.row_bytes, w.n_blocks, b, q);
        }
  };
  if (w.n_rows > 0) load(0, 0);
  uint32_t bytes = w.n_rows * w.row_bytes; // what a later batch needs is on its way as well
  for (uint32_t at = ROWS * w.row_bytes + 128 * lane; at < bytes && bytes <= AHEAD_BYTES; at += 128 * WARP)
    for (int m = 0; m < MATRICES; m++) prefetch(w.rows[m] + at);
  prepare();
  quarter_inputs x; // of the blocks from `held` on
  float dx[GROUPS];
  int held = -1;
#pragma unroll 1
  for (int first = 0; first < w.n_rows; first += ROWS) {
    float y[BATCH][MATRICES] = {};
#pragma unroll 1
    for (int from = 0; from < w.n_blocks; from += STEPS * GROUPS) {
#pragma unroll
      for (int s = 0; s < STEPS; s++) {
        int begin = from + s * GROUPS;
        if (held != begin) {
          int b = min(begin + g, w.n_blocks - 1);
          x = load_inputs(TYPE, in.qs + b * QK_K, in.bsums + b * (QK_K / 16), q);
#pragma unroll
          for (int j = 0; j < GROUPS; j++) dx[j] = in.d[min(begin + j, w.n_blocks - 1)];
          held = begin;
        }
        float term[BATCH][MATRICES];
#pragma unroll
        for (int r = 0; r < BATCH; r++)
#pragma unroll
          for (int m = 0; m < MATRICES; m++) term[r][m] = block_term<TYPE>(part[r][s][m], x, q);
        if (s == STEPS - 1) {
          bool row_ends = from + STEPS * GROUPS >= w.n_blocks;
          if (!row_ends || first + ROWS < w.n_rows)
            load(row_ends ? first + ROWS : first, row_ends ? 0 : from + STEPS * GROUPS);
        }
#pragma unroll
        for (int j = 0; j < GROUPS; j++)
#pragma unroll
          for (int r = 0; r < BATCH; r++)
#pragma unroll
            for (int m = 0; m < MATRICES; m++) {
              float t = __shfl_sync(~0u, term[r][m], (sub * GROUPS + j) * 4);
              if (begin + j < w.n_blocks) y[r][m] = num_fma_f32(dx[j], t, y[r][m]);
            }
      }
    }
    float mine[MATRICES] = {};
#pragma unroll
    for (int r = 0; r < BATCH; r++)
#pragma unroll
      for (int m = 0; m < MATRICES; m++) {
        float found = __shfl_sync(~0u, y[r][m], lane % at_once * (4 * GROUPS));
        if (lane / at_once == r) mine[m] = found;
      }
    if (lane < min(ROWS, w.n_rows - first)) flush(first + lane, mine);
  }
}

// Blocks that a row of n_blocks takes side by side in a warp.
static inline int groups_of(int n_blocks) {
  return n_blocks > 4 ? 8 : n_blocks > 2 ? 4 : n_blocks > 1 ? 2 : 1;
}

static inline int multiprocessors() {
  static int count;
  if (!count) cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0);
  return count > 0 ? count : 1;
}
