// decode_attention: docs/paths.md steps 4 to 6 for tokens of different sequences: norm and RoPE of the
// heads, the new key and value into the cache, attention over chunks and their fold, in one launch.
//
// Two ways: near, one block holds every chunk of a few heads, for a cache of up to four chunks; far, a block
// a chunk, of which the last to finish folds them all. The sums are the same.
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/decode/decode.cuh"
#include "kernels/cuda/decode/decode_launch.cuh"
#include "kernels/cuda/decode/head_row.cuh"

struct attend_args {
  const float *q, *k, *v, *q_norm, *k_norm, *rope;
  float *out; // [n][n_heads][head_dim]
  kv_cache cache;
  int layer, n_heads, group, n_chunks;
  float epsilon, scale;
  bool early; // the cache up to the last token may be read before the wait
  const int *sequence, *position;
  attention_work work;
  unsigned *arrived; // [n][kv heads * slices], 0 between launches
};

// ---- near: a block two heads, all chunks ----

static constexpr int NEAR_HEADS = 2, NEAR_CHUNKS = 4;

template <int DIM> struct near_rows { // of an f16 cache
  uint16_t keys[NEAR_CHUNKS][DIM][CHUNK], values[NEAR_CHUNKS][CHUNK][DIM];
  float q[NEAR_HEADS][DIM], score[NEAR_HEADS][NEAR_CHUNKS][CHUNK];
  float out[NEAR_HEADS][NEAR_CHUNKS][DIM];
  float max[NEAR_HEADS][NEAR_CHUNKS], sum[NEAR_HEADS][NEAR_CHUNKS];
};

// A thread a key: chunk `c`, one head.
template <int DIM> __device__ __forceinline__ void score_key(near_rows<DIM> *s, int h, int c, int j) {
  float x = 0;
#pragma unroll 8
  for (int d = 0; d < DIM; d += 4) {
    float4 q = *(const float4 *)&s->q[h][d];
    float k0 = half_bits_to_f32(s->keys[c][d][j]), k1 = half_bits_to_f32(s->keys[c][d + 1][j]);
    float k2 = half_bits_to_f32(s->keys[c][d + 2][j]), k3 = half_bits_to_f32(s->keys[c][d + 3][j]);
    x = num_fma_f32(q.w, k3, num_fma_f32(q.z, k2, num_fma_f32(q.y, k1, num_fma_f32(q.x, k0, x))));
  }
  s->score[h][c][j] = x;
}

// A thread two dimensions of a head over the n keys of chunk c, ascending.
template <int DIM> __device__ __forceinline__ void weigh_pair(near_rows<DIM> *s, int h, int c, int d, int n) {
  float2 out = make_float2(0, 0);
  int j = 0;
#pragma unroll 4
  for (; j + 4 <= n; j += 4) {
    float4 e = *(const float4 *)&s->score[h][c][j];
    float weight[4] = {e.x, e.y, e.z, e.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float2 v = __half22float2(*(const __half2 *)&s->values[c][j + i][d]);
      out.x = num_fma_f32(weight[i], v.x, out.x);
      out.y = num_fma_f32(weight[i], v.y, out.y);
    }
  }
  for (; j < n; j++) {
    float2 v = __half22float2(*(const __half2 *)&s->values[c][j][d]);
    out.x = num_fma_f32(s->score[h][c][j], v.x, out.x);
    out.y = num_fma_f32(s->score[h][c][j], v.y, out.y);
  }
  *(float2 *)&s->out[h][c][d] = out;
}

// Threads: NEAR_HEADS * CHUNK for each chunk of the launch.
template <int DIM>
__global__ void __launch_bounds__(NEAR_HEADS *NEAR_CHUNKS *CHUNK)
    decode_attend_near(const __grid_constant__ attend_args a) {
  extern __shared__ __align__(16) uint8_t memory[];
  near_rows<DIM> *s = (near_rows<DIM> *)memory;
  int slices = (a.group + NEAR_HEADS - 1) / NEAR_HEADS, kv = blockIdx.x / slices, slice = blockIdx.x % slices;
  int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, t = blockIdx.y, position = a.position[t],
      last = position / CHUNK;
  int first_head = kv * a.group + slice * NEAR_HEADS, heads = min(NEAR_HEADS, a.group - slice * NEAR_HEADS);
  size_t head = ((size_t)a.layer * a.cache.n_sequences + a.sequence[t]) * a.cache.n_kv_heads + kv;
  uint16_t *keys = (uint16_t *)a.cache.keys + head * a.cache.head_elements;
  uint16_t *values = (uint16_t *)a.cache.values + head * a.cache.head_elements;
  if (!a.early) wait_for_previous();
  // what earlier tokens have cached
  for (int i = 8 * threadIdx.x; i < (last + 1) * CHUNK * DIM; i += 8 * blockDim.x) {
    copy_async_16(&s->keys[0][0][0] + i, keys + i);
    copy_async_16(&s->values[0][0][0] + i, values + i);
  }
  bool is_query = warp < heads, is_key = warp == NEAR_HEADS, is_value = warp == NEAR_HEADS + 1;
  head_row<DIM> row;
  row.constants(is_query ? a.q_norm : a.k_norm, a.rope + (size_t)position * DIM);
  if (a.early) wait_for_previous();
  size_t from_q = (size_t)t * a.n_heads + first_head + warp, from_kv = (size_t)t * a.cache.n_kv_heads + kv;
  if (is_query || is_key || is_value) {
    row.load(is_query ? a.q + from_q * DIM : (is_key ? a.k : a.v) + from_kv * DIM);
    if (!is_value) row.norm_and_rotate(a.epsilon, is_query ? a.scale : 1.0f);
  }
  for (int i = 0; i < DIM / WARP && is_query; i++) s->q[warp][lane + WARP * i] = row.x[i];
  copy_async_wait_all();
  __syncthreads(); // the copies are complete but for the new position
  if (is_key || is_value) {
    int j = position % CHUNK;
    for (int i = 0; i < DIM / WARP; i++) {
      int d = lane + WARP * i;
      uint16_t x = f32_to_half(row.x[i]);
      (is_key ? s->keys[last][d][j] : s->values[last][j][d]) = x;
      if (slice == 0)
        (is_key ? keys + (last * DIM + d) * CHUNK + j : values + (size_t)position * DIM + d)[0] = x;
    }
  }
  __syncthreads();
  int h = threadIdx.x / CHUNK % NEAR_HEADS, c = threadIdx.x / CHUNK / NEAR_HEADS;
  if (c <= last) score_key<DIM>(s, h, c, threadIdx.x % CHUNK);
  __syncthreads();
  if (warp < NEAR_HEADS * (last + 1)) {
    int head_of = warp % NEAR_HEADS, chunk = warp / NEAR_HEADS;
    float max, sum;
    chunk_weights(s->score[head_of][chunk], 1, min(CHUNK, position + 1 - chunk * CHUNK), &max, &sum);
    if (lane == 0) {
      s->max[head_of][chunk] = max;
      s->sum[head_of][chunk] = sum;
    }
  }
  __syncthreads();
  if (c <= last && threadIdx.x % CHUNK < DIM / 2)
    weigh_pair<DIM>(s, h, c, threadIdx.x % CHUNK * 2, min(CHUNK, position + 1 - c * CHUNK));
  __syncthreads();
  for (int i = threadIdx.x; i < heads * DIM; i += blockDim.x) {
    int of = i / DIM, d = i % DIM;
    float max = s->max[of][0], sum = s->sum[of][0], out = s->out[of][0][d], old, fresh;
    for (int chunk = 1; chunk <= last; chunk++) {
      fold(&max, &sum, s->max[of][chunk], s->sum[of][chunk], &old, &fresh);
      out = num_fma_f32(s->out[of][chunk][d], fresh, out * old);
    }
    a.out[((size_t)t * a.n_heads + first_head + of) * DIM + d] = out * (1.0f / sum);
  }
}

// ---- far: a block a chunk and up to eight heads that share it ----

static constexpr int HEADS = 8, ATTEND_THREADS = (HEADS + 2) * WARP; // two more warps: the new key and value

template <int DIM> struct attend_rows {
  float keys[DIM][CHUNK], values[CHUNK][DIM];
  float q[HEADS][DIM], score[HEADS][CHUNK + 4];
  float max[HEADS], sum[HEADS];
  bool folds;
};

__device__ __forceinline__ void widen(float *to, const float *from) {
  *(float4 *)to = *(const float4 *)from;
}

__device__ __forceinline__ void widen(float *to, const uint16_t *from) { // eight
  uint4 eight = *(const uint4 *)from;
  uint32_t pair[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    to[2 * i] = half_bits_to_f32((uint16_t)(pair[i] & 0xffffu));
    to[2 * i + 1] = half_bits_to_f32((uint16_t)(pair[i] >> 16));
  }
}

__device__ __forceinline__ float store_cache(float *to, float x) { // what later tokens read
  return *to = x;
}

__device__ __forceinline__ float store_cache(uint16_t *to, float x) {
  return half_bits_to_f32(*to = f32_to_half(x));
}

// Folds a head's chunks 0 .. last in ascending order: the factors of 32 chunks at once, a lane each, then the
// sums. head: counted over all tokens.
template <int DIM> __device__ void fold_head(const attend_args &a, int head, int last) {
  constexpr int EACH = DIM / WARP, AHEAD = 4;
  int lane = threadIdx.x % WARP;
  size_t row = (size_t)head * a.n_chunks;
  const float *parts = a.work.out + row * DIM + lane;
  float running = 0, total = 0, out[EACH] = {};
  for (int base = 0; base <= last; base += WARP) {
    int c = min(base + lane, last), n = min(WARP, last + 1 - base);
    float m = __ldcg(&a.work.max[row + c]), l = __ldcg(&a.work.sum[row + c]), both = m;
    for (int step = 1; step < WARP; step *= 2) {
      float before = __shfl_up_sync(~0u, both, step);
      if (lane >= step) both = before > both ? before : both;
    }
    if (base) both = running > both ? running : both;
    float previous = __shfl_up_sync(~0u, both, 1);
    if (lane == 0) previous = base ? running : m;
    float old = num_exp_f32(previous - both), fresh = num_exp_f32(m - both);
    running = __shfl_sync(~0u, both, WARP - 1);
    for (int i = 0; i < n; i += AHEAD) {
      float part[AHEAD][EACH];
      for (int k = 0; k < AHEAD; k++)
        for (int j = 0; j < EACH; j++)
          part[k][j] = __ldcg(&parts[(size_t)min(base + i + k, last) * DIM + WARP * j]);
      for (int k = 0; k < AHEAD; k++) {
        float f = __shfl_sync(~0u, fresh, i + k), o = __shfl_sync(~0u, old, i + k),
              s = __shfl_sync(~0u, l, i + k);
        if (i + k >= n) break;
        bool first = base + i + k == 0;
        total = first ? s : num_fma_f32(s, f, total * o);
        for (int j = 0; j < EACH; j++) out[j] = first ? part[k][j] : num_fma_f32(part[k][j], f, out[j] * o);
      }
    }
  }
  float inverse = 1.0f / total;
  for (int j = 0; j < EACH; j++) a.out[(size_t)head * DIM + lane + WARP * j] = out[j] * inverse;
}

// A thread a key and two heads: one chain over d each.
template <int DIM> __device__ __forceinline__ void score_keys(attend_rows<DIM> *s) {
  int h = threadIdx.x / CHUNK * 2, j = threadIdx.x % CHUNK;
  float x0 = 0, x1 = 0;
#pragma unroll 4
  for (int d = 0; d < DIM; d += 4) {
    float4 q0 = *(const float4 *)&s->q[h][d], q1 = *(const float4 *)&s->q[h + 1][d];
    float k0 = s->keys[d][j], k1 = s->keys[d + 1][j], k2 = s->keys[d + 2][j], k3 = s->keys[d + 3][j];
    x0 = num_fma_f32(q0.w, k3, num_fma_f32(q0.z, k2, num_fma_f32(q0.y, k1, num_fma_f32(q0.x, k0, x0))));
    x1 = num_fma_f32(q1.w, k3, num_fma_f32(q1.z, k2, num_fma_f32(q1.y, k1, num_fma_f32(q1.x, k0, x1))));
  }
  s->score[h][j] = x0;
  s->score[h + 1][j] = x1;
}

// Two dimensions of two heads: chains over the chunk's n keys, ascending.
template <int DIM>
__device__ __forceinline__ void weigh_values(float2 out[2], const attend_rows<DIM> *s, int n) {
  int h = threadIdx.x / (DIM / 2) * 2, d = threadIdx.x % (DIM / 2) * 2;
  out[0] = out[1] = make_float2(0, 0);
#pragma unroll 8
  for (int j = 0; j < n; j++) {
    float2 v = *(const float2 *)&s->values[j][d];
#pragma unroll
    for (int i = 0; i < 2; i++) {
      float e = s->score[h + i][j];
      out[i].x = num_fma_f32(e, v.x, out[i].x);
      out[i].y = num_fma_f32(e, v.y, out[i].y);
    }
  }
}

template <int DIM, typename T>
__global__ void __launch_bounds__(ATTEND_THREADS) decode_attend(const __grid_constant__ attend_args a) {
  extern __shared__ __align__(16) uint8_t memory[];
  attend_rows<DIM> *s = (attend_rows<DIM> *)memory;
  int slices = (a.group + HEADS - 1) / HEADS, kv = blockIdx.y / slices, slice = blockIdx.y % slices;
  int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, chunk = blockIdx.x;
  int t = blockIdx.z, position = a.position[t], last = position / CHUNK,
      n = min(CHUNK, position + 1 - chunk * CHUNK);
  if (chunk > last) return;
  int first_head = kv * a.group + slice * HEADS, heads = min(HEADS, a.group - slice * HEADS);
  size_t head = ((size_t)a.layer * a.cache.n_sequences + a.sequence[t]) * a.cache.n_kv_heads + kv;
  T *keys = (T *)a.cache.keys + head * a.cache.head_elements + (size_t)chunk * CHUNK * DIM;
  T *values = (T *)a.cache.values + head * a.cache.head_elements + (size_t)chunk * CHUNK * DIM;
  constexpr int PIECE = 16 / sizeof(T);
  if (!a.early) wait_for_previous();
    // what earlier tokens have cached
#pragma unroll 2
  for (int i = PIECE * threadIdx.x; i < CHUNK * DIM; i += PIECE * ATTEND_THREADS) {
    widen(&s->keys[0][0] + i, keys + i);
    widen(&s->values[0][0] + i, values + i);
  }
  bool is_key = warp == HEADS, is_query = warp < heads;
  head_row<DIM> row;
  row.constants(is_query ? a.q_norm : a.k_norm, a.rope + (size_t)position * DIM);
  if (a.early) wait_for_previous();
  size_t from_q = (size_t)t * a.n_heads + first_head + warp, from_kv = (size_t)t * a.cache.n_kv_heads + kv;
  row.load(is_query ? a.q + from_q * DIM : (is_key ? a.k : a.v) + from_kv * DIM);
  if (is_query || is_key) row.norm_and_rotate(a.epsilon, is_query ? a.scale : 1.0f);
  for (int i = 0; i < DIM / WARP && is_query; i++) s->q[warp][lane + WARP * i] = row.x[i];
  __syncthreads(); // the copies are complete but for the new position
  if (warp >= HEADS && chunk == last) {
    int j = position % CHUNK;
    for (int i = 0; i < DIM / WARP; i++) {
      int d = lane + WARP * i;
      T unused, *to = is_key ? keys + d * CHUNK + j : values + j * DIM + d;
      float x = store_cache(slice ? &unused : to, row.x[i]);
      (is_key ? s->keys[d][j] : s->values[j][d]) = x;
    }
  }
  __syncthreads();
  if (threadIdx.x < HEADS / 2 * CHUNK) score_keys<DIM>(s);
  __syncthreads();
  if (is_query) {
    float max, sum;
    chunk_weights(s->score[warp], 1, n, &max, &sum);
    if (lane == 0) {
      s->max[warp] = max;
      s->sum[warp] = sum;
    }
  }
  __syncthreads();
  if (threadIdx.x < HEADS / 2 * DIM / 2) {
    int h = threadIdx.x / (DIM / 2) * 2, d = threadIdx.x % (DIM / 2) * 2;
    float2 out[2];
    weigh_values<DIM>(out, s, n);
    for (int i = 0; i < 2 && h + i < heads; i++) {
      size_t at = (size_t)t * a.n_heads + first_head + h + i;
      float inverse = last ? 1.0f : 1.0f / s->sum[h + i];
      float *to = last ? a.work.out + (at * a.n_chunks + chunk) * DIM : a.out + at * DIM;
      *(float2 *)(to + d) = last ? out[i] : make_float2(out[i].x * inverse, out[i].y * inverse);
      if (last && d == 0) {
        a.work.max[at * a.n_chunks + chunk] = s->max[h + i];
        a.work.sum[at * a.n_chunks + chunk] = s->sum[h + i];
      }
    }
  }
  if (!last) return;
  __threadfence();
  __syncthreads();
  unsigned *arrived = &a.arrived[blockIdx.z * gridDim.y + blockIdx.y];
  if (threadIdx.x == 0) { // the last block folds, and leaves zero for the next launch
    s->folds = atomicAdd(arrived, 1) == (unsigned)last;
    if (s->folds) *arrived = 0;
  }
  __syncthreads();
  if (!s->folds) return;
  __threadfence();
  if (is_query) fold_head<DIM>(a, t * a.n_heads + first_head + warp, last);
}

// ---- launch ----

template <int DIM> static status launch_near(const attend_args &a, int n, cudaStream_t stream) {
  int slices = ceil_div(a.group, NEAR_HEADS),
      threads = NEAR_HEADS * CHUNK * (a.n_chunks > 1 ? a.n_chunks : 2);
  return launch_shared(decode_attend_near<DIM>, dim3((unsigned)(a.cache.n_kv_heads * slices), (unsigned)n),
                       threads, sizeof(near_rows<DIM>), stream, a);
}

template <int DIM, typename T> static status launch_far(const attend_args &a, int n, cudaStream_t stream) {
  int slices = ceil_div(a.group, HEADS);
  return launch_shared(decode_attend<DIM, T>,
                       dim3((unsigned)a.n_chunks, (unsigned)(a.cache.n_kv_heads * slices), (unsigned)n),
                       ATTEND_THREADS, sizeof(attend_rows<DIM>), stream, a);
}

bool decode_attends(const attention_work *work, const model_shape *s, int n, int max_keys) {
  int chunks = ceil_div(max_keys, CHUNK);
  return (s->head_dim == 64 || s->head_dim == 128) && chunks <= 64 &&
         (size_t)n * (size_t)s->n_heads * (size_t)chunks <= work->capacity;
}

status decode_attention_launch(float *out, const float *q, const float *k, const float *v, const dev_layer *w,
                               const model_shape *s, const float *rope, kv_cache cache, int layer,
                               const dev_batch *b, int max_keys, const attention_work *work,
                               unsigned *arrived, bool early, cudaStream_t stream) {
  attend_args a = {};
  a.q = q;
  a.k = k;
  a.v = v;
  a.q_norm = w->q_norm;
  a.k_norm = w->k_norm;
  a.rope = rope;
  a.out = out;
  a.cache = cache;
  a.layer = layer;
  a.n_heads = (int)s->n_heads;
  a.group = (int)(s->n_heads / s->n_kv_heads);
  a.n_chunks = ceil_div(max_keys, CHUNK);
  a.epsilon = (float)s->rms_epsilon;
  a.scale = (float)(1.0 / __builtin_sqrt((double)s->head_dim));
  a.early = early;
  a.sequence = b->sequence;
  a.position = b->position;
  a.work = *work;
  a.arrived = arrived;
  size_t needed = cache.head_dim == 64 ? sizeof(near_rows<64>) : sizeof(near_rows<128>);
  bool near = cache.f16 && a.n_chunks <= NEAR_CHUNKS && needed <= device_shared_bytes();
  if (cache.head_dim == 64)
    return near        ? launch_near<64>(a, b->n, stream)
           : cache.f16 ? launch_far<64, uint16_t>(a, b->n, stream)
                       : launch_far<64, float>(a, b->n, stream);
  return near        ? launch_near<128>(a, b->n, stream)
         : cache.f16 ? launch_far<128, uint16_t>(a, b->n, stream)
                     : launch_far<128, float>(a, b->n, stream);
}
