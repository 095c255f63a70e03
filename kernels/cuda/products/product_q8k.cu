// product_q8k: K-quant weights times Q8_K activations. Integer sums over a block of 256 are exact in any
// order, so the few-item kernel uses DP4A and the many-item kernel the tensor cores; both then take the float
// steps of docs/paths.md, block after block.
#include "kernels/cuda/products/block_q8k.cuh"
#include "kernels/cuda/products/product_q8k_blocks.cuh"
#include "kernels/cuda/products/product_q8k_stream.cuh"
#include "kernels/cuda/products/product_q8k_wgmma.cuh"

// ---- few items: four lanes a block, each 64 of its elements ----

static constexpr int WARPS = 4, PASSES = 4;

// A warp takes PASSES times 8 / GROUPS rows of one item; a row has GROUPS groups of four lanes, one a block.
// All rows' loads are issued before the first is used.
template <weight_type TYPE, int GROUPS>
__device__ __forceinline__ void few_rows(const product &p, int block) {
  constexpr int at_once = 8 / GROUPS;
  int lane = threadIdx.x % WARP, q = lane % 4, g = lane / 4 % GROUPS, sub = lane / (4 * GROUPS);
  int item = blockIdx.y, member = p.member ? p.member[item] : 0, n_blocks = p.w.cols / QK_K;
  if (member < 0) return;
  const uint8_t *rows = p.w.data + (size_t)member * p.w.member_bytes;
  int first_row = (block * WARPS + threadIdx.x / WARP) * PASSES * at_once;
  size_t input = (size_t)(item / p.input_divisor) * n_blocks;
  float y[PASSES] = {};
  for (int start = 0; start < n_blocks; start += GROUPS) {
    int b = start + g < n_blocks ? start + g : n_blocks - 1; // lanes without a block repeat the last
    quarter<TYPE> w[PASSES];
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++) {
      int row = first_row + pass * at_once + sub;
      w[pass] = load_quarter<TYPE>(rows + (size_t)(row < p.w.rows ? row : p.w.rows - 1) * p.w.row_bytes,
                                   n_blocks, b, q);
    }
    quarter_inputs in = load_inputs(TYPE, p.in.qs + (input + b) * QK_K, p.in.bsums + (input + b) * 16, q);
    float dx[GROUPS];
#pragma unroll
    for (int j = 0; j < GROUPS; j++) dx[j] = start + j < n_blocks ? p.in.d[input + start + j] : 0.0f;
#pragma unroll
    for (int pass = 0; pass < PASSES; pass++)
      y[pass] = add_terms<GROUPS>(y[pass], block_term<TYPE>(w[pass], in, q), dx, n_blocks - start, sub);
  }
  float *out = p.out + output_of(p, item);
#pragma unroll
  for (int pass = 0; pass < PASSES; pass++) {
    int row = first_row + pass * at_once + sub;
    if (lane % (4 * GROUPS) == 0 && row < p.w.rows) out[row] = p.adds ? out[row] + y[pass] : y[pass];
  }
}

// Prefetches the thread block's rows while the kernel before this one still runs.
__device__ __forceinline__ void prefetch_rows(const product &p, int block, int rows) {
  size_t start = (size_t)block * rows * p.w.row_bytes, end = start + (size_t)rows * p.w.row_bytes;
  if (end > p.w.member_bytes) end = p.w.member_bytes;
  for (size_t at = start + threadIdx.x * 128u; at < end; at += blockDim.x * 128u) prefetch_l2(p.w.data + at);
}

template <int GROUPS>
__global__ void __launch_bounds__(WARPS *WARP) product_q8k_few(const __grid_constant__ product_set set) {
  int which = 0;
  while (which + 1 < set.count && (int)blockIdx.x >= set.first_block[which + 1]) which++;
  const product &p = set.p[which];
  int block = blockIdx.x - set.first_block[which];
  if (!p.member)
    prefetch_rows(p, block, WARPS * PASSES * (8 / GROUPS)); // weights do not depend on what runs before
  wait_for_inputs();
  FOR_Q8K_TYPE(p.w.type, few_rows<TYPE, GROUPS>(p, block))
}

template <int GROUPS> static status launch_few(product_set *set, cudaStream_t stream) {
  int rows = WARPS * PASSES * (8 / GROUPS), blocks = 0;
  for (int i = 0; i < set->count; i++) {
    set->first_block[i] = blocks;
    blocks += ceil_div(set->p[i].w.rows, rows);
  }
  return launch(product_q8k_few<GROUPS>, dim3((unsigned)blocks, (unsigned)set->p[0].n_items), WARPS * WARP, 0,
                stream, *set);
}

static status few(product_set *set, cudaStream_t stream) {
  int n_blocks = set->p[0].w.cols / QK_K;
  if (n_blocks > 4) return launch_few<8>(set, stream);
  if (n_blocks > 2) return launch_few<4>(set, stream);
  return n_blocks > 1 ? launch_few<2>(set, stream) : launch_few<1>(set, stream);
}

// ---- many items: tensor cores ----
//
// scale * quant of a weight is at most 1953 (Q5_K) or 4096 in magnitude (Q6_K), so it splits into two int8
// operands, v = 128 * high + low with low in 0..127. Then a block's isum is two plain int8 products of length
// 256, with no scaling inside. The minimums are a third product of length 8, with the activations' sums split
// likewise.

static constexpr int TILE_ROWS = 64; // of weights, 16 a warp
static constexpr int PITCH =
    QK_K + 16; // bytes a row in shared memory: the 8 rows of a load fall into different banks

struct block_tile {
  int8_t low[TILE_ROWS][PITCH], high[TILE_ROWS][PITCH];
  int8_t min[TILE_ROWS][8];
  float d[TILE_ROWS], dmin[TILE_ROWS];
};

template <int ITEMS> struct input_tile {
  int8_t qs[ITEMS][PITCH];
  int8_t sums[ITEMS][16]; // as dev_inputs::sums32
  float dx[ITEMS];
};

// A thread block of 64 rows and ITEMS items: 16 rows and WIDE items a warp, which its registers hold.
template <int ITEMS> struct many_shape {
  static constexpr int WIDE = ITEMS < 32 ? ITEMS : 32, THREADS = 128 * (ITEMS / WIDE);
  static constexpr int PARTS = TILE_ROWS * 4 / THREADS, BLOCKS = 512 / THREADS; // on a multiprocessor
};

template <int ITEMS> struct many_memory {
  block_tile w;
  input_tile<ITEMS> x[2]; // the block that is multiplied and the next
  int item[ITEMS];
};

// Four weights' scale * quant from four bytes of quants, split and packed: two products in 16-bit halves
// each.
__device__ __forceinline__ void split_scaled(uint32_t quants, uint32_t scale, uint32_t *low, uint32_t *high) {
  uint32_t even = (quants & 0x00ff00ffu) * scale, odd = (quants >> 8 & 0x00ff00ffu) * scale;
  *low = (even & 0x007f007fu) | (odd & 0x007f007fu) << 8;
  *high = (even >> 7 & 0x00ff00ffu) | (odd >> 7 & 0x00ff00ffu) << 8;
}

// As split_scaled with signed scale and quants - 32. With 4096 added, (q - 32) * scale + 4096 is in 32 ..
// 8192: two fit in one word, and the 32 that this adds to `high` is taken from each byte again.
__device__ __forceinline__ void split_scaled_q6(uint32_t quants, int scale, uint32_t *low, uint32_t *high) {
  uint32_t bias = (uint32_t)(4096 - 32 * scale) * 0x00010001u;
  uint32_t even = (quants & 0x00ff00ffu) * (uint32_t)scale + bias,
           odd = (quants >> 8 & 0x00ff00ffu) * (uint32_t)scale + bias;
  *low = (even & 0x007f007fu) | (odd & 0x007f007fu) << 8;
  uint32_t h = (even >> 7 & 0x00ff00ffu) | (odd >> 7 & 0x00ff00ffu) << 8;
  *high = ((h | 0x80808080u) - 0x20202020u) ^ 0x80808080u;
}

__device__ __forceinline__ uint32_t word_of(uint4 v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// Thread (row, quarter) writes the 64 elements of its quarter in both operands.
template <weight_type TYPE>
__device__ __forceinline__ void unpack_quarter(block_tile *t, int r, const quarter<TYPE> &w, int q) {
  quarter_quants v = quants_of<TYPE>(w, q);
  uint32_t scale, unused;
  if constexpr (TYPE == TYPE_Q6_K) {
    if (q == 0) {
      t->d[r] = half_bits_to_f32(w.d);
      t->dmin[r] = 0;
      *(uint2 *)t->min[r] = make_uint2(0, 0);
    }
  } else {
    scales_of_pair(&scale, &unused, w.head, q);
    if (q == 0) {
      scales_and_mins packed = block_scales_and_mins(w.head.y, w.head.z, w.head.w);
      t->d[r] = half_bits_to_f32((uint16_t)(w.head.x & 0xffffu));
      t->dmin[r] = half_bits_to_f32((uint16_t)(w.head.x >> 16));
      *(uint2 *)t->min[r] = make_uint2(packed.min[0], packed.min[1]);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    int start = run_start(TYPE, q, i);
    uint32_t low[4], high[4];
#pragma unroll
    for (int k = 0; k < 4; k++)
      if constexpr (TYPE == TYPE_Q6_K)
        split_scaled_q6(word_of(v.run[i], k), scale_q6(w.scales, q, i), &low[k], &high[k]);
      else
        split_scaled(word_of(v.run[i], k), scale >> i / 2 * 8 & 255, &low[k], &high[k]);
    *(uint4 *)&t->low[r][start] = make_uint4(low[0], low[1], low[2], low[3]);
    *(uint4 *)&t->high[r][start] = make_uint4(high[0], high[1], high[2], high[3]);
  }
}

// Starts the copy of block b of the tile's items. Items beyond the last repeat it; their results are not
// stored.
template <int ITEMS>
__device__ __forceinline__ void copy_items(input_tile<ITEMS> *t, const int *item, const product &p,
                                           int n_blocks, int b) {
  for (int i = threadIdx.x; i < ITEMS * 16; i += many_shape<ITEMS>::THREADS) {
    size_t block = (size_t)item[i / 16] * n_blocks + b;
    copy_async_16(&t->qs[i / 16][i % 16 * 16], p.in.qs + block * QK_K + i % 16 * 16);
  }
  if ((int)threadIdx.x < ITEMS) {
    size_t block = (size_t)item[threadIdx.x] * n_blocks + b;
    copy_async_16(t->sums[threadIdx.x], p.in.sums32 + block * 16);
    copy_async_4(&t->dx[threadIdx.x], p.in.d + block);
  }
  copy_async_commit();
}

// One block's integer products of a warp's 16 rows with its items, then its float step into y.
template <int ITEMS, int WIDE>
__device__ __forceinline__ void block_step(float y[WIDE / 8][4], const block_tile *w,
                                           const input_tile<ITEMS> *x, int warp_row, int first_item) {
  int lane = threadIdx.x % WARP;
  int low[WIDE / 8][4] = {}, high[WIDE / 8][4] = {};
  const int8_t *row_low = &w->low[warp_row + lane % 16][lane / 16 * 16],
               *row_high = &w->high[warp_row + lane % 16][lane / 16 * 16];
  const int8_t *items = &x->qs[first_item + lane / 16 * 8 + lane % 8][lane / 8 % 2 * 16];
#pragma unroll
  for (int k = 0; k < QK_K; k += 32) {
    uint32_t al[4], ah[4];
    ldmatrix_x4(al, row_low + k);
    ldmatrix_x4(ah, row_high + k);
#pragma unroll
    for (int n = 0; n < WIDE / 8; n += 2) {
      uint32_t in[4];
      ldmatrix_x4(in, items + n * 8 * PITCH + k);
      mma_k32(low[n], al, in[0], in[1]);
      mma_k32(high[n], ah, in[0], in[1]);
      mma_k32(low[n + 1], al, in[2], in[3]);
      mma_k32(high[n + 1], ah, in[2], in[3]);
    }
  }
  int row = warp_row + lane / 4, part = lane % 4 * 4;
  uint32_t am[2] = {0, 0}; // minimums fill k = 0..7 of 16
  if (part < 8) {
    am[0] = *(const uint32_t *)&w->min[row][part];
    am[1] = *(const uint32_t *)&w->min[row + 8][part];
  }
  float d[2] = {w->d[row], w->d[row + 8]}, dmin[2] = {w->dmin[row], w->dmin[row + 8]};
#pragma unroll
  for (int n = 0; n < WIDE / 8; n++) {
    int min_low[4] = {}, min_high[4] = {}, item = first_item + n * 8 + lane / 4;
    mma_k16(min_low, am, part < 8 ? *(const uint32_t *)&x->sums[item][part] : 0);
    mma_k16(min_high, am, part < 8 ? *(const uint32_t *)&x->sums[item][8 + part] : 0);
    float2 dx = *(const float2 *)&x->dx[first_item + n * 8 + lane % 4 * 2];
#pragma unroll
    for (int c = 0; c < 4; c++) {
      float u =
          block_value(d[c / 2], dmin[c / 2], low[n][c] + (high[n][c] << 7), min_low[c] + (min_high[c] << 7));
      y[n][c] = num_fma_f32(c & 1 ? dx.y : dx.x, u, y[n][c]);
    }
  }
}

template <weight_type TYPE, int ITEMS>
__global__ void __launch_bounds__(many_shape<ITEMS>::THREADS, many_shape<ITEMS>::BLOCKS)
    product_q8k_many(const __grid_constant__ product_set set) {
  constexpr int WIDE = many_shape<ITEMS>::WIDE, THREADS = many_shape<ITEMS>::THREADS,
                PARTS = many_shape<ITEMS>::PARTS;
  wait_for_inputs();
  extern __shared__ __align__(16) uint8_t shared[];
  many_memory<ITEMS> *m = (many_memory<ITEMS> *)shared;
  int which = 0;
  while (which + 1 < set.count && (int)blockIdx.x >= set.first_block[which + 1]) which++;
  const product &p = set.p[which];
  int n_blocks = p.w.cols / QK_K, left = p.n_items - (int)blockIdx.y * ITEMS;
  item_tile tile = p.first ? find_tile(p, ITEMS, blockIdx.y)
                           : item_tile{0, (int)blockIdx.y * ITEMS, left < ITEMS ? left : ITEMS};
  int first = tile.first, count = tile.count;
  if (count <= 0) return;
  for (int i = threadIdx.x; i < ITEMS; i += THREADS) {
    int at = first + min(i, count - 1);
    m->item[i] =
        (p.order ? p.order[at] : at) / p.input_divisor; // input rows; results find theirs again below
  }
  const uint8_t *rows = p.w.data + (size_t)tile.member * p.w.member_bytes;
  int row0 = ((int)blockIdx.x - set.first_block[which]) * TILE_ROWS, warp = threadIdx.x / WARP,
      lane = threadIdx.x % WARP;
  int warp_row = warp % 4 * 16, first_item = warp / 4 * WIDE;
  quarter<TYPE> part[PARTS]; // raw weights of the next block
  auto load_parts = [&](int b) {
#pragma unroll
    for (int k = 0; k < PARTS; k++) {
      int task = threadIdx.x + k * THREADS,
          row = min(row0 + task / 4, p.w.rows - 1); // a ragged tile repeats its last row
      part[k] = load_quarter<TYPE>(rows + (size_t)row * p.w.row_bytes, n_blocks, b, task % 4);
    }
  };
  float y[WIDE / 8][4] = {};
  load_parts(0);
  __syncthreads();
  copy_items<ITEMS>(&m->x[0], m->item, p, n_blocks, 0);
#pragma unroll 1
  for (int b = 0; b < n_blocks; b++) {
#pragma unroll
    for (int k = 0; k < PARTS; k++) {
      int task = threadIdx.x + k * THREADS;
      unpack_quarter<TYPE>(&m->w, task / 4, part[k], task % 4);
    }
    if (b + 1 < n_blocks) {
      load_parts(b + 1);
      copy_items<ITEMS>(&m->x[(b + 1) % 2], m->item, p, n_blocks, b + 1);
      copy_async_wait_group<1>();
    } else {
      copy_async_wait_group<0>();
    }
    __syncthreads();
    block_step<ITEMS, WIDE>(y, &m->w, &m->x[b % 2], warp_row, first_item);
    __syncthreads();
  }
#pragma unroll
  for (int n = 0; n < WIDE / 8; n++)
#pragma unroll
    for (int c = 0; c < 4; c++) {
      int i = first_item + n * 8 + lane % 4 * 2 + (c & 1), row = row0 + warp_row + lane / 4 + c / 2 * 8;
      if (i >= count || row >= p.w.rows) continue;
      int item = p.order ? p.order[first + i] : first + i;
      float *out = p.out + output_of(p, item) + row;
      *out = p.adds ? *out + y[n][c] : y[n][c];
    }
}

template <weight_type TYPE, int ITEMS> static status launch_many(product_set *set, cudaStream_t stream) {
  size_t bytes = sizeof(many_memory<ITEMS>);
  static bool ready; // the attribute is set for each kernel; setting it twice does no harm
  if (!ready) {
    CUDA_TRY(cudaFuncSetAttribute(product_q8k_many<TYPE, ITEMS>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)bytes));
    ready = true;
  }
  int blocks = 0;
  for (int i = 0; i < set->count; i++) {
    set->first_block[i] = blocks;
    blocks += ceil_div(set->p[i].w.rows, TILE_ROWS);
  }
  return launch(product_q8k_many<TYPE, ITEMS>, dim3((unsigned)blocks, tile_count(&set->p[0], ITEMS)),
                many_shape<ITEMS>::THREADS, bytes, stream, *set);
}

template <weight_type TYPE> static status many(product_set *set, cudaStream_t stream) {
  const product *p = &set->p[0];
  int each = p->first ? p->each : p->n_items;
  return each > 32   ? launch_many<TYPE, 64>(set, stream)
         : each > 16 ? launch_many<TYPE, 32>(set, stream)
                     : launch_many<TYPE, 16>(set, stream);
}

static status many_of_type(product_set *set, cudaStream_t stream) {
  if (product_q8k_wgmma_serves(set)) return product_q8k_wgmma_launch(set, stream);
  weight_type type = set->p[0].w.type;
  FOR_Q8K_TYPE(type, return many<TYPE>(set, stream))
  return FAIL("CUDA: the type %s has no product with Q8_K", type_find(type)->name);
}

static bool takes_few(const product *p) {
  bool each_alone = p->member && !p->first;
  return each_alone || (!p->first && p->n_items <= 4);
}

bool product_q8k_gates(const product *p) {
  product_set one = {{*p}, {0}, 1};
  return type_has_q8k_kernels(p->w.type) && !takes_few(p) && product_q8k_stream_serves(&one);
}

static status of_own_kernels(product_set *set, cudaStream_t stream) {
  if (takes_few(&set->p[0])) return few(set, stream);
  if (product_q8k_stream_serves(set)) return product_q8k_stream_launch(set, stream);
  if (product_q8k_blocks_serves(set)) return product_q8k_blocks_launch(set, stream);
  for (int i = 0; i < set->count;) { // neighbours of one type together
    product_set part = {};
    do part.p[part.count++] = set->p[i++];
    while (i < set->count && set->p[i].w.type == part.p[0].w.type);
    TRY(many_of_type(&part, stream));
  }
  return 0;
}

status product_q8k_launch(product_set *set, cudaStream_t stream) {
  product_set own = {};
  if (set->p[0].n_items <= 0) return 0;
  for (int i = 0; i < set->count; i++)
    if (type_has_q8k_kernels(set->p[i].w.type))
      own.p[own.count++] = set->p[i];
    else
      TRY(product_unpacked_launch(&set->p[i], stream));
  return own.count ? of_own_kernels(&own, stream) : 0;
}
