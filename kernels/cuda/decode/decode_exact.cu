// decode_exact: docs/paths.md steps 4 to 6 of exact attention for tokens of different sequences: norm, RoPE
// and rounding of the heads, the new key and value into the cache, attention, and the folds in a second
// launch where there is more than one chunk. The bits of exact/attend.cu.
//
// A thread block takes a chunk and up to eight heads that share it: with the high and the low limbs of eight
// heads the tensor cores' 16 rows are full, and every byte of the cache is wanted by one lane only. So it
// goes from memory to registers, all of a chunk at once, while the heads are prepared. A sum of integers has
// no order: a lane multiplies the 16 neighbours that one load gives it, whichever columns of the product they
// are.
#include "kernels/cuda/decode/decode.cuh"
#include "kernels/cuda/decode/decode_launch.cuh"
#include "kernels/cuda/decode/head_row.cuh"
#include "kernels/cuda/exact/attend.cuh"

static constexpr int HEADS = 8, THREADS = HEADS * WARP;
static constexpr int KEYS = EXACT_CHUNK, DIMS = 128, SPANS = KEYS / SPAN;
static constexpr int WARP_KEYS = KEYS / HEADS, TILE = 8; // TILE: columns of a product
static_assert(WARP_KEYS == 2 * TILE && SPAN == 4 * 16 && KEYS % WARP == 0);

struct decode_args {
  const float *q, *k, *v, *q_norm, *k_norm, *q_balance, *k_balance, *rope;
  float *out; // [n][n_heads][head_dim]
  limb_cache cache;
  exact_work work;
  int layer, n_heads, group, n_chunks;
  float epsilon, scale;
  bool early; // the cache up to the last token may be read before the wait
  const int *sequence, *position;
};

struct decode_memory {
  __align__(16) uint8_t query[2][HEADS][ROW];  // limbs, pieces permuted as in a block
  __align__(16) uint8_t weight[2][HEADS][ROW]; // in the order of a row of values
  __align__(16) uint8_t fresh[2][2][ROW];      // limbs of the new key and of the new value
  float score[HEADS][KEYS + 4];
  float query_unit[HEADS], unit[HEADS], max[HEADS], sum[HEADS]; // unit: of the weights
  float fresh_unit[2];
};

// The warp's row as limbs, with what is its unit; lane l has elements l + 32 i.
template <int DIM> struct limb_row {
  static constexpr int EACH = DIM / WARP;
  int x[EACH];
  float unit;
  __device__ __forceinline__ void round(const head_row<DIM> &row, const float (&balance)[EACH]) {
    float value[EACH];
    uint32_t largest = 0;
    for (int i = 0; i < EACH; i++) {
      value[i] = row.x[i] * balance[i];
      largest = max(largest, exact_magnitude(value[i]));
    }
    exact_scale s = exact_vector_scale(__reduce_max_sync(~0u, largest));
    for (int i = 0; i < EACH; i++) x[i] = exact_integer(value[i], s);
    unit = s.unit;
  }
};

// ---- what a lane multiplies of a chunk ----

template <int DIM> struct chunk_limbs {
  static constexpr int PARTS = DIM / 64, TILES = DIM / (HEADS * TILE); // of 64 dimensions; of values
  uint4 key[2][PARTS][2], value[TILES][SPANS][2];                      // [..][..][limb]
  float2 key_unit[2];
  float value_unit[KEYS / WARP];

  __device__ __forceinline__ static int key_of(int i) {
    return threadIdx.x / WARP * WARP_KEYS + i * TILE + threadIdx.x % WARP / 4;
  }
  __device__ __forceinline__ static int dimension_of(int i) {
    return (threadIdx.x / WARP * TILES + i) * TILE + threadIdx.x % WARP / 4;
  }

  // Of the chunk's first n keys; the others are not read.
  __device__ __forceinline__ void load_keys(const uint8_t *block, int n) {
    int c = threadIdx.x % 4;
    const float *units = (const float *)(block + units_offset(DIMS));
#pragma unroll
    for (int i = 0; i < 2; i++) {
      const uint8_t *row = block + key_of(i) * ROW;
      key_unit[i] = __ldcg((const float2 *)(units + threadIdx.x / WARP * WARP_KEYS + i * TILE + 2 * c));
#pragma unroll
      for (int j = 0; j < 2 * PARTS; j++) {
        key[i][j / 2][j % 2] = make_uint4(0, 0, 0, 0);
        if (key_of(i) < n)
          key[i][j / 2][j % 2] =
              __ldcg((const uint4 *)(row + j % 2 * KEYS * DIMS + piece_at(key_of(i), j / 2 * 4 + c)));
      }
    }
  }

  __device__ __forceinline__ void load_values(const uint8_t *block, int n) {
    int c = threadIdx.x % 4;
    const float *units = (const float *)(block + units_offset(DIMS)) + KEYS;
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
      for (int j = 0; j < 2 * SPANS; j++) {
        int d = dimension_of(i), span = j / 2;
        value[i][span][j % 2] = make_uint4(0, 0, 0, 0);
        if (span * SPAN + 16 * c < n)
          value[i][span][j % 2] =
              __ldcg((const uint4 *)(block + value_row(DIMS, span * SPAN, d) + piece_at(d, j % 2 * 4 + c)));
      }
#pragma unroll
    for (int i = 0; i < KEYS / WARP; i++) value_unit[i] = __ldcg(units + threadIdx.x % WARP + WARP * i);
  }

  // Puts the new key and value in, which are not in the cache yet.
  __device__ __forceinline__ void put_fresh(const decode_memory *m, int at) {
    int c = threadIdx.x % 4, place = place_of_key(at % 16);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int first = threadIdx.x / WARP * WARP_KEYS + i * TILE + 2 * c;
      if (first == at) key_unit[i].x = m->fresh_unit[0];
      if (first + 1 == at) key_unit[i].y = m->fresh_unit[0];
#pragma unroll
      for (int j = 0; j < 2 * PARTS; j++)
        if (key_of(i) == at) key[i][j / 2][j % 2] = *(const uint4 *)&m->fresh[0][j % 2][(j / 2 * 4 + c) * 16];
    }
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
      for (int j = 0; j < 2 * SPANS; j++) {
        if (j / 2 * SPAN + 16 * c != at / 16 * 16) continue;
        put_byte(value[i][j / 2][j % 2], place, m->fresh[1][j % 2][dimension_of(i)]);
      }
    for (int i = 0; i < KEYS / WARP; i++)
      if ((int)threadIdx.x % WARP + WARP * i == at)
        value_unit[i] = exact_value_unit(m->fresh_unit[0], m->fresh_unit[1]);
  }

  __device__ __forceinline__ static void put_byte(uint4 &to, int place, uint32_t byte) {
    int shift = place % 4 * 8;
    uint32_t keep = ~(255u << shift), bits = byte << shift;
    if (place / 4 == 0) to.x = (to.x & keep) | bits;
    if (place / 4 == 1) to.y = (to.y & keep) | bits;
    if (place / 4 == 2) to.z = (to.z & keep) | bits;
    if (place / 4 == 3) to.w = (to.w & keep) | bits;
  }
};

// sums += rows (high limbs of eight heads, then their low ones) times columns, 16 neighbours of each.
__device__ __forceinline__ void multiply_16(int (&sums)[4], const uint4 &high, const uint4 &low,
                                            const uint4 &columns) {
  uint32_t first[4] = {high.x, low.x, high.y, low.y}, second[4] = {high.z, low.z, high.w, low.w};
  mma_k32(sums, first, columns.x, columns.y);
  mma_k32(sums, second, columns.z, columns.w);
}

__device__ __forceinline__ uint4 row_piece(const uint8_t (&row)[ROW], int head, int piece) {
  return *(const uint4 *)&row[piece_at(head, piece)];
}

// Warp w: scores of keys 16 w .. 16 w + 15 of all heads.
template <int DIM>
__device__ __forceinline__ void score_keys(decode_memory *m, const chunk_limbs<DIM> &limbs) {
  int c = threadIdx.x % 4, head = threadIdx.x % WARP / 4;
  int by_high[2][4] = {}, by_low[2][4] = {}; // of the keys' limbs
#pragma unroll
  for (int p = 0; p < chunk_limbs<DIM>::PARTS; p++) {
    uint4 high = row_piece(m->query[0][head], head, 4 * p + c);
    uint4 low = row_piece(m->query[1][head], head, 4 * p + c);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      multiply_16(by_high[i], high, low, limbs.key[i][p][0]);
      multiply_16(by_low[i], high, low, limbs.key[i][p][1]);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    int key = threadIdx.x / WARP * WARP_KEYS + i / 2 * TILE + 2 * c + i % 2;
    int sum = exact_score_sum(by_high[i / 2][i % 2], by_high[i / 2][i % 2 + 2] + by_low[i / 2][i % 2]);
    float unit = i % 2 ? limbs.key_unit[i / 2].y : limbs.key_unit[i / 2].x;
    m->score[head][key] = exact_score(sum, m->query_unit[head] * unit);
  }
}

// Warp h: head h's scores of the chunk's n keys become limbs of weights.
__device__ __forceinline__ void weigh_keys(decode_memory *m, const float (&value_unit)[KEYS / WARP], int h,
                                           int n) {
  constexpr int EACH = KEYS / WARP;
  int lane = threadIdx.x % WARP, count = 0;
  float x[EACH], largest = -INFINITY;
  uint32_t most = 0;
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    x[i] = m->score[h][lane + WARP * i];
    if (lane + WARP * i < n) largest = fmaxf(largest, x[i]);
  }
  largest = warp_max(largest);
  float bias = exact_bias(largest);
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    float e = exact_exp(exact_z(x[i], bias));
    x[i] = 0;
    if (lane + WARP * i >= n) continue;
    count += exact_count(e);
    x[i] = e * value_unit[i];
    most = max(most, exact_magnitude(x[i]));
  }
  exact_scale of_weights = exact_weight_scale(__reduce_max_sync(~0u, most));
  count = warp_sum(count);
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    int key = lane + WARP * i, w = exact_integer(x[i], of_weights),
        at = piece_at(h, key / 16) + place_of_key(key % 16);
    m->weight[0][h][at] = high_limb(w);
    m->weight[1][h][at] = low_limb(w);
  }
  if (lane) return;
  m->unit[h] = of_weights.unit;
  m->max[h] = largest;
  m->sum[h] = exact_sum(count);
}

// Eight dimensions of all heads: of head l / 4, the tile's dimensions 2 (l % 4) and the next.
template <int DIM>
__device__ __forceinline__ float2 weigh_values(const decode_memory *m, const chunk_limbs<DIM> &limbs, int i) {
  int c = threadIdx.x % 4, head = threadIdx.x % WARP / 4;
  int by_high[4] = {}, by_low[4] = {}; // of the values' limbs
#pragma unroll
  for (int span = 0; span < SPANS; span++) {
    uint4 high = row_piece(m->weight[0][head], head, 4 * span + c);
    uint4 low = row_piece(m->weight[1][head], head, 4 * span + c);
    multiply_16(by_high, high, low, limbs.value[i][span][0]);
    multiply_16(by_low, high, low, limbs.value[i][span][1]);
  }
  float unit = m->unit[head];
  return make_float2(exact_output(exact_output_sum(by_high[0], by_high[2] + by_low[0], by_low[2]), unit),
                     exact_output(exact_output_sum(by_high[1], by_high[3] + by_low[1], by_low[3]), unit));
}

// ---- the kernel of chunks ----

// The warp's row, rounded, into shared memory: pieces permuted as for `row`.
template <int DIM>
__device__ __forceinline__ void publish_row(uint8_t *high, uint8_t *low, const limb_row<DIM> &rounded,
                                            int row) {
#pragma unroll
  for (int i = 0; i < limb_row<DIM>::EACH; i++) {
    int d = threadIdx.x % WARP + WARP * i, at = piece_at(row, d / 16) + d % 16;
    high[at] = high_limb(rounded.x[i]);
    low[at] = low_limb(rounded.x[i]);
  }
}

// Warp 0 the new key, warp 1 the new value; where `block` is not NULL into the cache as well.
template <int DIM>
__device__ __forceinline__ void publish_fresh(decode_memory *m, const limb_row<DIM> &rounded, uint8_t *block,
                                              int at) {
  int lane = threadIdx.x % WARP, which = threadIdx.x / WARP;
  publish_row<DIM>(m->fresh[which][0], m->fresh[which][1], rounded, 0);
  if (lane == 0) m->fresh_unit[which] = rounded.unit;
  if (!block) return;
#pragma unroll
  for (int i = 0; i < limb_row<DIM>::EACH; i++) {
    int d = lane + WARP * i, x = rounded.x[i];
    block[which ? value_at(DIMS, 0, at, d) : key_at(DIMS, 0, at, d)] = high_limb(x);
    block[which ? value_at(DIMS, 1, at, d) : key_at(DIMS, 1, at, d)] = low_limb(x);
  }
}

// The chunk's result of all heads, each relative to its own maximum; of the only one of a launch the output.
template <int DIM>
__device__ __forceinline__ void store_chunk(const decode_memory *m, const decode_args &a,
                                            const chunk_limbs<DIM> &limbs, size_t row0, int heads,
                                            int chunk) {
  constexpr int TILES = chunk_limbs<DIM>::TILES;
  int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, head = lane / 4;
  size_t part = (row0 + head) * a.n_chunks + chunk;
  float inverse = a.n_chunks > 1 ? 1.0f : exact_inverse(m->sum[head], m->query_unit[head]);
  float *to = a.n_chunks > 1 ? a.work.out + part * DIM : a.out + (row0 + head) * DIM;
#pragma unroll
  for (int i = 0; i < TILES; i++) {
    float2 out = weigh_values(m, limbs, i);
    int d = (warp * TILES + i) * TILE + lane % 4 * 2;
    if (head < heads) *(float2 *)(to + d) = make_float2(out.x * inverse, out.y * inverse);
  }
  if (a.n_chunks == 1 || warp >= heads || lane) return;
  part = (row0 + warp) * a.n_chunks + chunk;
  a.work.max[part] = m->max[warp];
  a.work.sum[part] = m->query_unit[warp] == m->query_unit[warp] ? m->sum[warp] : m->query_unit[warp];
}

// A thread block takes every gridDim.x-th chunk: the keys of its next one are loaded when it has the scores
// of this one, the values when it has used these.
template <int DIM>
__global__ void __launch_bounds__(THREADS, 2) decode_chunks(const __grid_constant__ decode_args a) {
  __shared__ decode_memory decode_shared;
  decode_memory *m = &decode_shared;
  int slices = (a.group + HEADS - 1) / HEADS, kv = blockIdx.y / slices, slice = blockIdx.y % slices;
  int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, chunk = blockIdx.x, t = blockIdx.z;
  int position = a.position[t], last = position / KEYS;
  if (chunk > last) return;
  int first_head = kv * a.group + slice * HEADS, heads = min(HEADS, a.group - slice * HEADS);
  bool has_last = (last - chunk) % (int)gridDim.x == 0, is_query = warp < heads;
  uint8_t *blocks = block_of(a.cache, a.layer, a.sequence[t], kv, 0);
  auto cached = [&](int c) { return min(KEYS, position - c * KEYS); }; // by earlier tokens
  auto block = [&](int c) { return blocks + (size_t)c * block_bytes(DIMS); };
  chunk_limbs<DIM> limbs;
  head_row<DIM> row, fresh;
  float balance[DIM / WARP], fresh_balance[DIM / WARP];
  bool has_fresh = has_last && warp < 2;
  if (!a.early) wait_for_previous();
  limbs.load_keys(block(chunk), cached(chunk));
  limbs.load_values(block(chunk), cached(chunk));
  row.constants(a.q_norm, a.rope + (size_t)position * DIM);
  for (int i = 0; i < DIM / WARP; i++) balance[i] = a.q_balance[lane + WARP * i];
  if (has_fresh) {
    fresh.constants(a.k_norm, a.rope + (size_t)position * DIM);
    for (int i = 0; i < DIM / WARP; i++) fresh_balance[i] = warp ? 1.0f : a.k_balance[lane + WARP * i];
  }
  if (a.early) wait_for_previous();
  size_t row0 = (size_t)t * a.n_heads + first_head;
  if (is_query) row.load(a.q + (row0 + warp) * DIM);
  if (has_fresh) fresh.load((warp ? a.v : a.k) + ((size_t)t * a.cache.n_kv_heads + kv) * DIM);
  if (is_query) {
    limb_row<DIM> rounded;
    row.norm_and_rotate(a.epsilon, a.scale);
    rounded.round(row, balance);
    publish_row<DIM>(m->query[0][warp], m->query[1][warp], rounded, warp);
    if (lane == 0) m->query_unit[warp] = rounded.unit;
  }
  if (has_fresh) {
    limb_row<DIM> rounded;
    if (warp == 0) fresh.norm_and_rotate(a.epsilon, 1.0f);
    rounded.round(fresh, fresh_balance);
    publish_fresh<DIM>(m, rounded, slice ? nullptr : block(last), position % KEYS);
  }
  __syncthreads();
  if (has_last && slice == 0 && threadIdx.x == 0) {
    float *units = units_of(block(last), DIMS) + position % KEYS;
    units[0] = m->fresh_unit[0];
    units[KEYS] = exact_value_unit(m->fresh_unit[0], m->fresh_unit[1]);
  }
#pragma unroll 1
  for (; chunk <= last; chunk += gridDim.x) {
    int next = chunk + (int)gridDim.x;
    if (chunk == last) limbs.put_fresh(m, position % KEYS);
    score_keys<DIM>(m, limbs);
    if (next <= last) limbs.load_keys(block(next), cached(next));
    __syncthreads();
    if (is_query) weigh_keys(m, limbs.value_unit, warp, min(KEYS, position + 1 - chunk * KEYS));
    __syncthreads();
    store_chunk<DIM>(m, a, limbs, row0, heads, chunk);
    if (next <= last) limbs.load_values(block(next), cached(next));
  }
}

// ---- the kernel of folds: a thread block 32 dimensions of a head, a warp a group of chunks ----

static constexpr int FOLD_WARPS = 8;

struct folded { // of a group, in shared memory
  float max, sum, out[WARP];
};

// Chunks from `first` on, ascending: the factors of all first, a lane each, then the sums, a lane a
// dimension.
__device__ void fold_chunks(folded *to, const exact_work &work, size_t first, int count, int dim, int d) {
  constexpr int AHEAD = 16;
  static_assert(GROUP_CHUNKS == WARP);
  int lane = threadIdx.x % WARP;
  size_t mine = first + min(lane, count - 1);
  float max = work.max[mine], sum = work.sum[mine], both = max;
  for (int s = 1; s < WARP; s *= 2) both = fmaxf(both, __shfl_up_sync(~0u, both, s));
  float previous = __shfl_up_sync(~0u, both, 1);
  if (lane == 0) previous = -INFINITY;
  float old = exact_rescale(previous, both), fresh = exact_rescale(max, both), out = 0, total = 0;
  for (int i = 0; i < count; i += AHEAD) {
    float part[AHEAD];
#pragma unroll
    for (int k = 0; k < AHEAD; k++) part[k] = work.out[(first + min(i + k, count - 1)) * dim + d];
#pragma unroll
    for (int k = 0; k < AHEAD; k++) {
      float f = __shfl_sync(~0u, fresh, i + k), o = __shfl_sync(~0u, old, i + k),
            l = __shfl_sync(~0u, sum, i + k);
      if (i + k >= count) break;
      total = num_fma_f32(l, f, total * o);
      out = num_fma_f32(part[k], f, out * o);
    }
  }
  max = __shfl_sync(~0u, both, WARP - 1);
  to->out[lane] = out;
  if (lane) return;
  to->max = max;
  to->sum = total;
}

__global__ void __launch_bounds__(FOLD_WARPS *WARP) decode_folds(const __grid_constant__ decode_args a) {
  extern __shared__ __align__(16) uint8_t memory[];
  folded *groups = (folded *)memory;
  int dim = a.cache.head_dim, lane = threadIdx.x % WARP, head = blockIdx.x, t = blockIdx.z;
  int d = blockIdx.y * WARP + lane, chunks = a.position[t] / KEYS + 1;
  int n_groups = (chunks + GROUP_CHUNKS - 1) / GROUP_CHUNKS;
  size_t row = (size_t)t * a.n_heads + head, first = row * a.n_chunks;
  wait_for_previous();
  for (int g = threadIdx.x / WARP; g < n_groups; g += blockDim.x / WARP)
    fold_chunks(&groups[g], a.work, first + g * GROUP_CHUNKS, min(GROUP_CHUNKS, chunks - g * GROUP_CHUNKS),
                dim, d);
  __syncthreads();
  if (threadIdx.x >= WARP) return;
  exact_sums total;
  float out = 0, old, fresh;
  for (int g = 0; g < n_groups; g++) {
    total.fold(groups[g].max, groups[g].sum, &old, &fresh);
    out = num_fma_f32(groups[g].out[lane], fresh, out * old);
  }
  a.out[row * dim + d] = out * (1.0f / total.sum);
}

// ---- launch ----

bool decode_attends_exact(const exact_work *work, const model_shape *s, int n, int max_keys) {
  return (s->head_dim == 64 || s->head_dim == 128) &&
         (size_t)n * (size_t)s->n_heads * (size_t)ceil_div(max_keys, KEYS) <= work->capacity;
}

static status launch_folds(const decode_args &a, int n, cudaStream_t stream) {
  int groups = ceil_div(a.n_chunks, GROUP_CHUNKS), warps = groups < FOLD_WARPS ? groups : FOLD_WARPS;
  dim3 grid((unsigned)a.n_heads, (unsigned)(a.cache.head_dim / WARP), (unsigned)n);
  return launch_shared(decode_folds, grid, warps * WARP, (size_t)groups * sizeof(folded), stream, a);
}

status decode_exact_launch(float *out, const float *q, const float *k, const float *v, const dev_layer *w,
                           const model_shape *s, const float *rope, limb_cache cache, int layer,
                           const dev_batch *b, int max_keys, const exact_work *work, bool early,
                           cudaStream_t stream) {
  decode_args a = {};
  a.q = q;
  a.k = k;
  a.v = v;
  a.q_norm = w->q_norm;
  a.k_norm = w->k_norm;
  a.q_balance = w->q_balance;
  a.k_balance = w->k_balance;
  a.rope = rope;
  a.out = out;
  a.cache = cache;
  a.work = *work;
  a.layer = layer;
  a.n_heads = (int)s->n_heads;
  a.group = (int)(s->n_heads / s->n_kv_heads);
  a.n_chunks = ceil_div(max_keys, KEYS);
  a.epsilon = (float)s->rms_epsilon;
  a.scale = (float)(1.0 / __builtin_sqrt((double)s->head_dim));
  a.early = early;
  a.sequence = b->sequence;
  a.position = b->position;
  int each = cache.n_kv_heads * ceil_div(a.group, HEADS);          // of a chunk
  int most = max(1, 2 * device_multiprocessors() / (each * b->n)); // two thread blocks a multiprocessor
  dim3 grid((unsigned)min(a.n_chunks, most), (unsigned)each, (unsigned)b->n);
  TRY(launch(s->head_dim == 64 ? decode_chunks<64> : decode_chunks<128>, grid, THREADS, 0, stream, a));
  return a.n_chunks > 1 ? launch_folds(a, b->n, stream) : 0;
}
