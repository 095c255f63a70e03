// heads: docs/paths.md steps 3 to 5 of exact attention for any batch: norm, RoPE, balance and rounding of
// queries and keys, rounding of values, as limbs to where attention reads them.
//
// A thread block takes one head of 16 tokens, a warp each; a key with its value. Values lie 16 keys side by
// side in the cache, so a block whose tokens are 16 such keys writes them 16 bytes at a time.
#include "kernels/cuda/decode/head_row.cuh"
#include "kernels/cuda/exact/exact.cuh"

static constexpr int TOKENS = 16;

struct heads_args {
  const float *q, *k, *v, *q_norm, *k_norm, *q_balance, *k_balance, *rope;
  float *q_out, *k_out; // or NULL
  limb_cache cache;
  query_limbs queries;
  dev_batch batch;
  int layer, first, n; // first, n: the tokens whose queries are wanted
  int first_head;      // of the grid: past the queries where none are
  float epsilon, scale;
};

struct head_rows { // of a block, in shared memory
  float *row;      // [TOKENS][dims]
  uint8_t *limb;   // [2 limbs: high, low][TOKENS][dims]
  int dims;
  __device__ __forceinline__ uint8_t *limbs(int which, int token) const {
    return limb + (which * TOKENS + token) * dims;
  }
};

// The warp's row, in shared memory: norm and RoPE, times z.
__device__ void rotate_row(float *row, const float *norm, const float *rope, int dim, float epsilon,
                           float z) {
  int lane = threadIdx.x % WARP;
  float inverse = inverse_rms(sum_of_squares(row, dim), dim, epsilon);
  for (int i = lane; i < dim / 2; i += WARP) {
    float c = rope[2 * i], s = rope[2 * i + 1];
    float a = row[i] * inverse * norm[i], b = row[i + dim / 2] * inverse * norm[i + dim / 2];
    row[i] = num_fma_f32(a, c, -(b * s)) * z;
    row[i + dim / 2] = num_fma_f32(a, s, b * c) * z;
  }
  __syncwarp();
}

// Rounds the warp's row, times `balance` where there is one; returns the vector's unit.
__device__ float round_row(const head_rows &m, int token, const float *balance, int dim) {
  int lane = threadIdx.x % WARP;
  float *row = m.row + token * m.dims;
  uint32_t largest = 0;
  for (int i = lane; i < dim; i += WARP) {
    row[i] = balance ? row[i] * balance[i] : row[i];
    largest = max(largest, exact_magnitude(row[i]));
  }
  exact_scale s = exact_vector_scale(__reduce_max_sync(~0u, largest));
  for (int i = lane; i < m.dims; i += WARP) {
    int x = i < dim ? exact_integer(row[i], s) : 0;
    m.limbs(0, token)[i] = high_limb(x);
    m.limbs(1, token)[i] = low_limb(x);
  }
  __syncwarp();
  return s.unit;
}

__device__ void store_query(const heads_args &a, const head_rows &m, int token, int t, int h, float unit) {
  int group = a.queries.n_heads / a.queries.n_kv_heads, each = tokens_per_tile(group);
  uint32_t *to = a.queries.words + query_row(a.queries, t / each, h / group, t % each * group + h % group);
  for (int d = 4 * (threadIdx.x % WARP); d < m.dims; d += 4 * WARP)
    for (int limb = 0; limb < 2; limb++)
      to[query_word(m.dims, limb, d)] = *(const uint32_t *)(m.limbs(limb, token) + d);
  if (threadIdx.x % WARP == 0) a.queries.unit[(size_t)t * a.queries.n_heads + h] = unit;
}

__device__ void store_key(uint8_t *block, const head_rows &m, int token, int key, float unit) {
  for (int d = 4 * (threadIdx.x % WARP); d < m.dims; d += 4 * WARP)
    for (int limb = 0; limb < 2; limb++)
      *(uint32_t *)(block + key_at(m.dims, limb, key, d)) = *(const uint32_t *)(m.limbs(limb, token) + d);
  if (threadIdx.x % WARP == 0) units_of(block, m.dims)[key] = unit;
}

__device__ void store_value(uint8_t *block, const head_rows &m, int token, int key) {
  for (int i = threadIdx.x % WARP; i < 2 * m.dims; i += WARP) {
    int limb = i / m.dims, d = i % m.dims;
    block[value_at(m.dims, limb, key, d)] = m.limbs(limb, token)[d];
  }
}

// All 16 tokens of the block as the keys from `key` on, a multiple of 16.
__device__ void store_sixteen_values(uint8_t *block, const head_rows &m, int key) {
  for (int i = threadIdx.x; i < 2 * m.dims; i += blockDim.x) {
    int limb = i / m.dims, d = i % m.dims;
    uint32_t word[4];
#pragma unroll
    for (int w = 0; w < 4; w++) {
      uint32_t bytes[4] = {m.limbs(limb, 2 * w)[d], m.limbs(limb, 2 * w + 1)[d], m.limbs(limb, 2 * w + 8)[d],
                           m.limbs(limb, 2 * w + 9)[d]};
      word[w] = bytes[0] | bytes[1] << 8 | bytes[2] << 16 | bytes[3] << 24;
    }
    *(uint4 *)(block + value_row(m.dims, key, d) + piece_at(d, limb * (SPAN / 16) + key % SPAN / 16)) =
        make_uint4(word[0], word[1], word[2], word[3]);
  }
}

// Whether the block's tokens are 16 keys of one sequence that lie side by side. Each is looked at: rows that
// were dealt to ranks one by one do not ascend. By all threads.
__device__ bool are_sixteen_keys(const dev_batch &b, int first) {
  if (first + TOKENS > b.n || b.position[first] % 16) return false;
  int i = threadIdx.x % TOKENS;
  bool is_beside =
      b.sequence[first + i] == b.sequence[first] && b.position[first + i] == b.position[first] + i;
  return __ballot_sync(~0u, is_beside) == ~0u;
}

// The warp's vector, from global memory, as limbs in shared memory; returns its unit. norm NULL: a value, or
// what has been rotated already, which is rounded only.
__device__ float take_row(const head_rows &m, int token, const float *from, const float *norm,
                          const float *balance, const float *rope, float *out, int dim, float epsilon,
                          float z) {
  int lane = threadIdx.x % WARP;
  float *row = m.row + token * m.dims;
  for (int i = lane; i < dim; i += WARP) row[i] = from[i];
  __syncwarp();
  if (norm) rotate_row(row, norm, rope, dim, epsilon, z);
  for (int i = lane; i < dim && out; i += WARP) out[i] = row[i];
  return round_row(m, token, balance, dim);
}

// The same of 128 dimensions, in registers.
__device__ float take_row_128(const head_rows &m, int token, const float *from, const float *norm,
                              const float *balance, const float *rope, float *out, float epsilon, float z) {
  int lane = threadIdx.x % WARP;
  head_row<128> row;
  uint32_t largest = 0;
  row.load(from);
  if (norm) {
    row.constants(norm, rope);
    row.norm_and_rotate(epsilon, z);
  }
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if (out) out[lane + WARP * i] = row.x[i];
    if (balance) row.x[i] = row.x[i] * balance[lane + WARP * i];
    largest = max(largest, exact_magnitude(row.x[i]));
  }
  exact_scale s = exact_vector_scale(__reduce_max_sync(~0u, largest));
#pragma unroll
  for (int i = 0; i < 4; i++) {
    int x = exact_integer(row.x[i], s);
    m.limbs(0, token)[lane + WARP * i] = high_limb(x);
    m.limbs(1, token)[lane + WARP * i] = low_limb(x);
  }
  __syncwarp();
  return s.unit;
}

template <bool IS_128>
__device__ __forceinline__ float take(const heads_args &a, const head_rows &m, int token, const float *from,
                                      const float *norm, const float *balance, int position, float *out,
                                      float z) {
  const float *rope = a.rope + (size_t)position * a.cache.head_dim;
  return IS_128 ? take_row_128(m, token, from, norm, balance, rope, out, a.epsilon, z)
                : take_row(m, token, from, norm, balance, rope, out, a.cache.head_dim, a.epsilon, z);
}

// The warp's token: its query, or its key and then its value, of which the limbs stay in shared memory.
template <bool IS_128>
__device__ __forceinline__ void take_token(const heads_args &a, const head_rows &m, int token, int t, int h,
                                           bool is_query, bool stores_value) {
  int position = a.batch.position[t], key = position % EXACT_CHUNK;
  size_t at = ((size_t)t * (is_query ? a.queries.n_heads : a.queries.n_kv_heads) + h) * a.cache.head_dim;
  if (is_query) {
    float unit = take<IS_128>(a, m, token, a.q + at, a.q_norm, a.q_balance, position,
                              a.q_out ? a.q_out + at : nullptr, a.scale);
    store_query(a, m, token, t - a.first, h, unit);
    return;
  }
  float unit = take<IS_128>(a, m, token, a.k + at, a.k_norm, a.k_balance, position,
                            a.k_out ? a.k_out + at : nullptr, 1.0f);
  uint8_t *block = block_of(a.cache, a.layer, a.batch.sequence[t], h, position / EXACT_CHUNK);
  store_key(block, m, token, key, unit);
  __syncwarp();
  float of_value = take<IS_128>(a, m, token, a.v + at, nullptr, nullptr, position, nullptr, 1.0f);
  if (threadIdx.x % WARP == 0) units_of(block, m.dims)[EXACT_CHUNK + key] = exact_value_unit(unit, of_value);
  if (stores_value) store_value(block, m, token, key);
}

template <bool IS_128>
__global__ void __launch_bounds__(TOKENS *WARP) limbs_of_heads(const __grid_constant__ heads_args a) {
  wait_for_inputs();
  extern __shared__ __align__(16) uint8_t memory[];
  int dims = padded_dims(a.cache.head_dim), token = threadIdx.x / WARP, first = blockIdx.x * TOKENS,
      t = first + token, h = a.first_head + blockIdx.y;
  head_rows m = {(float *)memory, memory + TOKENS * dims * sizeof(float), dims};
  bool is_query = h < a.queries.n_heads, sixteen = !is_query && are_sixteen_keys(a.batch, first);
  int kv = is_query ? h : h - a.queries.n_heads;
  if (t < a.batch.n && (!is_query || (t >= a.first && t < a.first + a.n)))
    take_token<IS_128>(a, m, token, t, kv, is_query, !sixteen);
  if (!sixteen) return;
  __syncthreads();
  int position = a.batch.position[first];
  uint8_t *block = block_of(a.cache, a.layer, a.batch.sequence[first], kv, position / EXACT_CHUNK);
  store_sixteen_values(block, m, position % EXACT_CHUNK);
}

status exact_heads_launch(exact_work *work, limb_cache cache, const float *q, const float *k, const float *v,
                          const dev_layer *w, const model_shape *s, const float *rope, int layer,
                          const dev_batch *b, int first, int n, bool rotated, float *q_out, float *k_out,
                          cudaStream_t stream) {
  heads_args a = {};
  a.q = q;
  a.k = k;
  a.v = v;
  a.q_norm = rotated ? nullptr : w->q_norm;
  a.k_norm = rotated ? nullptr : w->k_norm;
  a.q_balance = w->q_balance;
  a.k_balance = w->k_balance;
  a.rope = rope;
  a.q_out = q_out;
  a.k_out = k_out;
  a.cache = cache;
  a.queries = work->queries;
  a.batch = *b;
  a.layer = layer;
  a.first = first;
  a.n = n;
  a.epsilon = (float)s->rms_epsilon;
  a.scale = (float)(1.0 / __builtin_sqrt((double)s->head_dim));
  int dims = padded_dims(cache.head_dim);
  a.first_head = n ? 0 : (int)s->n_heads;
  dim3 grid((unsigned)ceil_div(b->n, TOKENS), (unsigned)(s->n_heads + s->n_kv_heads - a.first_head));
  return launch_shared(s->head_dim == 128 ? limbs_of_heads<true> : limbs_of_heads<false>, grid, TOKENS * WARP,
                       (size_t)TOKENS * dims * (sizeof(float) + 2), stream, a);
}
