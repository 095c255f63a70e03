// decode: one token's forward pass on the path q8k in six launches a layer. The same arithmetic as the steps
// for many tokens, laid out for latency: a kernel asks for its weights while the one before it still runs,
// thread blocks repeat small vector work (norm, rounding, choice of experts) rather than wait for a launch
// that shares it.
//
// Owns: these kernels and how rows are dealt to warps. Refuses to know: other batches, other ranks.
// Invariant: a kernel announces itself (start_next) only after its own inputs are complete, so what runs
// before wait_for_previous may read what was written two launches ago or earlier, and weights.
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/block_q8k.cuh"
#include "kernels/cuda/choice.cuh"
#include "kernels/cuda/decode.cuh"
#include "kernels/cuda/round_q8k.cuh"

static constexpr int WARPS = 8, THREADS = WARPS * WARP;

__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
  cudaGridDependencySynchronize();
  cudaTriggerProgrammaticLaunchCompletion();
#endif
}

__device__ __forceinline__ void copy16_async(void *shared, const void *global) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"((uint32_t)__cvta_generic_to_shared(shared)),
               "l"(global));
}

__device__ __forceinline__ void wait_for_copies() {
  asm volatile("cp.async.wait_all;" ::: "memory");
}

// ---- activations in shared memory ----

struct rounded_row { // Q8_K planes of one row
  int8_t *qs;
  float *d; // padded to a multiple of 8
  int16_t *bsums;
};

static __host__ __device__ constexpr int pad8(int n) {
  return (n + 7) / 8 * 8;
}

static __host__ __device__ constexpr size_t rounded_bytes(int width) {
  return (size_t)width + (size_t)width / 8 + (size_t)pad8(width / QK_K) * sizeof(float);
}

__device__ __forceinline__ rounded_row rounded_at(uint8_t *memory, int width) {
  return {(int8_t *)memory, (float *)(memory + width + width / 8), (int16_t *)(memory + width)};
}

__device__ __forceinline__ void load8(float v[8], const float *from) {
  float4 a = *(const float4 *)from, b = *(const float4 *)(from + 4);
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
  v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

__device__ __forceinline__ void round_to(const rounded_row &to, int block, const float v[8]) {
  round_block(v, to.qs + block * QK_K, to.d + block, to.bsums + block * (QK_K / 16));
}

// sum32 of squares by one warp, on all its lanes
__device__ __forceinline__ float sum_of_squares(const float *x, int n) {
  float sum = 0;
#pragma unroll 16
  for (int i = threadIdx.x % WARP; i < n; i += WARP) sum = num_fma_f32(x[i], x[i], sum);
  return warp_tree(sum);
}

__device__ __forceinline__ float inverse_rms(float sum, int n, float epsilon) {
  return 1.0f / sqrtf(sum / (float)n + epsilon);
}

// ---- rows of K-quant matrices times one rounded row ----

template <weight_type TYPE> struct ring_size; // parts of rows that a lane holds before it uses the first
template <> struct ring_size<TYPE_Q4_K> { static constexpr int one = 4, two = 3; };
template <> struct ring_size<TYPE_Q5_K> { static constexpr int one = 3, two = 2; };
template <> struct ring_size<TYPE_Q6_K> { static constexpr int one = 3, two = 2; };

struct row_range { // rows 0 .. n_rows - 1 of up to two matrices of one shape
  const uint8_t *rows[2];
  size_t row_bytes;
  int n_rows, n_blocks;
};

// The warp's rows times `in`. Weights are asked for at once, then `prepare` runs, which makes `in`. Row r's
// results reach lane r % 32 of `flush(first row, results)`, 32 rows at a time.
template <weight_type TYPE, int GROUPS, int MATRICES, int RING, typename Prepare, typename Flush>
__device__ __forceinline__ void stream_rows(const row_range &w, const rounded_row &in, Prepare prepare,
                                            Flush flush) {
  constexpr int at_once = 8 / GROUPS, window = WARP / at_once;
  int lane = threadIdx.x % WARP, q = lane % 4, g = lane / 4 % GROUPS, sub = lane / (4 * GROUPS);
  int steps = (w.n_blocks + GROUPS - 1) / GROUPS, units = (w.n_rows + at_once - 1) / at_once * steps;
  int load_pass = 0, load_step = 0;
  quarter<TYPE> ring[RING][MATRICES];
  auto load = [&](quarter<TYPE> *to) {
    int row = min(load_pass * at_once + sub, w.n_rows - 1), b = min(load_step * GROUPS + g, w.n_blocks - 1);
#pragma unroll
    for (int m = 0; m < MATRICES; m++)
      to[m] = load_quarter<TYPE>(w.rows[m] + (size_t)row * w.row_bytes, w.n_blocks, b, q);
    if (++load_step == steps) {
      load_step = 0;
      load_pass++;
    }
  };
#pragma unroll
  for (int r = 0; r < RING; r++)
    if (r < units) load(ring[r]);
  prepare();
  float y[MATRICES] = {}, mine[MATRICES] = {};
  int pass = 0, step = 0;
  for (int base = 0; base < units; base += RING) {
#pragma unroll
    for (int r = 0; r < RING; r++) {
      if (base + r >= units) break;
      int begin = step * GROUPS, b = min(begin + g, w.n_blocks - 1);
      quarter_inputs x = load_inputs<TYPE>(in.qs + b * QK_K, in.bsums + b * (QK_K / 16), q);
      float term[MATRICES];
#pragma unroll
      for (int m = 0; m < MATRICES; m++) term[m] = block_term<TYPE>(ring[r][m], x, q);
      if (base + r + RING < units) load(ring[r]);
#pragma unroll
      for (int m = 0; m < MATRICES; m++)
        y[m] = add_terms<GROUPS>(y[m], term[m], in.d + begin, w.n_blocks - begin, sub);
      if (++step < steps) continue;
      step = 0;
#pragma unroll
      for (int m = 0; m < MATRICES; m++) { // lane l keeps row l of the window
        float found = __shfl_sync(~0u, y[m], lane % at_once * (4 * GROUPS));
        if (lane / at_once == pass % window) mine[m] = found;
        y[m] = 0;
      }
      pass++;
      if (pass % window == 0 || pass * at_once >= w.n_rows) flush((pass - 1) / window * WARP, mine);
    }
  }
}

// ---- one token's rows of up to three matrices that read the same input ----

struct rows_args {
  dev_matrix w[3];
  float *out[3];
  int begin[3], count;   // first thread block of each matrix
  int rows_per_warp;     // with `adds` at most 32
  const float *x, *norm; // norm: the input is rms_norm(x) * norm, else x
  float epsilon;
  bool adds; // out = out + product
};

template <weight_type TYPE, int GROUPS, typename Prepare>
__device__ __forceinline__ void rows_of(const rows_args &a, int which, const rounded_row &in,
                                        Prepare prepare) {
  const dev_matrix &m = a.w[which];
  int lane = threadIdx.x % WARP;
  int first = (((int)blockIdx.x - a.begin[which]) * WARPS + threadIdx.x / WARP) * a.rows_per_warp;
  int count = max(0, min(a.rows_per_warp, m.rows - first));
  row_range w = {{m.data + (size_t)first * m.row_bytes, nullptr}, m.row_bytes, count, m.cols / QK_K};
  float *out = a.out[which] + first, before = 0;
  stream_rows<TYPE, GROUPS, 1, ring_size<TYPE>::one>(
      w, in,
      [&] {
        prepare();
        if (a.adds && lane < count) before = out[lane];
      },
      [&](int row, const float *y) {
        if (row + lane < count) out[row + lane] = a.adds ? before + y[0] : y[0];
      });
}

template <int GROUPS>
__global__ void __launch_bounds__(THREADS, 2) decode_rows(const __grid_constant__ rows_args a) {
  extern __shared__ __align__(16) uint8_t memory[];
  __shared__ float inverse;
  int which = 0, width = a.w[0].cols, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP,
      n_blocks = width / QK_K;
  while (which + 1 < a.count && (int)blockIdx.x >= a.begin[which + 1]) which++;
  rounded_row in = rounded_at(memory, width);
  float *row = (float *)(memory + rounded_bytes(width)), norm[8];
  if (a.norm && warp < n_blocks) load8(norm, a.norm + warp * QK_K + 8 * lane);
  auto prepare = [&] {
    wait_for_previous();
    if (a.norm) {
      for (int i = 4 * threadIdx.x; i < width; i += 4 * THREADS)
        *(float4 *)(row + i) = *(const float4 *)(a.x + i);
      __syncthreads();
      if (warp == 0) {
        float sum = sum_of_squares(row, width);
        if (lane == 0) inverse = inverse_rms(sum, width, a.epsilon);
      }
      __syncthreads();
    }
    for (int b = warp; b < n_blocks; b += WARPS) {
      float v[8];
      load8(v, (a.norm ? row : a.x) + b * QK_K + 8 * lane);
      if (a.norm && b != warp) load8(norm, a.norm + b * QK_K + 8 * lane);
      for (int i = 0; i < 8 && a.norm; i++) v[i] = v[i] * inverse * norm[i];
      round_to(in, b, v);
    }
    __syncthreads();
  };
  if (a.w[which].type == TYPE_Q4_K)
    rows_of<TYPE_Q4_K, GROUPS>(a, which, in, prepare);
  else if (a.w[which].type == TYPE_Q5_K)
    rows_of<TYPE_Q5_K, GROUPS>(a, which, in, prepare);
  else
    rows_of<TYPE_Q6_K, GROUPS>(a, which, in, prepare);
}

// ---- attention: a thread block a chunk of keys and up to eight heads that share them ----

static constexpr int HEADS = 8, ATTEND_THREADS = THREADS + 2 * WARP; // two more warps: the new key and value

struct attend_args {
  const float *q, *k, *v, *q_norm, *k_norm, *rope;
  float *out; // [n_heads][head_dim]
  kv_cache cache;
  int layer, n_heads, group, n_chunks;
  float epsilon, scale;
  const int *sequence, *position;
  attention_work work;
  unsigned *arrived; // [kv heads * slices], 0 between launches
};

template <int DIM> struct attend_rows {
  float q[HEADS][DIM], score[HEADS][CHUNK + 4];
  float max[HEADS], sum[HEADS];
  bool folds;
};

// A head of q or k normed and turned: lane l has elements l + 32 i.
template <int DIM>
__device__ __forceinline__ void turn_head(float out[DIM / WARP], const float *from, const float *weight,
                                          const float *rope, float epsilon, float z) {
  constexpr int EACH = DIM / WARP, PAIRS = EACH / 2;
  int lane = threadIdx.x % WARP;
  float x[EACH], sum = 0;
#pragma unroll
  for (int i = 0; i < EACH; i++) x[i] = from[lane + WARP * i];
#pragma unroll
  for (int i = 0; i < EACH; i++) sum = num_fma_f32(x[i], x[i], sum);
  float inverse = inverse_rms(warp_tree(sum), DIM, epsilon);
#pragma unroll
  for (int i = 0; i < PAIRS; i++) {
    int at = lane + WARP * i;
    float2 turn = *(const float2 *)(rope + 2 * at);
    float a = x[i] * inverse * weight[at], b = x[i + PAIRS] * inverse * weight[at + DIM / 2];
    out[i] = num_fma_f32(a, turn.x, -(b * turn.y)) * z;
    out[i + PAIRS] = num_fma_f32(a, turn.y, b * turn.x) * z;
  }
}

template <typename T> __device__ __forceinline__ T to_cache(float x);
template <> __device__ __forceinline__ float to_cache<float>(float x) {
  return x;
}
template <> __device__ __forceinline__ uint16_t to_cache<uint16_t>(float x) {
  return f32_to_half(x);
}
__device__ __forceinline__ float from_cache(float x) {
  return x;
}
__device__ __forceinline__ float from_cache(uint16_t x) {
  return half_bits_to_f32(x);
}

// Folds a head's chunks 0 .. last in ascending order: the factors of 32 chunks at once, a lane each, then the
// sums.
template <int DIM> __device__ void fold_head(const attend_args &a, int head, int last) {
  int lane = threadIdx.x % WARP;
  size_t row = (size_t)head * a.n_chunks;
  float running = 0, total = 0, out[DIM / WARP];
  for (int base = 0; base <= last; base += WARP) {
    int c = base + lane, n = min(WARP, last + 1 - base);
    float m = __ldcg(&a.work.max[row + min(c, last)]), l = __ldcg(&a.work.sum[row + min(c, last)]);
    float both = m;
    for (int step = 1; step < WARP; step *= 2) {
      float before = __shfl_up_sync(~0u, both, step);
      if (lane >= step) both = before > both ? before : both;
    }
    if (base) both = running > both ? running : both;
    float previous = __shfl_up_sync(~0u, both, 1);
    if (lane == 0) previous = base ? running : m;
    float old = num_exp_f32(previous - both), fresh = num_exp_f32(m - both);
    running = __shfl_sync(~0u, both, WARP - 1);
    for (int i = 0; i < n; i++) {
      float f = __shfl_sync(~0u, fresh, i), o = __shfl_sync(~0u, old, i), part = __shfl_sync(~0u, l, i);
      bool first = base + i == 0;
      total = first ? part : num_fma_f32(part, f, total * o);
#pragma unroll
      for (int j = 0; j < DIM / WARP; j++) {
        float x = __ldcg(&a.work.out[(row + base + i) * DIM + lane + WARP * j]);
        out[j] = first ? x : num_fma_f32(x, f, out[j] * o);
      }
    }
  }
  float inverse = 1.0f / total;
  for (int j = 0; j < DIM / WARP; j++) a.out[(size_t)head * DIM + lane + WARP * j] = out[j] * inverse;
}

template <int DIM, typename T>
__global__ void __launch_bounds__(ATTEND_THREADS) decode_attend(const __grid_constant__ attend_args a) {
  extern __shared__ __align__(16) uint8_t memory[];
  T *keys = (T *)memory, *values = keys + CHUNK * DIM; // [DIM][CHUNK], [CHUNK][DIM]
  attend_rows<DIM> *s = (attend_rows<DIM> *)(values + CHUNK * DIM);
  int slices = (a.group + HEADS - 1) / HEADS, kv = blockIdx.y / slices, slice = blockIdx.y % slices;
  int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, chunk = blockIdx.x;
  int position = a.position[0], last = position / CHUNK, n = min(CHUNK, position + 1 - chunk * CHUNK);
  if (chunk > last) return;
  int first_head = kv * a.group + slice * HEADS, heads = min(HEADS, a.group - slice * HEADS);
  size_t at = (((size_t)a.layer * a.cache.n_sequences + a.sequence[0]) * a.cache.n_kv_heads + kv) *
                  a.cache.head_elements +
              (size_t)chunk * CHUNK * DIM;
  constexpr int PIECE = 16 / sizeof(T);
  for (int i = PIECE * threadIdx.x; i < CHUNK * DIM;
       i += PIECE * ATTEND_THREADS) { // what earlier tokens left
    copy16_async(keys + i, (const T *)a.cache.keys + at + i);
    copy16_async(values + i, (const T *)a.cache.values + at + i);
  }
  wait_for_previous();
  const float *rope = a.rope + (size_t)position * DIM;
  float turned[DIM / WARP];
  if (warp < heads)
    turn_head<DIM>(turned, a.q + (size_t)(first_head + warp) * DIM, a.q_norm, rope, a.epsilon, a.scale);
  else if (warp == WARPS)
    turn_head<DIM>(turned, a.k + (size_t)kv * DIM, a.k_norm, rope, a.epsilon, 1.0f);
  wait_for_copies();
  __syncthreads();
  if (warp < heads)
    for (int i = 0; i < DIM / WARP; i++) s->q[warp][lane + WARP * i] = turned[i];
  if (warp >= WARPS && chunk == last) { // the new position, which the copies brought as it was before
    int j = position % CHUNK;
    for (int i = 0; i < DIM / WARP; i++) {
      int d = lane + WARP * i;
      bool is_key = warp == WARPS;
      T x = to_cache<T>(is_key ? turned[i] : a.v[(size_t)kv * DIM + d]);
      (is_key ? keys[d * CHUNK + j] : values[j * DIM + d]) = x;
      if (slice == 0)
        ((T *)(is_key ? a.cache.keys : a.cache.values))[at + (is_key ? d * CHUNK + j : j * DIM + d)] = x;
    }
  }
  __syncthreads();
  if (threadIdx.x < THREADS) { // a thread a key and two heads: one chain over d each
    int h = threadIdx.x / CHUNK * 2, j = threadIdx.x % CHUNK;
    float x0 = 0, x1 = 0;
#pragma unroll 8
    for (int d = 0; d < DIM; d += 4) {
      float4 q0 = *(const float4 *)&s->q[h][d], q1 = *(const float4 *)&s->q[h + 1][d];
      float k0 = from_cache(keys[d * CHUNK + j]), k1 = from_cache(keys[(d + 1) * CHUNK + j]);
      float k2 = from_cache(keys[(d + 2) * CHUNK + j]), k3 = from_cache(keys[(d + 3) * CHUNK + j]);
      x0 = num_fma_f32(q0.w, k3, num_fma_f32(q0.z, k2, num_fma_f32(q0.y, k1, num_fma_f32(q0.x, k0, x0))));
      x1 = num_fma_f32(q1.w, k3, num_fma_f32(q1.z, k2, num_fma_f32(q1.y, k1, num_fma_f32(q1.x, k0, x1))));
    }
    s->score[h][j] = x0;
    s->score[h + 1][j] = x1;
  }
  __syncthreads();
  if (warp < heads) {
    float max, sum;
    chunk_weights(s->score[warp], n, &max, &sum);
    if (lane == 0) {
      s->max[warp] = max;
      s->sum[warp] = sum;
    }
  }
  __syncthreads();
  if (threadIdx.x < 2 * DIM) { // two dimensions of two heads: chains over the keys
    int h = threadIdx.x / (DIM / 2) * 2, d = threadIdx.x % (DIM / 2) * 2;
    float out[2][2] = {};
#pragma unroll 4
    for (int j = 0; j < n; j++) {
      float v0 = from_cache(values[j * DIM + d]), v1 = from_cache(values[j * DIM + d + 1]);
      for (int i = 0; i < 2; i++) {
        float e = s->score[h + i][j];
        out[i][0] = num_fma_f32(e, v0, out[i][0]);
        out[i][1] = num_fma_f32(e, v1, out[i][1]);
      }
    }
    for (int i = 0; i < 2 && h + i < heads; i++) {
      size_t row = (size_t)(first_head + h + i);
      float inverse = last ? 1.0f : 1.0f / s->sum[h + i];
      float *to = last ? a.work.out + (row * a.n_chunks + chunk) * DIM : a.out + row * DIM;
      *(float2 *)(to + d) =
          last ? make_float2(out[i][0], out[i][1]) : make_float2(out[i][0] * inverse, out[i][1] * inverse);
      if (last && d == 0) {
        a.work.max[row * a.n_chunks + chunk] = s->max[h + i];
        a.work.sum[row * a.n_chunks + chunk] = s->sum[h + i];
      }
    }
  }
  if (!last) return;
  __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) { // the block that comes last folds, with zero for the next launch left behind
    s->folds = atomicAdd(&a.arrived[blockIdx.y], 1) == (unsigned)last;
    if (s->folds) a.arrived[blockIdx.y] = 0;
  }
  __syncthreads();
  if (!s->folds) return;
  __threadfence();
  if (warp < heads) fold_head<DIM>(a, first_head + warp, last);
}

// ---- router: a warp an expert's row, and a warp a block of 256 normed activations to round ----

struct router_args {
  const float *x, *norm, *router; // [width], [width], [n_experts][width]
  float *logits;
  dev_inputs normed;
  int n_experts;
  float epsilon;
};

__global__ void __launch_bounds__(WARP) decode_router(const __grid_constant__ router_args a) {
  extern __shared__ __align__(16) float shared[];
  int width = a.normed.width, lane = threadIdx.x, expert = blockIdx.x;
  float *x = shared, *norm = x + width, *row = norm + width;
  for (int i = 4 * lane; i < width; i += 4 * WARP) {
    copy16_async(norm + i, a.norm + i);
    if (expert < a.n_experts) copy16_async(row + i, a.router + (size_t)expert * width + i);
  }
  wait_for_previous();
  for (int i = 4 * lane; i < width; i += 4 * WARP) copy16_async(x + i, a.x + i);
  wait_for_copies();
  __syncwarp();
  float inverse = inverse_rms(sum_of_squares(x, width), width, a.epsilon);
  if (expert < a.n_experts) {
    float sum = 0;
#pragma unroll 16
    for (int i = lane; i < width; i += WARP) sum = num_fma_f32(row[i], x[i] * inverse * norm[i], sum);
    sum = warp_tree(sum);
    if (lane == 0) a.logits[expert] = sum;
    return;
  }
  int b = expert - a.n_experts;
  float v[8];
  for (int i = 0; i < 8; i++) {
    int at = b * QK_K + 8 * lane + i;
    v[i] = x[at] * inverse * norm[at];
    a.normed.x[at] = v[i];
  }
  round_block(v, a.normed.qs + b * QK_K, a.normed.d + b, a.normed.bsums + b * (QK_K / 16));
}

// ---- experts ----

struct experts_args {
  dev_matrix gate, up, down;
  dev_inputs normed;
  const float *logits; // of the router
  const int *local_of_expert;
  int n_experts, top_k, rows_per_warp, rows_per_block;
  float *hidden;        // [top_k][expert_width]
  float *slots;         // [..][hidden] with `place`, NULL: combined here
  const int64_t *place; // row of a slot, NULL: the slot itself
  float *x;             // residual stream, when combined here
  unsigned long long *sums;
  uint64_t tag;
  int layer;
  const int *sequence, *position;
};

template <weight_type TYPE, int GROUPS>
__device__ __forceinline__ void gate_up_of(const experts_args &a, int member, const rounded_row &in) {
  int width = a.normed.width, rows = a.gate.rows, lane = threadIdx.x % WARP;
  int first = ((int)blockIdx.x * WARPS + threadIdx.x / WARP) * a.rows_per_warp;
  size_t at = (size_t)member * a.gate.member_bytes + (size_t)first * a.gate.row_bytes;
  row_range w = {{a.gate.data + at, a.up.data + at},
                 a.gate.row_bytes,
                 max(0, min(a.rows_per_warp, rows - first)),
                 width / QK_K};
  stream_rows<TYPE, GROUPS, 2, ring_size<TYPE>::two>(
      w, in,
      [&] {
        for (int i = 16 * threadIdx.x; i < width; i += 16 * THREADS)
          *(int4 *)(in.qs + i) = *(const int4 *)(a.normed.qs + i);
        for (int i = threadIdx.x; i < width / 16; i += THREADS) in.bsums[i] = a.normed.bsums[i];
        for (int i = threadIdx.x; i < width / QK_K; i += THREADS) in.d[i] = a.normed.d[i];
        __syncthreads();
      },
      [&](int row, const float *y) {
        if (row + lane < w.n_rows)
          a.hidden[(size_t)blockIdx.y * rows + first + row + lane] = num_silu_f32(y[0]) * y[1];
      });
}

// Block (x, slot): rows of the slot's expert in both matrices.
template <weight_type TYPE, int GROUPS, int EACH>
__global__ void __launch_bounds__(THREADS, 2) decode_gate_up(const __grid_constant__ experts_args a) {
  extern __shared__ __align__(16) uint8_t memory[];
  wait_for_previous();
  router_choice<EACH> choice = choice_begin<EACH>(a.logits, a.n_experts);
  int expert = 0;
  float g;
  for (int slot = 0; slot <= (int)blockIdx.y; slot++) expert = choice_next<EACH>(&choice, &g);
  int member = a.local_of_expert[expert];
  if (member < 0) return;
  rounded_row in = rounded_at(memory, a.normed.width);
  gate_up_of<TYPE, GROUPS>(a, member, in);
}

// The warp's slot: its expert's rows first .. first + count - 1 times its rounded hidden row, into y.
template <weight_type TYPE, int GROUPS, typename Wait>
__device__ __forceinline__ void down_of(const experts_args &a, int member, int slot, int first, int count,
                                        const rounded_row &in, float *y, Wait wait) {
  int width = a.down.cols, lane = threadIdx.x % WARP;
  row_range w = {
      {a.down.data + (size_t)member * a.down.member_bytes + (size_t)first * a.down.row_bytes, nullptr},
      a.down.row_bytes,
      count,
      width / QK_K};
  stream_rows<TYPE, GROUPS, 1, ring_size<TYPE>::one>(
      w, in,
      [&] {
        wait();
#pragma unroll 1
        for (int b = 0; b < width / QK_K; b++) {
          float v[8];
          load8(v, a.hidden + (size_t)slot * width + b * QK_K + 8 * lane);
          round_to(in, b, v);
        }
        __syncwarp();
      },
      [&](int row, const float *found) {
        if (row + lane < count) y[row + lane] = found[0];
      });
}

static __host__ __device__ constexpr size_t down_y_bytes(int top_k, int rows) {
  return ((size_t)(top_k * rows) * sizeof(float) + 15) / 16 * 16;
}

// A block takes some rows of the output for all slots, a warp a slot, so that the slots' sum is at hand here.
template <weight_type TYPE, int GROUPS, int EACH>
__global__ void __launch_bounds__(THREADS, 2) decode_down(const __grid_constant__ experts_args a) {
  extern __shared__ __align__(16) uint8_t memory[];
  __shared__ float weight[MAX_TOP_K];
  int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
  int first = blockIdx.x * a.rows_per_block, count = min(a.rows_per_block, a.down.rows - first);
  float *y = (float *)memory; // [top_k][rows_per_block]
  rounded_row in = rounded_at(
      memory + down_y_bytes(a.top_k, a.rows_per_block) + warp * rounded_bytes(a.down.cols), a.down.cols);
  router_choice<EACH> choice = choice_begin<EACH>(a.logits, a.n_experts);
  float g[2] = {}, sum = 0; // lane l keeps slots l and l + 32
  int member[2] = {-1, -1};
#pragma unroll 1
  for (int slot = 0; slot < a.top_k; slot++) {
    float found;
    int expert = choice_next<EACH>(&choice, &found);
    sum = sum + found;
    for (int i = 0; i < 2; i++)
      if (lane + WARP * i == slot) {
        g[i] = found;
        member[i] = a.local_of_expert[expert];
      }
  }
  for (int i = 0; i < 2 && warp == 0; i++)
    if (lane + WARP * i < a.top_k) weight[lane + WARP * i] = g[i] / sum;
  bool waits = true; // until the warp's first product
  auto wait = [&] {
    if (waits) wait_for_previous();
    waits = false;
  };
#pragma unroll 1
  for (int slot = warp; slot < a.top_k; slot += WARPS) {
    int own = __shfl_sync(~0u, slot < WARP ? member[0] : member[1], slot % WARP);
    if (own < 0) continue;
    float *to = y + slot * a.rows_per_block;
    down_of<TYPE, GROUPS>(a, own, slot, first, count, in, to, wait);
    __syncwarp();
    for (int r = lane; r < count && a.slots; r += WARP)
      a.slots[(size_t)(a.place ? a.place[slot] : slot) * a.down.rows + first + r] = to[r];
  }
  wait();
  __syncthreads();
  if (a.slots || warp) return;
  uint64_t digest_row = num_digest_row(a.tag, a.layer, a.position[0]);
  unsigned long long digest = 0;
  for (int r = lane; r < count; r += WARP) {
    float total = 0;
    for (int slot = 0; slot < a.top_k; slot++) {
      float w = weight[slot], part = y[slot * a.rows_per_block + r];
      total = slot ? num_fma_f32(w, part, total) : w * part;
    }
    float value = a.x[first + r] + total;
    a.x[first + r] = value;
    digest += num_digest_element(digest_row, first + r, __float_as_uint(value));
  }
  add_digest(&a.sums[a.sequence[0]], digest);
}

// ---- launches ----

static bool is_k_quant(const dev_matrix &m) {
  return type_find(m.type)->is_k_quant;
}

static bool layer_fits(const dev_layer &w) {
  return is_k_quant(w.q) && is_k_quant(w.k) && is_k_quant(w.v) && is_k_quant(w.o) &&
         w.router.type == TYPE_F32 && is_k_quant(w.gate) && w.gate.type == w.up.type && is_k_quant(w.down);
}

bool decode_fits(const model_shape *s, const dev_weights *w) {
  bool fits = s->head_dim == 128 || s->head_dim == 64;
  fits = fits && s->n_experts <= 8 * WARP && s->hidden <= 8192 && s->expert_width <= 8192 &&
         is_k_quant(w->output);
  for (int64_t l = 0; l < s->n_layers && fits; l++) fits = layer_fits(w->layers[l]);
  return fits;
}

// Blocks that a row of n_blocks takes side by side in a warp.
static int groups_of(int n_blocks) {
  return n_blocks > 4 ? 8 : n_blocks > 2 ? 4 : n_blocks > 1 ? 2 : 1;
}

static int multiprocessors() {
  static int count;
  if (!count) cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, 0);
  return count > 0 ? count : 1;
}

static int ceil_div(int a, int b) {
  return (a + b - 1) / b;
}

// Kernels whose shared memory may pass 48 KiB must be told so once.
template <typename... P> static status allow_shared(void (*kernel)(P...), size_t bytes) {
  if (bytes > 48 << 10)
    CUDA_TRY(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes));
  return 0;
}

template <typename... P, typename A>
static status start(void (*kernel)(P...), dim3 grid, int threads, size_t bytes, cudaStream_t stream,
                    const A &args) {
  TRY(allow_shared(kernel, bytes));
  return launch(kernel, grid, threads, bytes, stream, args);
}

// Deals the rows to about `blocks` thread blocks, evenly.
static void deal_rows(rows_args *a, int blocks, int at_once) {
  int used;
  a->rows_per_warp = 0;
  do {
    a->rows_per_warp += at_once;
    used = 0;
    for (int i = 0; i < a->count; i++) {
      a->begin[i] = used;
      used += ceil_div(a->w[i].rows, WARPS * a->rows_per_warp);
    }
  } while (used > blocks);
}

static status rows_launch(rows_args *a, int blocks, cudaStream_t stream) {
  int width = a->w[0].cols, groups = groups_of(width / QK_K), used = 0;
  deal_rows(a, blocks, 8 / groups);
  for (int i = 0; i < a->count; i++) used += ceil_div(a->w[i].rows, WARPS * a->rows_per_warp);
  size_t bytes = rounded_bytes(width) + (a->norm ? (size_t)width * sizeof(float) : 0);
  auto *kernel = groups == 8   ? decode_rows<8>
                 : groups == 4 ? decode_rows<4>
                 : groups == 2 ? decode_rows<2>
                               : decode_rows<1>;
  return start(kernel, dim3((unsigned)used), THREADS, bytes, stream, *a);
}

status decode_qkv_launch(float *q, float *k, float *v, const float *x, const dev_layer *w, float epsilon,
                         cudaStream_t stream) {
  rows_args a = {{w->q, w->k, w->v}, {q, k, v}, {}, 3, 0, x, w->attn_norm, epsilon, false};
  return rows_launch(&a, multiprocessors(), stream);
}

status decode_output_launch(float *x, const float *attended, const dev_layer *w, cudaStream_t stream) {
  rows_args a = {{w->o}, {x}, {}, 1, 0, attended, nullptr, 0, true};
  return rows_launch(&a, multiprocessors(), stream);
}

status decode_head_launch(float *logits, const float *x, const dev_weights *w, float epsilon,
                          cudaStream_t stream) {
  rows_args a = {{w->output}, {logits}, {}, 1, 0, x, w->output_norm, epsilon, false};
  return rows_launch(&a, 2 * multiprocessors(), stream);
}

template <int DIM, typename T> static status launch_attend(const attend_args &a, cudaStream_t stream) {
  int slices = ceil_div(a.group, HEADS);
  size_t bytes = 2 * CHUNK * DIM * sizeof(T) + sizeof(attend_rows<DIM>);
  return start(decode_attend<DIM, T>, dim3((unsigned)a.n_chunks, (unsigned)(a.cache.n_kv_heads * slices)),
               ATTEND_THREADS, bytes, stream, a);
}

bool decode_attends(const attention_work *work, int n_heads, int max_keys) {
  int chunks = ceil_div(max_keys, CHUNK);
  return chunks <= 64 && (size_t)n_heads * (size_t)chunks <= work->capacity;
}

status decode_attention_launch(float *out, const float *q, const float *k, const float *v, const dev_layer *w,
                               const model_shape *s, const float *rope, kv_cache cache, int layer,
                               const dev_batch *b, int max_keys, const attention_work *work,
                               unsigned *arrived, cudaStream_t stream) {
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
  a.sequence = b->sequence;
  a.position = b->position;
  a.work = *work;
  a.arrived = arrived;
  if (cache.head_dim == 128)
    return cache.f16 ? launch_attend<128, uint16_t>(a, stream) : launch_attend<128, float>(a, stream);
  return cache.f16 ? launch_attend<64, uint16_t>(a, stream) : launch_attend<64, float>(a, stream);
}

status decode_router_launch(float *logits, dev_inputs normed, const float *x, const dev_layer *w,
                            float epsilon, cudaStream_t stream) {
  router_args a = {x, w->ffn_norm, (const float *)w->router.data, logits, normed, w->router.rows, epsilon};
  unsigned grid = (unsigned)(w->router.rows + normed.width / QK_K);
  return start(decode_router, dim3(grid), WARP, 3 * (size_t)normed.width * sizeof(float), stream, a);
}

typedef void experts_kernel(experts_args);

static int type_index(weight_type type) {
  return type == TYPE_Q4_K ? 0 : type == TYPE_Q5_K ? 1 : 2;
}

static int group_index(int groups) {
  return groups == 8 ? 3 : groups / 2;
}

template <weight_type TYPE, int GROUPS> static experts_kernel *gate_up_kernel(int n_experts) {
  return n_experts <= 4 * WARP ? decode_gate_up<TYPE, GROUPS, 4> : decode_gate_up<TYPE, GROUPS, 8>;
}

template <weight_type TYPE, int GROUPS> static experts_kernel *down_kernel(int n_experts) {
  return n_experts <= 4 * WARP ? decode_down<TYPE, GROUPS, 4> : decode_down<TYPE, GROUPS, 8>;
}

static status gate_up_launch(experts_args *a, cudaStream_t stream) {
  int groups = groups_of(a->normed.width / QK_K), at_once = 8 / groups;
  int per_slot = ceil_div(multiprocessors(), a->top_k); // thread blocks
  a->rows_per_warp = ceil_div(ceil_div(a->gate.rows, per_slot * WARPS), at_once) * at_once;
  dim3 grid((unsigned)ceil_div(a->gate.rows, WARPS * a->rows_per_warp), (unsigned)a->top_k);
  experts_kernel *(*const kernels[3][4])(int) = {{gate_up_kernel<TYPE_Q4_K, 1>, gate_up_kernel<TYPE_Q4_K, 2>,
                                                  gate_up_kernel<TYPE_Q4_K, 4>, gate_up_kernel<TYPE_Q4_K, 8>},
                                                 {gate_up_kernel<TYPE_Q5_K, 1>, gate_up_kernel<TYPE_Q5_K, 2>,
                                                  gate_up_kernel<TYPE_Q5_K, 4>, gate_up_kernel<TYPE_Q5_K, 8>},
                                                 {gate_up_kernel<TYPE_Q6_K, 1>, gate_up_kernel<TYPE_Q6_K, 2>,
                                                  gate_up_kernel<TYPE_Q6_K, 4>,
                                                  gate_up_kernel<TYPE_Q6_K, 8>}};
  experts_kernel *kernel = kernels[type_index(a->gate.type)][group_index(groups)](a->n_experts);
  return start(kernel, grid, THREADS, rounded_bytes(a->normed.width), stream, *a);
}

static status down_launch(experts_args *a, cudaStream_t stream) {
  int groups = groups_of(a->down.cols / QK_K), at_once = 8 / groups;
  a->rows_per_block = ceil_div(ceil_div(a->down.rows, multiprocessors()), at_once) * at_once;
  size_t bytes = down_y_bytes(a->top_k, a->rows_per_block) + WARPS * rounded_bytes(a->down.cols);
  experts_kernel *(*const kernels[3][4])(int) = {{down_kernel<TYPE_Q4_K, 1>, down_kernel<TYPE_Q4_K, 2>,
                                                  down_kernel<TYPE_Q4_K, 4>, down_kernel<TYPE_Q4_K, 8>},
                                                 {down_kernel<TYPE_Q5_K, 1>, down_kernel<TYPE_Q5_K, 2>,
                                                  down_kernel<TYPE_Q5_K, 4>, down_kernel<TYPE_Q5_K, 8>},
                                                 {down_kernel<TYPE_Q6_K, 1>, down_kernel<TYPE_Q6_K, 2>,
                                                  down_kernel<TYPE_Q6_K, 4>, down_kernel<TYPE_Q6_K, 8>}};
  experts_kernel *kernel = kernels[type_index(a->down.type)][group_index(groups)](a->n_experts);
  return start(kernel, dim3((unsigned)ceil_div(a->down.rows, a->rows_per_block)), THREADS, bytes, stream, *a);
}

status decode_experts_launch(const decode_experts *e, const dev_layer *w, const model_shape *s,
                             const dev_weights *all, const dev_batch *b, cudaStream_t stream) {
  experts_args a = {};
  a.gate = w->gate;
  a.up = w->up;
  a.down = w->down;
  a.normed = e->normed;
  a.logits = e->router_logits;
  a.local_of_expert = all->local_of_expert;
  a.n_experts = (int)s->n_experts;
  a.top_k = (int)s->top_k;
  a.hidden = e->hidden;
  a.slots = e->slots;
  a.place = e->place;
  a.x = e->x;
  a.sums = e->sums;
  a.tag = e->tag;
  a.layer = e->layer;
  a.sequence = b->sequence;
  a.position = b->position;
  TRY(gate_up_launch(&a, stream));
  return down_launch(&a, stream);
}
