// vectors: the steps between the products but for routing and attention: embedding, norms, rounding, RoPE,
// SwiGLU, combining, digests.
#include "kernels/cuda/round_q8k.cuh"
#include "kernels/cuda/vectors.cuh"
#include "kernels/cuda/weight_at.cuh"

static constexpr int BLOCK = 256, MOST_THREADS = 1024; // of a thread block

static int blocks_for(size_t n) {
  size_t blocks = (n + BLOCK - 1) / BLOCK;
  return (int)(blocks < 4096 ? blocks : 4096);
}

__device__ __forceinline__ void load_8(float (&v)[8], const float *from) { // aligned to 16 bytes
  float4 a = *(const float4 *)from, b = *(const float4 *)(from + 4);
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

__device__ __forceinline__ void store_8(float *to, const float (&v)[8]) {
  *(float4 *)to = make_float4(v[0], v[1], v[2], v[3]);
  *(float4 *)(to + 4) = make_float4(v[4], v[5], v[6], v[7]);
}

// ---- embedding ----

__global__ void embed(float *x, dev_matrix m, const int *token) {
  wait_for_inputs();
  const uint8_t *row = m.data + (size_t)token[blockIdx.x] * m.row_bytes;
  for (int i = threadIdx.x; i < m.cols; i += blockDim.x)
    x[(size_t)blockIdx.x * m.cols + i] = weight_at(m.type, row, i, m.cols);
}

status embed_launch(float *x, const dev_matrix *embedding, const dev_batch *b, cudaStream_t stream) {
  return launch(embed, dim3((unsigned)b->n), BLOCK, 0, stream, x, *embedding, b->token);
}

// ---- rounding to Q8_K ----

// The warp's 256, eight a lane.
__device__ __forceinline__ void round_values(const dev_inputs &io, int row, int block, float (&v)[8]) {
  size_t b = (size_t)row * (io.width / QK_K) + block;
  if (io.outliers) take_outliers(io.outliers + b, v);
  round_block(v, io.qs + b * QK_K, io.d + b, io.bsums + b * 16, io.sums32 + b * 16);
}

__device__ void round_row_block(dev_inputs io, int row, int block, const float *from) {
  int lane = threadIdx.x % WARP;
  float v[8];
  for (int i = 0; i < 8; i++) v[i] = from[block * QK_K + 8 * lane + i];
  round_values(io, row, block, v);
}

__global__ void round_rows(dev_inputs io, int n_blocks) {
  wait_for_inputs();
  int per_row = io.width / QK_K;
  for (int b = blockIdx.x * (BLOCK / WARP) + threadIdx.x / WARP; b < n_blocks;
       b += gridDim.x * (BLOCK / WARP))
    round_row_block(io, b / per_row, b % per_row, io.x + (size_t)(b / per_row) * io.width);
}

status round_launch(dev_inputs io, int n, cudaStream_t stream) {
  int n_blocks = n * (io.width / QK_K);
  return launch(round_rows, dim3((unsigned)(blocks_for((size_t)n_blocks * WARP))), BLOCK, 0, stream, io,
                n_blocks);
}

// ---- norm: a thread block a token; the first warp sums, all scale and round ----

__global__ void norm_rows(dev_inputs out, const float *x, const float *weight, float epsilon, bool round,
                          bool floats) {
  wait_for_inputs();
  extern __shared__ float row[];
  __shared__ float inverse;
  int n = out.width, t = blockIdx.x;
  for (int i = threadIdx.x; i < n; i += blockDim.x) row[i] = x[(size_t)t * n + i];
  __syncthreads();
  if (threadIdx.x < WARP) {
    float sum = sum_of_squares(row, n);
    if (threadIdx.x == 0) inverse = inverse_rms(sum, n, epsilon);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    row[i] = row[i] * inverse * weight[i];
    if (floats) out.x[(size_t)t * n + i] = row[i];
  }
  if (!round) return;
  __syncthreads();
  for (int b = threadIdx.x / WARP; b < n / QK_K; b += blockDim.x / WARP) round_row_block(out, t, b, row);
}

// The same of rows of whole blocks of 256, each a warp's, which holds it in registers; weights are there
// before the launch that came first has ended.
__global__ void norm_blocks(dev_inputs out, const float *x, const float *weight, float epsilon, bool round,
                            bool floats) {
  extern __shared__ __align__(16) float row[];
  __shared__ float inverse;
  int n = out.width, t = blockIdx.x, block = threadIdx.x / WARP, at = (int)threadIdx.x * 8;
  float v[8], w[8];
  load_8(w, weight + at);
  wait_for_inputs();
  load_8(v, x + (size_t)t * n + at);
  store_8(row + at, v);
  __syncthreads();
  if (threadIdx.x < WARP) {
    float sum = sum_of_squares(row, n);
    if (threadIdx.x == 0) inverse = inverse_rms(sum, n, epsilon);
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] = v[i] * inverse * w[i];
  if (floats) store_8(out.x + (size_t)t * n + at, v);
  if (round) round_values(out, t, block, v);
}

status norm_launch(dev_inputs out, const float *x, const float *weight, int n, float epsilon, bool round,
                   bool floats, cudaStream_t stream) {
  bool whole = out.width % QK_K == 0 && out.width / 8 <= MOST_THREADS;
  return launch(whole ? norm_blocks : norm_rows, dim3((unsigned)n), whole ? out.width / 8 : BLOCK,
                (size_t)out.width * sizeof(float), stream, out, x, weight, epsilon, round, floats);
}

// ---- heads: a warp a head of q or k: norm, RoPE, cache ----

__device__ void store_key(kv_cache c, size_t head, int position, int d, float value) {
  size_t at =
      head * c.head_elements + ((size_t)(position / CHUNK) * c.head_dim + d) * CHUNK + position % CHUNK;
  if (c.f16)
    ((uint16_t *)c.keys)[at] = f32_to_half(value);
  else
    ((float *)c.keys)[at] = value;
}

__device__ void store_value(kv_cache c, size_t head, int position, int d, float value) {
  size_t at = head * c.head_elements + (size_t)position * c.head_dim + d;
  if (c.f16)
    ((uint16_t *)c.values)[at] = f32_to_half(value);
  else
    ((float *)c.values)[at] = value;
}

__global__ void rotate_heads(float *q, const float *k, const float *v, const float *q_norm,
                             const float *k_norm, const float *rope, kv_cache cache, int layer, int n_heads,
                             float epsilon, float scale, dev_batch b, int first, int n, float *keys) {
  wait_for_inputs();
  int per_token = n_heads + cache.n_kv_heads, lane = threadIdx.x % WARP;
  int item = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP;
  if (item >= b.n * per_token) return;
  int t = item / per_token, h = item % per_token, dim = cache.head_dim, position = b.position[t];
  bool is_query = h < n_heads;
  int kv = h - n_heads;
  if (is_query && (t < first || t >= first + n)) return;
  const float *from =
      is_query ? q + ((size_t)t * n_heads + h) * dim : k + ((size_t)t * cache.n_kv_heads + kv) * dim;
  const float *weight = is_query ? q_norm : k_norm;
  float sum = 0;
  for (int i = lane; i < dim; i += WARP) sum = num_fma_f32(from[i], from[i], sum);
  float inverse = inverse_rms(warp_tree(sum), dim, epsilon), z = is_query ? scale : 1.0f;
  size_t head = ((size_t)layer * cache.n_sequences + b.sequence[t]) * cache.n_kv_heads + kv;
  for (int i = lane; i < dim / 2; i += WARP) {
    float c = rope[(size_t)position * dim + 2 * i], s = rope[(size_t)position * dim + 2 * i + 1];
    float a1 = from[i], b1 = from[i + dim / 2];
    if (weight) { // else they have been rotated already
      float a0 = a1 * inverse * weight[i], b0 = b1 * inverse * weight[i + dim / 2];
      a1 = num_fma_f32(a0, c, -(b0 * s)) * z;
      b1 = num_fma_f32(a0, s, b0 * c) * z;
    }
    if (is_query) {
      float *to = q + ((size_t)t * n_heads + h) * dim;
      to[i] = a1;
      to[i + dim / 2] = b1;
    } else {
      store_key(cache, head, position, i, a1);
      store_key(cache, head, position, i + dim / 2, b1);
      if (!keys) continue;
      float *to = keys + ((size_t)t * cache.n_kv_heads + kv) * dim;
      to[i] = a1;
      to[i + dim / 2] = b1;
    }
  }
  if (is_query) return;
  for (int i = lane; i < dim; i += WARP)
    store_value(cache, head, position, i, v[((size_t)t * cache.n_kv_heads + kv) * dim + i]);
}

status heads_launch(float *q, float *k, const float *v, const dev_layer *w, const model_shape *s,
                    const float *rope, kv_cache cache, int layer, const dev_batch *b, int first, int n,
                    bool rotated, float *keys, cudaStream_t stream) {
  size_t items = (size_t)b->n * (size_t)(s->n_heads + s->n_kv_heads);
  float scale = (float)(1.0 / __builtin_sqrt((double)s->head_dim));
  return launch(rotate_heads, dim3((unsigned)((items + 3) / 4)), 4 * WARP, 0, stream, q, k, v,
                rotated ? nullptr : w->q_norm, rotated ? nullptr : w->k_norm, rope, cache, layer,
                (int)s->n_heads, (float)s->rms_epsilon, scale, *b, first, n, keys);
}

// ---- experts' activations ----

// A warp a piece of 256 of a slot's row: gate = silu(gate) * up, rounded where the path rounds. A piece's
// loads do not wait for whether its slot is owned.
template <bool ROUND, bool SPLIT>
__global__ void __launch_bounds__(BLOCK)
    swiglu_pieces(dev_inputs gate, const float *up, const int *member, int n_pieces, bool floats) {
  wait_for_inputs();
  int per_row = gate.width / QK_K, lane = threadIdx.x % WARP;
  int piece = blockIdx.x * (BLOCK / WARP) + threadIdx.x / WARP;
  if (piece >= n_pieces) return;
  // rounding wants eight neighbours in a lane; else a warp's loads are of neighbours
  int start = ROUND ? 2 * lane : lane, next = ROUND ? 1 : WARP;
  float4 *to = (float4 *)(gate.x + (size_t)piece * QK_K) + start;
  const float4 *from = (const float4 *)(up + (size_t)piece * QK_K) + start;
  float4 g0 = to[0], g1 = to[next], u0 = from[0], u1 = from[next];
  if (member[piece / per_row] < 0) return;
  const float g[8] = {g0.x, g0.y, g0.z, g0.w, g1.x, g1.y, g1.z, g1.w},
              u[8] = {u0.x, u0.y, u0.z, u0.w, u1.x, u1.y, u1.z, u1.w};
  float v[8];
#pragma unroll
  for (int i = 0; i < 8; i++) v[i] = num_silu_f32(g[i]) * u[i];
  if (floats) {
    to[0] = make_float4(v[0], v[1], v[2], v[3]);
    to[next] = make_float4(v[4], v[5], v[6], v[7]);
  }
  size_t b = (size_t)piece;
  if (SPLIT) take_outliers(gate.outliers + b, v);
  if (ROUND) round_block(v, gate.qs + b * QK_K, gate.d + b, gate.bsums + b * 16, gate.sums32 + b * 16);
}

// Rows that are no whole pieces: never rounded.
__global__ void swiglu_elements(float *gate, const float *up, const int *member, int width, size_t n) {
  wait_for_inputs();
  for (size_t i = blockIdx.x * (size_t)blockDim.x + threadIdx.x; i < n; i += (size_t)gridDim.x * blockDim.x)
    if (member[i / (size_t)width] >= 0) gate[i] = num_silu_f32(gate[i]) * up[i];
}

status swiglu_launch(dev_inputs gate, const float *up, const int *member, int n, bool round, bool floats,
                     cudaStream_t stream) {
  size_t n_elements = (size_t)n * (size_t)gate.width;
  if (gate.width % QK_K)
    return launch(swiglu_elements, dim3((unsigned)blocks_for(n_elements)), BLOCK, 0, stream, gate.x, up,
                  member, gate.width, n_elements);
  int n_pieces = (int)(n_elements / QK_K);
  unsigned blocks = (unsigned)((n_pieces + BLOCK / WARP - 1) / (BLOCK / WARP));
  auto *kernel = !round          ? swiglu_pieces<false, false>
                 : gate.outliers ? swiglu_pieces<true, true>
                                 : swiglu_pieces<true, false>;
  return launch(kernel, dim3(blocks), BLOCK, 0, stream, gate, up, member, n_pieces, floats);
}

// ---- digest ----

__global__ void digest_rows(unsigned long long *sums, const float *rows, const int *sequence,
                            const int *position, int width, int64_t first, uint64_t tag, int64_t layer) {
  wait_for_inputs();
  int t = blockIdx.y;
  uint64_t row = num_digest_row(tag, layer, position[t]);
  unsigned long long sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < width; i += gridDim.x * blockDim.x)
    sum += num_digest_element(row, first + i, __float_as_uint(rows[(size_t)t * width + i]));
  add_digest(&sums[sequence[t]], sum);
}

status digest_launch(unsigned long long *sums, const float *rows, const dev_batch *b, int first, int n,
                     int width, int64_t first_element, uint64_t tag, int64_t layer, cudaStream_t stream) {
  int wide = (width + 4 * BLOCK - 1) / (4 * BLOCK);
  return launch(digest_rows, dim3((unsigned)(wide < 64 ? wide : 64), (unsigned)n), BLOCK, 0, stream, sums,
                rows, b->sequence + first, b->position + first, width, first_element, tag, layer);
}

// ---- combining: slots in slot order, and the digest of the new rows, which are in registers here ----

struct combine_args {
  float *x;
  const float *slots, *weight;
  const int64_t *place;
  dev_batch b;
  int k, hidden;
  unsigned long long *sums;
  uint64_t tag;
  int layer;
};

// Slots of a large batch are read once and are not to displace what L2 cache holds; few slots have just been
// written into it.
__device__ __forceinline__ float4 load_slots(const float4 *from) {
  return __ldcs(from);
}

__device__ __forceinline__ float load_slots(const float *from) {
  return *from;
}

// Element `at` of a token's row, or the four from there on.
template <typename T, typename Add, typename Scale>
__device__ __forceinline__ T sum_of_slots(const combine_args &a, int t, int at, Scale scale, Add add) {
  constexpr int AHEAD = 8; // slots whose loads do not wait for each other
  T sum = {};
  for (int from = 0; from < a.k; from += AHEAD) {
    T y[AHEAD];
    float w[AHEAD];
#pragma unroll
    for (int s = 0; s < AHEAD; s++) {
      int slot = t * a.k + min(from + s, a.k - 1);
      y[s] = load_slots((const T *)(a.slots + (size_t)(a.place ? a.place[slot] : slot) * a.hidden + at));
      w[s] = a.weight[slot];
    }
#pragma unroll
    for (int s = 0; s < AHEAD; s++)
      if (from + s < a.k) sum = from + s ? add(w[s], y[s], sum) : scale(w[s], y[s]);
  }
  return sum;
}

__device__ __forceinline__ float combine_one(const combine_args &a, int t, int i) {
  float sum = sum_of_slots<float>(
      a, t, i, [](float w, float y) { return w * y; },
      [](float w, float y, float s) { return num_fma_f32(w, y, s); });
  float *x = a.x + (size_t)t * a.hidden + i;
  return *x = *x + sum;
}

__device__ __forceinline__ float4 combine_four(const combine_args &a, int t, int i) {
  float4 *x = (float4 *)(a.x + (size_t)t * a.hidden + i), v = *x;
  float4 sum = sum_of_slots<float4>(
      a, t, i, [](float w, float4 y) { return make_float4(w * y.x, w * y.y, w * y.z, w * y.w); },
      [](float w, float4 y, float4 s) {
        return make_float4(num_fma_f32(w, y.x, s.x), num_fma_f32(w, y.y, s.y), num_fma_f32(w, y.z, s.z),
                           num_fma_f32(w, y.w, s.w));
      });
  return *x = make_float4(v.x + sum.x, v.y + sum.y, v.z + sum.z, v.w + sum.w);
}

// Adds the block's sums to a digest: one atomic a block, since a batch of one sequence has one address.
__device__ __forceinline__ void add_block_digest(unsigned long long *to, unsigned long long sum) {
  __shared__ unsigned long long of_warp[BLOCK / WARP];
  sum = warp_sum(sum);
  if (threadIdx.x % WARP == 0) of_warp[threadIdx.x / WARP] = sum;
  __syncthreads();
  if (threadIdx.x) return;
  sum = 0;
  for (int w = 0; w < BLOCK / WARP; w++) sum += of_warp[w];
  atomicAdd(to, sum);
}

template <int WIDE> __global__ void __launch_bounds__(BLOCK) combine_slots(const combine_args a) {
  wait_for_inputs();
  int t = blockIdx.x;
  uint64_t row = num_digest_row(a.tag, a.layer, a.b.position[t]);
  unsigned long long digest = 0;
  int step = (int)(gridDim.y * BLOCK) * WIDE;
  for (int i = (int)(blockIdx.y * BLOCK + threadIdx.x) * WIDE; i < a.hidden; i += step) {
    if constexpr (WIDE == 4) {
      float4 v = combine_four(a, t, i);
      digest += num_digest_element(row, i, __float_as_uint(v.x));
      digest += num_digest_element(row, i + 1, __float_as_uint(v.y));
      digest += num_digest_element(row, i + 2, __float_as_uint(v.z));
      digest += num_digest_element(row, i + 3, __float_as_uint(v.w));
    } else {
      digest += num_digest_element(row, i, __float_as_uint(combine_one(a, t, i)));
    }
  }
  if constexpr (WIDE == 4)
    add_block_digest(&a.sums[a.b.sequence[t]], digest);
  else
    add_digest(&a.sums[a.b.sequence[t]], digest);
}

// Up to so many rows do not keep a GPU busy with a thread block each: then a block takes part of a row.
static constexpr int FEW_ROWS = 128;

status combine_launch(float *x, const float *slots, const float *weight, const int64_t *place,
                      const dev_batch *b, int k, int hidden, unsigned long long *sums, uint64_t tag,
                      int layer, cudaStream_t stream) {
  combine_args a = {x, slots, weight, place, *b, k, hidden, sums, tag, layer};
  bool many = b->n > FEW_ROWS;
  if (many && hidden % 4 == 0) return launch(combine_slots<4>, dim3((unsigned)b->n), BLOCK, 0, stream, a);
  unsigned parts = many ? 1 : (unsigned)ceil_div(hidden, BLOCK);
  return launch(combine_slots<1>, dim3((unsigned)b->n, parts < 8 ? parts : 8), BLOCK, 0, stream, a);
}
