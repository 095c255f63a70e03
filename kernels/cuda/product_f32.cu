// product_f32: weights of any type times f32 activations, in the order of docs/paths.md: lane l of a warp is lane l of
// sum32, so each lane's chain is the definition's and the tree is five shuffles.
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/weight_at.cuh"

static constexpr int WARPS = 8, ROWS = 4; // a warp computes ROWS rows for ITEMS items: each weight is dequantised once for them

// The items of this thread block's tile: `at[i]` for i < count.
struct item_tile {
  int member, begin, count;
};

__device__ __forceinline__ item_tile tile_of(const product &p, int items) {
  if (p.first) {
    int m = blockIdx.z, begin = p.first[m] + blockIdx.y * items, left = p.first[m + 1] - begin;
    return {m, begin, left < items ? left : items};
  }
  int begin = blockIdx.y * items, left = p.n_items - begin;
  int member = p.member ? p.member[begin] : 0; // with members but no groups, a tile is one item
  return {member, begin, member < 0 ? 0 : left < items ? left : items};
}

template <int ITEMS> __global__ void product_f32_rows(product p) {
  item_tile tile = tile_of(p, ITEMS);
  if (tile.count <= 0) return;
  int lane = threadIdx.x % WARP, row0 = (blockIdx.x * WARPS + threadIdx.x / WARP) * ROWS, cols = p.w.cols;
  if (row0 >= p.w.rows) return;
  const uint8_t *rows = p.w.data + (size_t)tile.member * p.w.member_bytes;
  const float *x[ITEMS];
  int item[ITEMS];
  for (int i = 0; i < ITEMS; i++) {
    int at = tile.begin + (i < tile.count ? i : 0);
    item[i] = p.order ? p.order[at] : at;
    x[i] = p.in.x + (size_t)(item[i] / p.input_divisor) * cols;
  }
  float sum[ROWS][ITEMS] = {};
  for (int k = lane; k < cols; k += WARP) {
    float w[ROWS];
    for (int r = 0; r < ROWS; r++)
      w[r] = row0 + r < p.w.rows ? weight_at(p.w.type, rows + (row0 + r) * p.w.row_bytes, k, cols) : 0.0f;
#pragma unroll
    for (int i = 0; i < ITEMS; i++) {
      float v = x[i][k];
#pragma unroll
      for (int r = 0; r < ROWS; r++) sum[r][i] = num_fma_f32(w[r], v, sum[r][i]);
    }
  }
#pragma unroll
  for (int i = 0; i < ITEMS; i++)
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      float y = warp_tree(sum[r][i]);
      if (lane == r && i < tile.count && row0 + r < p.w.rows) {
        size_t to = (size_t)(p.place ? p.place[item[i]] : item[i]);
        p.out[to * p.w.rows + row0 + r] = y;
      }
    }
}

template <int ITEMS> static status launch(const product *p, cudaStream_t stream) {
  int tiles = (p->n_items + ITEMS - 1) / ITEMS;
  dim3 grid((unsigned)((p->w.rows + WARPS * ROWS - 1) / (WARPS * ROWS)), (unsigned)tiles,
            (unsigned)(p->first ? p->n_members : 1));
  product_f32_rows<ITEMS><<<grid, WARPS * WARP, 0, stream>>>(*p);
  CUDA_TRY(cudaGetLastError());
  return 0;
}

status product_f32_launch(const product *p, cudaStream_t stream) {
  if (p->n_items <= 0) return 0;
  bool each_alone = p->member && !p->first;
  if (each_alone || p->n_items == 1) return launch<1>(p, stream);
  if (p->n_items <= 4) return launch<4>(p, stream);
  return launch<8>(p, stream);
}
