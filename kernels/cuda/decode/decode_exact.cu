// decode_exact: docs/paths.md steps 4 to 6 of exact attention for tokens of different sequences: norm, RoPE
// and rounding of the heads, the new key and value into the cache, attention and its folds, in one launch.
// The bits of exact/attend.cu.
//
// A thread block takes a chunk and up to eight heads that share it: with the high and the low limbs of eight
// heads the tensor cores' 16 rows are full. The last block of a group of chunks folds the group, the last of
// the groups folds them.
#include "kernels/cuda/decode/decode.cuh"
#include "kernels/cuda/decode/decode_launch.cuh"
#include "kernels/cuda/decode/head_row.cuh"
#include "kernels/cuda/exact/attend.cuh"

static constexpr int HEADS = 8, THREADS = (HEADS + 2) * WARP; // two more warps: the new key and value
static constexpr int KEYS = EXACT_CHUNK, DIMS = 128;
static constexpr int WARP_KEYS = KEYS / HEADS;
static_assert(WARP_KEYS % 8 == 0 && KEYS % WARP == 0);

struct decode_args {
  const float *q, *k, *v, *q_norm, *k_norm, *q_balance, *k_balance, *rope;
  float *out; // [n][n_heads][head_dim]
  limb_cache cache;
  exact_work work;
  int layer, n_heads, group, n_chunks;
  float epsilon, scale;
  bool early; // the cache up to the last token may be read before the wait
  const int *sequence, *position;
  unsigned *arrived; // [n][kv heads * slices][n_groups + 1], 0 between launches
};

struct decode_memory {
  uint8_t block[block_bytes(DIMS)];                             // as in the cache
  uint8_t query[2][HEADS][ROW], weight[2][HEADS][ROW];          // limbs, pieces permuted as in a block
  float score[HEADS][KEYS + 4], query_unit[HEADS], unit[HEADS]; // unit: of the weights
  float max[HEADS], sum[HEADS];
  bool folds;
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

// ---- loads ----

// Starts copies of what a chunk's first n keys are in: keys' rows, and values of 16 keys at a time.
template <int DIM> __device__ __forceinline__ void copy_block(uint8_t *to, const uint8_t *from, int n) {
  constexpr int PIECES = DIM / 16;
  for (int i = threadIdx.x; i < n * 2 * PIECES; i += THREADS) {
    int at = key_at(DIMS, i / PIECES % 2, i / (2 * PIECES), i % PIECES * 16);
    copy_async_16(to + at, from + at);
  }
  int sixteens = (n + 15) / 16;
  for (int i = threadIdx.x; i < DIM * 2 * sixteens; i += THREADS) {
    int d = i / 2 % DIM, key = i / (2 * DIM) * 16;
    int at = value_row(DIMS, key, d) + piece_at(d, i % 2 * (SPAN / 16) + key % SPAN / 16);
    copy_async_16(to + at, from + at);
  }
  for (int i = 4 * threadIdx.x; i < 2 * KEYS; i += 4 * THREADS) {
    int at = units_offset(DIMS) + i * (int)sizeof(float);
    if (i % KEYS < n) copy_async_16(to + at, from + at);
  }
}

// The new key or value at its place in a block, in shared memory or in the cache.
template <int DIM>
__device__ __forceinline__ void store_row(uint8_t *block, const limb_row<DIM> &row, bool is_key, int key) {
  int lane = threadIdx.x % WARP;
  for (int i = 0; i < limb_row<DIM>::EACH; i++) {
    int d = lane + WARP * i;
    block[is_key ? key_at(DIMS, 0, key, d) : value_at(DIMS, 0, key, d)] = high_limb(row.x[i]);
    block[is_key ? key_at(DIMS, 1, key, d) : value_at(DIMS, 1, key, d)] = low_limb(row.x[i]);
  }
  if (lane == 0) units_of(block, DIMS)[is_key ? key : KEYS + key] = row.unit;
}

// ---- a chunk ----

// What a lane holds of 16 rows, the high limbs of eight heads and then their low ones: 32 bytes of each.
__device__ __forceinline__ void load_rows(uint32_t (&rows)[4], const uint8_t (*limbs)[HEADS][ROW], int step) {
  int head = threadIdx.x % WARP / 4, at = threadIdx.x % 4 * 4;
#pragma unroll
  for (int i = 0; i < 4; i++)
    rows[i] = *(const uint32_t *)&limbs[i % 2][head][piece_at(head, 2 * step + i / 2) + at];
}

// Warp w: scores of keys 16 w .. 16 w + 15 of all heads.
template <int DIM> __device__ __forceinline__ void score_keys(decode_memory *m, int warp) {
  int lane = threadIdx.x % WARP, head = lane / 4;
  int by_high[2][4] = {}, by_low[2][4] = {}; // of the keys' limbs
#pragma unroll
  for (int s = 0; s < DIM / 32; s++) {
    uint32_t rows[4];
    load_rows(rows, m->query, s);
#pragma unroll
    for (int i = 0; i < 2; i++) {
      int key = warp * WARP_KEYS + 8 * i + lane / 4;
      const uint8_t *high = m->block + key * ROW + lane % 4 * 4, *low = high + KEYS * DIMS;
      int at0 = piece_at(key, 2 * s), at1 = piece_at(key, 2 * s + 1);
      mma_k32(by_high[i], rows, *(const uint32_t *)(high + at0), *(const uint32_t *)(high + at1));
      mma_k32(by_low[i], rows, *(const uint32_t *)(low + at0), *(const uint32_t *)(low + at1));
    }
  }
  const float *units = units_of(m->block, DIMS);
#pragma unroll
  for (int i = 0; i < 4; i++) {
    int key = warp * WARP_KEYS + i / 2 * 8 + lane % 4 * 2 + i % 2;
    int sum = exact_score_sum(by_high[i / 2][i % 2], by_high[i / 2][i % 2 + 2] + by_low[i / 2][i % 2]);
    m->score[head][key] = exact_score(sum, m->query_unit[head] * units[key]);
  }
}

// Warp h: head h's scores of the chunk's n keys become limbs of weights.
__device__ __forceinline__ void weigh_keys(decode_memory *m, int h, int n) {
  constexpr int EACH = KEYS / WARP;
  int lane = threadIdx.x % WARP, count = 0;
  const float *units = units_of(m->block, DIMS) + KEYS;
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
    x[i] = e * units[lane + WARP * i];
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

// Eight dimensions from d0 on of all heads: of head l / 4, dimensions d0 + 2 (l % 4) and the next.
__device__ __forceinline__ float2 weigh_values(const decode_memory *m, int d0, int n) {
  int lane = threadIdx.x % WARP, d = d0 + lane / 4;
  int by_high[4] = {}, by_low[4] = {}; // of the values' limbs
#pragma unroll
  for (int s = 0; s < KEYS / 32; s++) {
    if (s * 32 >= n) break;
    uint32_t rows[4];
    load_rows(rows, m->weight, s);
    const uint8_t *row = m->block + value_row(DIMS, s * 32, d) + lane % 4 * 4;
    int piece = s * 32 % SPAN / 16;
    const uint8_t *at[4];
#pragma unroll
    for (int i = 0; i < 4; i++) at[i] = row + piece_at(d, piece + i % 2 + i / 2 * (SPAN / 16));
    mma_k32(by_high, rows, *(const uint32_t *)at[0], *(const uint32_t *)at[1]);
    mma_k32(by_low, rows, *(const uint32_t *)at[2], *(const uint32_t *)at[3]);
  }
  float unit = m->unit[lane / 4];
  return make_float2(exact_output(exact_output_sum(by_high[0], by_high[2] + by_low[0], by_low[2]), unit),
                     exact_output(exact_output_sum(by_high[1], by_high[3] + by_low[1], by_low[3]), unit));
}

// ---- folds ----

// A warp folds parts of one head, `count` of them `step` places apart, ascending: the factors of 32 at once,
// a lane each, then the sums. Of the result lane l has dimensions l + 32 i.
template <int DIM>
__device__ exact_sums fold_parts(float (&out)[DIM / WARP], const exact_work &work, size_t first, int step,
                                 int count) {
  constexpr int EACH = DIM / WARP, AHEAD = 8;
  int lane = threadIdx.x % WARP;
  exact_sums total;
  for (int i = 0; i < EACH; i++) out[i] = 0;
  for (int base = 0; base < count; base += WARP) {
    size_t mine = first + (size_t)min(base + lane, count - 1) * step;
    float max = __ldcg(&work.max[mine]), sum = __ldcg(&work.sum[mine]), both = fmaxf(max, total.max);
    for (int s = 1; s < WARP; s *= 2) both = fmaxf(both, __shfl_up_sync(~0u, both, s));
    float previous = __shfl_up_sync(~0u, both, 1);
    if (lane == 0) previous = total.max;
    float old = exact_rescale(previous, both), fresh = exact_rescale(max, both);
    total.max = __shfl_sync(~0u, both, WARP - 1);
    for (int i = 0; i < min(WARP, count - base); i += AHEAD) {
      float part[AHEAD][EACH];
#pragma unroll
      for (int k = 0; k < AHEAD; k++)
#pragma unroll
        for (int j = 0; j < EACH; j++)
          part[k][j] = __ldcg(
              &work.out[(first + (size_t)min(base + i + k, count - 1) * step) * DIM + lane + WARP * j]);
#pragma unroll
      for (int k = 0; k < AHEAD; k++) {
        float f = __shfl_sync(~0u, fresh, i + k), o = __shfl_sync(~0u, old, i + k),
              l = __shfl_sync(~0u, sum, i + k);
        if (base + i + k >= count) break;
        total.sum = num_fma_f32(l, f, total.sum * o);
#pragma unroll
        for (int j = 0; j < EACH; j++) out[j] = num_fma_f32(part[k][j], f, out[j] * o);
      }
    }
  }
  return total;
}

// Whether this block is the last of `count` to come; leaves the counter at zero. What the others wrote
// before is visible then.
__device__ __forceinline__ bool is_last_of(decode_memory *m, unsigned *arrived, int count) {
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    m->folds = atomicAdd(arrived, 1) == (unsigned)count - 1;
    if (m->folds) *arrived = 0;
  }
  __syncthreads();
  __threadfence();
  return m->folds;
}

// The chunk's part is in work: folds its group, and the groups, where it is the last of them. A warp a head;
// row: of warp 0's head.
template <int DIM>
__device__ void fold_arrived(decode_memory *m, const decode_args &a, size_t row, bool has_head, int chunk,
                             int last, unsigned *arrived) {
  constexpr int EACH = DIM / WARP;
  int lane = threadIdx.x % WARP, group = chunk / GROUP_CHUNKS, groups = last / GROUP_CHUNKS + 1;
  size_t first = (row + threadIdx.x / WARP) * a.n_chunks, start = first + group * GROUP_CHUNKS;
  float out[EACH];
  exact_sums total;
  if (!is_last_of(m, arrived + group, min(GROUP_CHUNKS, last + 1 - group * GROUP_CHUNKS))) return;
  if (has_head)
    total = fold_parts<DIM>(out, a.work, start, 1, min(GROUP_CHUNKS, last + 1 - group * GROUP_CHUNKS));
  if (groups > 1) {
    if (has_head) {
      for (int i = 0; i < EACH; i++) a.work.out[start * DIM + lane + WARP * i] = out[i];
      if (lane == 0) {
        a.work.max[start] = total.max;
        a.work.sum[start] = total.sum;
      }
    }
    if (!is_last_of(m, arrived + (a.n_chunks - 1) / GROUP_CHUNKS + 1, groups)) return;
    if (has_head) total = fold_parts<DIM>(out, a.work, first, GROUP_CHUNKS, groups);
  }
  if (!has_head) return;
  float inverse = exact_inverse(total.sum, m->query_unit[threadIdx.x / WARP]);
  for (int i = 0; i < EACH; i++) a.out[(row + threadIdx.x / WARP) * DIM + lane + WARP * i] = out[i] * inverse;
}

// ---- the kernel ----

// The heads' rows of the new token, rounded: queries into shared memory; the new key and value where the
// block has the chunk that they are in, and into the cache.
template <int DIM>
__device__ __forceinline__ void take_rows(decode_memory *m, const head_row<DIM> &row,
                                          const float (&balance)[DIM / WARP], uint8_t *block, bool is_query,
                                          bool stores, bool is_key, int key) {
  int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  limb_row<DIM> limbs;
  if (is_query || warp >= HEADS) limbs.round(row, balance);
  if (is_query) {
    for (int i = 0; i < DIM / WARP; i++) {
      int at = piece_at(warp, lane / 16 + 2 * i) + lane % 16;
      m->query[0][warp][at] = high_limb(limbs.x[i]);
      m->query[1][warp][at] = low_limb(limbs.x[i]);
    }
    if (lane == 0) m->query_unit[warp] = limbs.unit;
  }
  copy_async_wait_all();
  __syncthreads(); // the copies are complete but for the new position
  if (warp >= HEADS && block) {
    store_row<DIM>(m->block, limbs, is_key, key);
    if (stores) store_row<DIM>(block, limbs, is_key, key);
  }
  __syncthreads();
}

template <int DIM>
__global__ void __launch_bounds__(THREADS, 3) decode_attend_exact(const __grid_constant__ decode_args a) {
  extern __shared__ __align__(16) uint8_t memory[];
  decode_memory *m = (decode_memory *)memory;
  int slices = (a.group + HEADS - 1) / HEADS, kv = blockIdx.y / slices, slice = blockIdx.y % slices;
  int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, chunk = blockIdx.x, t = blockIdx.z;
  int position = a.position[t], last = position / KEYS, n = min(KEYS, position + 1 - chunk * KEYS);
  if (chunk > last) return;
  int first_head = kv * a.group + slice * HEADS, heads = min(HEADS, a.group - slice * HEADS);
  uint8_t *block = block_of(a.cache, a.layer, a.sequence[t], kv, chunk);
  if (!a.early) wait_for_previous();
  copy_block<DIM>(m->block, block, chunk == last ? n - 1 : n); // what earlier tokens have cached
  bool is_query = warp < heads, is_key = warp == HEADS;
  head_row<DIM> row;
  float balance[DIM / WARP];
  row.constants(is_query ? a.q_norm : a.k_norm, a.rope + (size_t)position * DIM);
  for (int i = 0; i < DIM / WARP; i++)
    balance[i] = warp == HEADS + 1 ? 1.0f : (is_query ? a.q_balance : a.k_balance)[lane + WARP * i];
  if (a.early) wait_for_previous();
  size_t from_q = (size_t)t * a.n_heads + first_head + warp, from_kv = (size_t)t * a.cache.n_kv_heads + kv;
  row.load(is_query ? a.q + from_q * DIM : (is_key ? a.k : a.v) + from_kv * DIM);
  if (is_query || is_key) row.norm_and_rotate(a.epsilon, is_query ? a.scale : 1.0f);
  take_rows<DIM>(m, row, balance, chunk == last ? block : nullptr, is_query, slice == 0, is_key,
                 position % KEYS);
  if (warp < HEADS && warp * WARP_KEYS < n) score_keys<DIM>(m, warp);
  __syncthreads();
  if (is_query) weigh_keys(m, warp, n);
  __syncthreads();
  size_t row0 = (size_t)t * a.n_heads + first_head;
  if (warp < HEADS) {
    int head = lane / 4;
    float *to = a.out + (row0 + head) * DIM;
    if (last) to = a.work.out + ((row0 + head) * a.n_chunks + chunk) * DIM;
    float inverse = last ? 1.0f : exact_inverse(m->sum[head], m->query_unit[head]);
#pragma unroll
    for (int d = warp * 8; d < DIM; d += HEADS * 8) {
      float2 out = weigh_values(m, d, n);
      if (head < heads) *(float2 *)(to + d + lane % 4 * 2) = make_float2(out.x * inverse, out.y * inverse);
    }
  }
  if (!last) return;
  if (is_query && lane == 0) {
    a.work.max[(row0 + warp) * a.n_chunks + chunk] = m->max[warp];
    a.work.sum[(row0 + warp) * a.n_chunks + chunk] = m->sum[warp];
  }
  unsigned *arrived =
      a.arrived + (size_t)(blockIdx.z * gridDim.y + blockIdx.y) * ((a.n_chunks - 1) / GROUP_CHUNKS + 2);
  fold_arrived<DIM>(m, a, row0, is_query, chunk, last, arrived);
}

// ---- launch ----

bool decode_attends_exact(const exact_work *work, const model_shape *s, int n, int max_keys) {
  return (s->head_dim == 64 || s->head_dim == 128) &&
         (size_t)n * (size_t)s->n_heads * (size_t)ceil_div(max_keys, KEYS) <= work->capacity;
}

status decode_exact_launch(float *out, const float *q, const float *k, const float *v, const dev_layer *w,
                           const model_shape *s, const float *rope, limb_cache cache, int layer,
                           const dev_batch *b, int max_keys, const exact_work *work, unsigned *arrived,
                           bool early, cudaStream_t stream) {
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
  a.arrived = arrived;
  dim3 grid((unsigned)a.n_chunks, (unsigned)(cache.n_kv_heads * ceil_div(a.group, HEADS)), (unsigned)b->n);
  auto *kernel = s->head_dim == 64 ? decode_attend_exact<64> : decode_attend_exact<128>;
  return launch_shared(kernel, grid, THREADS, sizeof(decode_memory), stream, a);
}
