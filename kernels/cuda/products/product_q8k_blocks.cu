// product_q8k_blocks: K-quant weights times up to 64 Q8_K activations, the bits of product_q8k.cu's kernels.
//
// A row's blocks of 256 are multiplied at the same time, each by a warp of its own that takes 16 rows and all
// items of the thread block on the tensor cores; when all terms are there, they are added in ascending order,
// as docs/paths.md has it. The kernels of many items take one block after the other: with 32 items a matrix
// of 2,048 rows is 16 of their tiles, and 16 multiprocessors go through 16 blocks while the others wait. Here
// it is 128 thread blocks of one step. Weights, which do not depend on the launch before, are on their way
// before it has ended.
//
// One H200, model full, decoding 8 and 32 sequences, with these and without (trees e9d89c9 and main before
// it, n = 3): 1,070 (1,030 to 1,072) and 968 (945 to 968) tokens/s; 3,135 (3,047 to 3,143) and 2,971 (2,925
// to 2,973).
#include "kernels/cuda/products/product_q8k_blocks.cuh"
#include "kernels/cuda/products/wgmma_rows.cuh"

static constexpr int WARPS = 16, THREADS = WARPS * WARP;
static constexpr int TILE = 16, MOST_TILES = 4; // rows of a warp; such tiles of a thread block
static constexpr int PITCH = QK_K + 16; // of an item's block: the 8 rows of a load fall into different banks
static constexpr int MOST_ITEMS = 64;

// Rows of a thread block: of as many tiles as it has warps for.
static __host__ __device__ __forceinline__ int rows_of(int n_blocks) {
  int tiles = WARPS / n_blocks;
  return TILE * (tiles < MOST_TILES ? tiles : MOST_TILES);
}

// Terms lie [block][item][term_pitch], where the items' blocks were before.
static __host__ __device__ __forceinline__ int term_pitch(int rows) {
  return rows + 4; // a warp's stores fall into different banks
}
static_assert((TILE * MOST_TILES + 4) * sizeof(float) <= PITCH, "terms take no more than items");

struct blocks_memory {
  int8_t *items;    // [n_blocks][ITEMS][PITCH]
  float *terms;     // the same memory
  int8_t *sums;     // [n_blocks][ITEMS][16], as dev_inputs::sums32
  float *dx;        // [n_blocks][ITEMS]
  uint8_t *weights; // [n_blocks][rows][wgmma_shape::BYTES]
};

template <int ITEMS> static __host__ __device__ __forceinline__ size_t item_bytes(int n_blocks) {
  return (size_t)n_blocks * ITEMS * (PITCH + 16 + sizeof(float));
}

template <int ITEMS> __device__ __forceinline__ blocks_memory lay_out(uint8_t *memory, int n_blocks) {
  int8_t *items = (int8_t *)memory, *sums = items + n_blocks * ITEMS * PITCH;
  return {items, (float *)memory, sums, (float *)(sums + n_blocks * ITEMS * 16),
          memory + item_bytes<ITEMS>(n_blocks)};
}

// ---- to shared memory ----

template <weight_type TYPE>
__device__ __forceinline__ void copy_weights(uint8_t *to, const product &p, int row0, int rows,
                                             int n_blocks) {
  constexpr bool q6 = TYPE == TYPE_Q6_K;
  constexpr int BYTES = wgmma_shape<TYPE>::BYTES, PIECES = q6 ? 13 : BYTES / 16;
  auto row = [&](int r) { return p.w.data + (size_t)min(row0 + r, p.w.rows - 1) * p.w.row_bytes; };
  auto place = [&](int r, int b) { return to + (size_t)(b * rows + r) * BYTES; };
  for (int i = threadIdx.x; i < rows * n_blocks * PIECES; i += THREADS) {
    int piece = i % PIECES, b = i / PIECES % n_blocks, r = i / PIECES / n_blocks;
    if constexpr (q6) { // planes (planes_q6k.cuh)
      int from = piece < 8    ? b * 128 + piece * 16
                 : piece < 12 ? n_blocks * 128 + b * 64 + (piece - 8) * 16
                              : n_blocks * 192 + b * 16;
      copy_async_16(place(r, b) + piece * 16, row(r) + from);
    } else {
      copy_async_16(place(r, b) + piece * 16, row(r) + (b * PIECES + piece) * 16);
    }
  }
  if constexpr (q6)
    for (int i = threadIdx.x; i < rows * n_blocks; i += THREADS) { // and its neighbour's
      int b = i % n_blocks, r = i / n_blocks;
      copy_async_4(place(r, b) + Q6_D, row(r) + n_blocks * 208 + b / 2 * 4);
    }
}
static_assert(Q6_HIGH == 8 * 16 && Q6_SCALES == 12 * 16, "pieces lie as the planes follow each other");

// Items beyond the last repeat it; their results are not stored.
template <int ITEMS>
__device__ __forceinline__ void copy_items(const blocks_memory &m, const product &p, int first, int count,
                                           int n_blocks) {
  auto input = [&](int i) {
    return (size_t)((first + min(i, count - 1)) / p.input_divisor) * (size_t)n_blocks;
  };
  for (int i = threadIdx.x; i < ITEMS * n_blocks * 16; i += THREADS) {
    int piece = i % 16, b = i / 16 % n_blocks, item = i / 16 / n_blocks;
    copy_async_16(m.items + (b * ITEMS + item) * PITCH + piece * 16,
                  p.in.qs + (input(item) + (size_t)b) * QK_K + piece * 16);
  }
  for (int i = threadIdx.x; i < ITEMS * n_blocks; i += THREADS) {
    int b = i % n_blocks, item = i / n_blocks;
    copy_async_16(m.sums + (b * ITEMS + item) * 16, p.in.sums32 + (input(item) + (size_t)b) * 16);
    copy_async_4(m.dx + b * ITEMS + item, p.in.d + input(item) + b);
  }
}

// ---- a warp's block ----

// What the float step needs of a row: scales, and four of the eight minimums on the first two lanes of four.
template <weight_type TYPE> struct row_scales {
  float d, dmin;
  uint32_t min;

  __device__ __forceinline__ void load(const uint8_t *row, int b, int part) {
    dmin = 0;
    min = 0;
    if constexpr (TYPE == TYPE_Q6_K) {
      d = half_bits_to_f32(*(const uint16_t *)(row + Q6_D + b % 2 * 2));
    } else {
      uint4 head = *(const uint4 *)row;
      scales_and_mins s = block_scales_and_mins(head.y, head.z, head.w);
      d = half_bits_to_f32((uint16_t)(head.x & 0xffffu));
      dmin = half_bits_to_f32((uint16_t)(head.x >> 16));
      if (part < 2) min = part ? s.min[1] : s.min[0];
    }
  }
};

// The terms of 16 rows and ITEMS items, without dx. weights, items, sums: the block's.
template <weight_type TYPE, int ITEMS>
__device__ __forceinline__ void block_terms(float (&term)[ITEMS / 8][4], const uint8_t *weights,
                                            const int8_t *items, const int8_t *sums, int b) {
  constexpr int BYTES = wgmma_shape<TYPE>::BYTES;
  int lane = threadIdx.x % WARP, part = lane % 4;
  const uint8_t *row[2] = {weights + lane / 4 * BYTES, weights + (lane / 4 + 8) * BYTES};
  const int8_t *at = items + (lane / 16 * 8 + lane % 8) * PITCH + lane / 8 % 2 * 16;
  int low[ITEMS / 8][4] = {}, high[ITEMS / 8][4] = {};
  wgmma_rows<TYPE> rows;
  rows.start(row[0], row[1], part);
#pragma unroll
  for (int s = 0; s < 8; s++) {
    uint32_t a_low[4], a_high[4];
    rows.low(s, a_low);
    rows.high(s, a_high);
#pragma unroll
    for (int n = 0; n < ITEMS / 8; n += 2) {
      uint32_t in[4];
      ldmatrix_x4(in, at + n * 8 * PITCH + 32 * s);
#pragma unroll
      for (int i = 0; i < 2; i++) {
        mma_k32_unsigned(low[n + i], a_low, in[2 * i], in[2 * i + 1]);
        if constexpr (wgmma_shape<TYPE>::HIGH_IS_SIGNED)
          mma_k32(high[n + i], a_high, in[2 * i], in[2 * i + 1]);
        else
          mma_k32_unsigned(high[n + i], a_high, in[2 * i], in[2 * i + 1]);
      }
    }
  }
  row_scales<TYPE> scales[2];
  scales[0].load(row[0], b, part);
  scales[1].load(row[1], b, part);
  const uint32_t min[2] = {scales[0].min, scales[1].min}; // 8 of 16 that mma_k16 takes
#pragma unroll
  for (int n = 0; n < ITEMS / 8; n++) {
    int min_low[4] = {}, min_high[4] = {};
    if constexpr (TYPE != TYPE_Q6_K) {
      const int8_t *sum = sums + (n * 8 + lane / 4) * 16 + part * 4;
      mma_k16(min_low, min, part < 2 ? *(const uint32_t *)sum : 0);
      mma_k16(min_high, min, part < 2 ? *(const uint32_t *)(sum + 8) : 0);
    }
#pragma unroll
    for (int c = 0; c < 4; c++)
      term[n][c] =
          block_value(scales[c / 2].d, scales[c / 2].dmin, low[n][c] + high[n][c] * wgmma_shape<TYPE>::SPLIT,
                      min_low[c] + (min_high[c] << 7));
  }
}

// ---- the kernel ----

template <int ITEMS>
__device__ __forceinline__ void add_terms(const blocks_memory &m, const product &p, int row0, int rows,
                                          int first, int count, int n_blocks) {
  int pitch = term_pitch(rows);
  for (int i = threadIdx.x; i < rows * count; i += THREADS) {
    int r = i % rows, item = i / rows;
    if (row0 + r >= p.w.rows) continue;
    float y = 0;
    for (int b = 0; b < n_blocks; b++)
      y = num_fma_f32(m.dx[b * ITEMS + item], m.terms[(b * ITEMS + item) * pitch + r], y);
    float *out = p.out + output_of(p, first + item) + row0 + r;
    *out = p.adds ? *out + y : y;
  }
}

template <weight_type TYPE, int ITEMS>
__device__ __forceinline__ void some_items(uint8_t *memory, const product &p, int index) {
  int n_blocks = p.w.cols / QK_K, rows = rows_of(n_blocks), row0 = index * rows;
  int first = (int)blockIdx.y * ITEMS, count = min(ITEMS, p.n_items - first);
  int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, b = warp % n_blocks, tile = warp / n_blocks;
  bool has_block = tile * TILE < rows;
  blocks_memory m = lay_out<ITEMS>(memory, n_blocks);
  float term[ITEMS / 8][4];
  copy_weights<TYPE>(m.weights, p, row0, rows, n_blocks);
  wait_for_inputs();
  copy_items<ITEMS>(m, p, first, count, n_blocks);
  copy_async_wait_all();
  __syncthreads();
  if (has_block)
    block_terms<TYPE, ITEMS>(term, m.weights + (size_t)(b * rows + tile * TILE) * wgmma_shape<TYPE>::BYTES,
                             m.items + b * ITEMS * PITCH, m.sums + b * ITEMS * 16, b);
  __syncthreads(); // all have used the items
  for (int n = 0; n < ITEMS / 8 && has_block; n++)
    for (int c = 0; c < 4; c++) {
      int item = n * 8 + lane % 4 * 2 + (c & 1), r = tile * TILE + lane / 4 + c / 2 * 8;
      m.terms[(b * ITEMS + item) * term_pitch(rows) + r] = term[n][c];
    }
  __syncthreads();
  add_terms<ITEMS>(m, p, row0, rows, first, count, n_blocks);
}

template <int ITEMS>
__global__ void __launch_bounds__(THREADS, ITEMS == 16 ? 2 : 1)
    product_q8k_blocks(const __grid_constant__ product_set set) {
  extern __shared__ __align__(16) uint8_t memory[];
  int which = 0;
  while (which + 1 < set.count && (int)blockIdx.x >= set.first_block[which + 1]) which++;
  const product &p = set.p[which];
  int index = (int)blockIdx.x - set.first_block[which];
  FOR_Q8K_TYPE(p.w.type, some_items<TYPE, ITEMS>(memory, p, index))
}

// ---- the host's side ----

static int items_of(const product *p) {
  return p->n_items > 16 ? 32 : 16;
}

static size_t shared_bytes(const product_set *set) {
  int n_blocks = set->p[0].w.cols / QK_K, widest = 0;
  for (int i = 0; i < set->count; i++)
    FOR_Q8K_TYPE(set->p[i].w.type, widest = max(widest, (int)wgmma_shape<TYPE>::BYTES))
  return (items_of(&set->p[0]) == 16 ? item_bytes<16>(n_blocks) : item_bytes<32>(n_blocks)) +
         (size_t)(n_blocks * rows_of(n_blocks) * widest);
}

static int row_blocks(product_set *set) {
  int blocks = 0;
  for (int i = 0; i < set->count; i++) {
    set->first_block[i] = blocks;
    blocks += ceil_div(set->p[i].w.rows, rows_of(set->p[i].w.cols / QK_K));
  }
  return blocks;
}

// Where two rounds of thread blocks do it: larger matrices keep every multiprocessor busy with large tiles,
// which read each item from the L2 cache less often.
bool product_q8k_blocks_serves(const product_set *set) {
  const product *p = &set->p[0];
  product_set counted = *set;
  if (p->member || p->n_items > MOST_ITEMS || p->w.cols / QK_K > WARPS) return false;
  if (shared_bytes(set) > device_shared_bytes()) return false;
  int each = ceil_div(p->n_items, items_of(p));
  return row_blocks(&counted) * each <= 2 * device_multiprocessors();
}

status product_q8k_blocks_launch(product_set *set, cudaStream_t stream) {
  const product *p = &set->p[0];
  int items = items_of(p);
  dim3 grid((unsigned)row_blocks(set), (unsigned)ceil_div(p->n_items, items));
  return launch_shared(items == 16 ? product_q8k_blocks<16> : product_q8k_blocks<32>, grid, THREADS,
                       shared_bytes(set), stream, *set);
}
