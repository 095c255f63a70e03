// product_f32_tiles: many items: tiles of 32 rows and 32 items. Each of their 1,024 sums has its 32 lanes, so
// a tile is 32,768 accumulators: 128 in each of 256 threads. fma throughput bounds it, so weights are
// unpacked once a tile, into shared memory, and what a thread loads from there it uses eight times.
//
// On an H100: 27 TFLOP/s for 4,096 x 2,048 of Q4_K and 2,048 items, of about 60 that fma alone could do: of
// the instructions 65 % are fma, and a scheduler's two warps issue in 58 % of its cycles (a slightly earlier
// layout).
//
// A warp has lanes w, w + 8, w + 16, w + 24 of all sums; a thread lanes l and l + 16 (l = w or w + 8) of 8
// rows and up to 8 items. So a word of shared memory is read by one warp only, the tree's first step is in a
// thread, its second a shuffle, and its last three add what eight warps have.
//
// Thread blocks stay and take tile after tile: the next tile's first weights are in flight during the last
// fmas of this one.
#include "kernels/cuda/products/product_f32.cuh"
#include "kernels/cuda/products/unpack_f32.cuh"

static constexpr int THREADS = 256, TILE = 32; // rows, and items
static constexpr int STAGE = 128;              // elements of a row at a time: two pairs
static constexpr int PITCH = 18; // float4 a row: 16 and 2, so that four rows' reads fall into different banks

struct stage {
  float4 w[2][TILE * PITCH], x[2][TILE * PITCH]; // [pair][row or item][unit_of(l)]: (l, l + 16) x two steps
};
static constexpr size_t PARTIAL_BYTES = 8 * TILE * TILE * sizeof(float);
static_assert(sizeof(stage) >= PARTIAL_BYTES, "a used stage holds the partial sums");

// Where lane l < 16 and l + 16 lie in a row. Lanes w and w + 8 are neighbours, for the reads; w and w + 4 in
// different halves of the banks, for the writes.
__device__ __forceinline__ int unit_of(int l) {
  int w = l & 7, upper = w >> 2;
  return 8 * upper + ((2 * (w & 3) + (l >> 3)) ^ (4 * upper));
}

// The place of a sum in a partial plane of 32 x 32: the warp's 32 writes fall into different banks.
__device__ __forceinline__ int place_of(int item, int row) {
  return item * TILE + (row ^ (4 * (item & 3)) ^ (16 * (item >> 4)));
}

// ---- which tile ----

struct tile {
  int row0, member, first, count; // rows; items, as item_tile
};

struct tile_table { // in shared memory: first and tiles of 32 items of each member
  const int *first, *tiles;
  int n_row_tiles, n_tiles;
};

__device__ __forceinline__ tile tile_at(const product &p, const tile_table &table, int index) {
  int items = index / table.n_row_tiles, row0 = index % table.n_row_tiles * TILE;
  if (!p.first) return {row0, 0, items * TILE, min(TILE, p.n_items - items * TILE)};
  int low = 0, high = p.n_members; // the last member whose first tile is at or before `items`
  while (high - low > 1) {
    int middle = (low + high) / 2;
    if (table.tiles[middle] <= items)
      low = middle;
    else
      high = middle;
  }
  int first = table.first[low] + (items - table.tiles[low]) * TILE;
  return {row0, low, first, min(TILE, table.first[low + 1] - first)};
}

// ---- a stage: from memory to registers, and unpacked from there to shared memory ----

// Thread (pair, row, u) loads lanes 4 u .. 4 u + 3 and those plus 16 of one row of weights and of one item.
struct source {
  const uint8_t *row;
  const float *x;
};

__device__ __forceinline__ source source_of(const product &p, const tile &t) {
  int r = threadIdx.x / 4 % TILE, at = t.first + min(r, t.count - 1); // ragged tiles repeat their last
  int item = p.order ? p.order[at] : at, row = min(t.row0 + r, p.w.rows - 1);
  return {p.w.data + (size_t)t.member * p.w.member_bytes + (size_t)row * p.w.row_bytes,
          p.in.x + (size_t)(item / p.input_divisor) * p.w.cols};
}

template <weight_type TYPE> struct part {
  quad<TYPE> w[2];
  float4 x[2][2]; // [lanes or those plus 16][step]
};

template <weight_type TYPE>
__device__ __forceinline__ quad_place place_of_quad(const product &p, int stage_index, int g) {
  return {p.w.cols / QK_K, stage_index / 2, stage_index % 2 * 2 + (int)threadIdx.x / 128,
          4 * g + (int)threadIdx.x % 4};
}

template <weight_type TYPE>
__device__ __forceinline__ void load_part(part<TYPE> *to, const product &p, const source &from,
                                          int stage_index) {
#pragma unroll
  for (int g = 0; g < 2; g++) {
    quad_place at = place_of_quad<TYPE>(p, stage_index, g);
    load_quad(&to->w[g], from.row, at);
#pragma unroll
    for (int s = 0; s < 2; s++)
      to->x[g][s] = ((const float4 *)from.x)[at.b * 64 + at.pair * 16 + s * 8 + at.t];
  }
}

template <weight_type TYPE>
__device__ __forceinline__ void store_part(stage *to, const product &p, const part<TYPE> &from,
                                           int stage_index) {
  int u = threadIdx.x % 4, pair = threadIdx.x / 128, at = threadIdx.x / 4 % TILE * PITCH;
  float w[2][2][4];
#pragma unroll
  for (int g = 0; g < 2; g++) unpack_quad(w[g], from.w[g], place_of_quad<TYPE>(p, stage_index, g));
#pragma unroll
  for (int k = 0; k < 4; k++)
    to->w[pair][at + unit_of(4 * u + k)] = make_float4(w[0][0][k], w[0][1][k], w[1][0][k], w[1][1][k]);
  const float4(&x)[2][2] = from.x;
  to->x[pair][at + unit_of(4 * u)] = make_float4(x[0][0].x, x[0][1].x, x[1][0].x, x[1][1].x);
  to->x[pair][at + unit_of(4 * u + 1)] = make_float4(x[0][0].y, x[0][1].y, x[1][0].y, x[1][1].y);
  to->x[pair][at + unit_of(4 * u + 2)] = make_float4(x[0][0].z, x[0][1].z, x[1][0].z, x[1][1].z);
  to->x[pair][at + unit_of(4 * u + 3)] = make_float4(x[0][0].w, x[0][1].w, x[1][0].w, x[1][1].w);
}

// ---- the sums ----

// The thread's place in its warp: rows r + 4 a, items i + 4 c, and of the warp's lane pairs the upper or not.
struct thread_place {
  int r, i, upper, unit;
};

// Thread l and l ^ 1 read the same inputs, l and l ^ 2 the same weights: then shared memory serves a warp's
// 16 bytes a thread in two cycles (counted on an H100), else in four.
__device__ __forceinline__ thread_place place_of_thread() {
  int lane = threadIdx.x % WARP;
  int upper = lane >> 2 & 1;
  return {(lane & 1) | (lane >> 3 & 1) << 1, (lane >> 1 & 1) | (lane >> 4) << 1, upper,
          unit_of((int)threadIdx.x / WARP + 8 * upper)};
}
static constexpr int PARTNER = 4; // lanes to the thread with the other pair

// sum[a][c]: lanes l and l + 16 of row r + 4 a, item i + 4 c.
template <int ITEMS>
__device__ __forceinline__ void add_pair(float2 sum[8][ITEMS], const float4 *w, const float4 *x,
                                         const thread_place &at) {
  float4 v[ITEMS];
#pragma unroll
  for (int c = 0; c < ITEMS; c++) v[c] = x[(at.i + 4 * c) * PITCH + at.unit];
#pragma unroll
  for (int a = 0; a < 8; a++) {
    float4 m = w[(at.r + 4 * a) * PITCH + at.unit];
#pragma unroll
    for (int c = 0; c < ITEMS; c++) {
      sum[a][c].x = num_fma_f32(m.x, v[c].x, sum[a][c].x);
      sum[a][c].y = num_fma_f32(m.z, v[c].z, sum[a][c].y);
    }
#pragma unroll
    for (int c = 0; c < ITEMS; c++) {
      sum[a][c].x = num_fma_f32(m.y, v[c].y, sum[a][c].x);
      sum[a][c].y = num_fma_f32(m.w, v[c].w, sum[a][c].y);
    }
  }
}

// The trees, and the results to where they belong. `partial`: the stage that was used last.
template <int ITEMS>
__device__ __forceinline__ void finish_tile(const float2 sum[8][ITEMS], const product &p, const tile *place,
                                            float *partial, const thread_place &at) {
  constexpr int HALF = ITEMS / 2; // a thread keeps half of its items, and gives its partner the other
  float *plane = partial + threadIdx.x / WARP * (TILE * TILE);
#pragma unroll
  for (int a = 0; a < 8; a++)
#pragma unroll
    for (int c = 0; c < HALF; c++) {
      float low = sum[a][c].x + sum[a][c].y, high = sum[a][c + HALF].x + sum[a][c + HALF].y;
      float got = __shfl_xor_sync(~0u, at.upper ? low : high, PARTNER);
      plane[place_of(at.i + 4 * (c + at.upper * HALF), at.r + 4 * a)] = (at.upper ? high : low) + got;
    }
  __syncthreads();
  const tile t = *place;
  int i = threadIdx.x / 8, row = threadIdx.x % 8 * 4;
  if (i < t.count) {
    float4 lane[8];
#pragma unroll
    for (int l = 0; l < 8; l++) lane[l] = *(const float4 *)(partial + l * (TILE * TILE) + place_of(i, row));
#pragma unroll
    for (int half = 4; half; half /= 2)
#pragma unroll
      for (int l = 0; l < half; l++) {
        lane[l].x = lane[l].x + lane[l + half].x;
        lane[l].y = lane[l].y + lane[l + half].y;
        lane[l].z = lane[l].z + lane[l + half].z;
        lane[l].w = lane[l].w + lane[l + half].w;
      }
    int item = p.order ? p.order[t.first + i] : t.first + i, left = p.w.rows - t.row0 - row;
    float *out = p.out + output_of(p, item) + t.row0 + row;
    float y[4] = {lane[0].x, lane[0].y, lane[0].z, lane[0].w};
    if (p.w.rows % 4 == 0 && left >= 4) {
      float4 before = p.adds ? *(const float4 *)out : make_float4(0, 0, 0, 0);
      if (p.adds)
        *(float4 *)out = make_float4(before.x + y[0], before.y + y[1], before.z + y[2], before.w + y[3]);
      else
        *(float4 *)out = make_float4(y[0], y[1], y[2], y[3]);
    } else {
      for (int k = 0; k < 4 && k < left; k++) out[k] = p.adds ? out[k] + y[k] : y[k];
    }
  }
  __syncthreads(); // the next stage is written where these were
}

// One tile. Its first stage lies in stages[*current], its second is in `coming`; leaves those of `next`
// there. Loads are for the stage after the next, and do not depend on a condition: else the compiler moves
// them to where their values are used, and every stage waits for memory. Unpacking between the pairs takes
// more registers than there are (22 TFLOP/s in place of 27); having one of a scheduler's two warps do so, 23.
template <weight_type TYPE, int ITEMS>
__device__ __forceinline__ void take_tile(const product &p, stage *stages, int *current, part<TYPE> *coming,
                                          const tile *place, const source &now, const source &next) {
  thread_place at = place_of_thread();
  float2 sum[8][ITEMS] = {};
  int n_stages = p.w.cols / STAGE;
  stage *used = stages;
#pragma unroll 1
  for (int s = 0; s < n_stages; s++) {
    used = stages + *current;
    stage *other = stages + (*current ^= 1);
    store_part(other, p, *coming, s + 1 < n_stages ? s + 1 : 0);
    bool is_next = s + 2 >= n_stages;
    load_part(coming, p, is_next ? next : now, s + 2 - (is_next ? n_stages : 0));
    add_pair<ITEMS>(sum, used->w[0], used->x[0], at);
    add_pair<ITEMS>(sum, used->w[1], used->x[1], at);
    __syncthreads();
  }
  finish_tile<ITEMS>(sum, p, place, (float *)used, at);
}

template <weight_type TYPE> __global__ void __launch_bounds__(THREADS, 1) product_f32_tiles(product p) {
  extern __shared__ __align__(16) uint8_t memory[];
  stage *stages = (stage *)memory;     // [2]
  tile *places = (tile *)(stages + 2); // [2]: of this tile and the next, not in registers: there is no room
  int *first = (int *)(places + 2), *tiles = first + p.n_members + 1;
  wait_for_inputs();
  tile_table table = {first, tiles, (p.w.rows + TILE - 1) / TILE, 0};
  if (p.first) {
    for (int i = threadIdx.x; i <= p.n_members; i += THREADS) {
      first[i] = p.first[i];
      tiles[i] = p.tiles[2 * (p.n_members + 1) + i];
    }
    __syncthreads();
  }
  table.n_tiles = table.n_row_tiles * (p.first ? tiles[p.n_members] : (p.n_items + TILE - 1) / TILE);
  int index = blockIdx.x, current = 0, which = 0;
  if (index >= table.n_tiles) return;
  auto find = [&](tile *place) {
    tile t = tile_at(p, table, index);
    if (threadIdx.x == 0) *place = t;
    return source_of(p, t);
  };
  source now = find(places);
  part<TYPE> coming;
  load_part(&coming, p, now, 0);
  store_part(stages, p, coming, 0);
  load_part(&coming, p, now, 1);
  __syncthreads();
#pragma unroll 1
  while (true) {
    const tile *place = places + which;
    index += gridDim.x;
    which ^= 1;
    bool has_next = index < table.n_tiles;
    source next = has_next ? find(places + which) : now; // read once more after the last, in vain
    if (place->count > 16)
      take_tile<TYPE, 8>(p, stages, &current, &coming, place, now, next);
    else if (place->count > 8)
      take_tile<TYPE, 4>(p, stages, &current, &coming, place, now, next);
    else
      take_tile<TYPE, 2>(p, stages, &current, &coming, place, now, next);
    if (!has_next) return;
    now = next;
  }
}

// ---- launches ----

static size_t bytes_of(const product *p) {
  return 2 * sizeof(stage) + 2 * sizeof(tile) + (p->first ? 2 * (size_t)(p->n_members + 1) * sizeof(int) : 0);
}

bool product_f32_tiles_fits(const product *p) {
  bool each_alone = p->member && !p->first;
  return has_blocks(p) && !type_find(p->w.type)->few_bits && !each_alone &&
         bytes_of(p) <= device_shared_bytes();
}

template <weight_type TYPE> static status tiles_of_type(const product *p, cudaStream_t stream) {
  static size_t allowed; // the attribute is set for each kernel; setting it twice does no harm
  size_t bytes = bytes_of(p);
  if (bytes > allowed) {
    CUDA_TRY(cudaFuncSetAttribute(product_f32_tiles<TYPE>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)bytes));
    allowed = bytes;
  }
  size_t most = (size_t)ceil_div(p->w.rows, TILE) * tile_count(p, TILE),
         blocks = (size_t)device_multiprocessors();
  return launch(product_f32_tiles<TYPE>, dim3((unsigned)(most < blocks ? most : blocks)), THREADS, bytes,
                stream, *p);
}

status product_f32_tiles_launch(const product *p, cudaStream_t stream) {
  switch (p->w.type) {
  case TYPE_F32:
    return tiles_of_type<TYPE_F32>(p, stream);
  case TYPE_F16:
    return tiles_of_type<TYPE_F16>(p, stream);
  case TYPE_BF16:
    return tiles_of_type<TYPE_BF16>(p, stream);
  case TYPE_Q8_0:
    return tiles_of_type<TYPE_Q8_0>(p, stream);
  case TYPE_Q4_K:
    return tiles_of_type<TYPE_Q4_K>(p, stream);
  case TYPE_Q5_K:
    return tiles_of_type<TYPE_Q5_K>(p, stream);
  case TYPE_Q6_K:
    return tiles_of_type<TYPE_Q6_K>(p, stream);
    CASES_OF_FEW_BITS
    break;
  }
  return FAIL("CUDA: the type %s has no product", type_find(p->w.type)->name);
}
