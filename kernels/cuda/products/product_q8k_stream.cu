// product_q8k_stream: K-quant weights of experts, read once at the memory's pace, times the few Q8_K
// activations that each expert has; the bits of product_q8k.cu's kernels.
//
// The rows of all experts that have items lie on a line in pieces of 16, and a thread block takes an equal
// part of the line, its warps the pieces in turn. A warp is alone: it asks for what it multiplies next, some
// blocks of 16 rows, as soon as it has used those before, adds the terms of a row's blocks in their order in
// its registers, and waits for no other. What warps share is the activations of the part's experts, of which
// a thread block has one to three: as many as fit are loaded at once.
#include "kernels/cuda/products/mma_q8k.cuh"
#include "kernels/cuda/products/product_q8k_stream.cuh"
#include "kernels/cuda/round_q8k.cuh"

static constexpr int PIECE = 16; // rows
static constexpr int MOST_WARPS = 16, FEWEST_WARPS = 4;
static constexpr int POOL = 2;      // tiles of activations that fit
static constexpr int MOST_EACH = 8; // items of an expert, on average: 5 % ahead of tiles with so many
static constexpr int BLOCKS = 4;    // of a row that are asked for at once, where it has more

struct stream_shape {   // of a launch
  int n_blocks, pieces; // of a row; of one expert, over all matrices of the set
  int blocks;           // of a row that are asked for at once: a part
  int part_bytes[3];    // of each matrix of the set
  int pitch;            // from one row to the next, in shared memory
  int warps;
  int tiles; // that there may be
};

struct stream_memory {
  int8_t *qs;    // [pool][item_pitch]
  int8_t *sums;  // [pool][sums_pitch]
  int64_t *out;  // [pool]: where in the outputs an item's row starts
  float *dx;     // [pool][n_blocks]
  uint8_t *rows; // [warps][PIECE][pitch]: the part that a warp has asked for
  item_tile *tiles;
};

// Of an item's blocks and of their sums: eight items fall into all banks.
static __host__ __device__ __forceinline__ int item_pitch(int n_blocks) {
  return n_blocks * QK_K + 16;
}
static __host__ __device__ __forceinline__ int sums_pitch(int n_blocks) {
  return (n_blocks | 1) * 16;
}

// What a warp reads behind the last item of the pool lies in what follows.
static __host__ __device__ __forceinline__ int pool_bytes(int pool, int n_blocks) {
  return pool *
         (item_pitch(n_blocks) + sums_pitch(n_blocks) + (int)sizeof(int64_t) + n_blocks * (int)sizeof(float));
}

template <int ITEMS>
__device__ __forceinline__ stream_memory lay_out(uint8_t *memory, const stream_shape &s) {
  constexpr int pool = POOL * ITEMS;
  stream_memory m;
  m.qs = (int8_t *)memory;
  m.sums = m.qs + pool * item_pitch(s.n_blocks);
  m.out = (int64_t *)(m.sums + pool * sums_pitch(s.n_blocks));
  m.dx = (float *)(m.out + pool);
  m.rows = memory + pool_bytes(pool, s.n_blocks);
  m.tiles = (item_tile *)(m.rows + s.warps * PIECE * s.pitch);
  return m;
}

// ---- the line ----

template <int ITEMS> __device__ __forceinline__ void list_tiles(item_tile *out, const product &p) {
  const int *tiles = tiles_of(p, ITEMS);
  for (int m = threadIdx.x; m < p.n_members; m += blockDim.x) {
    int end = p.first[m + 1];
    item_tile *to = out + tiles[m];
    for (int first = p.first[m]; first < end; first += ITEMS) *to++ = {m, first, min(ITEMS, end - first)};
  }
}

// A piece of some tile's rows, and how many of the warp's follow, itself included.
struct line_place {
  int tile, piece, left;

  __device__ __forceinline__ void next(const stream_shape &s) {
    left--;
    for (piece += s.warps; piece >= s.pieces; piece -= s.pieces) tile++;
  }
};

__device__ __forceinline__ int matrix_of(const product_set &set, int piece) {
  int which = 0;
  while (which + 1 < set.count && piece >= set.first_block[which + 1]) which++;
  return which;
}

// ---- weights ----

// Copies of a lane: of two rows every fourth 16 bytes, so that four lanes read 64 bytes that follow each
// other.
__device__ __forceinline__ void copy_two_rows(uint8_t *to, int pitch, const uint8_t *row0,
                                              const uint8_t *row8, int bytes) {
  int left = bytes - (int)(threadIdx.x % 4) * 16;
  for (; left > 192; left -= 256, to += 256, row0 += 256, row8 += 256) {
#pragma unroll
    for (int i = 0; i < 256; i += 64) {
      copy_async_16(to + i, row0 + i);
      copy_async_16(to + 8 * pitch + i, row8 + i);
    }
  }
  for (; left > 0; left -= 64, to += 64, row0 += 64, row8 += 64) {
    copy_async_16(to, row0);
    copy_async_16(to + 8 * pitch, row8);
  }
}

// What a warp asks for, in its order: the parts of a piece's rows, then those of its next piece.
struct asking {
  line_place at;
  int blocks_left, bytes; // of the piece; of a part
  const uint8_t *row[2];  // the lane's of the next part

  // At the piece's first part; a ragged piece repeats the last row.
  __device__ __forceinline__ void enter(const product_set &set, const stream_shape &s,
                                        const item_tile *tiles) {
    int lane = threadIdx.x % WARP, which = matrix_of(set, at.piece);
    int row0 = (at.piece - set.first_block[which]) * PIECE + lane / 4;
    const dev_matrix &w = set.p[which].w;
    const uint8_t *rows = w.data + (size_t)tiles[at.tile].member * w.member_bytes + lane % 4 * 16;
    row[0] = rows + (size_t)min(row0, w.rows - 1) * w.row_bytes;
    row[1] = rows + (size_t)min(row0 + 8, w.rows - 1) * w.row_bytes;
    bytes = s.part_bytes[which];
    blocks_left = s.n_blocks;
  }

  // Once none of the warp's lanes reads what lies there.
  __device__ __forceinline__ void ask(uint8_t *to, const product_set &set, const stream_shape &s,
                                      const item_tile *tiles) {
    int lane = threadIdx.x % WARP;
    __syncwarp();
    if (at.left <= 0) return;
    copy_two_rows(to + lane / 4 * s.pitch + lane % 4 * 16, s.pitch, row[0], row[1], bytes);
    row[0] += bytes;
    row[1] += bytes;
    blocks_left -= s.blocks;
    if (blocks_left) return;
    at.next(s);
    if (at.left > 0) enter(set, s, tiles);
  }
};

// ---- activations ----

// An item's rounded blocks, by a warp.
__device__ __forceinline__ void copy_item(const stream_memory &m, const product &p, int n_blocks, int to,
                                          size_t input) {
  int lane = threadIdx.x % WARP;
  for (int piece = lane; piece < n_blocks * 16; piece += WARP)
    copy_async_16(m.qs + to * item_pitch(n_blocks) + piece * 16, p.in.qs + input * QK_K + piece * 16);
  if (lane >= n_blocks) return;
  copy_async_16(m.sums + to * sums_pitch(n_blocks) + lane * 16, p.in.sums32 + (input + lane) * 16);
  copy_async_4(m.dx + to * n_blocks + lane, p.in.d + input + lane);
}

// One of an item's blocks, by a warp, from its two factors.
__device__ __forceinline__ void make_block(const stream_memory &m, const product &p, int n_blocks, int to,
                                           size_t input, int b) {
  int lane = threadIdx.x % WARP;
  float v[8];
  size_t at = (input + b) * QK_K;
  gate_lane(v, p.in.x + at, p.up + at);
  rounded_lane r = round_lane(v);
  *(uint2 *)(m.qs + to * item_pitch(n_blocks) + b * QK_K + 8 * lane) = r.quants;
  store_sums32(m.sums + to * sums_pitch(n_blocks) + b * 16, r.sum + __shfl_xor_sync(~0u, r.sum, 1));
  if (lane == 0) m.dx[to * n_blocks + b] = r.d;
}

// Of tiles from `first` on as many as fit, in their order; the end of those.
template <int ITEMS>
__device__ __forceinline__ int load_items(const stream_memory &m, const product &p, int n_blocks, int first,
                                          int end) {
  int warps = blockDim.x / WARP, used = 0, t = first, parts = p.up ? n_blocks : 1; // of an item, a warp each
  int part = threadIdx.x / WARP;                                                   // the warp's next
  for (; t < end && used + m.tiles[t].count <= POOL * ITEMS; t++) {
    item_tile tile = m.tiles[t];
    for (; part < tile.count * parts; part += warps) {
      int i = part / parts, item = p.order[tile.first + i], to = used + i, b = part % parts;
      size_t input = (size_t)(item / p.input_divisor) * (size_t)n_blocks;
      if (p.up)
        make_block(m, p, n_blocks, to, input, b);
      else
        copy_item(m, p, n_blocks, to, input);
      if (b == 0 && threadIdx.x % WARP == 0) m.out[to] = output_of(p, item);
    }
    part -= tile.count * parts;
    used += tile.count;
  }
  if (!p.up) copy_async_wait_all();
  return t;
}

// ---- a warp's products ----

// y + the terms of blocks `block` and on of 16 rows, times the items from `base` of the pool on.
template <weight_type TYPE, int ITEMS>
__device__ __forceinline__ void add_blocks(float (&y)[ITEMS / 8][4], const stream_memory &m,
                                           const uint8_t *rows, int pitch, int n_blocks, int block, int count,
                                           int base) {
  int lane = threadIdx.x % WARP;
  const uint8_t *row = rows + lane / 4 * pitch;
#pragma unroll 2
  for (int i = 0; i < count; i++) {
    int b = block + i;
    float term[ITEMS / 8][4];
    mma_items items = {m.qs + base * item_pitch(n_blocks) + b * QK_K, item_pitch(n_blocks),
                       m.sums + base * sums_pitch(n_blocks) + b * 16, sums_pitch(n_blocks)};
    block_terms<TYPE, ITEMS>(term, row, pitch, i, n_blocks, items);
#pragma unroll
    for (int n = 0; n < ITEMS / 8; n++) {
      const float *dx = m.dx + (base + n * 8 + lane % 4 * 2) * n_blocks + b;
#pragma unroll
      for (int c = 0; c < 4; c++) y[n][c] = num_fma_f32(c & 1 ? dx[n_blocks] : dx[0], term[n][c], y[n][c]);
    }
  }
}

template <int ITEMS>
__device__ __forceinline__ void store_piece(const float (&y)[ITEMS / 8][4], const stream_memory &m,
                                            const product &p, int row0, int base, int count) {
  int lane = threadIdx.x % WARP;
#pragma unroll
  for (int n = 0; n < ITEMS / 8; n++)
#pragma unroll
    for (int c = 0; c < 4; c++) {
      int item = n * 8 + lane % 4 * 2 + (c & 1), row = row0 + lane / 4 + c / 2 * 8;
      if (item >= count || row >= p.w.rows) continue;
      float *out = p.out + m.out[base + item] + row;
      *out = p.adds ? *out + y[n][c] : y[n][c];
    }
}

// A warp multiplies the piece of product p from row0 on, part after part as `next` has asked for them to
// `rows`, with `count` items from `base` of the pool on.
template <int ITEMS>
__device__ __forceinline__ void multiply_piece(const stream_memory &m, asking *next, uint8_t *rows,
                                               const product_set &set, const stream_shape &s,
                                               const product &p, int row0, int base, int count) {
  float y[ITEMS / 8][4] = {};
  for (int block = 0; block < s.n_blocks; block += s.blocks) {
    copy_async_wait_all();
    __syncwarp();
    FOR_Q8K_TYPE(p.w.type, add_blocks<TYPE, ITEMS>(y, m, rows, s.pitch, s.n_blocks, block, s.blocks, base))
    next->ask(rows, set, s, m.tiles);
  }
  store_piece<ITEMS>(y, m, p, row0, base, count);
}

// ---- the kernel ----

template <int ITEMS>
__global__ void __launch_bounds__(MOST_WARPS *WARP, 1)
    product_q8k_stream(const __grid_constant__ product_set set, const __grid_constant__ stream_shape s) {
  extern __shared__ __align__(16) uint8_t memory[];
  const product &p = set.p[0]; // items, members and places are those of all
  int warp = threadIdx.x / WARP;
  stream_memory m = lay_out<ITEMS>(memory, s);
  wait_for_inputs();
  int64_t all = (int64_t)tiles_of(p, ITEMS)[p.n_members] * s.pieces;
  list_tiles<ITEMS>(m.tiles, p);
  __syncthreads();
  int from = (int)(all * blockIdx.x / gridDim.x), to = (int)(all * (blockIdx.x + 1) / gridDim.x);
  int first = from + warp, end_tile = (to + s.pieces - 1) / s.pieces;
  line_place at = {first / s.pieces, first % s.pieces, (to - first + s.warps - 1) / s.warps};
  uint8_t *rows = m.rows + warp * PIECE * s.pitch;
  asking next = {at, 0, 0, {}};
  if (at.left > 0) next.enter(set, s, m.tiles);
  next.ask(rows, set, s, m.tiles);
  for (int tile = from / s.pieces; tile < end_tile;) {
    int loaded = tile, base = 0, end = load_items<ITEMS>(m, p, s.n_blocks, tile, end_tile);
    __syncthreads();
    for (; at.left > 0 && at.tile < end; at.next(s)) {
      int which = matrix_of(set, at.piece), row0 = (at.piece - set.first_block[which]) * PIECE;
      for (; loaded < at.tile; loaded++) base += m.tiles[loaded].count;
      int count = m.tiles[at.tile].count;
      if (ITEMS > 8 && count > 8)
        multiply_piece<ITEMS>(m, &next, rows, set, s, set.p[which], row0, base, count);
      else
        multiply_piece<8>(m, &next, rows, set, s, set.p[which], row0, base, count);
    }
    tile = end;
    __syncthreads(); // all have used the activations
  }
}

// ---- the host's side ----

static int items_of(const product *p) {
  return p->each > 4 ? 16 : 8; // an expert has now more and now fewer
}

static stream_shape shape_of(product_set *set) {
  const product *p = &set->p[0];
  int items = items_of(p);
  bool is_parted = p->w.cols / QK_K % BLOCKS == 0;
  stream_shape s = {};
  s.n_blocks = p->w.cols / QK_K;
  for (int i = 0; i < set->count; i++) {
    set->first_block[i] = s.pieces;
    s.pieces += ceil_div(set->p[i].w.rows, PIECE);
    if (set->p[i].w.type == TYPE_Q6_K) is_parted = false; // its rows are planes
  }
  s.blocks = is_parted ? BLOCKS : s.n_blocks;
  for (int i = 0; i < set->count; i++) {
    size_t bytes = set->p[i].w.row_bytes / (size_t)(s.n_blocks / s.blocks);
    s.part_bytes[i] = (int)bytes;
    s.pitch = max(s.pitch, mma_row_pitch(bytes));
  }
  s.tiles = (int)tile_count(p, items);
  int fit =
      ((int)device_shared_bytes() - pool_bytes(POOL * items, s.n_blocks) - s.tiles * (int)sizeof(item_tile)) /
      (PIECE * s.pitch);
  s.warps = min(MOST_WARPS, fit);
  return s;
}

static size_t shared_bytes(const stream_shape *s, int items) {
  return (size_t)(pool_bytes(POOL * items, s->n_blocks) + s->warps * PIECE * s->pitch) +
         (size_t)s->tiles * sizeof(item_tile);
}

// The outputs' places are those of the first product: so all have as many rows.
bool product_q8k_stream_serves(const product_set *set) {
  const product *p = &set->p[0];
  product_set counted = *set;
  for (int i = 1; i < set->count; i++)
    if (set->p[i].w.rows != p->w.rows) return false;
  return p->first && p->each <= MOST_EACH && p->w.cols / QK_K <= WARP &&
         shape_of(&counted).warps >= FEWEST_WARPS;
}

template <int ITEMS> static status launch_stream(product_set *set, cudaStream_t stream) {
  stream_shape s = shape_of(set);
  int most = s.tiles * s.pieces, all = device_multiprocessors();
  return launch_shared(product_q8k_stream<ITEMS>, dim3((unsigned)min(most, all)), s.warps * WARP,
                       shared_bytes(&s, ITEMS), stream, *set, s);
}

status product_q8k_stream_launch(product_set *set, cudaStream_t stream) {
  return items_of(&set->p[0]) == 8 ? launch_stream<8>(set, stream) : launch_stream<16>(set, stream);
}
