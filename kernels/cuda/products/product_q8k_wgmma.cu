// product_q8k_wgmma: K-quant weights times many Q8_K activations on Hopper's tensor cores, the bits of
// product_q8k.cu's kernels.
//
// A thread block stays on its multiprocessor and takes tiles of 128 rows and up to 128 items. One warpgroup
// copies blocks of 256 ahead into shared memory; two multiply, each 64 rows that it unpacks in registers
// (wgmma_rows.cuh), so a weight is unpacked once for 128 items and while the tensor cores work. One's float
// step, after each block, runs beside the other's products. Making the two alternate on the tensor cores,
// so that it always does, changed nothing: 304 and 303 us, gate and up of 2,048 tokens, one H100. Nor is it
// worth while to have each warpgroup's own float step beside its next block's products, the high operand's
// first and then the low one's into the same sums: every row is unpacked twice and the tensor cores drain
// twice a block, and a prompt of 2,048 tokens fell from 35,500 to 28,200 tokens/s. Spilling does: a build in
// which ptxas put 68 bytes on the stack took 378, so look at that (-Xptxas -v) after a change.
#include "kernels/cuda/products/product_q8k_wgmma.cuh"

#ifdef __CUDACC__
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/instructions_hopper.cuh"
#include "kernels/cuda/products/wgmma_scales.cuh"
#include "kernels/cuda/products/wgmma_tiles.cuh"

static constexpr int GROUP = 128, THREADS = 3 * GROUP; // a warpgroup; two that multiply and one that loads
// Each thread's. The thread block is launched with 168 a thread, the most that 384 threads can have, and
// shares these out: more than 3 * 168 in all, and warpgroup_reg_alloc waits for ever.
enum { LAUNCH_REGISTERS = 168, LOADER_REGISTERS = 40, MULTIPLIER_REGISTERS = 232 };
static_assert(LOADER_REGISTERS + 2 * MULTIPLIER_REGISTERS <= 3 * LAUNCH_REGISTERS);
static constexpr int SHARED_BYTES = 227 * 1024; // that a thread block of sm_90 can have

struct tile_work {                  // a tile, as the loaders give it to the multipliers
  __align__(16) int64_t out[ITEMS]; // start of each item's results
  int count, row0, which;
};

template <weight_type TYPE> struct wgmma_memory {
  static constexpr int STAGES = TYPE == TYPE_Q4_K ? 4 : 3; // what fits
  static constexpr int WORKS =
      STAGES + 2;                      // the loaders write a tile's while the last STAGES blocks, of up to
                                       // as many tiles, are multiplied and one before stores its results
  int8_t items[STAGES][2][ITEMS][128]; // see wgmma_descriptor
  uint8_t weights[STAGES][ROWS][wgmma_shape<TYPE>::BYTES];
  // Of 16 activations, as f16, in the order 2p, 2p + 1, 2p + 8, 2p + 9 of p = 0 .. 3.
  uint16_t sums[TYPE == TYPE_Q6_K ? 1 : STAGES][ITEMS][16];
  float dx[STAGES][ITEMS];
  uint64_t full[STAGES], empty[STAGES];
  tile_work work[WORKS];
  // First input block of item i of the tile that is loaded, at [i % 8][i / 8].
  __align__(16) uint32_t item[8][ITEMS / 8];
  int first_cost[MAX_MEMBERS + 1]; // see add_costs
};
static_assert(sizeof(wgmma_memory<TYPE_Q4_K>) <= SHARED_BYTES);
static_assert(sizeof(wgmma_memory<TYPE_Q5_K>) <= SHARED_BYTES);
static_assert(sizeof(wgmma_memory<TYPE_Q6_K>) <= SHARED_BYTES);

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

// ---- the loaders ----

// Starts the copy of block b of the tile's rows, 16 bytes at a time, those of a row by neighbours. (A bulk
// copy of a row by each thread is slower: a warp starts its lanes' one after the other.) A ragged tile
// repeats its last row.
template <weight_type TYPE>
__device__ __forceinline__ void copy_rows(uint8_t (*to)[wgmma_shape<TYPE>::BYTES], const uint8_t *rows,
                                          uint32_t row_bytes, int row0, int last, int n_blocks, int b,
                                          int t) {
  constexpr bool q6 = TYPE == TYPE_Q6_K;
  constexpr int head = q6 ? 0 : TYPE == TYPE_Q4_K ? 16 : 48;
  auto row = [=](int r) { return rows + (uint64_t)(uint32_t)min(row0 + r, last) * row_bytes; };
  uint32_t block = (uint32_t)b * (q6 ? 128 : TYPE == TYPE_Q4_K ? sizeof(block_q4_K) : sizeof(block_q5_K));
  uint32_t quants = block + head + t % 8 * 16;
#pragma unroll 4
  for (int k = 0; k < 8; k++) {
    int r = t / 8 + k * (GROUP / 8);
    copy_async_16(&to[r][head + t % 8 * 16], row(r) + quants);
  }
  if constexpr (q6) { // planes (planes_q6k.cuh)
    uint32_t high = n_blocks * 128 + b * 64 + t % 4 * 16;
#pragma unroll 2
    for (int k = 0; k < 4; k++) {
      int r = t / 4 + k * (GROUP / 4);
      copy_async_16(&to[r][Q6_HIGH + t % 4 * 16], row(r) + high);
    }
    copy_async_16(&to[t][Q6_SCALES], row(t) + n_blocks * 192 + b * 16);
    copy_async_4(&to[t][Q6_D], row(t) + n_blocks * 208 + b / 2 * 4); // and its neighbour's
  } else {
#pragma unroll
    for (int i = 0; i < head; i += 16) copy_async_16(&to[t][i], row(t) + block + i);
  }
}

// Starts the copy of block b of `width` items.
__device__ __forceinline__ void copy_items(int8_t (*to)[ITEMS][128], const uint32_t (*item)[ITEMS / 8],
                                           const int8_t *qs, int width, int b, int t) {
  int piece = t % 16, first = t / 16; // first: an item's place among 8
  int8_t *at = &to[piece / 8][first][((piece ^ first) & 7) * 16];
  const int8_t *from = qs + (size_t)b * QK_K + piece * 16;
#pragma unroll 1
  for (int i = 0; i < width / 8; i += 4, at += 4 * 8 * 128) {
    uint4 block = *(const uint4 *)&item[first][i];
    copy_async_16(at, from + (uint64_t)block.x * QK_K);
    copy_async_16(at + 8 * 128, from + (uint64_t)block.y * QK_K);
    copy_async_16(at + 2 * 8 * 128, from + (uint64_t)block.z * QK_K);
    copy_async_16(at + 3 * 8 * 128, from + (uint64_t)block.w * QK_K);
  }
}

// Two sums as f16: exact up to 2,048, and they are at most 16 * 127.
__device__ __forceinline__ uint32_t two_f16(int sums) {
  __half2 v = __floats2half2_rn((float)(int16_t)sums, (float)(sums >> 16));
  return *(uint32_t *)&v;
}

__device__ __forceinline__ void store_sums(uint16_t *to, const int4 *sums) {
  int4 a = sums[0], b = sums[1];
  ((uint4 *)to)[0] = make_uint4(two_f16(a.x), two_f16(b.x), two_f16(a.y), two_f16(b.y));
  ((uint4 *)to)[1] = make_uint4(two_f16(a.z), two_f16(b.z), two_f16(a.w), two_f16(b.w));
}

// Publishes a tile, whose item of loader t is `item_t`, to the multipliers and to copy_items.
__device__ __forceinline__ void publish_tile(tile_work *work, uint32_t (*item)[ITEMS / 8], const product &p,
                                             int which, int row0, int count, int item_t, int t) {
  named_barrier_sync<1, GROUP>(); // all have used the last tile's items
  item[t % 8][t / 8] = (uint32_t)(item_t / p.input_divisor) * (uint32_t)(p.w.cols / QK_K);
  work->out[t] = output_of(p, item_t);
  if (t == 0) {
    work->count = count;
    work->row0 = row0;
    work->which = which;
  }
  named_barrier_sync<1, GROUP>();
}

// Item t of the walk's tile; the last one is repeated.
__device__ __forceinline__ int item_of(const tile_walk &walk, const product &p, int t) {
  if (!walk.exists()) return 0;
  int at = walk.first + min(t, walk.count() - 1);
  return p.order ? p.order[at] : at;
}

template <weight_type TYPE>
__device__ __forceinline__ void load_tiles_of(wgmma_memory<TYPE> *m, const product_set &set, int row_tiles,
                                              int wide, int n_blocks) {
  int t = threadIdx.x % GROUP, number = 0;
  const product &any = set.p[0];
  ring<wgmma_memory<TYPE>::STAGES> at;
  tile_walk walk;
  walk.start(any, m->first_cost, row_tiles, wide);
  int item_t = item_of(walk, any, t);
#pragma unroll 1
  while (walk.exists()) {
    int which = 0;
    while (which + 1 < set.count && walk.row_tile >= set.first_block[which + 1]) which++;
    const product &p = set.p[which];
    int row0 = (walk.row_tile - set.first_block[which]) * ROWS, width = width_of(walk.count());
    publish_tile(&m->work[number], m->item, p, which, row0, walk.count(), item_t, t);
    number = number + 1 == wgmma_memory<TYPE>::WORKS ? 0 : number + 1;
    const uint8_t *rows = p.w.data + (size_t)walk.member * p.w.member_bytes;
    uint32_t first_block = m->item[t % 8][t / 8], row_bytes = (uint32_t)p.w.row_bytes;
    int last = p.w.rows - 1;
    walk.next(any);
    item_t = item_of(walk, any, t); // in flight while this tile is loaded
#pragma unroll 1
    for (int b = 0; b < n_blocks; b++, at.next()) {
      size_t block = (size_t)first_block + b;
      int4 sums[2];
      if constexpr (TYPE != TYPE_Q6_K) {
        sums[0] = ((const int4 *)(any.in.bsums + block * 16))[0];
        sums[1] = ((const int4 *)(any.in.bsums + block * 16))[1];
      }
      mbarrier_wait(&m->empty[at.stage], at.parity ^ 1);
      copy_rows<TYPE>(m->weights[at.stage], rows, row_bytes, row0, last, n_blocks, b, t);
      copy_items(m->items[at.stage], m->item, any.in.qs, width, b, t);
      copy_async_4(&m->dx[at.stage][t], any.in.d + block);
      mbarrier_arrive_after_copies(&m->full[at.stage]);
      if constexpr (TYPE != TYPE_Q6_K) store_sums(m->sums[at.stage][t], sums);
      mbarrier_arrive(&m->full[at.stage]); // for the ordinary stores
    }
  }
  if (t == 0) m->work[number].count = 0; // the end
  mbarrier_wait(&m->empty[at.stage], at.parity ^ 1);
  mbarrier_arrive_after_copies(&m->full[at.stage]);
  mbarrier_arrive(&m->full[at.stage]);
  copy_async_wait_all();
}

// ---- the multipliers ----

// A warp's 16 rows by WIDE items of one block: integer products into low and high.
template <weight_type TYPE, int WIDE>
__device__ __forceinline__ void multiply_block(int (&low)[WIDE / 2], int (&high)[WIDE / 2],
                                               const uint8_t *row0, const uint8_t *row1, uint64_t items,
                                               int part) {
  uint32_t a_low[2][4], a_high[2][4]; // of the last two steps
  wgmma_rows<TYPE> rows;
  rows.start(row0, row1, part);
#pragma unroll
  for (int s = 0; s < 8; s++) {
    uint64_t in = items + (uint64_t)(s / 4 * (ITEMS * 128 / 16) + s % 4 * 2);
    wgmma_wait_group<3>(); // registers of two steps ago are free again
    rows.low(s, a_low[s % 2]);
    wgmma_fence();
    wgmma_k32<WIDE, false>(low, a_low[s % 2], in, s > 0);
    wgmma_commit_group();
    wgmma_wait_group<3>();
    rows.high(s, a_high[s % 2]);
    wgmma_fence();
    wgmma_k32<WIDE, wgmma_shape<TYPE>::HIGH_IS_SIGNED>(high, a_high[s % 2], in, s > 0);
    wgmma_commit_group();
  }
  wgmma_wait_group<0>();
  wgmma_fence_operand(low);
  wgmma_fence_operand(high);
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
      mma_k16_f16(msum, w.min, b.x, b.y);
    }
    float2 x = *(const float2 *)&dx[n * 8 + part * 2];
#pragma unroll
    for (int c = 0; c < 4; c++) {
      float isum = (float)(low[n * 4 + c] + high[n * 4 + c] * wgmma_shape<TYPE>::SPLIT);
      y[n][c] = add_term<TYPE>(y[n][c], c & 1 ? x.y : x.x, w.d[c / 2], isum, w.dmin[c / 2], msum[c]);
    }
  }
}

// The lane's results of rows `row` and `row` + 8.
template <int WIDE>
__device__ __forceinline__ void store_tile(const float (&y)[WIDE / 8][4], const tile_work *work, float *out,
                                           int row, int rows) {
  int part = threadIdx.x % 4, count = work->count;
  bool first = row < rows, second = row + 8 < rows;
#pragma unroll
  for (int n = 0; n < WIDE / 8; n++) {
    longlong2 place = *(const longlong2 *)&work->out[n * 8 + part * 2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      bool exists = n * 8 + part * 2 + i < count;
      float *to = out + (i ? place.y : place.x) + row;
      if (exists && first) to[0] = y[n][i];
      if (exists && second) to[8] = y[n][2 + i];
    }
  }
}

// The same, added to what is there: the loads of four columns of 8 do not wait for stores.
template <int WIDE>
__device__ __forceinline__ void add_tile(const float (&y)[WIDE / 8][4], const tile_work *work, float *out,
                                         int row, int rows) {
  int part = threadIdx.x % 4, count = work->count;
#pragma unroll
  for (int start = 0; start < WIDE / 8; start += 4) {
    float before[4][4];
#pragma unroll
    for (int k = 0; k < 16; k++) {
      int i = (start + k / 4) * 8 + part * 2 + k % 2, r = row + k / 2 % 2 * 8;
      before[k / 4][k % 4] = i < count && r < rows ? out[work->out[i] + r] : 0.0f;
    }
#pragma unroll
    for (int k = 0; k < 16; k++) {
      int i = (start + k / 4) * 8 + part * 2 + k % 2, r = row + k / 2 % 2 * 8;
      if (i < count && r < rows) out[work->out[i] + r] = before[k / 4][k % 4] + y[start + k / 4][k % 4];
    }
  }
}

template <weight_type TYPE, int WIDE>
__device__ __forceinline__ void multiply_tile(wgmma_memory<TYPE> *m, const tile_work *work,
                                              const product_set &set, ring<wgmma_memory<TYPE>::STAGES> &at,
                                              int n_blocks) {
  int lane = threadIdx.x % WARP, row = threadIdx.x / WARP * 16 + lane / 4;
  float y[WIDE / 8][4] = {};
#pragma unroll 1
  for (int b = 0; b < n_blocks; b++, at.next()) {
    int low[WIDE / 2], high[WIDE / 2];
    if (b) mbarrier_wait(&m->full[at.stage], at.parity); // the first one the caller has waited for
    fence_proxy_async();
    const uint8_t *row0 = m->weights[at.stage][row], *row1 = m->weights[at.stage][row + 8];
    multiply_block<TYPE, WIDE>(low, high, row0, row1, wgmma_descriptor(m->items[at.stage]), lane % 4);
    wgmma_scales<TYPE> w;
    w.load(row0, row1, b, lane % 4);
    add_block<TYPE, WIDE>(y, low, high, w, m->sums[TYPE == TYPE_Q6_K ? 0 : at.stage], m->dx[at.stage]);
    mbarrier_arrive_of_warp(&m->empty[at.stage]);
  }
  const product &p = set.p[work->which];
  if (p.adds)
    add_tile<WIDE>(y, work, p.out, work->row0 + row, p.w.rows);
  else
    store_tile<WIDE>(y, work, p.out, work->row0 + row, p.w.rows);
}

template <weight_type TYPE>
__device__ __forceinline__ void multiply_tiles(wgmma_memory<TYPE> *m, const product_set &set, int n_blocks) {
  ring<wgmma_memory<TYPE>::STAGES> at;
  int number = 0;
#pragma unroll 1
  for (;;) {
    mbarrier_wait(&m->full[at.stage], at.parity); // the tile's work is there then, too
    const tile_work *work = &m->work[number];
    if (!work->count) return;
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
    product_q8k_wgmma(const __grid_constant__ product_set set, int row_tiles, int wide) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t wgmma_shared[];
  wgmma_memory<TYPE> *m = (wgmma_memory<TYPE> *)wgmma_shared;
  const product &p = set.p[0]; // items and members are those of all
  if (threadIdx.x == 0)
    for (int i = 0; i < wgmma_memory<TYPE>::STAGES; i++) {
      mbarrier_init(&m->full[i], 2 * GROUP);
      mbarrier_init(&m->empty[i], 2 * GROUP / WARP * ARRIVALS_OF_WARP);
    }
  wait_for_inputs();
  if (threadIdx.x < WARP) add_costs(m->first_cost, p, wide);
  __syncthreads();
  int n_blocks = p.w.cols / QK_K;
  if (threadIdx.x >= 2 * GROUP) {
    warpgroup_reg_dealloc<LOADER_REGISTERS>();
    load_tiles_of<TYPE>(m, set, row_tiles, wide, n_blocks);
  } else {
    warpgroup_reg_alloc<MULTIPLIER_REGISTERS>();
    multiply_tiles<TYPE>(m, set, n_blocks);
  }
#endif
}

// ---- the host's side ----

// Whatever product_q8k.cu gives to its many-item kernel: on an H100 this one was quicker for every size
// tried, from 8 tokens of 128 experts, top 8 (down, 41.5 us in place of 45.5), and from 5 of a shared matrix
// (q, 14.3 in place of 16.0) up to 2,048 (gate and up, 303 in place of 828; q, 85 in place of 224). Medians
// of 20.
bool product_q8k_wgmma_serves(const product_set *set) {
  static const bool is_built = has_hopper_kernel(product_q8k_wgmma<TYPE_Q4_K>);
  return set->p[0].n_members <= MAX_MEMBERS && is_built;
}

// Items a tile. Of grouped items the widest: members are chosen unevenly, a rest takes the width that it has,
// and a second tile of a member unpacks its weights again. (By the cost of wgmma_tiles.cuh, 128 experts whose
// shares of the tokens spread as a log-normal with sigma 0.65: gate and up of 512 tokens 1,714 units a
// multiprocessor in tiles of 32, 1,464 in 64, 1,436 in 128; of 64 tokens all within 1 %.) Else the widest
// that are quickest, counted in rounds of one tile a multiprocessor.
static int tile_width(const product *p, int row_tiles, int multiprocessors) {
  int each = p->n_items, best = ITEMS;
  long least = 0;
  if (p->first) return ITEMS;
  for (int wide = ITEMS; wide >= 32; wide -= 32) {
    long tiles = (long)((each + wide - 1) / wide) * row_tiles;
    long time = (tiles + multiprocessors - 1) / multiprocessors * (UNPACKING + wide);
    if (wide < ITEMS && time >= least) continue;
    least = time;
    best = wide;
  }
  return best;
}

template <weight_type TYPE> static status launch_wgmma(product_set *set, cudaStream_t stream) {
  int bytes = (int)sizeof(wgmma_memory<TYPE>), row_tiles = 0;
  static bool ready; // the attribute is set for each kernel; setting it twice does no harm
  if (!ready) {
    CUDA_TRY(
        cudaFuncSetAttribute(product_q8k_wgmma<TYPE>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes));
    ready = true;
  }
  for (int i = 0; i < set->count; i++) {
    set->first_block[i] = row_tiles;
    row_tiles += ceil_div(set->p[i].w.rows, ROWS);
  }
  int all = device_multiprocessors(), wide = tile_width(&set->p[0], row_tiles, all);
  int most = (int)tile_count(&set->p[0], wide) * row_tiles;
  return launch(product_q8k_wgmma<TYPE>, dim3((unsigned)(most < all ? most : all)), THREADS, (size_t)bytes,
                stream, *set, row_tiles, wide);
}

status product_q8k_wgmma_launch(product_set *set, cudaStream_t stream) {
  weight_type type = set->p[0].w.type;
  FOR_Q8K_TYPE(type, return launch_wgmma<TYPE>(set, stream))
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
