// decode: one token's forward pass on the path q8k in six launches a layer. The same arithmetic as the steps
// for many tokens, laid out for latency: a kernel asks for its weights while the one before it still runs,
// thread blocks repeat small vector work (norm, rounding, choice of experts) rather than wait for a launch
// that shares it.
//
// Owns: these kernels and how rows are dealt to warps. Refuses to know: other batches, other ranks.
// Invariant: decode_launch.cuh's.
#include "kernels/cuda/block_q8k.cuh"
#include "kernels/cuda/decode.cuh"
#include "kernels/cuda/decode_launch.cuh"
#include "kernels/cuda/round_q8k.cuh"

static constexpr int WARPS = 8, THREADS = WARPS * WARP;

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
  round_block(v, to.qs + block * QK_K, to.d + block, to.bsums + block * (QK_K / 16), nullptr);
}

// sum32 of squares by one warp, on all its lanes
__device__ __forceinline__ float sum_of_squares(const float *x, int n) {
  float sum = 0;
#pragma unroll 16
  for (int i = threadIdx.x % WARP; i < n; i += WARP) sum = num_fma_f32(x[i], x[i], sum);
  return warp_tree(sum);
}

// ---- rows of K-quant matrices times one rounded row ----

// Passes of a warp that are in its registers at once, for as many as MATRICES * STEPS parts each. The latency
// of one row's chain of shuffles is hidden by the others of its batch, so a batch has no branches: rows
// beyond the last repeat it.
template <weight_type TYPE> __host__ __device__ constexpr int batch_of(int parts, int at_once) {
  int most = TYPE == TYPE_Q4_K ? 5 : TYPE == TYPE_Q6_K ? 4 : 3, n = most / parts;
  return n < 1 ? 1 : n * at_once > WARP ? WARP / at_once : n;
}

static constexpr uint32_t AHEAD_BYTES = 16 << 10; // of a warp's rows

struct row_range { // rows 0 .. n_rows - 1 of up to two matrices of one shape
  const uint8_t *rows[2];
  uint32_t row_bytes;
  int n_rows, n_blocks;
};

// The warp's rows times `in`. Weights of the first batch are asked for at once, then `prepare` runs, which
// makes `in`. Of each batch, row first + l reaches lane l of flush(first, results).
template <weight_type TYPE, int GROUPS, int STEPS, int MATRICES, typename Prepare, typename Flush>
__device__ __forceinline__ void stream_rows(const row_range &w, const rounded_row &in, Prepare prepare,
                                            Flush flush) {
  constexpr int at_once = 8 / GROUPS, BATCH = batch_of<TYPE>(STEPS * MATRICES, at_once),
                ROWS = BATCH * at_once;
  int lane = threadIdx.x % WARP, q = lane % 4, g = lane / 4 % GROUPS, sub = lane / (4 * GROUPS);
  quarter<TYPE> part[BATCH][STEPS][MATRICES];
  auto load = [&](int first, int from) { // rows first .., blocks from ..
#pragma unroll
    for (int r = 0; r < BATCH; r++)
#pragma unroll
      for (int s = 0; s < STEPS; s++)
#pragma unroll
        for (int m = 0; m < MATRICES; m++) {
          int row = min(first + r * at_once + sub, w.n_rows - 1),
              b = min(from + s * GROUPS + g, w.n_blocks - 1);
          part[r][s][m] = load_quarter<TYPE>(w.rows[m] + (size_t)row * w.row_bytes, w.n_blocks, b, q);
        }
  };
  if (w.n_rows > 0) load(0, 0);
  uint32_t bytes = w.n_rows * w.row_bytes; // what a later batch needs is on its way as well
  for (uint32_t at = ROWS * w.row_bytes + 128 * lane; at < bytes && bytes <= AHEAD_BYTES; at += 128 * WARP)
    for (int m = 0; m < MATRICES; m++) asm volatile("prefetch.global.L2 [%0];" ::"l"(w.rows[m] + at));
  prepare();
  quarter_inputs x; // of the blocks from `held` on
  float dx[GROUPS];
  int held = -1;
#pragma unroll 1
  for (int first = 0; first < w.n_rows; first += ROWS) {
    float y[BATCH][MATRICES] = {};
#pragma unroll 1
    for (int from = 0; from < w.n_blocks; from += STEPS * GROUPS) {
#pragma unroll
      for (int s = 0; s < STEPS; s++) {
        int begin = from + s * GROUPS;
        if (held != begin) {
          int b = min(begin + g, w.n_blocks - 1);
          x = load_inputs(TYPE, in.qs + b * QK_K, in.bsums + b * (QK_K / 16), q);
#pragma unroll
          for (int j = 0; j < GROUPS; j++) dx[j] = in.d[min(begin + j, w.n_blocks - 1)];
          held = begin;
        }
        float term[BATCH][MATRICES];
#pragma unroll
        for (int r = 0; r < BATCH; r++)
#pragma unroll
          for (int m = 0; m < MATRICES; m++) term[r][m] = block_term<TYPE>(part[r][s][m], x, q);
        if (s == STEPS - 1) {
          bool row_ends = from + STEPS * GROUPS >= w.n_blocks;
          if (!row_ends || first + ROWS < w.n_rows)
            load(row_ends ? first + ROWS : first, row_ends ? 0 : from + STEPS * GROUPS);
        }
#pragma unroll
        for (int j = 0; j < GROUPS; j++)
#pragma unroll
          for (int r = 0; r < BATCH; r++)
#pragma unroll
            for (int m = 0; m < MATRICES; m++) {
              float t = __shfl_sync(~0u, term[r][m], (sub * GROUPS + j) * 4);
              if (begin + j < w.n_blocks) y[r][m] = num_fma_f32(dx[j], t, y[r][m]);
            }
      }
    }
    float mine[MATRICES] = {};
#pragma unroll
    for (int r = 0; r < BATCH; r++)
#pragma unroll
      for (int m = 0; m < MATRICES; m++) {
        float found = __shfl_sync(~0u, y[r][m], lane % at_once * (4 * GROUPS));
        if (lane / at_once == r) mine[m] = found;
      }
    if (lane < min(ROWS, w.n_rows - first)) flush(first + lane, mine);
  }
}

// ---- one token's rows of up to three matrices that read the same input ----

struct rows_args {
  dev_matrix w[3];
  float *out[3];
  int begin[3], count; // first thread block of each matrix
  int rows_per_warp;
  const float *x, *norm; // norm: the input is rms_norm(x) * norm, else x
  float epsilon;
  bool adds; // out = out + product
};

template <weight_type TYPE, int GROUPS, int STEPS, typename Prepare>
__device__ __forceinline__ void rows_of(const rows_args &a, int which, const rounded_row &in,
                                        Prepare prepare) {
  const dev_matrix &m = a.w[which];
  int first = (((int)blockIdx.x - a.begin[which]) * WARPS + threadIdx.x / WARP) * a.rows_per_warp,
      lane = threadIdx.x % WARP;
  int count = max(0, min(a.rows_per_warp, m.rows - first));
  row_range w = {
      {m.data + (size_t)first * m.row_bytes, nullptr}, (uint32_t)m.row_bytes, count, m.cols / QK_K};
  float *out = a.out[which] + first, before = 0;
  stream_rows<TYPE, GROUPS, STEPS, 1>(
      w, in,
      [&] {
        wait_for_previous();
        if (a.adds && lane < count) before = out[lane]; // of row `lane`, for the first batch
        prepare();
      },
      [&](int row, const float *y) {
        if (a.adds && row >= WARP) before = out[row];
        out[row] = a.adds ? before + y[0] : y[0];
      });
}

template <int GROUPS, int STEPS>
__global__ void __launch_bounds__(THREADS, 2) decode_rows(const __grid_constant__ rows_args a) {
  extern __shared__ __align__(16) uint8_t memory[];
  __shared__ float inverse;
  int which = 0, width = a.w[0].cols, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP,
      n_blocks = width / QK_K;
  while (which + 1 < a.count && (int)blockIdx.x >= a.begin[which + 1]) which++;
  rounded_row in = rounded_at(memory, width);
  float *row = (float *)(memory + rounded_bytes(width)), norm[8] = {};         // row: only with a.norm
  if (a.norm && warp < n_blocks) load8(norm, a.norm + warp * QK_K + 8 * lane); // of the warp's first block
  auto prepare = [&] {
    float v[8];
    if (warp < n_blocks) load8(v, a.x + warp * QK_K + 8 * lane);
    if (a.norm) {
      for (int b = warp; b < n_blocks; b += WARPS) {
        if (b != warp) load8(v, a.x + b * QK_K + 8 * lane);
        *(float4 *)(row + b * QK_K + 8 * lane) = make_float4(v[0], v[1], v[2], v[3]);
        *(float4 *)(row + b * QK_K + 8 * lane + 4) = make_float4(v[4], v[5], v[6], v[7]);
      }
      __syncthreads();
      if (warp == 0) {
        float sum = sum_of_squares(row, width);
        if (lane == 0) inverse = inverse_rms(sum, width, a.epsilon);
      }
      if (n_blocks > WARPS && warp < n_blocks) load8(v, row + warp * QK_K + 8 * lane);
      __syncthreads();
    }
#pragma unroll 1
    for (int b = warp; b < n_blocks; b += WARPS) {
      if (b != warp) load8(v, (a.norm ? row : a.x) + b * QK_K + 8 * lane);
      if (a.norm && b != warp) load8(norm, a.norm + b * QK_K + 8 * lane);
      for (int i = 0; i < 8 && a.norm; i++) v[i] = v[i] * inverse * norm[i];
      round_to(in, b, v);
    }
    __syncthreads();
  };
  if (a.w[which].type == TYPE_Q4_K)
    rows_of<TYPE_Q4_K, GROUPS, STEPS>(a, which, in, prepare);
  else if (a.w[which].type == TYPE_Q6_K)
    rows_of<TYPE_Q6_K, GROUPS, STEPS>(a, which, in, prepare);
  else
    rows_of<TYPE_Q5_K, GROUPS, STEPS>(a, which, in, prepare);
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
  round_block(v, a.normed.qs + b * QK_K, a.normed.d + b, a.normed.bsums + b * (QK_K / 16),
              a.normed.halves + b * 16);
}

// ---- experts ----

struct experts_args {
  dev_matrix gate, up, down;
  dev_inputs normed;
  const float *logits; // of the router
  const int *local_of_expert;
  int n_experts, top_k;
  int rows_per_warp, rows_per_block; // of gate and up; of down
  float *hidden;                     // [top_k][expert_width]
  float *slots;                      // [..][hidden] with `place`, NULL: combined here
  const int64_t *place;              // row of a slot, NULL: the slot itself
  float *x;                          // residual stream, when combined here
  unsigned long long *sums;
  uint64_t tag;
  int layer;
  const int *sequence, *position;
};

static constexpr int MOST_EXPERTS = THREADS;

struct chosen_experts {       // in shared memory
  uint32_t key[MOST_EXPERTS]; // bits of the probability plus 1; 0: not a number, chosen last
  float g[MOST_EXPERTS];      // first of all: the logits; then [top_k]
  int member[MAX_TOP_K];
  float weight[MAX_TOP_K];
};

// A slot is an expert's rank: how many are more probable, or as probable and of lower index. All experts at
// once, so the choice of docs/paths.md takes one pass. By all threads of the block; `local` is the thread's
// expert's member.
__device__ void choose_experts(chosen_experts *c, const float *logits, int n_experts, int top_k, int local) {
  int e = threadIdx.x;
  c->g[e] = e < n_experts ? logits[e] : 0.0f; // one wait for the memory, whatever the number of experts
  __syncthreads();
  float mine = c->g[e], max = c->g[0];
  for (int i = threadIdx.x % WARP; i < n_experts; i += WARP) max = c->g[i] > max ? c->g[i] : max;
  for (int half = WARP / 2; half; half /= 2) {
    float other = __shfl_xor_sync(~0u, max, half);
    max = other > max ? other : max;
  }
  float g = num_exp_f32(mine - max);
  uint32_t key = e < n_experts && g >= 0.0f ? __float_as_uint(g) + 1 : 0;
  c->key[e] = key;
  __syncthreads();
  int rank = 0;
#pragma unroll 4
  for (int i = 0; i < n_experts && e < n_experts;
       i += 4) { // beyond the last expert keys are 0 and indices higher
    uint4 k = *(const uint4 *)&c->key[i];
    rank += (k.x > key || (k.x == key && i < e)) + (k.y > key || (k.y == key && i + 1 < e)) +
            (k.z > key || (k.z == key && i + 2 < e)) + (k.w > key || (k.w == key && i + 3 < e));
  }
  if (e < n_experts && rank < top_k) {
    c->member[rank] = local;
    c->g[rank] = key ? g : 0.0f;
  }
  __syncthreads();
}

// Block (x, slot): rows of the slot's expert in both matrices.
template <weight_type TYPE, int GROUPS>
__global__ void __launch_bounds__(THREADS, 2) decode_gate_up(const __grid_constant__ experts_args a) {
  extern __shared__ __align__(16) uint8_t memory[];
  __shared__ chosen_experts chosen;
  int width = a.normed.width, rows = a.gate.rows, warp = threadIdx.x / WARP;
  int local = (int)threadIdx.x < a.n_experts ? a.local_of_expert[threadIdx.x] : -1;
  rounded_row in = rounded_at(memory, width);
  wait_for_previous();
  for (int i = 16 * threadIdx.x; i < width; i += 16 * THREADS) copy16_async(in.qs + i, a.normed.qs + i);
  for (int i = 8 * threadIdx.x; i < width / 16; i += 8 * THREADS)
    copy16_async(in.bsums + i, a.normed.bsums + i);
  for (int i = threadIdx.x; i < width / QK_K; i += THREADS) in.d[i] = a.normed.d[i];
  choose_experts(&chosen, a.logits, a.n_experts, a.top_k, local);
  int member = chosen.member[blockIdx.y];
  if (member < 0) return;
  int first = ((int)blockIdx.x * WARPS + warp) * a.rows_per_warp,
      count = max(0, min(a.rows_per_warp, rows - first));
  size_t at = (size_t)member * a.gate.member_bytes + (size_t)first * a.gate.row_bytes;
  row_range w = {{a.gate.data + at, a.up.data + at}, (uint32_t)a.gate.row_bytes, count, width / QK_K};
  float *out = a.hidden + (size_t)blockIdx.y * rows + first;
  stream_rows<TYPE, GROUPS, 1, 2>(
      w, in,
      [&] {
        wait_for_copies();
        __syncthreads();
      },
      [&](int row, const float *y) { out[row] = num_silu_f32(y[0]) * y[1]; });
}

static __host__ __device__ constexpr size_t down_y_bytes(int top_k, int rows) {
  return ((size_t)(top_k * rows) * sizeof(float) + 15) / 16 * 16;
}

// Combines a block's rows of all slots: each lane a row, slots in slot order.
__device__ __forceinline__ void combine_rows(const experts_args &a, const float *y, const float *weight,
                                             int first, int count) {
  uint64_t digest_row = num_digest_row(a.tag, a.layer, a.position[0]);
  unsigned long long digest = 0;
  for (int r = threadIdx.x % WARP; r < count; r += WARP) {
    float before = a.x[first + r], total = 0;
    for (int slot = 0; slot < a.top_k; slot++) {
      float w = weight[slot], part = y[slot * a.rows_per_block + r];
      total = slot ? num_fma_f32(w, part, total) : w * part;
    }
    a.x[first + r] = before + total;
    digest += num_digest_element(digest_row, first + r, __float_as_uint(before + total));
  }
  add_digest(&a.sums[a.sequence[0]], digest);
}

// A block takes some rows of the output for all slots, so that the slots' sum is at hand here: a warp takes a
// slot, or part of its rows where there are more warps than slots.
template <weight_type TYPE, int GROUPS>
__global__ void __launch_bounds__(THREADS, 2) decode_down(const __grid_constant__ experts_args a) {
  constexpr int at_once = 8 / GROUPS, AT_A_TIME = 3;
  extern __shared__ __align__(16) uint8_t memory[];
  __shared__ chosen_experts chosen;
  int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, width = a.down.cols, n_blocks = width / QK_K;
  int block_first = blockIdx.x * a.rows_per_block,
      block_rows = min(a.rows_per_block, a.down.rows - block_first);
  int sharers = max(1, WARPS / a.top_k),
      share = (a.rows_per_block / at_once + sharers - 1) / sharers * at_once;
  int begin = min(warp / a.top_k * share, block_rows), count = min(share, block_rows - begin);
  float *y = (float *)memory; // [top_k][rows_per_block]
  rounded_row in =
      rounded_at(memory + down_y_bytes(a.top_k, a.rows_per_block) + warp * rounded_bytes(width), width);
  choose_experts(&chosen, a.logits, a.n_experts, a.top_k,
                 (int)threadIdx.x < a.n_experts ? a.local_of_expert[threadIdx.x] : -1);
  if ((int)threadIdx.x < a.top_k) {
    float sum = 0;
    for (int slot = 0; slot < a.top_k; slot++) sum = sum + chosen.g[slot];
    chosen.weight[threadIdx.x] = chosen.g[threadIdx.x] / sum;
  }
  bool waits = true; // until the warp's first product
  int slot = warp % a.top_k;
#pragma unroll 1
  do {
    int member = warp < sharers * a.top_k ? chosen.member[slot] : -1;
    float *to = y + slot * a.rows_per_block + begin;
    size_t at =
        (size_t)max(member, 0) * a.down.member_bytes + (size_t)(block_first + begin) * a.down.row_bytes;
    row_range w = {{a.down.data + at, nullptr}, (uint32_t)a.down.row_bytes, member < 0 ? 0 : count, n_blocks};
    stream_rows<TYPE, GROUPS, 1, 1>(
        w, in,
        [&] {
          if (waits) wait_for_previous();
          waits = false;
#pragma unroll 1
          for (int b = 0; b < n_blocks && w.n_rows; b += AT_A_TIME) {
            float v[AT_A_TIME][8];
#pragma unroll
            for (int k = 0; k < AT_A_TIME; k++)
              load8(v[k], a.hidden + (size_t)slot * width + min(b + k, n_blocks - 1) * QK_K + 8 * lane);
#pragma unroll
            for (int k = 0; k < AT_A_TIME; k++) round_to(in, min(b + k, n_blocks - 1), v[k]);
          }
          __syncwarp();
        },
        [&](int row, const float *found) {
          if (a.slots)
            a.slots[(size_t)(a.place ? a.place[slot] : slot) * a.down.rows + block_first + begin + row] =
                found[0];
          else
            to[row] = found[0];
        });
    __syncwarp();
    slot += WARPS;
  } while (slot < a.top_k);
  if (a.slots) return;
  __syncthreads();
  if (warp == 0) combine_rows(a, y, chosen.weight, block_first, block_rows);
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
  bool fits =
      s->n_experts <= MOST_EXPERTS && s->hidden <= 8192 && s->expert_width <= 8192 && is_k_quant(w->output);
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

// Deals the rows to about `blocks` thread blocks, evenly; returns how many.
static int deal_rows(rows_args *a, int blocks, int at_once) {
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
  return used;
}

static status rows_launch(rows_args *a, int blocks, cudaStream_t stream) {
  int width = a->w[0].cols, n_blocks = width / QK_K, groups = groups_of(n_blocks),
      used = deal_rows(a, blocks, 8 / groups);
  size_t bytes = rounded_bytes(width) + (a->norm ? (size_t)width * sizeof(float) : 0);
  auto *kernel = n_blocks > 8  ? decode_rows<8, 2>
                 : groups == 8 ? decode_rows<8, 1>
                 : groups == 4 ? decode_rows<4, 1>
                 : groups == 2 ? decode_rows<2, 1>
                               : decode_rows<1, 1>;
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

status decode_router_launch(float *logits, dev_inputs normed, const float *x, const dev_layer *w,
                            float epsilon, cudaStream_t stream) {
  router_args a = {x, w->ffn_norm, (const float *)w->router.data, logits, normed, w->router.rows, epsilon};
  unsigned grid = (unsigned)(w->router.rows + normed.width / QK_K);
  return start(decode_router, dim3(grid), WARP, 3 * (size_t)normed.width * sizeof(float), stream, a);
}

typedef void experts_kernel(experts_args);

template <weight_type TYPE> static experts_kernel *gate_up_kernel(int groups) {
  return groups == 8   ? decode_gate_up<TYPE, 8>
         : groups == 4 ? decode_gate_up<TYPE, 4>
         : groups == 2 ? decode_gate_up<TYPE, 2>
                       : decode_gate_up<TYPE, 1>;
}

template <weight_type TYPE> static experts_kernel *down_kernel(int groups) {
  return groups == 8   ? decode_down<TYPE, 8>
         : groups == 4 ? decode_down<TYPE, 4>
         : groups == 2 ? decode_down<TYPE, 2>
                       : decode_down<TYPE, 1>;
}

static status gate_up_launch(experts_args *a, cudaStream_t stream) {
  int groups = groups_of(a->normed.width / QK_K), at_once = 8 / groups;
  int per_slot = ceil_div(multiprocessors(), a->top_k); // thread blocks
  a->rows_per_warp = ceil_div(ceil_div(a->gate.rows, per_slot * WARPS), at_once) * at_once;
  dim3 grid((unsigned)ceil_div(a->gate.rows, WARPS * a->rows_per_warp), (unsigned)a->top_k);
  experts_kernel *kernel = a->gate.type == TYPE_Q4_K   ? gate_up_kernel<TYPE_Q4_K>(groups)
                           : a->gate.type == TYPE_Q5_K ? gate_up_kernel<TYPE_Q5_K>(groups)
                                                       : gate_up_kernel<TYPE_Q6_K>(groups);
  return start(kernel, grid, THREADS, rounded_bytes(a->normed.width), stream, *a);
}

static status down_launch(experts_args *a, cudaStream_t stream) {
  int groups = groups_of(a->down.cols / QK_K), at_once = 8 / groups;
  a->rows_per_block = ceil_div(ceil_div(a->down.rows, multiprocessors()), at_once) * at_once;
  size_t bytes = down_y_bytes(a->top_k, a->rows_per_block) + WARPS * rounded_bytes(a->down.cols);
  experts_kernel *kernel = a->down.type == TYPE_Q4_K   ? down_kernel<TYPE_Q4_K>(groups)
                           : a->down.type == TYPE_Q5_K ? down_kernel<TYPE_Q5_K>(groups)
                                                       : down_kernel<TYPE_Q6_K>(groups);
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
