// attention: docs/paths.md step 6 on the device. A thread block takes the query heads that share a key/value
// head, for a few tokens, so that each chunk of keys and values is read once for all of them.
//
// Long caches with few queries are split: each chunk's (max, sum, out) is computed by a separate thread block
// and folded by a second kernel in ascending order. The fold is the same function either way.
#include "kernels/cuda/attention.cuh"

static constexpr int ROWS = 64; // (token, head) pairs to a block
static constexpr int THREADS = 256;
static constexpr int EACH = ROWS / (THREADS / WARP); // rows of a warp in all but the scores
static constexpr int WIDE = 128;                     // head_dim that the registers of a block hold

struct attention_args {
  float *out;     // [n][n_heads][head_dim]
  const float *q; // as out
  kv_cache cache;
  int layer, n_heads, group, tokens; // group: query heads to a key/value head; tokens to a block
  dev_batch batch;
  attention_work work;
  int n_chunks; // of the split; 0: not split
};

__device__ __forceinline__ float kv_at(const void *base, bool f16, size_t i) {
  return f16 ? half_bits_to_f32(((const uint16_t *)base)[i]) : ((const float *)base)[i];
}

struct shared_rows { // rows are neighbours, so that a thread takes four or eight with one load
  float q[WIDE][ROWS + 4];
  float kv[WIDE * CHUNK]; // keys [d][key], then values [key][d]
  float score[CHUNK][ROWS + 4];
  float run_max[ROWS], run_sum[ROWS], old[ROWS], fresh[ROWS];
  int keys[ROWS]; // key positions that the row may read: its token's position + 1; 0: no such row
};

__device__ void load_queries(shared_rows *s, const attention_args &a, int first, int count, int kv_head) {
  int dim = a.cache.head_dim;
  for (int i = threadIdx.x; i < ROWS * dim; i += THREADS) {
    int r = i / dim, d = i % dim, t = r / a.group;
    size_t head = (size_t)(first + t) * a.n_heads + kv_head * a.group + r % a.group;
    s->q[d][r] = t < count ? a.q[head * dim + d] : 0.0f;
  }
  if (threadIdx.x < ROWS) {
    int t = threadIdx.x / a.group;
    s->keys[threadIdx.x] =
        t < count && (int)threadIdx.x < a.tokens * a.group ? a.batch.position[first + t] + 1 : 0;
  }
}

__device__ void load_cache(float *to, const void *from, bool f16, size_t at, int n) {
  if (!f16) { // 16 bytes a load; a chunk is a multiple of 64 numbers
    for (int i = 4 * threadIdx.x; i < n; i += 4 * THREADS)
      *(float4 *)&to[i] = *(const float4 *)((const float *)from + at + i);
    return;
  }
#pragma unroll 4
  for (int i = 8 * threadIdx.x; i < n; i += 8 * THREADS) {
    uint4 eight = *(const uint4 *)((const uint16_t *)from + at + i);
    const __half2 *pair = (const __half2 *)&eight;
    float2 a = __half22float2(pair[0]), b = __half22float2(pair[1]);
    float2 c = __half22float2(pair[2]), d = __half22float2(pair[3]);
    *(float4 *)&to[i] = make_float4(a.x, a.y, b.x, b.y);
    *(float4 *)&to[i + 4] = make_float4(c.x, c.y, d.x, d.y);
  }
}

__device__ __forceinline__ void fma4(float acc[4], float a, float4 b) {
  acc[0] = num_fma_f32(a, b.x, acc[0]);
  acc[1] = num_fma_f32(a, b.y, acc[1]);
  acc[2] = num_fma_f32(a, b.z, acc[2]);
  acc[3] = num_fma_f32(a, b.w, acc[3]);
}

// Thread (four keys, four rows): one chain over d for each of its sixteen scores.
__device__ void scores(shared_rows *s, int dim) {
  int r = threadIdx.x / 16 * 4, j = threadIdx.x % 16 * 4;
  float acc[4][4] = {}; // [key][row]
#pragma unroll 4
  for (int d = 0; d < dim; d++) {
    float4 k = *(const float4 *)&s->kv[d * CHUNK + j], q = *(const float4 *)&s->q[d][r];
    fma4(acc[0], k.x, q);
    fma4(acc[1], k.y, q);
    fma4(acc[2], k.z, q);
    fma4(acc[3], k.w, q);
  }
#pragma unroll
  for (int i = 0; i < 4; i++)
    *(float4 *)&s->score[j + i][r] = make_float4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]);
}

// Warp w makes weights of the scores of rows 8 w .. 8 w + 7, and the factors of their fold. `first`: the
// chunk starts the running values.
__device__ void weigh(shared_rows *s, int base, bool first) {
  int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  for (int r = EACH * warp; r < EACH * warp + EACH; r++) {
    int n = s->keys[r] - base;
    if (n <= 0) continue;
    float max, sum;
    chunk_weights(&s->score[0][r], ROWS + 4, n < CHUNK ? n : CHUNK, &max, &sum);
    __syncwarp();
    if (lane) continue;
    if (first) {
      s->run_max[r] = max;
      s->run_sum[r] = sum;
    } else {
      fold(&s->run_max[r], &s->run_sum[r], max, sum, &s->old[r], &s->fresh[r]);
    }
  }
}

__device__ __forceinline__ void add_values(float acc[EACH][4], const shared_rows *s, int r0, int j, float4 v,
                                           const int *n) { // n NULL: all rows see key j
#pragma unroll
  for (int i = 0; i < EACH; i += 4) {
    float4 e = *(const float4 *)&s->score[j][r0 + i];
    if (!n || j < n[i]) fma4(acc[i], e.x, v);
    if (!n || j < n[i + 1]) fma4(acc[i + 1], e.y, v);
    if (!n || j < n[i + 2]) fma4(acc[i + 2], e.z, v);
    if (!n || j < n[i + 3]) fma4(acc[i + 3], e.w, v);
  }
}

// Thread (eight rows, four dimensions): sums weights times values over the chunk's keys, ascending, and
// folds.
__device__ void weighted_values(float run[EACH][4], const shared_rows *s, int base, int dim, bool first) {
  int r0 = threadIdx.x / WARP * EACH, d = threadIdx.x % WARP * 4;
  if (d >= dim) return;
  float acc[EACH][4] = {};
  int n[EACH], all = CHUNK, most = 0;
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    n[i] = s->keys[r0 + i] - base;
    n[i] = n[i] < 0 ? 0 : n[i] > CHUNK ? CHUNK : n[i];
    all = n[i] < all ? n[i] : all;
    most = n[i] > most ? n[i] : most;
  }
#pragma unroll 2
  for (int j = 0; j < all; j++) add_values(acc, s, r0, j, *(const float4 *)&s->kv[j * dim + d], nullptr);
  for (int j = all; j < most; j++) // only in the chunk that holds a row's position
    add_values(acc, s, r0, j, *(const float4 *)&s->kv[j * dim + d], n);
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    if (!n[i]) continue;
#pragma unroll
    for (int c = 0; c < 4; c++)
      run[i][c] = first ? acc[i][c] : num_fma_f32(acc[i][c], s->fresh[r0 + i], run[i][c] * s->old[r0 + i]);
  }
}

// One run of tokens of one sequence over chunks start .. end - 1.
__device__ void attend_run(shared_rows *s, const attention_args &a, int first, int count, int kv_head,
                           int start, int end, float run[EACH][4]) {
  int dim = a.cache.head_dim, sequence = a.batch.sequence[first];
  size_t head = ((size_t)a.layer * a.cache.n_sequences + sequence) * a.cache.n_kv_heads + kv_head;
  load_queries(s, a, first, count, kv_head);
  for (int chunk = start; chunk < end; chunk++) {
    size_t at = head * a.cache.head_elements + (size_t)chunk * CHUNK * dim;
    __syncthreads();
    load_cache(s->kv, a.cache.keys, a.cache.f16, at, CHUNK * dim);
    __syncthreads();
    scores(s, dim);
    __syncthreads();
    load_cache(s->kv, a.cache.values, a.cache.f16, at, CHUNK * dim);
    weigh(s, chunk * CHUNK, chunk == start);
    __syncthreads();
    weighted_values(run, s, chunk * CHUNK, dim, chunk == start);
  }
  __syncthreads();
}

// Tokens first .. of the block's range that belong to one sequence.
__device__ int run_length(const dev_batch &b, int first, int end) {
  int n = 1;
  while (first + n < end && b.sequence[first + n] == b.sequence[first]) n++;
  return n;
}

__global__ void __launch_bounds__(THREADS, 2) attend_tiles(const __grid_constant__ attention_args a) {
  wait_for_inputs();
  extern __shared__ __align__(16) uint8_t memory[];
  shared_rows *s = (shared_rows *)memory;
  int start = (gridDim.x - 1 - blockIdx.x) * a.tokens, end = min(start + a.tokens, a.batch.n),
      dim = a.cache.head_dim;
  for (int first = start; first < end;) {
    int count = run_length(a.batch, first, end);
    int last = a.batch.position[first + count - 1];
    int from = a.n_chunks ? blockIdx.z : 0, to = a.n_chunks ? from + 1 : last / CHUNK + 1;
    if (from <= last / CHUNK) {
      float run[EACH][4] = {};
      attend_run(s, a, first, count, blockIdx.y, from, to, run);
      int d = threadIdx.x % WARP * 4;
#pragma unroll
      for (int i = 0; i < EACH; i++) {
        int r = threadIdx.x / WARP * EACH + i, t = r / a.group;
        if (d >= dim) break;
        if (s->keys[r] <= from * CHUNK) continue;
        size_t row = (size_t)(first + t) * a.n_heads + blockIdx.y * a.group + r % a.group;
        if (a.n_chunks) {
          size_t at = row * a.n_chunks + from;
          *(float4 *)&a.work.out[at * dim + d] = make_float4(run[i][0], run[i][1], run[i][2], run[i][3]);
          if (d == 0) {
            a.work.max[at] = s->run_max[r];
            a.work.sum[at] = s->run_sum[r];
          }
        } else {
          float inverse = 1.0f / s->run_sum[r];
          *(float4 *)&a.out[row * dim + d] =
              make_float4(run[i][0] * inverse, run[i][1] * inverse, run[i][2] * inverse, run[i][3] * inverse);
        }
      }
      __syncthreads();
    }
    first += count;
  }
}

// A block a row: folds its chunks in ascending order.
__global__ void fold_chunks(attention_args a) {
  wait_for_inputs();
  int row = blockIdx.x, t = row / a.n_heads, dim = a.cache.head_dim, n = a.batch.position[t] / CHUNK + 1;
  const float *max = a.work.max + (size_t)row * a.n_chunks, *sum = a.work.sum + (size_t)row * a.n_chunks;
  const float *out = a.work.out + (size_t)row * a.n_chunks * dim;
  for (int d = threadIdx.x; d < dim; d += blockDim.x) {
    float run_max = max[0], run_sum = sum[0], run = out[d], old, fresh;
    for (int c = 1; c < n; c++) {
      fold(&run_max, &run_sum, max[c], sum[c], &old, &fresh);
      run = num_fma_f32(out[(size_t)c * dim + d], fresh, run * old);
    }
    a.out[(size_t)row * dim + d] = run * (1.0f / run_sum);
  }
}

// Any head size and group: a block a (token, head), plainly. For shapes that attend_tiles does not hold.
__global__ void attend_plain(attention_args a) {
  wait_for_inputs();
  extern __shared__ float run[]; // [head_dim]
  __shared__ float score[CHUNK], run_max, run_sum, old, fresh;
  int t = blockIdx.x, h = blockIdx.y, dim = a.cache.head_dim, keys = a.batch.position[t] + 1;
  size_t head =
      ((size_t)a.layer * a.cache.n_sequences + a.batch.sequence[t]) * a.cache.n_kv_heads + h / a.group;
  const float *q = a.q + ((size_t)t * a.n_heads + h) * dim;
  for (int base = 0; base < keys; base += CHUNK) {
    size_t at = head * a.cache.head_elements + (size_t)base * dim;
    int n = min(CHUNK, keys - base);
    __syncthreads();
    if (threadIdx.x < CHUNK) {
      float s = 0;
      for (int d = 0; d < dim; d++)
        s = num_fma_f32(q[d], kv_at(a.cache.keys, a.cache.f16, at + (size_t)d * CHUNK + threadIdx.x), s);
      score[threadIdx.x] = s;
    }
    __syncthreads();
    if (threadIdx.x < WARP) {
      float max, sum;
      chunk_weights(score, 1, n, &max, &sum);
      if (threadIdx.x == 0 && base == 0) {
        run_max = max;
        run_sum = sum;
      } else if (threadIdx.x == 0) {
        float m = run_max, l = run_sum;
        fold(&m, &l, max, sum, &old, &fresh);
        run_max = m;
        run_sum = l;
      }
    }
    __syncthreads();
    for (int d = threadIdx.x; d < dim; d += blockDim.x) {
      float o = 0;
      for (int j = 0; j < n; j++)
        o = num_fma_f32(score[j], kv_at(a.cache.values, a.cache.f16, at + (size_t)j * dim + d), o);
      run[d] = base ? num_fma_f32(o, fresh, run[d] * old) : o;
    }
  }
  __syncthreads();
  float inverse = 1.0f / run_sum;
  for (int d = threadIdx.x; d < dim; d += blockDim.x)
    a.out[((size_t)t * a.n_heads + h) * dim + d] = run[d] * inverse;
}

static status launch_tiles(attention_args *a, int max_keys, cudaStream_t stream) {
  static bool ready;
  if (!ready) {
    CUDA_TRY(cudaFuncSetAttribute(attend_tiles, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)sizeof(shared_rows)));
    ready = true;
  }
  a->tokens = ROWS / a->group;
  int tiles = ceil_div(a->batch.n, a->tokens), chunks = ceil_div(max_keys, CHUNK);
  bool split = chunks > 1 && tiles * a->cache.n_kv_heads < SPLIT_BELOW &&
               (size_t)a->batch.n * a->n_heads * chunks <= a->work.capacity;
  a->n_chunks = split ? chunks : 0;
  TRY(launch(attend_tiles,
             dim3((unsigned)tiles, (unsigned)a->cache.n_kv_heads, (unsigned)(split ? chunks : 1)), THREADS,
             sizeof(shared_rows), stream, *a));
  if (!split) return 0;
  return launch(fold_chunks, dim3((unsigned)(a->batch.n * a->n_heads)), 128, 0, stream, *a);
}

status attention_launch(float *out, const float *q, kv_cache cache, int layer, const dev_batch *b,
                        int n_heads, int max_keys, attention_work *work, cudaStream_t stream) {
  attention_args a = {};
  a.out = out;
  a.q = q;
  a.cache = cache;
  a.layer = layer;
  a.n_heads = n_heads;
  a.group = n_heads / cache.n_kv_heads;
  a.batch = *b;
  a.work = *work;
  if (cache.head_dim <= WIDE && cache.head_dim % 4 == 0 && a.group <= ROWS)
    return launch_tiles(&a, max_keys, stream);
  return launch(attend_plain, dim3((unsigned)b->n, (unsigned)n_heads), 128,
                (size_t)cache.head_dim * sizeof(float), stream, a);
}
