// product_few_bits: weights of few bits (formats/few_bits.h) times rounded activations, a kernel for all
// types of a kind: those in blocks of 256 times Q8_K, those in blocks of 32 times Q8_0 or Q8_1. A warp has a
// row for ITEMS items: each of its lanes unpacks its weights of a block once, multiplies them with every
// item's, and the sums of integers over the warp are exact in any order.
//
// Owns: the rounding to Q8_0 and Q8_1, which nothing but these products reads: a thread block rounds its
// items' rows itself. Invariant: the float steps are those of docs/paths.md.
#include "kernels/cuda/products/block_q8k.cuh"
#include "kernels/cuda/products/product.cuh"
#include "kernels/formats/few_bits.h"

static constexpr int WARPS = 8, THREADS = WARPS * WARP, ROWS = 4 /* a warp */;

// The item's places in the tile: those beyond its end repeat the first, and are not stored.
template <int ITEMS> struct tile_items { int item[ITEMS], input[ITEMS]; };

template <int ITEMS>
__device__ __forceinline__ tile_items<ITEMS> items_of(const product &p, const item_tile &tile) {
  tile_items<ITEMS> r;
#pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    int at = tile.first + (i < tile.count ? i : 0);
    r.item[i] = p.order ? p.order[at] : at;
    r.input[i] = r.item[i] / p.input_divisor;
  }
  return r;
}

template <int ITEMS>
__device__ __forceinline__ void store(const product &p, const item_tile &tile, const tile_items<ITEMS> &at,
                                      int row, const float y[ITEMS]) {
  int lane = threadIdx.x % WARP;
#pragma unroll
  for (int i = 0; i < ITEMS; i++) {
    if (lane != i || i >= tile.count) continue;
    float *out = p.out + output_of(p, at.item[i]) + row;
    *out = p.adds ? *out + y[i] : y[i];
  }
}

__device__ __forceinline__ int first_row() {
  return (int)(blockIdx.x * WARPS + threadIdx.x / WARP) * ROWS;
}

// ---- blocks of 256 ----

struct lane_weights { // eight neighbours of a block, with their scale
  int w[8], min;
  block_factors f;
};

__device__ __forceinline__ lane_weights weights_of(weight_type type, const uint8_t *row, int b, int lane) {
  lane_weights r = {};
#define LANE_WEIGHTS_REAL(name, block)
#define LANE_WEIGHTS_Q8K(name, block)
#define LANE_WEIGHTS_BYTES(name, block)
#define LANE_WEIGHTS_Q8_0(name, block)
#define LANE_WEIGHTS_Q8_1(name, block)
#define LANE_WEIGHTS_UNPACKED(name, block)                                                                   \
  case TYPE_##name: {                                                                                        \
    const block_##block *at = (const block_##block *)row + b;                                                \
    r.f = factors_##block(at);                                                                               \
    for (int k = 0; k < 8; k++) {                                                                            \
      weight_parts part = parts_##block(at, 8 * lane + k);                                                   \
      r.w[k] = part.scale * part.q;                                                                          \
      r.min = part.min;                                                                                      \
    }                                                                                                        \
    break;                                                                                                   \
  }
#define LANE_WEIGHTS(name, number, block, elements, on_q8k) LANE_WEIGHTS_##on_q8k(name, block)
  switch ((int)type) { WEIGHT_TYPES(LANE_WEIGHTS) }
  return r;
}

template <int ITEMS> __global__ void __launch_bounds__(THREADS) product_unpacked(product p) {
  wait_for_inputs();
  item_tile tile = tile_of(p, ITEMS);
  if (tile.count <= 0) return;
  tile_items<ITEMS> at = items_of<ITEMS>(p, tile);
  int lane = threadIdx.x % WARP, n_blocks = p.w.cols / QK_K;
  for (int row = first_row(), end = min(row + ROWS, p.w.rows); row < end; row++) {
    const uint8_t *weights = p.w.data + (size_t)tile.member * p.w.member_bytes + (size_t)row * p.w.row_bytes;
    float y[ITEMS] = {};
    for (int b = 0; b < n_blocks; b++) {
      lane_weights w = weights_of(p.w.type, weights, b, lane);
#pragma unroll
      for (int i = 0; i < ITEMS; i++) {
        size_t block = (size_t)at.input[i] * n_blocks + b;
        const int8_t *q = p.in.qs + block * QK_K + 8 * lane;
        int isum = 0, msum = lane % 2 ? 0 : w.min * p.in.bsums[block * 16 + lane / 2];
#pragma unroll
        for (int k = 0; k < 8; k++) isum += w.w[k] * q[k];
        y[i] =
            num_fma_f32(p.in.d[block], block_value(w.f.d, w.f.second, warp_sum(isum), warp_sum(msum)), y[i]);
      }
    }
    store<ITEMS>(p, tile, at, row, y);
  }
}

// ---- blocks of 32 ----

// What a row's rounding is of: the row; without its outliers; or what the rounding of that left over.
enum rounded_part { OF_ALL, OF_REST, OF_REMAINDER };

struct rounded_block { // a lane's element, and the block's scale and sum
  int q;
  float d, s;
};

__device__ __forceinline__ rounded_block round_32(float x) {
  uint32_t mine = fabsf(x) > 0 ? __float_as_uint(fabsf(x)) : 0; // a NaN is none
  float most = __uint_as_float(__reduce_max_sync(~0u, mine));
  float scale = most / 127.0f;
  rounded_block r;
  r.q = num_q8_0_round(num_q8_0_inverse_scale(most), x);
  r.d = half_to_f32(f32_to_half(scale));
  r.s = half_to_f32(f32_to_half((float)warp_sum(r.q) * scale));
  return r;
}

// Element i of an input row without the outliers of its block.
__device__ __forceinline__ float rest_at(const product &p, int input, int i) {
  const block_outliers *o = p.in.outliers + (size_t)input * (p.w.cols / QK_K) + i / QK_K;
  float x = p.in.x[(size_t)input * p.w.cols + i];
  for (int k = 0; k < o->count; k++)
    if (o->at[k] == i % QK_K) x = 0;
  return x;
}

struct item_memory { // of one item, in shared memory
  float *d, *s;      // [cols / 32]
  int8_t *q;         // [cols]
};

__device__ __forceinline__ item_memory memory_of(uint8_t *shared, int i, int cols) {
  int blocks = cols / QK_32;
  float *d = (float *)shared + (size_t)i * (2 * blocks + cols / 4);
  return {d, d + blocks, (int8_t *)(d + 2 * blocks)};
}

__host__ __device__ static inline size_t bytes_of_item(int cols) {
  return (size_t)cols + 2 * (size_t)(cols / QK_32) * sizeof(float);
}

template <int ITEMS>
__device__ __forceinline__ void round_items(uint8_t *shared, const product &p, const tile_items<ITEMS> &at,
                                            rounded_part part) {
  int lane = threadIdx.x % WARP, n_blocks = p.w.cols / QK_32;
  for (int task = threadIdx.x / WARP; task < ITEMS * n_blocks; task += WARPS) {
    int i = task / n_blocks, b = task % n_blocks, element = b * QK_32 + lane, input = 0;
#pragma unroll
    for (int k = 0; k < ITEMS; k++) input = k == i ? at.input[k] : input; // registers have no index
    float x = part == OF_ALL ? p.in.x[(size_t)input * p.w.cols + element] : rest_at(p, input, element);
    rounded_block r = round_32(x);
    if (part == OF_REMAINDER) r = round_32(num_fma_f32(-r.d, (float)r.q, x));
    item_memory to = memory_of(shared, i, p.w.cols);
    to.q[element] = (int8_t)r.q;
    if (lane) continue;
    to.d[b] = r.d;
    to.s[b] = r.s;
  }
}

struct lane_quant { // one weight of a block
  int q;
  block_factors f;
  bool has_m;
};

__device__ __forceinline__ lane_quant quant_of(weight_type type, const uint8_t *row, int b, int lane) {
  lane_quant r = {};
#define LANE_QUANT_REAL(name, block)
#define LANE_QUANT_Q8K(name, block)
#define LANE_QUANT_UNPACKED(name, block)
#define LANE_QUANT(name, block, m)                                                                           \
  case TYPE_##name: {                                                                                        \
    const block_##block *at = (const block_##block *)row + b;                                                \
    r.f = factors_##block(at);                                                                               \
    r.q = quant_##block(at, lane);                                                                           \
    r.has_m = m;                                                                                             \
    break;                                                                                                   \
  }
#define LANE_QUANT_BYTES(name, block)                      LANE_QUANT(name, block, false)
#define LANE_QUANT_Q8_0(name, block)                       LANE_QUANT(name, block, false)
#define LANE_QUANT_Q8_1(name, block)                       LANE_QUANT(name, block, true)
#define LANE_QUANTS(name, number, block, elements, on_q8k) LANE_QUANT_##on_q8k(name, block)
  switch ((int)type) { WEIGHT_TYPES(LANE_QUANTS) }
  return r;
}

template <int ITEMS> __global__ void __launch_bounds__(THREADS) product_of_32(product p, rounded_part part) {
  extern __shared__ __align__(16) uint8_t shared[];
  wait_for_inputs();
  item_tile tile = tile_of(p, ITEMS);
  if (tile.count <= 0) return;
  tile_items<ITEMS> at = items_of<ITEMS>(p, tile);
  round_items<ITEMS>(shared, p, at, part);
  __syncthreads();
  int lane = threadIdx.x % WARP, n_blocks = p.w.cols / QK_32;
  for (int row = first_row(), end = min(row + ROWS, p.w.rows); row < end; row++) {
    const uint8_t *weights = p.w.data + (size_t)tile.member * p.w.member_bytes + (size_t)row * p.w.row_bytes;
    float y[ITEMS] = {};
    for (int b = 0; b < n_blocks; b++) {
      lane_quant w = quant_of(p.w.type, weights, b, lane);
#pragma unroll
      for (int i = 0; i < ITEMS; i++) {
        item_memory x = memory_of(shared, i, p.w.cols);
        int isum = warp_sum(w.q * x.q[b * QK_32 + lane]);
        if (w.has_m) y[i] = num_fma_f32(w.f.second, x.s[b], y[i]);
        y[i] = num_fma_f32(w.f.d * x.d[b], (float)isum, y[i]);
      }
    }
    store<ITEMS>(p, tile, at, row, y);
  }
}

// ---- launches ----

static constexpr int MANY = 8; // items of a tile

static bool one_each(const product *p) {
  return (p->member && !p->first) || p->n_items == 1;
}

static dim3 grid_of(const product *p, int items) {
  return dim3((unsigned)ceil_div(p->w.rows, WARPS * ROWS), tile_count(p, items));
}

status product_unpacked_launch(const product *p, cudaStream_t stream) {
  if (one_each(p)) return launch(product_unpacked<1>, grid_of(p, 1), THREADS, 0, stream, *p);
  return launch(product_unpacked<MANY>, grid_of(p, MANY), THREADS, 0, stream, *p);
}

static status of_part(const product *p, rounded_part part, cudaStream_t stream) {
  size_t each = bytes_of_item(p->w.cols);
  if (one_each(p) || MANY * each > device_shared_bytes())
    return launch_shared(product_of_32<1>, grid_of(p, 1), THREADS, each, stream, *p, part);
  return launch_shared(product_of_32<MANY>, grid_of(p, MANY), THREADS, MANY * each, stream, *p, part);
}

status product_q8_0_launch(const product *p, bool splits, cudaStream_t stream) {
  if (p->n_items <= 0) return 0;
  TRY(of_part(p, splits ? OF_REST : OF_ALL, stream));
  if (!splits || !p->in.remainder.qs) return 0;
  product rest = *p;
  rest.adds = true;
  return of_part(&rest, OF_REMAINDER, stream);
}
