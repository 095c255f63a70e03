// product_f32_one: rows of K-quants times one item each: every weight is read once, and memory
// bandwidth bounds it.
// Eight threads take a row, four lanes of sum32 each, so that a load is a whole word of quants, and each
// weight is unpacked once, by the thread that multiplies it. Weights are loaded some blocks ahead; those
// that do not depend on the choice of experts, before the previous kernel has ended.
#include "kernels/cuda/products/product_f32.cuh"
#include "kernels/cuda/products/unpack_f32.cuh"

static constexpr int WARPS = 4, THREADS = WARPS * WARP, ROWS = THREADS / 8; // of a thread block at a time
static constexpr size_t MOST_SHARED = 96 << 10;                             // bytes of an input

// Blocks of a row that are in registers before they are used, and as many in flight.
template <weight_type TYPE> __host__ __device__ constexpr int ahead_of() {
  return TYPE == TYPE_Q4_K ? 4 : 3;
}

template <weight_type TYPE> struct row_blocks { quad<TYPE> q[ahead_of<TYPE>()][4]; };

// Blocks first .. of the row; the last again beyond it.
template <weight_type TYPE>
__device__ __forceinline__ void load_blocks(row_blocks<TYPE> *r, const uint8_t *row, int n_blocks, int first,
                                            int t) {
#pragma unroll
  for (int k = 0; k < ahead_of<TYPE>(); k++)
#pragma unroll
    for (int pair = 0; pair < 4; pair++)
      load_quad(&r->q[k][pair], row, quad_place{n_blocks, min(first + k, n_blocks - 1), pair, t});
}

template <weight_type TYPE>
__device__ __forceinline__ void add_blocks(float sum[4], const row_blocks<TYPE> &r, const float4 *x,
                                           int n_blocks, int first, int t) {
#pragma unroll
  for (int k = 0; k < ahead_of<TYPE>(); k++) {
    if (first + k >= n_blocks) return;
#pragma unroll
    for (int pair = 0; pair < 4; pair++) {
      float w[2][4];
      unpack_quad(w, r.q[k][pair], quad_place{n_blocks, first + k, pair, t});
#pragma unroll
      for (int s = 0; s < 2; s++) {
        float4 v = x[(first + k) * (QK_K / 4) + pair * 16 + s * 8 + t];
        sum[0] = num_fma_f32(w[s][0], v.x, sum[0]);
        sum[1] = num_fma_f32(w[s][1], v.y, sum[1]);
        sum[2] = num_fma_f32(w[s][2], v.z, sum[2]);
        sum[3] = num_fma_f32(w[s][3], v.w, sum[3]);
      }
    }
  }
}

template <weight_type TYPE> __global__ void __launch_bounds__(THREADS) product_f32_one(product p) {
  extern __shared__ __align__(16) float shared[]; // the item's input
  int item = blockIdx.y, t = threadIdx.x % 8, n_blocks = p.w.cols / QK_K;
  int row = (int)blockIdx.x * ROWS + threadIdx.x / 8, member = 0;
  row_blocks<TYPE> now;
  auto weights_of = [&](int r) { // a ragged tile repeats its last row
    return p.w.data + (size_t)member * p.w.member_bytes + (size_t)min(r, p.w.rows - 1) * p.w.row_bytes;
  };
  if (!p.member) load_blocks(&now, weights_of(row), n_blocks, 0, t);
  wait_for_inputs();
  if (p.member) {
    member = p.member[item];
    if (member < 0) return;
    load_blocks(&now, weights_of(row), n_blocks, 0, t);
  }
  const float4 *from = (const float4 *)(p.in.x + (size_t)(item / p.input_divisor) * p.w.cols);
  float4 *x = (float4 *)shared;
  for (int i = threadIdx.x; i < p.w.cols / 4; i += THREADS) x[i] = from[i];
  __syncthreads();
  float *out = p.out + output_of(p, item);
  for (int step = (int)gridDim.x * ROWS, tile = (int)blockIdx.x * ROWS; tile < p.w.rows; tile += step) {
    float sum[4] = {};
    for (int b = 0; b < n_blocks; b += ahead_of<TYPE>()) {
      row_blocks<TYPE> next;
      bool in_row = b + ahead_of<TYPE>() < n_blocks;
      if (in_row || tile + step < p.w.rows)
        load_blocks(&next, weights_of(in_row ? row : row + step), n_blocks, in_row ? b + ahead_of<TYPE>() : 0,
                    t);
      add_blocks(sum, now, x, n_blocks, b, t);
      now = next;
    }
#pragma unroll
    for (int k = 0; k < 4; k++) // lane l with l + 16, + 8, + 4: other threads'
#pragma unroll
      for (int half = 4; half; half /= 2) sum[k] = sum[k] + __shfl_xor_sync(~0u, sum[k], half);
    float y = (sum[0] + sum[2]) + (sum[1] + sum[3]);
    if (t == 0 && row < p.w.rows) out[row] = p.adds ? out[row] + y : y;
    row += step;
  }
}

static bool has_kernel(weight_type type) {
  switch (type) {
  case TYPE_Q4_K:
  case TYPE_Q5_K:
  case TYPE_Q6_K:
    return true;
  case TYPE_F32:
  case TYPE_F16:
  case TYPE_BF16:
  case TYPE_Q8_0:
    return false;
    CASES_OF_FEW_BITS
    break;
  }
  return false;
}

bool product_f32_one_fits(const product *p) {
  bool each_alone = p->member && !p->first;
  return has_kernel(p->w.type) && (each_alone || (!p->first && p->n_items == 1)) &&
         (size_t)p->w.cols * sizeof(float) <= MOST_SHARED;
}

// Thread blocks a multiprocessor for all items; with more, each would load its input for fewer rows.
static constexpr int BLOCKS_EACH = 8;

template <weight_type TYPE> static status one_of_type(const product *p, cudaStream_t stream) {
  int most = ceil_div(BLOCKS_EACH * device_multiprocessors(), p->n_items), blocks = ceil_div(p->w.rows, ROWS);
  size_t bytes = (size_t)p->w.cols * sizeof(float);
  if (bytes > DEFAULT_SHARED_BYTES)
    CUDA_TRY(cudaFuncSetAttribute(product_f32_one<TYPE>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)MOST_SHARED));
  return launch(product_f32_one<TYPE>, dim3((unsigned)(blocks < most ? blocks : most), (unsigned)p->n_items),
                THREADS, bytes, stream, *p);
}

status product_f32_one_launch(const product *p, cudaStream_t stream) {
  switch (p->w.type) {
  case TYPE_Q4_K:
    return one_of_type<TYPE_Q4_K>(p, stream);
  case TYPE_Q5_K:
    return one_of_type<TYPE_Q5_K>(p, stream);
  case TYPE_Q6_K:
    return one_of_type<TYPE_Q6_K>(p, stream);
  case TYPE_F32:
  case TYPE_F16:
  case TYPE_BF16:
  case TYPE_Q8_0:
    CASES_OF_FEW_BITS
    break;
  }
  return FAIL("CUDA: the type %s has no product of one item", type_find(p->w.type)->name);
}
