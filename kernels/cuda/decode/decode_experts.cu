// decode_experts: a token's experts in two launches: gate and up of each slot's expert, then down and the
// slots' sum.
//
// Owns: these kernels, and the choice of experts from the router's logits, which each thread block repeats
// rather than wait for a launch that shares it. Invariant: decode_launch.cuh's.
#include "kernels/cuda/decode/decode.cuh"
#include "kernels/cuda/decode/decode_rows.cuh"

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
  peer_links peers; // n not 0: slots of others' experts come to the inbox [top_k][hidden]
};

struct chosen_experts { // in shared memory
  __align__(16) uint32_t
      key[MOST_EXPERTS]; // read four at a time; bits of the probability plus 1; 0: not a number, chosen last
  float g[MOST_EXPERTS]; // first of all: the logits; then [top_k]
  int member[MAX_TOP_K];
  float weight[MAX_TOP_K];
};

// A slot is an expert's rank: how many are more probable, or as probable and of lower index. All experts at
// once, so the choice of docs/paths.md takes one pass. By all threads of the block; `local` is the thread's
// expert's member.
__device__ void choose_experts(chosen_experts *c, const float *logits, int n_experts, int top_k, int local) {
  int e = threadIdx.x;
  c->g[e] = e < n_experts ? logits[e] : 0.0f; // one wait for memory, however many experts
  __syncthreads();
  float mine = c->g[e], max = c->g[0];
  for (int i = threadIdx.x % WARP; i < n_experts; i += WARP) max = c->g[i] > max ? c->g[i] : max;
  max = warp_max(max);
  float g = num_exp_f32(mine - max);
  uint32_t key = e < n_experts && g >= 0.0f ? __float_as_uint(g) + 1 : 0;
  c->key[e] = key;
  __syncthreads();
  int rank = 0;
  // beyond the last expert keys are 0 and indices higher
#pragma unroll 4
  for (int i = 0; i < n_experts && e < n_experts; i += 4) {
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
  for (int i = 16 * threadIdx.x; i < width; i += 16 * THREADS) copy_async_16(in.qs + i, a.normed.qs + i);
  for (int i = 8 * threadIdx.x; i < width / 16; i += 8 * THREADS)
    copy_async_16(in.bsums + i, a.normed.bsums + i);
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
        copy_async_wait_all();
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

// Rows first .. of a slot, which a peer computes, to y.
__device__ __forceinline__ void take_rows(const experts_args &a, float *y, int slot, int first, int count) {
  uint32_t *from = inbox_of(a.peers) + (size_t)slot * a.down.rows + first;
  for (int r = threadIdx.x % WARP; r < count; r += WARP) y[r] = take_value(a.peers, from + r);
}

// A block takes some rows of the output for all slots, so that the slots' sum is at hand here: a warp takes a
// slot, or part of its rows where there are more warps than slots. With peers, the same block of each rank
// has the same rows: a row is stored to all of them when it is computed, and the other ranks' are waited for
// after the own ones.
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
  int start = min(warp / a.top_k * share, block_rows), count = min(share, block_rows - start);
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
  bool waits = true;                                        // until the warp's first product
  uint32_t *sent = a.peers.n ? inbox_of(a.peers) : nullptr; // the epoch is that of two launches ago
  int slot = warp % a.top_k;
#pragma unroll 1
  do {
    int member = warp < sharers * a.top_k ? chosen.member[slot] : -1;
    float *to = y + slot * a.rows_per_block + start;
    size_t at =
        (size_t)max(member, 0) * a.down.member_bytes + (size_t)(block_first + start) * a.down.row_bytes;
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
            a.slots[(size_t)(a.place ? a.place[slot] : slot) * a.down.rows + block_first + start + row] =
                found[0];
          else
            to[row] = found[0];
          if (sent)
            send_value(a.peers, sent + (size_t)slot * a.down.rows + block_first + start + row, found[0]);
        });
    __syncwarp();
    slot += WARPS;
  } while (slot < a.top_k);
  if (a.slots) return;
  for (slot = warp % a.top_k; sent && slot < a.top_k && warp < sharers * a.top_k; slot += WARPS)
    if (chosen.member[slot] < 0)
      take_rows(a, y + slot * a.rows_per_block + start, slot, block_first + start, count);
  __syncthreads();
  if (warp == 0) combine_rows(a, y, chosen.weight, block_first, block_rows);
}

// ---- launches ----

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
  int per_slot = ceil_div(device_multiprocessors(), a->top_k); // thread blocks
  a->rows_per_warp = ceil_div(ceil_div(a->gate.rows, per_slot * WARPS), at_once) * at_once;
  dim3 grid((unsigned)ceil_div(a->gate.rows, WARPS * a->rows_per_warp), (unsigned)a->top_k);
  experts_kernel *kernel = nullptr; // decode_fits has let only types with one through
  FOR_Q8K_TYPE(a->gate.type, kernel = gate_up_kernel<TYPE>(groups))
  return launch_shared(kernel, grid, THREADS, rounded_bytes(a->normed.width), stream, *a);
}

static status down_launch(experts_args *a, cudaStream_t stream) {
  int groups = groups_of(a->down.cols / QK_K), at_once = 8 / groups;
  a->rows_per_block = ceil_div(ceil_div(a->down.rows, device_multiprocessors()), at_once) * at_once;
  size_t bytes = down_y_bytes(a->top_k, a->rows_per_block) + WARPS * rounded_bytes(a->down.cols);
  experts_kernel *kernel = nullptr;
  FOR_Q8K_TYPE(a->down.type, kernel = down_kernel<TYPE>(groups))
  return launch_shared(kernel, dim3((unsigned)ceil_div(a->down.rows, a->rows_per_block)), THREADS, bytes,
                       stream, *a);
}

static experts_args args_of(const decode_experts *e, const dev_layer *w, const model_shape *s,
                            const dev_weights *all, const dev_batch *b) {
  experts_args a = {};
  a.gate = w->gate;
  a.up = w->up;
  a.down = w->down;
  a.normed = e->normed;
  a.logits = e->router_logits;
  a.local_of_expert = weights_local(all, e->layer);
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
  a.peers = e->peers;
  return a;
}

status decode_gate_up_launch(const decode_experts *e, const dev_layer *w, const model_shape *s,
                             const dev_weights *all, const dev_batch *b, cudaStream_t stream) {
  experts_args a = args_of(e, w, s, all, b);
  return gate_up_launch(&a, stream);
}

status decode_down_launch(const decode_experts *e, const dev_layer *w, const model_shape *s,
                          const dev_weights *all, const dev_batch *b, cudaStream_t stream) {
  experts_args a = args_of(e, w, s, all, b);
  return down_launch(&a, stream);
}
