// decode: one token's forward pass on the path q8k in six launches a layer. The same arithmetic as the steps
// for many tokens, laid out for latency: a kernel issues its loads of weights while the one before it still
// runs, thread blocks repeat small vector work (norm, rounding, choice of experts) rather than wait for a
// launch that shares it.
//
// Here: the products with dense matrices (q, k and v; o; head) and the router; the rest in
// decode_attention.cu and decode_experts.cu. Independent of: other batches, other ranks. Invariant:
// decode_launch.cuh's.
#include "kernels/cuda/decode/decode.cuh"
#include "kernels/cuda/decode/decode_rows.cuh"
#include "kernels/product_form.h"

// ---- one token's rows of up to three matrices that read the same input ----

struct rows_args {
  dev_matrix w[3];
  float *out[3];
  int first_block[3], count; // thread block of each matrix
  int rows_per_warp;
  const float *x, *norm; // norm: the input is rms_norm(x) * norm, else x
  float epsilon;
  bool adds; // out = out + product
};

template <weight_type TYPE, int GROUPS, int STEPS, typename Prepare>
__device__ __forceinline__ void rows_of(const rows_args &a, int which, const rounded_row &in,
                                        Prepare prepare) {
  const dev_matrix &m = a.w[which];
  int first = (((int)blockIdx.x - a.first_block[which]) * WARPS + threadIdx.x / WARP) * a.rows_per_warp,
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
        if (a.adds && row != lane) before = out[row]; // of a later batch
        out[row] = a.adds ? before + y[0] : y[0];
      });
}

template <int GROUPS, int STEPS>
__global__ void __launch_bounds__(THREADS, 2) decode_rows(const __grid_constant__ rows_args a) {
  extern __shared__ __align__(16) uint8_t memory[];
  __shared__ float inverse;
  int which = 0, width = a.w[0].cols, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP,
      n_blocks = width / QK_K;
  while (which + 1 < a.count && (int)blockIdx.x >= a.first_block[which + 1]) which++;
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
  FOR_Q8K_TYPE(a.w[which].type, rows_of<TYPE, GROUPS, STEPS>(a, which, in, prepare))
}

// ---- router: a warp an expert's row, and a warp a block of 256 normed activations to round ----

struct router_args {
  const float *x, *norm, *router; // [width], [width], [n_experts][width]
  float *logits;
  dev_inputs normed;
  int n_experts;
  float epsilon;
  peer_links peers;
};

__global__ void __launch_bounds__(WARP) decode_router(const __grid_constant__ router_args a) {
  extern __shared__ __align__(16) float shared[];
  int width = a.normed.width, lane = threadIdx.x, expert = blockIdx.x;
  float *x = shared, *norm = x + width, *row = norm + width;
  for (int i = 4 * lane; i < width; i += 4 * WARP) {
    copy_async_16(norm + i, a.norm + i);
    if (expert < a.n_experts) copy_async_16(row + i, a.router + (size_t)expert * width + i);
  }
  wait_for_previous();
  if (expert == a.n_experts + width / QK_K) { // only with peers: the last layer's inbox has been read
    advance_inbox(a.peers);
    return;
  }
  for (int i = 4 * lane; i < width; i += 4 * WARP) copy_async_16(x + i, a.x + i);
  copy_async_wait_all();
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
              a.normed.sums32 + b * 16);
}

// ---- launches ----

static bool reads_q8k(const dev_matrix &m) {
  return type_has_q8k_kernels(m.type);
}

static bool layer_fits(const dev_layer &w) {
  return reads_q8k(w.q) && reads_q8k(w.k) && reads_q8k(w.v) && reads_q8k(w.o) && w.router.type == TYPE_F32 &&
         reads_q8k(w.gate) && w.gate.type == w.up.type && reads_q8k(w.down);
}

bool decode_fits(const model_shape *s, const dev_weights *w) {
  bool fits =
      s->n_experts <= MOST_EXPERTS && s->hidden <= 8192 && s->expert_width <= 8192 && reads_q8k(w->output);
  for (int64_t l = 0; l < s->n_layers && fits; l++) fits = layer_fits(w->layers[l]);
  return fits;
}

// Distributes the rows over about `blocks` thread blocks, evenly; returns how many it takes.
static int distribute_rows(rows_args *a, int blocks, int at_once) {
  int used;
  a->rows_per_warp = 0;
  do {
    a->rows_per_warp += at_once;
    used = 0;
    for (int i = 0; i < a->count; i++) {
      a->first_block[i] = used;
      used += ceil_div(a->w[i].rows, WARPS * a->rows_per_warp);
    }
  } while (used > blocks);
  return used;
}

static status rows_launch(rows_args *a, int blocks, cudaStream_t stream) {
  int width = a->w[0].cols, n_blocks = width / QK_K, groups = groups_of(n_blocks),
      used = distribute_rows(a, blocks, 8 / groups);
  size_t bytes = rounded_bytes(width) + (a->norm ? (size_t)width * sizeof(float) : 0);
  auto *kernel = n_blocks > 8  ? decode_rows<8, 2>
                 : groups == 8 ? decode_rows<8, 1>
                 : groups == 4 ? decode_rows<4, 1>
                 : groups == 2 ? decode_rows<2, 1>
                               : decode_rows<1, 1>;
  return launch_shared(kernel, dim3((unsigned)used), THREADS, bytes, stream, *a);
}

status decode_qkv_launch(float *q, float *k, float *v, const float *x, const dev_layer *w, float epsilon,
                         cudaStream_t stream) {
  rows_args a = {{w->q, w->k, w->v}, {q, k, v}, {}, 3, 0, x, w->attn_norm, epsilon, false};
  return rows_launch(&a, device_multiprocessors(), stream);
}

status decode_output_launch(float *x, const float *attended, const dev_layer *w, cudaStream_t stream) {
  rows_args a = {{w->o}, {x}, {}, 1, 0, attended, nullptr, 0, true};
  return rows_launch(&a, device_multiprocessors(), stream);
}

status decode_head_launch(float *logits, const float *x, const dev_weights *w, float epsilon,
                          cudaStream_t stream) {
  rows_args a = {{w->output}, {logits}, {}, 1, 0, x, w->output_norm, epsilon, false};
  return rows_launch(&a, 2 * device_multiprocessors(), stream);
}

status decode_router_launch(float *logits, dev_inputs normed, const float *x, const dev_layer *w,
                            float epsilon, const peer_links &peers, cudaStream_t stream) {
  router_args a = {x,       w->ffn_norm, (const float *)w->router.data, logits, normed, w->router.rows,
                   epsilon, peers};
  unsigned grid = (unsigned)(w->router.rows + normed.width / QK_K + (peers.n != 0));
  return launch_shared(decode_router, dim3(grid), WARP, 3 * (size_t)normed.width * sizeof(float), stream, a);
}
