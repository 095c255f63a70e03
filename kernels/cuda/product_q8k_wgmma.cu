// product_q8k_wgmma: K-quant weights times many Q8_K activations on Hopper's tensor cores, the bits of
// product_q8k.cu's kernels.
//
// A thread block stays on its multiprocessor and takes tiles of 128 rows and up to 128 items. One warpgroup
// copies blocks of 256 ahead into shared memory; two multiply, each 64 rows that it unpacks in registers
// (wgmma_rows.cuh), so a weight is unpacked once for 128 items and while the tensor cores work. One's float
// step, after each block, runs beside the other's products.
#include "kernels/cuda/product_q8k_wgmma.cuh"

#ifdef __CUDACC__
#include "kernels/cuda/instructions_hopper.cuh"
#include "kernels/cuda/wgmma_rows.cuh"

static constexpr int ROWS = 128, ITEMS = 128, GROUP = 128; // of a tile, twice; threads of a warpgroup
static constexpr int THREADS = 3 * GROUP;
static constexpr int LOADER_REGISTERS = 40, MULTIPLIER_REGISTERS = 232; // 40 + 2 * 232 = 504 of 512
static constexpr int MAX_MEMBERS = 256;
static constexpr int SHARED_BYTES = 227 * 1024; // that a thread block of sm_90 can have

struct tile_work { // what the multipliers must know of a tile
  int64_t out[ITEMS]; // begin of each item's results
  int count, row0, which;
};

template <weight_type TYPE> struct wgmma_memory {
  static constexpr int STAGES = TYPE == TYPE_Q4_K ? 4 : 3; // what fits
  static constexpr int WORKS = STAGES + 2; // the loaders write a tile's while the last STAGES blocks, maybe as
                                           // many tiles, are in work and one before stores its results
  int8_t items[STAGES][2][ITEMS][128];     // see wgmma_items
  uint8_t weights[STAGES][ROWS][wgmma_shape<TYPE>::BYTES];
  uint16_t sums[TYPE == TYPE_Q6_K ? 1 : STAGES][ITEMS][16]; // halves; those of lane part p: 2p, 2p+1, 2p+8, 2p+9
  float dx[STAGES][ITEMS];
  uint64_t full[STAGES], empty[STAGES];
  tile_work work[WORKS];
  int item[ITEMS];                  // input rows of the tile that is loaded
  int first_tile[MAX_MEMBERS + 1]; // of each member, in tiles of ITEMS
};
static_assert(sizeof(wgmma_memory<TYPE_Q4_K>) <= SHARED_BYTES);
static_assert(sizeof(wgmma_memory<TYPE_Q5_K>) <= SHARED_BYTES);
static_assert(sizeof(wgmma_memory<TYPE_Q6_K>) <= SHARED_BYTES);

// Items that are multiplied for a tile of so many: what wgmma_k32 has.
__device__ __forceinline__ int width_of(int count) {
  return (count + 31) / 32 * 32;
}

// Where a thread block is: the ring's stage, and how often it went round.
template <int STAGES> struct ring {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void next() {
    if (++stage == STAGES) {
      stage = 0;
      parity ^= 1;
    }
  }
};

// ---- which tiles there are ----

// One warp: first_tile of all members.
__device__ void number_tiles(int *first_tile, const product &p) {
  int lane = threadIdx.x % WARP, before = 0;
  for (int base = 0; base < p.n_members; base += WARP) {
    int m = base + lane;
    int own = m < p.n_members ? (p.first[m + 1] - p.first[m] + ITEMS - 1) / ITEMS : 0, sum = own;
    for (int step = 1; step < WARP; step *= 2) {
      int other = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += other;
    }
    if (m < p.n_members) first_tile[m] = before + sum - own;
    before += __shfl_sync(~0u, sum, WARP - 1);
  }
  if (lane == 0) first_tile[p.n_members] = before;
}

__device__ __forceinline__ item_tile tile_of(const product &p, const int *first_tile, int index) {
  if (!p.first) return {0, index * ITEMS, min(p.n_items - index * ITEMS, ITEMS)};
  int low = 0, high = p.n_members; // the last member whose first tile is at or before `index`
  while (high - low > 1) {
    int middle = (low + high) / 2;
    if (first_tile[middle] <= index)
      low = middle;
    else
      high = middle;
  }
  int begin = p.first[low] + (index - first_tile[low]) * ITEMS;
  return {low, begin, min(p.first[low + 1] - begin, ITEMS)};
}

// ---- the loaders ----

// Starts the copy of block b of the tile's rows: 16 bytes at a time, those of a row by neighbours. A ragged
// tile repeats its last row.
template <weight_type TYPE>
__device__ __forceinline__ void copy_rows(uint8_t (*to)[wgmma_shape<TYPE>::BYTES], const dev_matrix &w,
                                          const uint8_t *rows, int row0, int n_blocks, int b, int t) {
  constexpr bool q6 = TYPE == TYPE_Q6_K;
  constexpr int head = TYPE == TYPE_Q4_K ? 16 : 48;
  size_t block = q6 ? (size_t)b * 128 : (size_t)b * sizeof(block_q4_K) + head;
  if (TYPE == TYPE_Q5_K) block = (size_t)b * sizeof(block_q5_K) + head;
#pragma unroll 4
  for (int r = t / 8; r < ROWS; r += GROUP / 8)
    copy16_async(&to[r][(q6 ? 0 : head) + t % 8 * 16],
                 rows + (size_t)min(row0 + r, w.rows - 1) * w.row_bytes + block + t % 8 * 16);
  const uint8_t *row = rows + (size_t)min(row0 + t, w.rows - 1) * w.row_bytes;
  if constexpr (q6) {
#pragma unroll
    for (int r = t / 4; r < ROWS; r += GROUP / 4)
      copy16_async(&to[r][Q6_HIGH + t % 4 * 16], rows + (size_t)min(row0 + r, w.rows - 1) * w.row_bytes +
                                                     (size_t)n_blocks * 128 + b * 64 + t % 4 * 16);
    copy16_async(&to[t][Q6_SCALES], row + (size_t)n_blocks * 192 + b * 16);
    copy4_async(&to[t][Q6_D], row + (size_t)n_blocks * 208 + b / 2 * 4); // and its neighbour's
  } else {
#pragma unroll
    for (int i = 0; i < head; i += 16) copy16_async(&to[t][i], row + block - head + i);
  }
}

// Starts the copy of block b of `width` items.
__device__ __forceinline__ void copy_items(int8_t (*to)[ITEMS][128], const int *item, const dev_inputs &in,
                                           int width, int n_blocks, int b, int t) {
  int piece = t % 16, first = t / 16; // first: an item's place among 8
  int8_t *at = &to[piece / 8][first][((piece ^ first) & 7) * 16];
  const int8_t *from = in.qs + (size_t)b * QK_K + piece * 16;
#pragma unroll 4
  for (int i = first; i < width; i += 8, at += 8 * 128)
    copy16_async(at, from + (size_t)item[i] * n_blocks * QK_K);
}

// Two sums as halves: exact up to 2,048, and they are at most 16 * 127.
__device__ __forceinline__ uint32_t two_halves(int sums) {
  __half2 v = __floats2half2_rn((float)(int16_t)sums, (float)(sums >> 16));
  return *(uint32_t *)&v;
}

__device__ __forceinline__ void store_sums(uint16_t *to, const int4 *sums) {
  int4 a = sums[0], b = sums[1];
  ((uint4 *)to)[0] = make_uint4(two_halves(a.x), two_halves(b.x), two_halves(a.y), two_halves(b.y));
  ((uint4 *)to)[1] = make_uint4(two_halves(a.z), two_halves(b.z), two_halves(a.w), two_halves(b.w));
}

// Puts down what tile `index` is; p: its product.
__device__ __forceinline__ item_tile begin_tile(tile_work *work, int *item, const int *first_tile,
                                                const product &p, int which, int index, int row0, int t) {
  item_tile tile = tile_of(p, first_tile, index);
  meet_some<GROUP>(1); // all have used the last tile's items
  int at = tile.begin + min(t, tile.count - 1), own = p.order ? p.order[at] : at; // the last one repeated
  item[t] = own / p.input_divisor;
  work->out[t] = (p.place ? p.place[own] : own) * p.w.rows;
  if (t == 0) {
    work->count = tile.count;
    work->row0 = row0;
    work->which = which;
  }
  meet_some<GROUP>(1);
  return tile;
}

template <weight_type TYPE>
__device__ __forceinline__ void load_tiles_of(wgmma_memory<TYPE> *m, const product_set &set, int row_tiles,
                                              int n_tiles, int n_blocks) {
  int t = threadIdx.x % GROUP, number = 0;
  ring<wgmma_memory<TYPE>::STAGES> at;
#pragma unroll 1
  for (int index = blockIdx.x; index < n_tiles; index += gridDim.x) {
    int which = 0, row_tile = index % row_tiles;
    while (which + 1 < set.count && row_tile >= set.begin[which + 1]) which++;
    const product &p = set.p[which];
    int row0 = (row_tile - set.begin[which]) * ROWS;
    item_tile tile = begin_tile(&m->work[number], m->item, m->first_tile, p, which, index / row_tiles, row0, t);
    number = number + 1 == wgmma_memory<TYPE>::WORKS ? 0 : number + 1;
    int width = width_of(tile.count);
    const uint8_t *rows = p.w.data + (size_t)tile.member * p.w.member_bytes;
#pragma unroll 1
    for (int b = 0; b < n_blocks; b++, at.next()) {
      size_t own = (size_t)m->item[t] * n_blocks + b;
      int4 sums[2];
      if constexpr (TYPE != TYPE_Q6_K) {
        sums[0] = ((const int4 *)(p.in.bsums + own * 16))[0];
        sums[1] = ((const int4 *)(p.in.bsums + own * 16))[1];
      }
      barrier_wait(&m->empty[at.stage], at.parity ^ 1);
      copy_rows<TYPE>(m->weights[at.stage], p.w, rows, row0, n_blocks, b, t);
      copy_items(m->items[at.stage], m->item, p.in, width, n_blocks, b, t);
      copy4_async(&m->dx[at.stage][t], p.in.d + own);
      barrier_arrive_after_copies(&m->full[at.stage]);
      if constexpr (TYPE != TYPE_Q6_K) store_sums(m->sums[at.stage][t], sums);
      barrier_arrive(&m->full[at.stage]); // for the ordinary stores
    }
  }
  wait_for_copies();
}

// ---- the multipliers ----

// A warp's 16 rows by WIDE items of one block: integer products into low and high.
template <weight_type TYPE, int WIDE>
__device__ __forceinline__ void multiply_block(int (&low)[WIDE / 2], int (&high)[WIDE / 2], const uint8_t *row0,
                                               const uint8_t *row1, uint64_t items, int part) {
  uint32_t a_low[2][4], a_high[2][4];
  wgmma_rows<TYPE> rows;
  rows.begin(row0, row1, part);
#pragma unroll
  for (int s = 0; s < 8; s++) {
    rows.step(s, a_low[s % 2], a_high[s % 2]);
    uint64_t in = items + (uint64_t)(s / 4 * (ITEMS * 128 / 16) + s % 4 * 2);
    wgmma_begin();
    wgmma_k32<WIDE, false>(low, a_low[s % 2], in, s > 0);
    wgmma_k32<WIDE, wgmma_shape<TYPE>::HIGH_IS_SIGNED>(high, a_high[s % 2], in, s > 0);
    wgmma_end_group();
    wgmma_wait_but<1>(); // the registers of the step before are free again
  }
  wgmma_wait_but<0>();
  wgmma_settle(low);
  wgmma_settle(high);
}

// The float step of docs/paths.md for the block.
template <weight_type TYPE, int WIDE>
__device__ __forceinline__ void add_block(float (&y)[WIDE / 8][4], const int (&low)[WIDE / 2],
                                          const int (&high)[WIDE / 2], const wgmma_scales<TYPE> &w,
                                          const uint16_t (*sums)[16], const float *dx) {
  int lane = threadIdx.x % WARP, part = lane % 4;
#pragma unroll
  for (int n = 0; n < WIDE / 8; n++) {
    float msum[4] = {};
    if constexpr (TYPE != TYPE_Q6_K) {
      uint2 b = *(const uint2 *)&sums[n * 8 + lane / 4][part * 4];
      mma_k16_halves(msum, w.min, b.x, b.y);
    }
    float2 x = *(const float2 *)&dx[n * 8 + part * 2];
#pragma unroll
    for (int c = 0; c < 4; c++) {
      float isum = (float)(low[n * 4 + c] + high[n * 4 + c] * wgmma_shape<TYPE>::SPLIT);
      float u = TYPE == TYPE_Q6_K ? w.d[c / 2] * isum
                                  : num_fma_f32(w.d[c / 2], isum, -(w.dmin[c / 2] * msum[c]));
      y[n][c] = num_fma_f32(c & 1 ? x.y : x.x, u, y[n][c]);
    }
  }
}

template <int WIDE>
__device__ __forceinline__ void store_tile(const float (&y)[WIDE / 8][4], const tile_work *work,
                                           const product &p, int row) {
  int part = threadIdx.x % 4;
#pragma unroll
  for (int n = 0; n < WIDE / 8; n++)
#pragma unroll
    for (int c = 0; c < 4; c++) {
      int i = n * 8 + part * 2 + (c & 1), r = row + c / 2 * 8;
      if (i >= work->count || r >= p.w.rows) continue;
      float *out = p.out + work->out[i] + r;
      *out = p.adds ? *out + y[n][c] : y[n][c];
    }
}

template <weight_type TYPE, int WIDE>
__device__ __forceinline__ void multiply_tile(wgmma_memory<TYPE> *m, const tile_work *work, const product_set &set,
                                              ring<wgmma_memory<TYPE>::STAGES> &at, int n_blocks) {
  int lane = threadIdx.x % WARP, row = threadIdx.x / WARP * 16 + lane / 4;
  float y[WIDE / 8][4] = {};
#pragma unroll 1
  for (int b = 0; b < n_blocks; b++, at.next()) {
    int low[WIDE / 2], high[WIDE / 2];
    if (b) barrier_wait(&m->full[at.stage], at.parity); // the first one the caller has waited for
    show_to_tensor_cores();
    const uint8_t *row0 = m->weights[at.stage][row], *row1 = m->weights[at.stage][row + 8];
    multiply_block<TYPE, WIDE>(low, high, row0, row1, wgmma_items(m->items[at.stage]), lane % 4);
    wgmma_scales<TYPE> w;
    w.load(row0, row1, b, lane % 4);
    add_block<TYPE, WIDE>(y, low, high, w, m->sums[TYPE == TYPE_Q6_K ? 0 : at.stage], m->dx[at.stage]);
    __syncwarp();
    if (lane == 0) barrier_arrive(&m->empty[at.stage]);
  }
  store_tile<WIDE>(y, work, set.p[work->which], work->row0 + row);
}

template <weight_type TYPE>
__device__ __forceinline__ void multiply_tiles(wgmma_memory<TYPE> *m, const product_set &set, int n_tiles,
                                               int n_blocks) {
  ring<wgmma_memory<TYPE>::STAGES> at;
  int number = 0;
#pragma unroll 1
  for (int index = blockIdx.x; index < n_tiles; index += gridDim.x) {
    barrier_wait(&m->full[at.stage], at.parity); // then the tile's work stands there too
    const tile_work *work = &m->work[number];
    number = number + 1 == wgmma_memory<TYPE>::WORKS ? 0 : number + 1;
    int width = width_of(work->count);
    if (width == 128)
      multiply_tile<TYPE, 128>(m, work, set, at, n_blocks);
    else if (width == 96)
      multiply_tile<TYPE, 96>(m, work, set, at, n_blocks);
    else if (width == 64)
      multiply_tile<TYPE, 64>(m, work, set, at, n_blocks);
    else
      multiply_tile<TYPE, 32>(m, work, set, at, n_blocks);
  }
}

// ---- the kernel ----

template <weight_type TYPE>
__global__ void __launch_bounds__(THREADS, 1)
    product_q8k_wgmma(const __grid_constant__ product_set set, int row_tiles) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t wgmma_shared[];
  wgmma_memory<TYPE> *m = (wgmma_memory<TYPE> *)wgmma_shared;
  const product &p = set.p[0]; // items and members are those of all
  if (threadIdx.x == 0)
    for (int i = 0; i < wgmma_memory<TYPE>::STAGES; i++) {
      barrier_init(&m->full[i], 2 * GROUP);
      barrier_init(&m->empty[i], 2 * GROUP / WARP);
    }
  wait_for_inputs();
  if (p.first && threadIdx.x < WARP) number_tiles(m->first_tile, p);
  __syncthreads();
  int item_tiles = p.first ? m->first_tile[p.n_members] : (p.n_items + ITEMS - 1) / ITEMS;
  int n_tiles = item_tiles * row_tiles, n_blocks = p.w.cols / QK_K;
  if (threadIdx.x >= 2 * GROUP) {
    give_registers<LOADER_REGISTERS>();
    load_tiles_of<TYPE>(m, set, row_tiles, n_tiles, n_blocks);
  } else {
    take_registers<MULTIPLIER_REGISTERS>();
    multiply_tiles<TYPE>(m, set, n_tiles, n_blocks);
  }
#endif
}

// ---- the host's side ----

struct hopper {
  bool asked, there; // this device is one and the build has its kernels
  int multiprocessors;
};

static const hopper *find_hopper() {
  static hopper found;
  if (found.asked) return &found;
  found.asked = true;
  int device = 0, major = 0, minor = 0;
  cudaFuncAttributes of = {};
  if (cudaGetDevice(&device) == cudaSuccess &&
      cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device) == cudaSuccess &&
      cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device) == cudaSuccess &&
      cudaDeviceGetAttribute(&found.multiprocessors, cudaDevAttrMultiProcessorCount, device) == cudaSuccess &&
      cudaFuncGetAttributes(&of, product_q8k_wgmma<TYPE_Q4_K>) == cudaSuccess)
    found.there = major == 9 && minor == 0 && of.numRegs > 100; // an empty kernel where not built for sm_90a
  return &found;
}

bool product_q8k_wgmma_serves(const product_set *set) {
  const product *p = &set->p[0];
  int each = p->first ? p->n_items / p->n_members : p->n_items;
  return each >= 16 && p->n_members <= MAX_MEMBERS && find_hopper()->there;
}

template <weight_type TYPE> static status launch_wgmma(product_set *set, cudaStream_t stream) {
  int bytes = (int)sizeof(wgmma_memory<TYPE>), row_tiles = 0;
  static bool ready; // the attribute is the kernel's own; setting it twice does no harm
  if (!ready) {
    CUDA_TRY(cudaFuncSetAttribute(product_q8k_wgmma<TYPE>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    ready = true;
  }
  for (int i = 0; i < set->count; i++) {
    set->begin[i] = row_tiles;
    row_tiles += (set->p[i].w.rows + ROWS - 1) / ROWS;
  }
  int most = (int)tile_count(&set->p[0], ITEMS) * row_tiles, all = find_hopper()->multiprocessors;
  return launch(product_q8k_wgmma<TYPE>, dim3((unsigned)(most < all ? most : all)), THREADS, (size_t)bytes, stream,
                *set, row_tiles);
}

status product_q8k_wgmma_launch(product_set *set, cudaStream_t stream) {
  weight_type type = set->p[0].w.type;
  if (type == TYPE_Q4_K) return launch_wgmma<TYPE_Q4_K>(set, stream);
  if (type == TYPE_Q5_K) return launch_wgmma<TYPE_Q5_K>(set, stream);
  if (type == TYPE_Q6_K) return launch_wgmma<TYPE_Q6_K>(set, stream);
  return FAIL("CUDA: the type %s has no product with Q8_K", type_find(type)->name);
}

#else // the emulated GPU has no warpgroups
bool product_q8k_wgmma_serves(const product_set *) {
  return false;
}

status product_q8k_wgmma_launch(product_set *, cudaStream_t) {
  return FAIL("CUDA: no Hopper kernels in this build");
}
#endif
