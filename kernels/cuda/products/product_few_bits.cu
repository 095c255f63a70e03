// product_few_bits: weights of few bits (formats/few_bits.h) times rounded activations, a kernel for all
// types of a kind: those in blocks of 256 times Q8_K, those in blocks of 32 times Q8_0 or Q8_1. A warp has a
// row for ITEMS items. Each lane unpacks 32 weights and multiplies them with every item's; then lane i takes
// the float steps of item i, block after block.
//
// Owns: the rounding to Q8_0 and Q8_1, which nothing but these products reads: a thread block rounds its
// items' rows itself. Invariant: the float steps are those of docs/paths.md; the integers are exact in any
// order.
#include "kernels/cuda/products/block_q8k.cuh"
#include "kernels/cuda/products/product.cuh"
#include "kernels/formats/few_bits.h"

static constexpr int WARPS = 8, THREADS = WARPS * WARP, ROWS = 4 /* a warp */;
static constexpr int PIECE = QK_32, PIECES = QK_K / PIECE; // weights of a lane; pieces of a block of 256

// The tile's items: those beyond its end repeat the first, and are not stored.
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

// Of one of an array in registers, which have no index.
template <int ITEMS> __device__ __forceinline__ int pick(const int (&of)[ITEMS], int which) {
  int found = of[0];
#pragma unroll
  for (int k = 1; k < ITEMS; k++) found = k == which ? of[k] : found;
  return found;
}

template <int ITEMS> struct warp_sums { // in shared memory: of each lane's piece, and a word that parts banks
  int isum[ITEMS][WARP + 1], msum[ITEMS][WARP + 1];
  float d[WARP], second[WARP];
};

struct lane_piece {
  int w[PIECE]; // scale * q, or q
  int min[2];   // of its halves
  block_factors f;
};

__device__ __forceinline__ int dot_piece(const lane_piece &w, const int8_t *x) {
  int sum = 0;
#pragma unroll
  for (int k = 0; k < PIECE; k++) sum += w.w[k] * x[k];
  return sum;
}

template <int ITEMS>
__device__ __forceinline__ void store(const product &p, const item_tile &tile, const tile_items<ITEMS> &at,
                                      int row, float y) {
  int lane = threadIdx.x % WARP;
  if (lane >= ITEMS || lane >= tile.count) return;
  float *out = p.out + output_of(p, pick(at.item, lane)) + row;
  *out = p.adds ? *out + y : y;
}

// The products of the warp's rows. piece(row, k): the lane's piece k of a row, into the warp's sums; chain(y,
// k, n): y of the lane's item after the float steps of n pieces from k on.
template <int ITEMS, typename Piece, typename Chain>
__device__ __forceinline__ void all_rows(const product &p, const item_tile &tile, const tile_items<ITEMS> &at,
                                         Piece piece, Chain chain) {
  int lane = threadIdx.x % WARP, n = p.w.cols / PIECE,
      first = (int)(blockIdx.x * WARPS + threadIdx.x / WARP) * ROWS;
  for (int row = first, end = min(first + ROWS, p.w.rows); row < end; row++) {
    const uint8_t *weights = p.w.data + (size_t)tile.member * p.w.member_bytes + (size_t)row * p.w.row_bytes;
    float y = 0;
    for (int start = 0; start < n; start += WARP) {
      if (start + lane < n) piece(weights, start + lane);
      __syncwarp();
      if (lane < ITEMS) y = chain(y, start, min(WARP, n - start));
      __syncwarp();
    }
    store<ITEMS>(p, tile, at, row, y);
  }
}

// ---- blocks of 256 ----

__device__ __forceinline__ lane_piece scaled_piece(weight_type type, const uint8_t *row, int piece) {
  lane_piece r = {};
  int b = piece / PIECES, from = piece % PIECES * PIECE;
#define SCALED_REAL(name, block)
#define SCALED_Q8K(name, block)
#define SCALED_BYTES(name, block)
#define SCALED_Q8_0(name, block)
#define SCALED_Q8_1(name, block)
#define SCALED_UNPACKED(name, block)                                                                         \
  case TYPE_##name: {                                                                                        \
    const block_##block *at = (const block_##block *)row + b;                                                \
    r.f = factors_##block(at);                                                                               \
    for (int k = 0; k < PIECE; k++) {                                                                        \
      weight_parts part = parts_##block(at, from + k);                                                       \
      r.w[k] = part.scale * part.q;                                                                          \
      r.min[k / 16] = part.min;                                                                              \
    }                                                                                                        \
    break;                                                                                                   \
  }
#define SCALED(name, number, block, elements, on_q8k) SCALED_##on_q8k(name, block)
  switch ((int)type) { WEIGHT_TYPES(SCALED) }
  return r;
}

template <int ITEMS> __global__ void __launch_bounds__(THREADS) product_unpacked(product p) {
  extern __shared__ __align__(16) uint8_t shared[];
  wait_for_inputs();
  item_tile tile = tile_of(p, ITEMS);
  if (tile.count <= 0) return;
  tile_items<ITEMS> at = items_of<ITEMS>(p, tile);
  int lane = threadIdx.x % WARP, n_blocks = p.w.cols / QK_K, mine = pick(at.input, lane < ITEMS ? lane : 0);
  warp_sums<ITEMS> *sums = (warp_sums<ITEMS> *)shared + threadIdx.x / WARP;
  all_rows<ITEMS>(
      p, tile, at,
      [&](const uint8_t *row, int piece) {
        lane_piece w = scaled_piece(p.w.type, row, piece);
        sums->d[lane] = w.f.d;
        sums->second[lane] = w.f.second;
#pragma unroll
        for (int i = 0; i < ITEMS; i++) {
          size_t input = (size_t)at.input[i] * p.w.cols;
          const int16_t *bsums = p.in.bsums + input / 16 + 2 * piece;
          sums->isum[i][lane] = dot_piece(w, p.in.qs + input + piece * PIECE);
          sums->msum[i][lane] = w.min[0] * bsums[0] + w.min[1] * bsums[1];
        }
      },
      [&](float y, int start, int n) {
        for (int k = 0; k < n; k += PIECES) {
          int isum = 0, msum = 0;
          for (int j = k; j < k + PIECES; j++) {
            isum += sums->isum[lane][j];
            msum += sums->msum[lane][j];
          }
          float dx = p.in.d[(size_t)mine * n_blocks + (start + k) / PIECES];
          y = num_fma_f32(dx, block_value(sums->d[k], sums->second[k], isum, msum), y);
        }
        return y;
      });
}

// ---- blocks of 32 ----

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
                                            bool splits) {
  int lane = threadIdx.x % WARP, n_blocks = p.w.cols / QK_32;
  for (int task = threadIdx.x / WARP; task < ITEMS * n_blocks; task += WARPS) {
    int i = task / n_blocks, b = task % n_blocks, element = b * QK_32 + lane, input = pick(at.input, i);
    float x = splits ? rest_at(p, input, element) : p.in.x[(size_t)input * p.w.cols + element];
    rounded_block r = round_32(x);
    item_memory to = memory_of(shared, i, p.w.cols);
    to.q[element] = (int8_t)r.q;
    if (lane) continue;
    to.d[b] = r.d;
    to.s[b] = r.s;
  }
}

__device__ __forceinline__ lane_piece plain_piece(weight_type type, const uint8_t *row, int b) {
  lane_piece r = {};
#define PLAIN_REAL(name, block)
#define PLAIN_Q8K(name, block)
#define PLAIN_UNPACKED(name, block)
#define PLAIN_BYTES(name, block)                                                                             \
  case TYPE_##name: {                                                                                        \
    const block_##block *at = (const block_##block *)row + b;                                                \
    r.f = factors_##block(at);                                                                               \
    for (int k = 0; k < PIECE; k++) r.w[k] = quant_##block(at, k);                                           \
    break;                                                                                                   \
  }
#define PLAIN_Q8_0                                           PLAIN_BYTES
#define PLAIN_Q8_1                                           PLAIN_BYTES
#define PLAIN_OF_KIND(name, number, block, elements, on_q8k) PLAIN_##on_q8k(name, block)
  switch ((int)type) { WEIGHT_TYPES(PLAIN_OF_KIND) }
  return r;
}

template <int ITEMS> __global__ void __launch_bounds__(THREADS) product_of_32(product p, bool splits) {
  extern __shared__ __align__(16) uint8_t shared[];
  wait_for_inputs();
  item_tile tile = tile_of(p, ITEMS);
  if (tile.count <= 0) return;
  tile_items<ITEMS> at = items_of<ITEMS>(p, tile);
  warp_sums<ITEMS> *sums = (warp_sums<ITEMS> *)shared + threadIdx.x / WARP;
  uint8_t *rounded = shared + WARPS * sizeof *sums;
  round_items<ITEMS>(rounded, p, at, splits);
  __syncthreads();
  int lane = threadIdx.x % WARP;
  item_memory mine = memory_of(rounded, lane < ITEMS ? lane : 0, p.w.cols);
  bool has_m = type_has_m(p.w.type);
  all_rows<ITEMS>(
      p, tile, at,
      [&](const uint8_t *row, int piece) {
        lane_piece w = plain_piece(p.w.type, row, piece);
        sums->d[lane] = w.f.d;
        sums->second[lane] = w.f.second;
#pragma unroll
        for (int i = 0; i < ITEMS; i++)
          sums->isum[i][lane] = dot_piece(w, memory_of(rounded, i, p.w.cols).q + piece * PIECE);
      },
      [&](float y, int start, int n) {
        for (int k = 0; k < n; k++) {
          if (has_m) y = num_fma_f32(sums->second[k], mine.s[start + k], y);
          y = num_fma_f32(sums->d[k] * mine.d[start + k], (float)sums->isum[lane][k], y);
        }
        return y;
      });
}

// ---- launches ----

static constexpr int MANY = 8; // items of a tile

static bool one_each(const product *p) {
  return (p->member && !p->first) || p->n_items == 1;
}

static dim3 grid_of(const product *p, int items) {
  return dim3((unsigned)ceil_div(p->w.rows, WARPS * ROWS), tile_count(p, items));
}

template <int ITEMS> static size_t bytes_of_sums() {
  return WARPS * sizeof(warp_sums<ITEMS>);
}

status product_unpacked_launch(const product *p, cudaStream_t stream) {
  if (one_each(p)) return launch(product_unpacked<1>, grid_of(p, 1), THREADS, bytes_of_sums<1>(), stream, *p);
  return launch(product_unpacked<MANY>, grid_of(p, MANY), THREADS, bytes_of_sums<MANY>(), stream, *p);
}

status product_q8_0_launch(const product *p, bool splits, cudaStream_t stream) {
  if (p->n_items <= 0) return 0;
  size_t each = bytes_of_item(p->w.cols), many = bytes_of_sums<MANY>() + MANY * each;
  if (!one_each(p) && many <= device_shared_bytes())
    return launch_shared(product_of_32<MANY>, grid_of(p, MANY), THREADS, many, stream, *p, splits);
  product alone = *p; // there are no tiles of one item
  alone.first = alone.order = nullptr;
  return launch_shared(product_of_32<1>, grid_of(&alone, 1), THREADS, bytes_of_sums<1>() + each, stream,
                       alone, splits);
}
