// decode_exact: docs/paths.md steps 4 to 6 of exact attention for tokens of different sequences: norm, RoPE
// and rounding of the heads, the new key and value into the cache, attention, and the folds in a second
// launch where there is more than one chunk. The bits of exact/attend.cu.
//
// A thread block takes a chunk and up to eight heads that share it (decode_chunk.cuh); its loads of the cache
// are under way while the heads are prepared.
#include "kernels/cuda/decode/decode.cuh"
#include "kernels/cuda/decode/decode_chunk.cuh"
#include "kernels/cuda/decode/decode_launch.cuh"

static constexpr int WARPS = 8, THREADS = WARPS * WARP;

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

// ---- the kernel of chunks ----

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
  chunk_limbs<DIM, WARPS> limbs;
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
    publish_fresh<DIM>(m, rounded, warp, slice ? nullptr : block(last), position % KEYS);
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
    score_keys(m, limbs);
    if (next <= last) limbs.load_keys(block(next), cached(next));
    __syncthreads();
    if (is_query) weigh_keys(m, limbs.value_unit, warp, min(KEYS, position + 1 - chunk * KEYS));
    __syncthreads();
    auto at = [&](int head) { return (row0 + head) * a.n_chunks + chunk; };
    store_chunk(
        m, limbs, heads, a.n_chunks == 1,
        [&](int head, int d, float2 out) { *(float2 *)(a.out + (row0 + head) * DIM + d) = out; },
        [&](int head, int d, float2 out) { *(float2 *)(a.work.out + at(head) * DIM + d) = out; },
        [&](int head, float max, float sum) {
          a.work.max[at(head)] = max;
          a.work.sum[at(head)] = sum;
        });
    if (next <= last) limbs.load_values(block(next), cached(next));
  }
}

// ---- the kernel of folds: a thread block 32 dimensions of a head, a warp a group of chunks ----

static constexpr int FOLD_WARPS = 8;

// Up to 32 chunks from `first` on, ascending: all are loaded, then the factors, a lane each, then the sums, a
// lane a dimension.
__device__ __forceinline__ group_sums<1> fold_chunks(const exact_work &work, size_t first, int count, int dim,
                                                     int d) {
  size_t mine = first + min((int)threadIdx.x % WARP, count - 1);
  float max = __ldcg(work.max + mine), sum = __ldcg(work.sum + mine), part[WARP][1];
#pragma unroll
  for (int k = 0; k < WARP; k++) part[k][0] = __ldcg(work.out + (first + min(k, count - 1)) * dim + d);
  group_factors factors(max, sum);
  group_sums<1> g = {factors.both, 0, {0}};
#pragma unroll
  for (int k = 0; k < WARP; k++)
    if (k < count) g.take_in(factors, k, part[k]);
  return g;
}

__global__ void __launch_bounds__(FOLD_WARPS *WARP) decode_folds(const __grid_constant__ decode_args a) {
  extern __shared__ __align__(16) uint8_t memory[];
  folded<1, WARP> *groups = (folded<1, WARP> *)memory;
  int dim = a.cache.head_dim, lane = threadIdx.x % WARP, head = blockIdx.x, t = blockIdx.z;
  int d = blockIdx.y * WARP + lane, chunks = a.position[t] / KEYS + 1;
  int n_groups = (chunks + GROUP_CHUNKS - 1) / GROUP_CHUNKS;
  size_t row = (size_t)t * a.n_heads + head, first = row * a.n_chunks;
  wait_for_previous();
  for (int g = threadIdx.x / WARP; g < n_groups; g += blockDim.x / WARP)
    groups[g].keep(
        fold_chunks(a.work, first + g * GROUP_CHUNKS, min(GROUP_CHUNKS, chunks - g * GROUP_CHUNKS), dim, d));
  __syncthreads();
  if (threadIdx.x >= WARP) return;
  head_sums<1> sums;
  for (int g = 0; g < n_groups; g++) sums.take_in(groups[g]);
  a.out[row * dim + d] = sums.output(0);
}

// ---- launch ----

bool decode_attends_exact(const exact_work *work, const model_shape *s, int n, int max_keys) {
  return (s->head_dim == 64 || s->head_dim == 128) &&
         (size_t)n * (size_t)s->n_heads * (size_t)ceil_div(max_keys, KEYS) <= work->capacity;
}

static status launch_folds(const decode_args &a, int n, cudaStream_t stream) {
  int groups = ceil_div(a.n_chunks, GROUP_CHUNKS), warps = groups < FOLD_WARPS ? groups : FOLD_WARPS;
  dim3 grid((unsigned)a.n_heads, (unsigned)(a.cache.head_dim / WARP), (unsigned)n);
  return launch_shared(decode_folds, grid, warps * WARP, (size_t)groups * sizeof(folded<1, WARP>), stream, a);
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
