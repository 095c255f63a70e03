// product_f32: weights of any type times f32 activations, in the order of docs/paths.md; which kernel takes
// what. Here also the kernel that takes all: a warp with ROWS rows for ITEMS items, of any type and width.
// Lane l of the warp is lane l of sum32, so each lane's chain is the definition's and the tree is five
// shuffles.
#include "kernels/cuda/products/product_f32.cuh"
#include "kernels/cuda/weight_at.cuh"

template <int ROWS, int ITEMS>
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
template <int ROWS, int ITEMS, int AHEAD>
__device__ __forceinline__ void sum_floats(float sum[ROWS][ITEMS], const product &p, const uint8_t *rows,
                                           int row0, const float *const x[ITEMS], int lane) {
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

// FLOATS: F32 in rows of a multiple of 256
enum weight_kind { FLOATS, ELEMENTS };

template <int ROWS, int ITEMS, weight_kind KIND>
__global__ void __launch_bounds__(256) product_f32_rows(product p) {
  wait_for_inputs();
  item_tile tile = tile_of(p, ITEMS);
  if (tile.count <= 0) return;
  int lane = threadIdx.x % WARP, row0 = (int)(blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP) * ROWS;
  if (row0 >= p.w.rows) return;
  const uint8_t *rows = p.w.data + (size_t)tile.member * p.w.member_bytes;
  const float *x[ITEMS];
  int item[ITEMS];
#pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    int at = tile.first + (i < tile.count ? i : 0);
    item[i] = p.order ? p.order[at] : at;
    x[i] = p.in.x + (size_t)(item[i] / p.input_divisor) * p.w.cols;
  }
  float sum[ROWS][ITEMS] = {};
  if (KIND == FLOATS)
    sum_floats<ROWS, ITEMS, (ITEMS > 4 ? 4 : 8)>(sum, p, rows, row0, x, lane);
  else
    sum_elements<ROWS, ITEMS>(sum, p, rows, row0, x, lane);
#pragma unroll
  for (int i = 0; i < ITEMS; i++)
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
      float y = warp_tree(sum[r][i]);
      if (lane != r || i >= tile.count || row0 + r >= p.w.rows) continue;
      float *out = p.out + output_of(p, item[i]) + row0 + r;
      *out = p.adds ? *out + y : y;
    }
}

template <int WARPS, int ROWS, int ITEMS, weight_kind KIND>
static status launch_kind(const product *p, cudaStream_t stream) {
  dim3 grid((unsigned)ceil_div(p->w.rows, WARPS * ROWS), tile_count(p, ITEMS));
  return launch(product_f32_rows<ROWS, ITEMS, KIND>, grid, WARPS * WARP, 0, stream, *p);
}

template <int WARPS, int ROWS, int ITEMS> static status launch_rows(const product *p, cudaStream_t stream) {
  if (p->w.type == TYPE_F32 && has_blocks(p)) return launch_kind<WARPS, ROWS, ITEMS, FLOATS>(p, stream);
  return launch_kind<WARPS, ROWS, ITEMS, ELEMENTS>(p, stream);
}

// A router's rows are few: for up to so many items a warp a row, whose loads are all in flight at once, is
// faster than tiles (128 x 2,048 on an H100: 10 us for 64 items; tiles take 23 for 64 and for 128).
static constexpr int FEW_ITEMS = 64;

// Of rows of a multiple of 1,024 floats, which is 32 a lane. The first are there when the launch before has
// ended, since it writes no weights.
template <int ITEMS> __global__ void __launch_bounds__(64) product_f32_long(product p) {
  constexpr int AHEAD = 1024 / WARP;
  int lane = threadIdx.x % WARP, row = (int)(blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP);
  const float *w = (const float *)(p.w.data + (size_t)min(row, p.w.rows - 1) * p.w.row_bytes) + lane;
  float next[AHEAD], sum[ITEMS] = {};
#pragma unroll
  for (int s = 0; s < AHEAD; s++) next[s] = w[s * WARP];
  wait_for_inputs();
  int first = (int)blockIdx.y * ITEMS;
  const float *x[ITEMS];
#pragma unroll
  for (int i = 0; i < ITEMS; i++)
    x[i] = p.in.x + (size_t)(min(first + i, p.n_items - 1) / p.input_divisor) * p.w.cols + lane;
  for (int k = 0; k < p.w.cols; k += 1024) {
    float a[AHEAD], v[ITEMS][AHEAD];
#pragma unroll
    for (int s = 0; s < AHEAD; s++) {
      a[s] = next[s];
#pragma unroll
      for (int i = 0; i < ITEMS; i++) v[i][s] = x[i][k + s * WARP];
    }
    if (k + 1024 < p.w.cols) {
#pragma unroll
      for (int s = 0; s < AHEAD; s++) next[s] = w[k + 1024 + s * WARP];
    }
#pragma unroll
    for (int s = 0; s < AHEAD; s++)
#pragma unroll
      for (int i = 0; i < ITEMS; i++) sum[i] = num_fma_f32(a[s], v[i][s], sum[i]);
  }
#pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    float y = warp_tree(sum[i]);
    if (lane != i || first + i >= p.n_items || row >= p.w.rows) continue;
    float *out = p.out + output_of(p, first + i) + row;
    *out = p.adds ? *out + y : y;
  }
}

template <int ITEMS> static status launch_long(const product *p, cudaStream_t stream) {
  dim3 grid((unsigned)ceil_div(p->w.rows, 2), (unsigned)ceil_div(p->n_items, ITEMS));
  return launch(product_f32_long<ITEMS>, grid, 2 * WARP, 0, stream, *p);
}

static status launch_few_floats(const product *p, cudaStream_t stream) {
  bool is_long = p->w.cols % 1024 == 0;
  if (p->n_items == 1) return is_long ? launch_long<1>(p, stream) : launch_rows<2, 1, 1>(p, stream);
  return is_long ? launch_long<2>(p, stream) : launch_rows<2, 2, 2>(p, stream);
}

status product_f32_launch(const product *p, cudaStream_t stream) {
  if (p->n_items <= 0) return 0;
  bool each_alone = p->member && !p->first;
  if (product_f32_one_fits(p)) return product_f32_one_launch(p, stream);
  if (p->w.type == TYPE_F32 && !p->member && p->n_items <= FEW_ITEMS) return launch_few_floats(p, stream);
  if (each_alone || p->n_items == 1) return launch_rows<8, 4, 1>(p, stream);
  if (product_f32_tiles_fits(p)) return product_f32_tiles_launch(p, stream);
  if (!p->first && p->n_items <= 4) return launch_rows<8, 4, 4>(p, stream);
  return launch_rows<8, 4, 8>(p, stream);
}
