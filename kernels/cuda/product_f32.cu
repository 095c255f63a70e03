// product_f32: weights of any type times f32 activations, in the order of docs/paths.md: lane l of a warp is
// lane l of sum32, so each lane's chain is the definition's and the tree is five shuffles.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/weight_at.cuh"

static constexpr int
    WARPS = 8,
    ROWS = 4; // a warp computes ROWS rows for ITEMS items: each weight is dequantised once for them

// The items of this thread block.
__device__ __forceinline__ item_tile tile_of(const product &p, int items) {
  if (p.first) return find_tile(p, items, blockIdx.y);
  int begin = blockIdx.y * items, left = p.n_items - begin;
  int member = p.member ? p.member[begin] : 0; // with members but no groups, a tile is one item
  return {member, begin, member < 0 ? 0 : left < items ? left : items};
}

// The eight weights of block b that lane `lane` multiplies: elements 32 j + lane, j = 0 .. 7. d1 * q is
// exact, so the fma rounds once, as the definition's product and difference do together.
__device__ __forceinline__ void block_weights(float w[8], const dev_matrix &m, const uint8_t *row, int b,
                                              int lane) {
  if (m.type == TYPE_Q6_K) {
    int n = m.cols / QK_K;
    float d = half_bits_to_f32(((const uint16_t *)(row + n * 208))[b]);
    const int8_t *scale = (const int8_t *)row + n * 192 + b * 16 + lane / 16;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int low0 = row[b * 128 + half * 64 + lane], low1 = row[b * 128 + half * 64 + 32 + lane];
      int high = row[n * 128 + b * 64 + half * 32 + lane];
#pragma unroll
      for (int k = 0; k < 4; k++) {
        int q = ((k & 1 ? low1 : low0) >> 4 * (k / 2) & 15) | (high >> 2 * k & 3) << 4;
        w[4 * half + k] = d * (float)scale[8 * half + 2 * k] * (float)(q - 32);
      }
    }
    return;
  }
  bool is_q5 = m.type == TYPE_Q5_K;
  const uint8_t *block = row + (size_t)b * (is_q5 ? sizeof(block_q5_K) : sizeof(block_q4_K));
  uint4 head = *(const uint4 *)block;
  float d = half_bits_to_f32((uint16_t)(head.x & 0xffffu)), dmin = half_bits_to_f32((uint16_t)(head.x >> 16));
  uint32_t scale[2] = {head.y & 0x3f3f3f3fu, (head.w & 0x0f0f0f0fu) | (head.y >> 2 & 0x30303030u)};
  uint32_t min[2] = {head.z & 0x3f3f3f3fu, (head.w >> 4 & 0x0f0f0f0fu) | (head.z >> 2 & 0x30303030u)};
  int fifth = is_q5 ? block[16 + lane] : 0;
#pragma unroll
  for (int j = 0; j < 8; j += 2) {
    int pair = block[(is_q5 ? 48 : 16) + j * 16 + lane];
#pragma unroll
    for (int k = 0; k < 2; k++) {
      int at = 8 * ((j + k) % 4), q = (pair >> 4 * k & 15) | (fifth >> (j + k) & 1) << 4;
      float step = d * (float)(scale[(j + k) / 4] >> at & 63),
            base = dmin * (float)(min[(j + k) / 4] >> at & 63);
      w[j + k] = num_fma_f32(step, (float)q, -base);
    }
  }
}

template <int ITEMS>
__device__ __forceinline__ void sum_blocks(float sum[ROWS][ITEMS], const product &p, const uint8_t *rows,
                                           int row0, const float *const x[ITEMS], int lane) {
  for (int b = 0; b < p.w.cols / QK_K; b++) {
    float w[ROWS][8];
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      int row = row0 + r < p.w.rows ? row0 + r : p.w.rows - 1; // a ragged tile repeats its last row
      block_weights(w[r], p.w, rows + (size_t)row * p.w.row_bytes, b, lane);
    }
#pragma unroll
    for (int j = 0; j < 8; j++)
#pragma unroll
      for (int i = 0; i < ITEMS; i++) {
        float v = x[i][b * QK_K + 32 * j + lane];
#pragma unroll
        for (int r = 0; r < ROWS; r++) sum[r][i] = num_fma_f32(w[r][j], v, sum[r][i]);
      }
  }
}

template <int ITEMS>
__device__ __forceinline__ void sum_elements(float sum[ROWS][ITEMS], const product &p, const uint8_t *rows,
                                             int row0, const float *const x[ITEMS], int lane) {
  for (int k = lane; k < p.w.cols; k += WARP) {
    float w[ROWS];
#pragma unroll
    for (int r = 0; r < ROWS; r++)
      w[r] = row0 + r < p.w.rows ? weight_at(p.w.type, rows + (row0 + r) * p.w.row_bytes, k, p.w.cols) : 0.0f;
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
      float v = x[i][k];
#pragma unroll
      for (int r = 0; r < ROWS; r++) sum[r][i] = num_fma_f32(w[r], v, sum[r][i]);
    }
  }
}

// As sum_elements of F32 rows, in pieces of AHEAD lanes' widths whose loads do not wait for each other.
template <int ITEMS>
__device__ __forceinline__ void sum_floats(float sum[ROWS][ITEMS], const product &p, const uint8_t *rows,
                                           int row0, const float *const x[ITEMS], int lane) {
  constexpr int AHEAD = ITEMS > 4 ? 4 : 8;
  const float *w[ROWS];
#pragma unroll
  for (int r = 0; r < ROWS; r++)
    w[r] = (const float *)(rows + min(row0 + r, p.w.rows - 1) * p.w.row_bytes) + lane;
  for (int k = 0; k < p.w.cols; k += AHEAD * WARP) {
    float a[AHEAD][ROWS], v[AHEAD][ITEMS];
#pragma unroll
    for (int s = 0; s < AHEAD; s++) {
#pragma unroll
      for (int r = 0; r < ROWS; r++) a[s][r] = w[r][k + s * WARP];
#pragma unroll
      for (int i = 0; i < ITEMS; i++) v[s][i] = x[i][k + s * WARP + lane];
    }
#pragma unroll
    for (int s = 0; s < AHEAD; s++)
#pragma unroll
      for (int i = 0; i < ITEMS; i++)
#pragma unroll
        for (int r = 0; r < ROWS; r++) sum[r][i] = num_fma_f32(a[s][r], v[s][i], sum[r][i]);
  }
}

enum weight_kind { K_QUANTS, FLOATS, ELEMENTS }; // FLOATS: F32 in rows of a multiple of 256

template <int ITEMS, weight_kind KIND> __global__ void __launch_bounds__(256) product_f32_rows(product p) {
  wait_for_inputs();
  item_tile tile = tile_of(p, ITEMS);
  if (tile.count <= 0) return;
  int lane = threadIdx.x % WARP, row0 = (blockIdx.x * WARPS + threadIdx.x / WARP) * ROWS;
  if (row0 >= p.w.rows) return;
  const uint8_t *rows = p.w.data + (size_t)tile.member * p.w.member_bytes;
  const float *x[ITEMS];
  int item[ITEMS];
#pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    int at = tile.begin + (i < tile.count ? i : 0);
    item[i] = p.order ? p.order[at] : at;
    x[i] = p.in.x + (size_t)(item[i] / p.input_divisor) * p.w.cols;
  }
  float sum[ROWS][ITEMS] = {};
  if (KIND == K_QUANTS)
    sum_blocks<ITEMS>(sum, p, rows, row0, x, lane);
  else if (KIND == FLOATS)
    sum_floats<ITEMS>(sum, p, rows, row0, x, lane);
  else
    sum_elements<ITEMS>(sum, p, rows, row0, x, lane);
#pragma unroll
  for (int i = 0; i < ITEMS; i++)
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      float y = warp_tree(sum[r][i]);
      if (lane != r || i >= tile.count || row0 + r >= p.w.rows) continue;
      float *out = p.out + (size_t)(p.place ? p.place[item[i]] : item[i]) * p.w.rows + row0 + r;
      *out = p.adds ? *out + y : y;
    }
}

template <int ITEMS> static status launch_rows(const product *p, cudaStream_t stream) {
  dim3 grid((unsigned)((p->w.rows + WARPS * ROWS - 1) / (WARPS * ROWS)), tile_count(p, ITEMS));
  switch (p->w.type) {
  case TYPE_Q4_K:
  case TYPE_Q5_K:
  case TYPE_Q6_K:
    return launch(product_f32_rows<ITEMS, K_QUANTS>, grid, WARPS * WARP, 0, stream, *p);
  case TYPE_F32:
    if (p->w.cols % QK_K == 0)
      return launch(product_f32_rows<ITEMS, FLOATS>, grid, WARPS * WARP, 0, stream, *p);
    return launch(product_f32_rows<ITEMS, ELEMENTS>, grid, WARPS * WARP, 0, stream, *p);
  case TYPE_F16:
  case TYPE_BF16:
  case TYPE_Q8_0:
    return launch(product_f32_rows<ITEMS, ELEMENTS>, grid, WARPS * WARP, 0, stream, *p);
    CASES_DEQUANTISED_ONLY
    break;
  }
  return FAIL("CUDA: the type %s has no product", type_find(p->w.type)->name);
}

status product_f32_launch(const product *p, cudaStream_t stream) {
  if (p->n_items <= 0) return 0;
  bool each_alone = p->member && !p->first;
  if (p->first) return launch_rows<8>(p, stream);
  if (each_alone || p->n_items == 1) return launch_rows<1>(p, stream);
  if (p->n_items <= 64 && p->w.type == TYPE_F32)
    return launch_rows<2>(p, stream); // many small blocks: latency counts
  if (p->n_items <= 4) return launch_rows<4>(p, stream);
  return launch_rows<8>(p, stream);
}
