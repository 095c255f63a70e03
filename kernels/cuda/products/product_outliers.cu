// product_outliers: what the path q8k_split adds to a product with Q8_K activations: the sum of the outliers'
// terms, which the rounding took out.
//
// Owns: the order of the terms, and the one addition. Independent of: how the product itself was computed.
// Invariant: an item without outliers keeps the product's bits.
#include "kernels/cuda/products/product.cuh"
#include "kernels/cuda/weight_at.cuh"

// A thread block of ROWS rows, a thread each, takes ITEMS items one after the other. Outlier channels are
// the same for most tokens, so the weights of a few columns are kept.
static constexpr int ROWS = 128, ITEMS = 16, COLUMNS = 32;

struct column_cache {
  int at[ROWS / WARP][COLUMNS]; // of each warp: the column that lies there
  float w[COLUMNS][ROWS];
};

// Bit i: block `base` + i has outliers.
__device__ __forceinline__ uint32_t blocks_with(const block_outliers *o, int base, int n_blocks) {
  int b = base + (int)threadIdx.x % WARP;
  return __ballot_sync(~0u, b < n_blocks && o[b].count > 0);
}

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

// The sum of the terms, ascending; false: there are none.
__device__ __forceinline__ bool outlier_sum(float *z, column_cache *c, const product &p, const uint8_t *row,
                                            const block_outliers *o, int n_blocks) {
  bool any = false;
  float sum = 0;
  for (int base = 0; base < n_blocks; base += WARP) {
    uint32_t with = blocks_with(o, base, n_blocks);
    any = any || with;
    for (; with; with &= with - 1) {
      int b = base + __ffs((int)with) - 1, count = o[b].count;
      for (int k = 0; k < count; k++)
        sum = num_fma_f32(weight_of(c, p, row, b * QK_K + o[b].at[k]), o[b].x[k], sum);
    }
  }
  *z = sum;
  return any;
}

__global__ void __launch_bounds__(ROWS)
    add_outliers(const __grid_constant__ product_set set, const float *products) {
  wait_for_inputs();
  __shared__ column_cache columns;
  int which = 0;
  while (which + 1 < set.count && (int)blockIdx.x >= set.first_block[which + 1]) which++;
  const product &p = set.p[which];
  item_tile tile = tile_of(p, ITEMS);
  int r = ((int)blockIdx.x - set.first_block[which]) * ROWS + (int)threadIdx.x, n_blocks = p.w.cols / QK_K;
  if (tile.count <= 0) return;
  const uint8_t *row =
      p.w.data + (size_t)tile.member * p.w.member_bytes + (size_t)min(r, p.w.rows - 1) * p.w.row_bytes;
  columns.at[threadIdx.x / WARP][threadIdx.x % WARP] = -1;
  __syncwarp();
  for (int i = 0; i < tile.count; i++) {
    int item = p.order ? p.order[tile.first + i] : tile.first + i;
    const block_outliers *o = p.in.outliers + (size_t)(item / p.input_divisor) * n_blocks;
    float z;
    bool any = outlier_sum(&z, &columns, p, row, o, n_blocks);
    if (r >= p.w.rows || (!any && !products)) continue;
    float *out = p.out + (size_t)(p.place ? p.place[item] : item) * p.w.rows + r;
    float y = products ? products[(size_t)item * p.w.rows + r] : *out;
    if (any) y = y + z;
    *out = products ? *out + y : y;
  }
}
static_assert(COLUMNS == WARP, "each lane empties one place of its warp's");

status product_outliers_launch(product_set *set, const float *products, cudaStream_t stream) {
  const product *p = &set->p[0];
  if (p->n_items <= 0) return 0;
  int blocks = 0;
  for (int i = 0; i < set->count; i++) {
    set->first_block[i] = blocks;
    blocks += ceil_div(set->p[i].w.rows, ROWS);
  }
  bool each_alone = p->member && !p->first;
  unsigned tiles = each_alone ? (unsigned)p->n_items : tile_count(p, ITEMS);
  return launch(add_outliers, dim3((unsigned)blocks, tiles), ROWS, 0, stream, *set, products);
}
