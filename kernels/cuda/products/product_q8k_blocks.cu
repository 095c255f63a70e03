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
#include "kernels/cuda/products/mma_q8k.cuh"
#include "kernels/cuda/products/product_q8k_blocks.cuh"
#include "kernels/cuda/weights_place.cuh"

#if !defined __CUDA_ARCH__ || __CUDA_ARCH__ >= 900
#define HAS_BULK_COPIES
#endif

static constexpr int WARPS = 16;
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
  uint64_t *landed; // by weights
  uint8_t *weights; // [rows][mma_row_pitch]
};

template <int ITEMS> static __host__ __device__ __forceinline__ size_t item_bytes(int n_blocks) {
  return (size_t)n_blocks * ITEMS * (PITCH + 16 + sizeof(float)) + 16;
}

template <int ITEMS> __device__ __forceinline__ blocks_memory lay_out(uint8_t *memory, int n_blocks) {
  int8_t *items = (int8_t *)memory, *sums = items + n_blocks * ITEMS * PITCH;
  uint8_t *weights = memory + item_bytes<ITEMS>(n_blocks);
  return {items,  (float *)memory, sums, (float *)(sums + n_blocks * ITEMS * 16), (uint64_t *)(weights - 16),
          weights};
}

// ---- to shared memory ----

// Starts the copy of whole rows; a ragged thread block repeats the last. To be called by all threads.
__device__ __forceinline__ void copy_weights(const weights_place &to, const product &p, int row0, int rows) {
  int bytes = (int)p.w.row_bytes, pitch = mma_row_pitch(p.w.row_bytes), lane = threadIdx.x % WARP;
  auto row = [&](int r) { return p.w.data + (size_t)min(row0 + r, p.w.rows - 1) * p.w.row_bytes; };
#ifdef HAS_BULK_COPIES
  if (threadIdx.x >= WARP) return;
  if (lane == 0) {
    mbarrier_init(to.landed, 1);
    fence_mbarrier_init();
    to.expect((uint32_t)(rows * bytes));
  }
  __syncwarp();
  for (int r = lane; r < rows; r += WARP) to.copy((uint32_t)(r * pitch), row(r), (uint32_t)bytes);
#else
  for (int r = threadIdx.x / WARP; r < rows; r += blockDim.x / WARP)
    for (int i = lane * 16; i < bytes; i += WARP * 16) copy_async_16(to.at + r * pitch + i, row(r) + i);
#endif
}

// Only those that there are: what the products make of the rest is not stored.
template <int ITEMS>
__device__ __forceinline__ void copy_items(const blocks_memory &m, const product &p, int first, int count,
                                           int n_blocks) {
  int lane = threadIdx.x % WARP;
  for (int i = threadIdx.x / WARP; i < count; i += blockDim.x / WARP) {
    size_t input = (size_t)((first + i) / p.input_divisor) * (size_t)n_blocks;
    for (int piece = lane; piece < n_blocks * 16; piece += WARP)
      copy_async_16(m.items + (piece / 16 * ITEMS + i) * PITCH + piece % 16 * 16,
                    p.in.qs + input * QK_K + piece * 16);
    if (lane < n_blocks) {
      copy_async_16(m.sums + (lane * ITEMS + i) * 16, p.in.sums32 + (input + (size_t)lane) * 16);
      copy_async_4(m.dx + lane * ITEMS + i, p.in.d + input + lane);
    }
  }
}
static_assert(WARPS <= WARP, "a lane a block");

// ---- the kernel ----

template <int ITEMS>
__device__ __forceinline__ void store_terms(const blocks_memory &m, const float (&term)[ITEMS / 8][4],
                                            int rows, int b, int row) {
  int lane = threadIdx.x % WARP, pitch = term_pitch(rows);
#pragma unroll
  for (int n = 0; n < ITEMS / 8; n++)
#pragma unroll
    for (int c = 0; c < 4; c++) {
      int item = n * 8 + lane % 4 * 2 + (c & 1), r = row + lane / 4 + c / 2 * 8;
      m.terms[(b * ITEMS + item) * pitch + r] = term[n][c];
    }
}

template <int ITEMS>
__device__ __forceinline__ void add_terms(const blocks_memory &m, const product &p, int row0, int rows,
                                          int first, int count, int n_blocks) {
  int pitch = term_pitch(rows);
  for (int i = threadIdx.x; i < rows * count; i += blockDim.x) {
    int r = i % rows, item = i / rows;
    if (row0 + r >= p.w.rows) continue;
    float y = 0;
    for (int b = 0; b < n_blocks; b++)
      y = num_fma_f32(m.dx[b * ITEMS + item], m.terms[(b * ITEMS + item) * pitch + r], y);
    float *out = p.out + output_of(p, first + item) + row0 + r;
    *out = p.adds ? *out + y : y;
  }
}

template <int ITEMS>
__global__ void __launch_bounds__(WARPS *WARP, ITEMS <= 16 ? 2 : 1)
    product_q8k_blocks(const __grid_constant__ product_set set) {
  extern __shared__ __align__(16) uint8_t memory[];
  int which = 0;
  while (which + 1 < set.count && (int)blockIdx.x >= set.first_block[which + 1]) which++;
  const product &p = set.p[which];
  int n_blocks = p.w.cols / QK_K, rows = rows_of(n_blocks);
  int row0 = ((int)blockIdx.x - set.first_block[which]) * rows;
  int first = (int)blockIdx.y * ITEMS, count = min(ITEMS, p.n_items - first);
  int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, b = warp % n_blocks;
  int row = warp / n_blocks * TILE, pitch = mma_row_pitch(p.w.row_bytes); // the warp's first
  blocks_memory m = lay_out<ITEMS>(memory, n_blocks);
  weights_place weights = {m.weights, m.landed, 0};
  float term[ITEMS / 8][4];
  copy_weights(weights, p, row0, rows);
  wait_for_inputs();
  copy_items<ITEMS>(m, p, first, count, n_blocks);
  copy_async_wait_all();
  __syncthreads();
#ifdef HAS_BULK_COPIES
  weights.wait();
#endif
  const mma_items items = {m.items + b * ITEMS * PITCH, PITCH, m.sums + b * ITEMS * 16, 16};
  FOR_Q8K_TYPE(p.w.type, block_terms<TYPE, ITEMS>(term, m.weights + (row + lane / 4) * pitch, pitch, b,
                                                  n_blocks, items))
  __syncthreads(); // all have used the items
  store_terms<ITEMS>(m, term, rows, b, row);
  __syncthreads();
  add_terms<ITEMS>(m, p, row0, rows, first, count, n_blocks);
}

// ---- the host's side ----

static int items_of(const product *p) {
  return p->n_items > 16 ? 32 : p->n_items > 8 ? 16 : 8;
}

static size_t shared_bytes(const product_set *set) {
  int n_blocks = set->p[0].w.cols / QK_K, items = items_of(&set->p[0]), pitch = 0;
  for (int i = 0; i < set->count; i++) pitch = max(pitch, mma_row_pitch(set->p[i].w.row_bytes));
  return (items == 8    ? item_bytes<8>(n_blocks)
          : items == 16 ? item_bytes<16>(n_blocks)
                        : item_bytes<32>(n_blocks)) +
         (size_t)(rows_of(n_blocks) * pitch);
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
  return row_blocks(&counted) * ceil_div(p->n_items, items_of(p)) <= 2 * device_multiprocessors();
}

template <int ITEMS> static status launch_blocks(product_set *set, cudaStream_t stream) {
  const product *p = &set->p[0];
  int n_blocks = p->w.cols / QK_K, threads = WARP * n_blocks * (rows_of(n_blocks) / TILE);
  dim3 grid((unsigned)row_blocks(set), (unsigned)ceil_div(p->n_items, ITEMS));
  return launch_shared(product_q8k_blocks<ITEMS>, grid, threads, shared_bytes(set), stream, *set);
}

status product_q8k_blocks_launch(product_set *set, cudaStream_t stream) {
  int items = items_of(&set->p[0]);
  return items == 8    ? launch_blocks<8>(set, stream)
         : items == 16 ? launch_blocks<16>(set, stream)
                       : launch_blocks<32>(set, stream);
}
