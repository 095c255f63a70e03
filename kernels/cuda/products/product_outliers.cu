// product_outliers: what the path q8k_split adds to a product with Q8_K activations: the sum of the outliers'
// terms, which the rounding took out.
//
// Owns: the order of the terms, and the one addition. Independent of: how the product itself was computed.
// Invariant: an item without outliers keeps the product's bits.
#include "kernels/cuda/products/product.cuh"
#include "kernels/cuda/weight_at.cuh"

// A thread block of ROWS rows, a thread each, takes ITEMS items. Outlier channels are the same for most
// tokens, so the weights of a few columns are kept. What an item waits for is latency, so a warp asks for the
// counts of all its items at once, and then for what four blocks of an item have.
static constexpr int ROWS = 128, ITEMS = 16, COLUMNS = WARP, BLOCKS = WARP / MOST_OUTLIERS;

struct column_cache {
  int at[ROWS / WARP][COLUMNS]; // of each warp: the column that lies there
  float w[COLUMNS][ROWS];
};

__device__ __forceinline__ float weight_of(column_cache *c, const product &p, const uint8_t *row, int at) {
  int warp = threadIdx.x / WARP, place = at % COLUMNS;
  if (c->at[warp][place] != at) { // for all lanes or for none
    c->w[place][threadIdx.x] = weight_at(p.w.type, row, at, p.w.cols);
    __syncwarp();
    if (threadIdx.x % WARP == 0) c->at[warp][place] = at;
    __syncwarp();
  }
  return c->w[place][threadIdx.x];
}

// sum with the terms of blocks `first` + i, for each bit i of `with`, ascending.
__device__ __forceinline__ float add_terms(float sum, column_cache *c, const product &p, const uint8_t *row,
                                           const block_outliers *o, int first, uint32_t with) {
  int lane = threadIdx.x % WARP;
  while (with) {
    uint32_t rest = with; // each eight lanes hold a block's
    for (int g = 0; g < lane / MOST_OUTLIERS; g++) rest &= rest - 1;
    int b = first + (rest ? __ffs((int)rest) - 1 : 0), count = rest ? o[b].count : 0;
    int at = b * QK_K + o[b].at[lane % MOST_OUTLIERS];
    float x = o[b].x[lane % MOST_OUTLIERS];
    for (int g = 0; g < BLOCKS && with; g++, with &= with - 1) {
      int from = g * MOST_OUTLIERS, n = __shfl_sync(~0u, count, from);
      for (int k = 0; k < n; k++)
        sum = num_fma_f32(weight_of(c, p, row, __shfl_sync(~0u, at, from + k)), __shfl_sync(~0u, x, from + k),
                          sum);
    }
  }
  return sum;
}

__device__ __forceinline__ const block_outliers *outliers_of(const product &p, int item) {
  return p.in.outliers + (size_t)(item / p.input_divisor) * (p.w.cols / QK_K);
}

// Bit i of lane l: block `first` + i of item l has outliers. `item`: that of the lane.
__device__ __forceinline__ uint32_t blocks_with(const product &p, int item, int n_items, int first) {
  int lane = threadIdx.x % WARP, b = first + lane, count[ITEMS];
  uint32_t mine = 0;
#pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    const block_outliers *o = outliers_of(p, __shfl_sync(~0u, item, i));
    count[i] = i < n_items && b < p.w.cols / QK_K ? o[b].count : 0;
  }
#pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    uint32_t with = __ballot_sync(~0u, count[i] > 0);
    if (lane == i) mine = with;
  }
  return mine;
}

// finish(item, sum) of each item with outliers.
template <typename Finish>
__device__ __forceinline__ void sum_items(column_cache *c, const product &p, const uint8_t *row, int item,
                                          int n_items, Finish finish) {
  int n_blocks = p.w.cols / QK_K;
  uint32_t with = blocks_with(p, item, n_items, 0), any = with;
  for (int first = WARP; first < n_blocks; first += WARP) any |= blocks_with(p, item, n_items, first);
  for (uint32_t left = __ballot_sync(~0u, any != 0); left; left &= left - 1) {
    int i = __ffs((int)left) - 1, this_item = __shfl_sync(~0u, item, i);
    const block_outliers *o = outliers_of(p, this_item);
    float sum = add_terms(0, c, p, row, o, 0, __shfl_sync(~0u, with, i));
    for (int first = WARP; first < n_blocks; first += WARP) // rows wider than 8,192
      sum = add_terms(sum, c, p, row, o, first, __shfl_sync(~0u, blocks_with(p, item, n_items, first), i));
    finish(this_item, sum);
  }
}

__global__ void __launch_bounds__(ROWS) add_outliers(const __grid_constant__ product_set set) {
  wait_for_inputs();
  __shared__ column_cache columns;
  int which = 0, lane = threadIdx.x % WARP;
  while (which + 1 < set.count && (int)blockIdx.x >= set.first_block[which + 1]) which++;
  const product &p = set.p[which];
  item_tile tile = tile_of(p, ITEMS);
  if (tile.count <= 0) return;
  int r = ((int)blockIdx.x - set.first_block[which]) * ROWS + (int)threadIdx.x;
  const uint8_t *row =
      p.w.data + (size_t)tile.member * p.w.member_bytes + (size_t)min(r, p.w.rows - 1) * p.w.row_bytes;
  int place = tile.first + min(lane, tile.count - 1), item = p.order ? p.order[place] : place;
  columns.at[threadIdx.x / WARP][lane] = -1;
  __syncwarp();
  auto out = [&](int i) { return p.out + output_of(p, i) + r; };
  sum_items(&columns, p, row, item, tile.count, [&](int i, float z) {
    if (r < p.w.rows) *out(i) = *out(i) + z;
  });
}

status product_outliers_launch(product_set *set, cudaStream_t stream) {
  const product *p = &set->p[0];
  if (p->n_items <= 0) return 0;
  int blocks = 0;
  for (int i = 0; i < set->count; i++) {
    set->first_block[i] = blocks;
    blocks += ceil_div(set->p[i].w.rows, ROWS);
  }
  bool each_alone = p->member && !p->first;
  unsigned tiles = each_alone ? (unsigned)p->n_items : tile_count(p, ITEMS);
  return launch(add_outliers, dim3((unsigned)blocks, tiles), ROWS, 0, stream, *set);
}
