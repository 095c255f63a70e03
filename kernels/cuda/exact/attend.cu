// attend: exact attention of any shape: a thread block a query and head, a thread a key, then a dimension.
// What the other kernels do not hold comes here.
#include "kernels/cuda/exact/attend.cuh"

static constexpr int THREADS = EXACT_CHUNK, WARPS = THREADS / WARP;

struct chunk_memory {                  // of a thread block
  uint32_t weight[2][EXACT_CHUNK / 4]; // limbs, in the order of a row of values
  float each[WARPS];
  int count[WARPS];
};

__device__ float block_max(chunk_memory *m, float x) { // NaN is passed over
  x = warp_max(x);
  __syncthreads();
  if (threadIdx.x % WARP == 0) m->each[threadIdx.x / WARP] = x;
  __syncthreads();
  for (int w = 0; w < WARPS; w++) x = fmaxf(x, m->each[w]);
  return x;
}

__device__ uint32_t block_max(chunk_memory *m, uint32_t x) {
  x = __reduce_max_sync(~0u, x);
  __syncthreads();
  if (threadIdx.x % WARP == 0) m->count[threadIdx.x / WARP] = (int)x;
  __syncthreads();
  for (int w = 0; w < WARPS; w++) x = max(x, (uint32_t)m->count[w]);
  return x;
}

__device__ int block_sum(chunk_memory *m, int x) {
  x = warp_sum(x);
  __syncthreads();
  if (threadIdx.x % WARP == 0) m->count[threadIdx.x / WARP] = x;
  __syncthreads();
  x = 0;
  for (int w = 0; w < WARPS; w++) x += m->count[w];
  return x;
}

__device__ __forceinline__ int dot16(uint4 a, const uint32_t *b, int sum) {
  sum = __dp4a((int)a.x, (int)b[0], sum);
  sum = __dp4a((int)a.y, (int)b[1], sum);
  sum = __dp4a((int)a.z, (int)b[2], sum);
  return __dp4a((int)a.w, (int)b[3], sum);
}

// The score's integer, of as many dimensions at once as pass no int32. query: [limb][dims / 4]
__device__ int64_t score_sum(const uint8_t *block, const uint32_t *query, int dims, int key) {
  int64_t sum = 0;
  for (int from = 0; from < dims; from += EXACT_WIDE_HEAD) {
    int high_high = 0, crossed = 0;
    for (int d = from; d < min(dims, from + EXACT_WIDE_HEAD); d += 16) {
      uint4 k_high = *(const uint4 *)(block + key_at(dims, 0, key, d));
      uint4 k_low = *(const uint4 *)(block + key_at(dims, 1, key, d));
      const uint32_t *q_high = query + d / 4, *q_low = query + (dims + d) / 4;
      high_high = dot16(k_high, q_high, high_high);
      crossed = dot16(k_low, q_high, dot16(k_high, q_low, crossed));
    }
    sum += exact_score_sum(high_high, crossed);
  }
  return sum;
}

// The thread's key becomes its weight, in m->weight; max and sum of the chunk. Returns the weights' unit.
__device__ float weigh(chunk_memory *m, float score, bool is_seen, float value_unit, float *max, float *sum) {
  int key = threadIdx.x;
  *max = block_max(m, is_seen ? score : -INFINITY);
  float e = is_seen ? exact_exp(exact_z(score, exact_bias(*max))) : 0.0f;
  float w = is_seen ? e * value_unit : 0.0f; // the unit of a key that is not seen may be NaN
  *sum = exact_sum(block_sum(m, exact_count(e)));
  exact_scale of_weights = exact_weight_scale(block_max(m, exact_magnitude(w)));
  int x = exact_integer(w, of_weights);
  uint8_t *high = (uint8_t *)m->weight[0], *low = (uint8_t *)m->weight[1];
  int at = key / 16 * 16 + place_of_key(key % 16);
  high[at] = high_limb(x);
  low[at] = low_limb(x);
  __syncthreads();
  return of_weights.unit;
}

__device__ int output_sum(const uint8_t *block, const chunk_memory *m, int dims, int d) {
  int high_high = 0, crossed = 0, low_low = 0;
  for (int key = 0; key < EXACT_CHUNK; key += 16) {
    const uint8_t *row = block + value_row(dims, key, d);
    uint4 v_high = *(const uint4 *)(row + piece_at(d, key % SPAN / 16));
    uint4 v_low = *(const uint4 *)(row + piece_at(d, key % SPAN / 16 + SPAN / 16));
    const uint32_t *w_high = m->weight[0] + key / 4, *w_low = m->weight[1] + key / 4;
    high_high = dot16(v_high, w_high, high_high);
    crossed = dot16(v_low, w_high, dot16(v_high, w_low, crossed));
    low_low = dot16(v_low, w_low, low_low);
  }
  return exact_output_sum(high_high, crossed, low_low);
}

__global__ void __launch_bounds__(THREADS) attend_any(const __grid_constant__ exact_args a) {
  wait_for_inputs();
  extern __shared__ __align__(16) uint8_t memory[];
  chunk_memory *m = (chunk_memory *)memory;
  const query_limbs &q = a.work.queries;
  int t = blockIdx.x, h = blockIdx.y, group = q.n_heads / q.n_kv_heads, each = tokens_per_tile(group),
      dims = q.dims, position = a.batch.position[t], sequence = a.batch.sequence[t], dim = a.cache.head_dim;
  uint32_t *query = (uint32_t *)(m + 1);
  float *group_out = (float *)(query + dims / 2), *out = group_out + dims; // a thread's own elements
  const uint32_t *words = q.words + query_row(q, t / each, h / group, t % each * group + h % group);
  for (int i = threadIdx.x; i < dims / 2; i += THREADS)
    query[i] = words[query_word(dims, i / (dims / 4), i % (dims / 4) * 4)];
  for (int d = threadIdx.x; d < dims; d += THREADS) group_out[d] = out[d] = 0;
  __syncthreads();
  float query_unit = q.unit[(size_t)t * q.n_heads + h], old, fresh;
  exact_sums running, total;
  for (int chunk = 0; chunk <= position / EXACT_CHUNK; chunk++) {
    uint8_t *block = block_of(a.cache, a.layer, sequence, h / group, chunk);
    const float *units = units_of(block, dims);
    int key = threadIdx.x;
    float score = exact_score_wide(score_sum(block, query, dims, key), query_unit * units[key]), max, sum;
    float unit = weigh(m, score, chunk * EXACT_CHUNK + key <= position, units[EXACT_CHUNK + key], &max, &sum);
    running.fold(max, sum, &old, &fresh);
    for (int d = threadIdx.x; d < dim; d += THREADS)
      group_out[d] =
          num_fma_f32(exact_output(output_sum(block, m, dims, d), unit), fresh, group_out[d] * old);
    if ((chunk + 1) % GROUP_CHUNKS && chunk < position / EXACT_CHUNK) continue;
    total.fold(running.max, running.sum, &old, &fresh);
    for (int d = threadIdx.x; d < dim; d += THREADS) {
      out[d] = num_fma_f32(group_out[d], fresh, out[d] * old);
      group_out[d] = 0;
    }
    running = exact_sums();
  }
  float inverse = exact_inverse(total.sum, query_unit);
  for (int d = threadIdx.x; d < dim; d += THREADS)
    a.out[((size_t)t * q.n_heads + h) * dim + d] = out[d] * inverse;
}

status exact_attention_launch(float *out, const exact_work *work, limb_cache cache, int layer,
                              const dev_batch *b, cudaStream_t stream) {
  if (exact_wgmma_serves(work, cache, b)) return exact_wgmma_launch(out, work, cache, layer, b, stream);
  exact_args a = {out, *work, cache, *b, layer};
  int dims = work->queries.dims;
  return launch_shared(attend_any, dim3((unsigned)b->n, (unsigned)work->queries.n_heads), THREADS,
                       sizeof(chunk_memory) + (size_t)dims * (2 + 2 * sizeof(float)), stream, a);
}
