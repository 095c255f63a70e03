// vectors: the steps between the products: embedding, norms, rounding, RoPE, routing, combining, digests.
#include "kernels/cuda/round_q8k.cuh"
#include "kernels/cuda/weight_at.cuh"

static constexpr int BLOCK = 256;

static int blocks_for(size_t n) {
  size_t blocks = (n + BLOCK - 1) / BLOCK;
  return (int)(blocks < 4096 ? blocks : 4096);
}

// ---- embedding ----

__global__ void embed(float *x, dev_matrix m, const int *token) {
  wait_for_inputs();
  const uint8_t *row = m.data + (size_t)token[blockIdx.x] * m.row_bytes;
  for (int i = threadIdx.x; i < m.cols; i += blockDim.x)
    x[(size_t)blockIdx.x * m.cols + i] = weight_at(m.type, row, i, m.cols);
}

status embed_launch(float *x, const dev_matrix *embedding, const dev_batch *b, cudaStream_t stream) {
  return launch(embed, dim3((unsigned)(b->n)), BLOCK, 0, stream, x, *embedding, b->token);
}

// ---- rounding to Q8_K ----

__device__ void round_row_block(dev_inputs io, int row, int block, const float *from) {
  int lane = threadIdx.x % WARP;
  float v[8];
  for (int i = 0; i < 8; i++) v[i] = from[block * QK_K + 8 * lane + i];
  size_t b = (size_t)row * (io.width / QK_K) + block;
  round_block(v, io.qs + b * QK_K, io.d + b, io.bsums + b * 16, io.halves + b * 16);
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

__global__ void norm_rows(dev_inputs out, const float *x, const float *weight, float epsilon, bool round) {
  wait_for_inputs();
  extern __shared__ float row[];
  __shared__ float inverse;
  int n = out.width, t = blockIdx.x;
  for (int i = threadIdx.x; i < n; i += blockDim.x) row[i] = x[(size_t)t * n + i];
  __syncthreads();
  if (threadIdx.x < WARP) {
    float sum = 0;
#pragma unroll 16
    for (int i = threadIdx.x; i < n; i += WARP) sum = num_fma_f32(row[i], row[i], sum);
    sum = warp_tree(sum);
    if (threadIdx.x == 0) inverse = 1.0f / sqrtf(sum / (float)n + epsilon);
  }
  __syncthreads();
  for (int i = threadIdx.x; i < n; i += blockDim.x) {
    row[i] = row[i] * inverse * weight[i];
    out.x[(size_t)t * n + i] = row[i];
  }
  if (!round) return;
  __syncthreads();
  for (int b = threadIdx.x / WARP; b < n / QK_K; b += blockDim.x / WARP) round_row_block(out, t, b, row);
}

status norm_launch(dev_inputs out, const float *x, const float *weight, int n, float epsilon, bool round,
                   cudaStream_t stream) {
  return launch(norm_rows, dim3((unsigned)(n)), BLOCK, (size_t)out.width * sizeof(float), stream, out, x,
                weight, epsilon, round);
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
  float inverse = 1.0f / sqrtf(warp_tree(sum) / (float)dim + epsilon), z = is_query ? scale : 1.0f;
  size_t head = ((size_t)layer * cache.n_sequences + b.sequence[t]) * cache.n_kv_heads + kv;
  for (int i = lane; i < dim / 2; i += WARP) {
    float c = rope[(size_t)position * dim + 2 * i], s = rope[(size_t)position * dim + 2 * i + 1];
    float a0 = from[i] * inverse * weight[i], b0 = from[i + dim / 2] * inverse * weight[i + dim / 2];
    float a1 = num_fma_f32(a0, c, -(b0 * s)) * z, b1 = num_fma_f32(a0, s, b0 * c) * z;
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
                    float *keys, cudaStream_t stream) {
  size_t items = (size_t)b->n * (size_t)(s->n_heads + s->n_kv_heads);
  float scale = (float)(1.0 / __builtin_sqrt((double)s->head_dim));
  return launch(rotate_heads, dim3((unsigned)((int)((items + 3) / 4))), 4 * WARP, 0, stream, q, k, v,
                w->q_norm, w->k_norm, rope, cache, layer, (int)s->n_heads, (float)s->rms_epsilon, scale, *b,
                first, n, keys);
}

// ---- experts' activations ----

// A warp a piece of 256 of a slot's row: gate = silu(gate) * up, rounded where the path rounds.
__global__ void swiglu_rows(dev_inputs gate, const float *up, const int *member, int n_pieces, bool round,
                            bool floats) {
  wait_for_inputs();
  int per_row = (gate.width + QK_K - 1) / QK_K, lane = threadIdx.x % WARP;
  for (int p = blockIdx.x * (BLOCK / WARP) + threadIdx.x / WARP; p < n_pieces;
       p += gridDim.x * (BLOCK / WARP)) {
    int slot = p / per_row, piece = p % per_row;
    if (member[slot] < 0) continue;
    float v[8];
    size_t begin = (size_t)slot * gate.width + piece * QK_K + 8 * lane;
    if (gate.width % QK_K == 0) {
      float4 g[2], u[2];
      for (int i = 0; i < 2; i++) {
        g[i] = ((const float4 *)(gate.x + begin))[i];
        u[i] = ((const float4 *)(up + begin))[i];
      }
      for (int i = 0; i < 2; i++) {
        v[4 * i] = num_silu_f32(g[i].x) * u[i].x;
        v[4 * i + 1] = num_silu_f32(g[i].y) * u[i].y;
        v[4 * i + 2] = num_silu_f32(g[i].z) * u[i].z;
        v[4 * i + 3] = num_silu_f32(g[i].w) * u[i].w;
      }
      for (int i = 0; i < 2 && floats; i++)
        ((float4 *)(gate.x + begin))[i] = make_float4(v[4 * i], v[4 * i + 1], v[4 * i + 2], v[4 * i + 3]);
    } else {
      for (int i = 0; i < 8; i++) {
        bool exists = piece * QK_K + 8 * lane + i < gate.width;
        v[i] = exists ? num_silu_f32(gate.x[begin + i]) * up[begin + i] : 0.0f;
        if (exists) gate.x[begin + i] = v[i];
      }
    }
    if (round) {
      size_t b = (size_t)slot * per_row + piece;
      round_block(v, gate.qs + b * QK_K, gate.d + b, gate.bsums + b * 16, gate.halves + b * 16);
    }
  }
}

status swiglu_launch(dev_inputs gate, const float *up, const int *member, int n, bool round, bool floats,
                     cudaStream_t stream) {
  int n_pieces = n * ((gate.width + QK_K - 1) / QK_K);
  return launch(swiglu_rows, dim3((unsigned)(blocks_for((size_t)n_pieces * WARP))), BLOCK, 0, stream, gate,
                up, member, n_pieces, round, floats);
}

// ---- routing: a warp a token ----

__device__ unsigned long long best_of(const float *p, int n) {
  unsigned long long best = 0; // (probability, lowest index); chosen ones are negative
  for (int e = threadIdx.x; e < n; e += WARP)
    if (p[e] >= 0.0f) {
      unsigned long long key = (unsigned long long)__float_as_uint(p[e]) << 32 | (0xffffffffu - (uint32_t)e);
      best = key > best ? key : best;
    }
  for (int half = WARP / 2; half; half /= 2) {
    unsigned long long other = __shfl_xor_sync(~0u, best, half);
    best = other > best ? other : best;
  }
  return best;
}

// When logits are not finite: the first expert not chosen yet, as the C code does it; the logits are refused
// later.
__device__ int first_left(const float *p, int n) {
  for (int e = 0; e < n; e++)
    if (!(p[e] < 0.0f)) return e;
  return 0;
}

__global__ void route_tokens(int *expert, float *weight, int *member, int64_t *place, double *margin,
                             const float *logits, const int *local_of_expert, const int *rank_of_expert,
                             int n, int k) {
  wait_for_inputs();
  extern __shared__ float p[];
  int t = blockIdx.x, lane = threadIdx.x;
  const float *from = logits + (size_t)t * n;
  float max = from[0];
  for (int e = lane; e < n; e += WARP) max = from[e] > max ? from[e] : max;
  for (int half = WARP / 2; half; half /= 2) {
    float other = __shfl_xor_sync(~0u, max, half);
    max = other > max ? other : max;
  }
  for (int e = lane; e < n; e += WARP) p[e] = num_exp_f32(from[e] - max);
  __syncwarp();
  double all = 0;
  if (lane == 0 && margin)
    for (int e = 0; e < n; e++) all += (double)p[e];
  float sum = 0, last = 0;
  for (int slot = 0; slot <= k; slot++) {
    unsigned long long best = best_of(p, n);
    float found = best ? __uint_as_float((uint32_t)(best >> 32)) : 0.0f;
    int e = best ? (int)(0xffffffffu - (uint32_t)best) : first_left(p, n);
    if (slot == k) {
      if (lane == 0 && margin) margin[t] = best ? ((double)last - (double)found) / all : 1.0;
      break;
    }
    __syncwarp();
    if (lane == 0) {
      expert[t * k + slot] = e;
      member[t * k + slot] = local_of_expert[e];
      if (place) place[t * k + slot] = (int64_t)rank_of_expert[e] * gridDim.x * k + t * k + slot;
      weight[t * k + slot] = found;
      p[e] = -1.0f;
    }
    __syncwarp();
    sum = sum + found;
    last = found;
  }
  for (int slot = lane; slot < k; slot += WARP) weight[t * k + slot] = weight[t * k + slot] / sum;
}

status route_launch(int *expert, float *weight, int *member, int64_t *place, double *margin,
                    const float *logits, const int *local_of_expert, const int *rank_of_expert, int n,
                    int n_experts, int k, cudaStream_t stream) {
  return launch(route_tokens, dim3((unsigned)(n)), WARP, (size_t)n_experts * sizeof(float), stream, expert,
                weight, member, place, margin, logits, local_of_expert, rank_of_expert, n_experts, k);
}

// ---- grouping slots by this rank's experts ----

// A warp a member counts its items; order within a group is ascending, so the list is the same every time.
__global__ void count_members(int *first, const int *member, int n_items, int n_members) {
  wait_for_inputs();
  int m = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  if (m >= n_members) return;
  int count = 0;
#pragma unroll 16
  for (int i = lane; i < n_items; i += WARP) count += member[i] == m;
  for (int half = WARP / 2; half; half /= 2) count += __shfl_xor_sync(~0u, count, half);
  if (lane == 0) first[m + 1] = count;
}

// Warp 0 sums items, the next four tiles of 8, 16, 32, 64.
__global__ void scan_counts(int *first, int *tiles, int n_members) {
  wait_for_inputs();
  int which = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  int items = which ? which < 4 ? 4 << which : 64 : 1, before = 0;
  int *to = which ? tiles + (which - 1) * (n_members + 1) : nullptr;
  for (int base = 0; base < n_members; base += WARP) {
    int m = base + lane, own = m < n_members ? (first[m + 1] + items - 1) / items : 0, sum = own;
    for (int step = 1; step < WARP; step *= 2) {
      int other = __shfl_up_sync(~0u, sum, step);
      if (lane >= step) sum += other;
    }
    __syncthreads(); // all have read the counts before warp 0 overwrites them
    if (m < n_members && which)
      to[m] = before + sum - own;
    else if (m < n_members)
      first[m + 1] = before + sum;
    before += __shfl_sync(~0u, sum, WARP - 1);
  }
  if (lane) return;
  if (which)
    to[n_members] = before;
  else
    first[0] = 0;
}

static constexpr int AT_ONCE = 16; // loads in flight

__global__ void fill_members(int *order, const int *first, const int *member, int n_items, int n_members) {
  wait_for_inputs();
  int m = blockIdx.x * (blockDim.x / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
  if (m >= n_members) return;
  int at = first[m];
  for (int base = lane; base < (n_items + WARP - 1) / WARP * WARP; base += AT_ONCE * WARP) {
    int of[AT_ONCE];
#pragma unroll
    for (int k = 0; k < AT_ONCE; k++) of[k] = base + k * WARP < n_items ? member[base + k * WARP] : -1;
#pragma unroll
    for (int k = 0; k < AT_ONCE; k++) {
      unsigned mask = __ballot_sync(~0u, of[k] == m);
      if (of[k] == m) order[at + __popc(mask & ((1u << lane) - 1))] = base + k * WARP;
      at += __popc(mask);
    }
  }
}

__global__ void find_members(int *member, const int *expert, const int *local_of_expert, int n_slots) {
  wait_for_inputs();
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n_slots) member[i] = local_of_expert[expert[i]];
}

status members_launch(int *member, const int *expert, const int *local_of_expert, int n_slots,
                      cudaStream_t stream) {
  return launch(find_members, dim3((unsigned)((n_slots + BLOCK - 1) / BLOCK)), BLOCK, 0, stream, member,
                expert, local_of_expert, n_slots);
}

status group_launch(int *first, int *order, int *tiles, const int *member, int n_items, int n_members,
                    cudaStream_t stream) {
  TRY(launch(count_members, dim3((unsigned)n_members), WARP, 0, stream, first, member, n_items, n_members));
  TRY(launch(scan_counts, dim3(1), (1 + TILE_SIZES) * WARP, 0, stream, first, tiles, n_members));
  return launch(fill_members, dim3((unsigned)n_members), WARP, 0, stream, order, first, member, n_items,
                n_members);
}

// ---- digest ----

__global__ void digest_rows(unsigned long long *sums, const float *rows, const int *sequence,
                            const int *position, int width, uint64_t tag, int64_t layer) {
  wait_for_inputs();
  int t = blockIdx.y;
  uint64_t row = num_digest_row(tag, layer, position[t]);
  unsigned long long sum = 0;
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < width; i += gridDim.x * blockDim.x)
    sum += num_digest_element(row, i, __float_as_uint(rows[(size_t)t * width + i]));
  add_digest(&sums[sequence[t]], sum);
}

status digest_launch(unsigned long long *sums, const float *rows, const dev_batch *b, int first, int n,
                     int width, uint64_t tag, int64_t layer, cudaStream_t stream) {
  int wide = (width + 4 * BLOCK - 1) / (4 * BLOCK);
  return launch(digest_rows, dim3((unsigned)(wide < 64 ? wide : 64), (unsigned)n), BLOCK, 0, stream, sums,
                rows, b->sequence + first, b->position + first, width, tag, layer);
}

// ---- combining: slots in slot order; the new rows are at hand, so their digest is taken here ----

__global__ void combine_slots(float *x, const float *slots, const float *weight, const int64_t *place,
                              dev_batch b, int k, int hidden, unsigned long long *sums, uint64_t tag,
                              int layer) {
  constexpr int AHEAD = 8; // slots whose loads do not wait for each other
  wait_for_inputs();
  int t = blockIdx.x;
  uint64_t row = num_digest_row(tag, layer, b.position[t]);
  unsigned long long digest = 0;
  for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < hidden; i += gridDim.y * blockDim.x) {
    float sum = 0;
    for (int from = 0; from < k; from += AHEAD) {
      float y[AHEAD], w[AHEAD];
#pragma unroll
      for (int s = 0; s < AHEAD; s++) {
        int slot = t * k + min(from + s, k - 1);
        y[s] = slots[(size_t)(place ? place[slot] : slot) * hidden + i];
        w[s] = weight[slot];
      }
#pragma unroll
      for (int s = 0; s < AHEAD; s++)
        if (from + s < k) sum = from + s ? num_fma_f32(w[s], y[s], sum) : w[s] * y[s];
    }
    float value = x[(size_t)t * hidden + i] + sum;
    x[(size_t)t * hidden + i] = value;
    digest += num_digest_element(row, i, __float_as_uint(value));
  }
  add_digest(&sums[b.sequence[t]], digest);
}

status combine_launch(float *x, const float *slots, const float *weight, const int64_t *place,
                      const dev_batch *b, int k, int hidden, unsigned long long *sums, uint64_t tag,
                      int layer, cudaStream_t stream) {
  unsigned parts =
      b->n > 128 ? 1 : (unsigned)((hidden + BLOCK - 1) / BLOCK); // few tokens: a block each part of a row
  return launch(combine_slots, dim3((unsigned)b->n, parts < 8 ? parts : 8), BLOCK, 0, stream, x, slots,
                weight, place, *b, k, hidden, sums, tag, layer);
}
