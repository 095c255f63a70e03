// attend_wgmma: exact attention of many queries on Hopper's tensor cores, the bits of attend.cu's kernel.
//
// A thread block takes a tile of 128 rows, a row a (token, head) of one key/value head, over the chunks that
// they see. Two warpgroups hold 64 rows each; a lane has two rows, and of each the keys (later dimensions)
// 8 i + 2 (l % 4) and the next. Chunks arrive by bulk copies, one ahead. The integers of a chunk's weights
// stay in the registers in which the scores were: limbs.cuh orders the keys of values so.
//
// Registers are what bounds it: 64 outputs, 64 sums, 32 words of weights, 32 of queries. So the product of
// low limbs, which needs sums of its own, goes by half of the dimensions at a time. Look at -Xptxas -v for
// spills and for C7514 (wgmma serialised) after a change.
#include "kernels/cuda/exact/attend.cuh"

#ifdef __CUDACC__
#include "kernels/cuda/instructions_hopper.cuh"

static constexpr int GROUP = 128, THREADS = 2 * GROUP, KEYS = EXACT_CHUNK, DIMS = 128, STAGES = 3;
static constexpr int BLOCK_BYTES = block_bytes(DIMS);
static constexpr int EACH = 64; // scores, outputs and sums of a lane, of two rows
static_assert(KEYS == 128, "a chunk's scores are one product of 128 columns");
static_assert(BLOCK_BYTES % 1024 == 0, "stages are aligned as wgmma_descriptor wants");

struct wgmma_ring {
  uint8_t block[STAGES][BLOCK_BYTES];
  uint64_t full[STAGES], empty[STAGES];
};

struct ring_place {
  int stage = 0;
  uint32_t parity = 0;
  __device__ __forceinline__ void next() {
    if (++stage == STAGES) {
      stage = 0;
      parity ^= 1;
    }
  }
};

struct two_rows {                     // of a lane
  int token[2], head[2], position[2]; // token: of the batch, -1: none, or of another run
  float unit[2];                      // of its query, times 256
  uint32_t high[4][4], low[4][4];     // of 32 dimensions each
};

struct chunk_of_rows {
  float max[2], sum[2], unit[2];                  // unit: of the weights, times 256
  uint32_t high[KEYS / 32][4], low[KEYS / 32][4]; // weights, as wgmma_k32 takes its rows
};

// ---- scores ----

// scores[4 i + 2 r + k] of row r: without the query's unit, so that it is applied with the next factor.
__device__ __forceinline__ void score_keys(float (&scores)[EACH], const two_rows &rows, uint64_t keys,
                                           const float *units) {
  int sums[EACH];
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; k++) wgmma_k32<KEYS, true>(sums, rows.high[k], keys + 2 * k, k > 0);
  wgmma_commit_group();
  wgmma_wait_group<0>();
  wgmma_fence_operand(sums);
#pragma unroll
  for (int i = 0; i < EACH; i++) sums[i] = (int)((uint32_t)sums[i] << 8);
  wgmma_fence_operand(sums);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; k++) {
    wgmma_k32<KEYS, true>(sums, rows.low[k], keys + 2 * k, true);
    wgmma_k32<KEYS, true>(sums, rows.high[k], keys + KEYS * ROW / 16 + 2 * k, true);
  }
  wgmma_commit_group();
  wgmma_wait_group<0>();
  wgmma_fence_operand(sums);
#pragma unroll
  for (int i = 0; i < EACH / 4; i++) {
    float2 unit = *(const float2 *)(units + 8 * i + threadIdx.x % 4 * 2);
    scores[4 * i] = (float)sums[4 * i] * unit.x;
    scores[4 * i + 1] = (float)sums[4 * i + 1] * unit.y;
    scores[4 * i + 2] = (float)sums[4 * i + 2] * unit.x;
    scores[4 * i + 3] = (float)sums[4 * i + 3] * unit.y;
  }
}

// ---- weights ----

__device__ __forceinline__ float quad_max(float x) { // over the lanes that share a row
  x = fmaxf(x, __shfl_xor_sync(~0u, x, 1));
  return fmaxf(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ __forceinline__ uint32_t quad_max(uint32_t x) {
  x = max(x, __shfl_xor_sync(~0u, x, 1));
  return max(x, __shfl_xor_sync(~0u, x, 2));
}

__device__ __forceinline__ int quad_sum(int x) {
  x += __shfl_xor_sync(~0u, x, 1);
  return x + __shfl_xor_sync(~0u, x, 2);
}

static constexpr float MAGIC = 12582912.0f; // 1.5 * 2^23: the low bits of MAGIC + x are those of round(x)

// exact_count's sum of values whose bits were added up with MAGIC's.
__device__ __forceinline__ int without_magic(uint32_t bits, int values) {
  return (int)(bits - (uint32_t)values * 0x4b400000u);
}

// Four rounded weights, each plus 128: so their second bytes are the high limbs.
__device__ __forceinline__ void split_four(uint32_t *high, uint32_t *low, float a, float b, float c, float d,
                                           float scale) {
  uint32_t x[4] = {__float_as_uint(num_fma_f32(a, scale, MAGIC + 128.0f)),
                   __float_as_uint(num_fma_f32(b, scale, MAGIC + 128.0f)),
                   __float_as_uint(num_fma_f32(c, scale, MAGIC + 128.0f)),
                   __float_as_uint(num_fma_f32(d, scale, MAGIC + 128.0f))};
  uint32_t ab = __byte_perm(x[0], x[1], 0x5140), cd = __byte_perm(x[2], x[3], 0x5140);
  *low = __byte_perm(ab, cd, 0x5410) ^ 0x80808080u;
  *high = __byte_perm(ab, cd, 0x7632);
}

// Key j of row r of the lane's scores is seen.
__device__ __forceinline__ bool sees(const two_rows &rows, int key0, int i, int r) {
  return key0 + i / 4 * 8 + threadIdx.x % 4 * 2 + i % 2 <= rows.position[r];
}

// Scores become weights. MASKS: some row does not see every key of the chunk.
template <bool MASKS>
__device__ __forceinline__ void weigh_keys(chunk_of_rows &chunk, float (&scores)[EACH], const two_rows &rows,
                                           int key0, const float *value_units) {
  float largest[2] = {-INFINITY, -INFINITY}, bias[2], factor[2];
  uint32_t count[2] = {}, most[2] = {0x0d800000u, 0x0d800000u}; // 2^-100: a row may see no key here
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    int r = i / 2 % 2;
    if (MASKS && !sees(rows, key0, i, r)) scores[i] = -INFINITY;
    largest[r] = fmaxf(largest[r], scores[i]);
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    chunk.max[r] = quad_max(largest[r]) * rows.unit[r];
    bias[r] = exact_bias(chunk.max[r]);
    factor[r] = rows.unit[r] * EXACT_LOG2E_32;
  }
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    int r = i / 2 % 2;
    float e = exact_exp(__saturatef(num_fma_f32(scores[i], factor[r], bias[r])));
    if (MASKS && !sees(rows, key0, i, r)) e = 0.0f;
    count[r] += __float_as_uint(num_fma_f32(e, 0x1p21f, MAGIC));
    float2 unit = *(const float2 *)(value_units + i / 4 * 8 + threadIdx.x % 4 * 2);
    scores[i] = e * (i % 2 ? unit.y : unit.x);
    most[r] = max(most[r], __float_as_uint(scores[i]));
  }
  float scale[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    chunk.sum[r] = exact_sum(quad_sum(without_magic(count[r], EACH / 2)));
    exact_scale of_weights = exact_weight_scale(quad_max(most[r]));
    scale[r] = of_weights.scale;
    chunk.unit[r] = 256.0f * of_weights.unit;
  }
#pragma unroll
  for (int i = 0; i < EACH / 8; i++)
#pragma unroll
    for (int r = 0; r < 2; r++)
      split_four(&chunk.high[i / 2][i % 2 * 2 + r], &chunk.low[i / 2][i % 2 * 2 + r], scores[8 * i + 2 * r],
                 scores[8 * i + 2 * r + 1], scores[8 * i + 4 + 2 * r], scores[8 * i + 5 + 2 * r], scale[r]);
}

// ---- outputs ----

static constexpr int SPAN_STEP = DIMS * ROW / 16; // of a descriptor, from 64 keys' values to the next
static constexpr int LOW_STEP = SPAN / 16;        // from their high limbs to their low ones
static constexpr int HALF = DIMS / 2;             // dimensions of a product of low limbs

// sums = or += the weights' limbs times the values'.
template <int WIDE>
__device__ __forceinline__ void
multiply_values(int (&sums)[WIDE / 2], const uint32_t (&weights)[KEYS / 32][4], uint64_t values, bool adds) {
#pragma unroll
  for (int k = 0; k < KEYS / 32; k++)
    wgmma_k32<WIDE, true>(sums, weights[k], values + k / 2 * SPAN_STEP + k % 2 * 2, adds || k > 0);
}

__device__ __forceinline__ int rounded_low(int low_low) {
  return (low_low + 128) >> 8;
}

// Folds the chunk into the rows' running values. exact_output_sum's three terms: high limbs and the low ones
// of half of the dimensions at first, then what is crossed and the other half.
__device__ __forceinline__ void add_values(float (&out)[EACH], exact_sums (&running)[2],
                                           const chunk_of_rows &chunk, uint64_t values) {
  int sums[EACH], low[EACH / 2];
  wgmma_fence();
  multiply_values<DIMS>(sums, chunk.high, values, false);
  multiply_values<HALF>(low, chunk.low, values + LOW_STEP, false);
  wgmma_commit_group();
  float old[2], factor[2];
#pragma unroll
  for (int r = 0; r < 2; r++) {
    running[r].fold(chunk.max[r], chunk.sum[r], &old[r], &factor[r]);
    factor[r] *= chunk.unit[r];
  }
  if (__any_sync(~0u, old[0] != 1.0f || old[1] != 1.0f)) {
#pragma unroll
    for (int i = 0; i < EACH; i++) out[i] *= old[i / 2 % 2];
  }
  wgmma_wait_group<0>();
  wgmma_fence_operand(sums);
  wgmma_fence_operand(low);
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    sums[i] = (int)((uint32_t)sums[i] << 8);
    if (i < EACH / 2) sums[i] += rounded_low(low[i]);
  }
  wgmma_fence_operand(sums);
  wgmma_fence_operand(low);
  wgmma_fence();
  multiply_values<DIMS>(sums, chunk.low, values, true);
  multiply_values<DIMS>(sums, chunk.high, values + LOW_STEP, true);
  multiply_values<HALF>(low, chunk.low, values + LOW_STEP + HALF * ROW / 16, false);
  wgmma_commit_group();
  wgmma_wait_group<0>();
  wgmma_fence_operand(sums);
  wgmma_fence_operand(low);
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    int sum = i < EACH / 2 ? sums[i] : sums[i] + rounded_low(low[i - EACH / 2]);
    out[i] = num_fma_f32((float)sum, factor[i / 2 % 2], out[i]);
  }
}

// ---- tiles ----

__device__ __forceinline__ float *out_of(const exact_args &a, const two_rows &rows, int r) {
  return a.out + ((size_t)rows.token[r] * a.work.queries.n_heads + rows.head[r]) * a.cache.head_dim +
         threadIdx.x % 4 * 2;
}

// Ends a group: its values are folded into those of the groups before it, which wait in `out` in memory.
// After the last one they are the result.
__device__ __forceinline__ void fold_group(const exact_args &a, const two_rows &rows,
                                           const float (&out)[EACH], exact_sums (&running)[2],
                                           exact_sums (&total)[2], bool is_first, bool is_last) {
#pragma unroll
  for (int r = 0; r < 2; r++) {
    float old, fresh;
    total[r].fold(running[r].max, running[r].sum, &old, &fresh);
    running[r] = exact_sums();
    if (rows.token[r] < 0) continue;
    float *to = out_of(a, rows, r), inverse = is_last ? exact_inverse(total[r].sum, rows.unit[r]) : 1.0f;
#pragma unroll
    for (int i = 0; i < DIMS / 8; i++) {
      if (8 * i + (int)threadIdx.x % 4 * 2 >= a.cache.head_dim) break;
      float2 before = is_first ? make_float2(0, 0) : *(const float2 *)(to + 8 * i);
      float x = num_fma_f32(out[4 * i + 2 * r], fresh, before.x * old);
      float y = num_fma_f32(out[4 * i + 2 * r + 1], fresh, before.y * old);
      *(float2 *)(to + 8 * i) = make_float2(x * inverse, y * inverse);
    }
  }
}

__device__ __forceinline__ void load_queries(two_rows &rows, const exact_args &a, int tile, int kv_head) {
  const query_limbs &q = a.work.queries;
  size_t from = (((size_t)tile * q.n_kv_heads + kv_head) * 2 + threadIdx.x / GROUP) * 2;
  const uint4 *words = (const uint4 *)(q.words + from * group_words(DIMS)) + threadIdx.x % GROUP;
#pragma unroll
  for (int k = 0; k < 4; k++) {
    *(uint4 *)rows.high[k] = words[k * GROUP];
    *(uint4 *)rows.low[k] = words[group_words(DIMS) / 4 + k * GROUP];
  }
}

// The lane's rows, as far as they are of tokens first .. first + count - 1; `start`: the tile's first token.
__device__ __forceinline__ void place_rows(two_rows &rows, const exact_args &a, int kv_head, int start,
                                           int first, int count) {
  const query_limbs &q = a.work.queries;
  int group = q.n_heads / q.n_kv_heads;
#pragma unroll
  for (int r = 0; r < 2; r++) {
    int row = threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4 + 8 * r, t = start + row / group;
    bool exists = t >= first && t < first + count && row < tokens_per_tile(group) * group;
    rows.token[r] = exists ? t : -1;
    rows.head[r] = kv_head * group + row % group;
    rows.position[r] = a.batch.position[exists ? t : first + count - 1];
    rows.unit[r] = exists ? 256.0f * q.unit[(size_t)t * q.n_heads + rows.head[r]] : 1.0f;
  }
}

// Tokens first .. of the tile that are of one sequence.
__device__ __forceinline__ int run_length(const dev_batch &b, int first, int end) {
  int n = 1;
  while (first + n < end && b.sequence[first + n] == b.sequence[first]) n++;
  return n;
}

struct chunk_loader { // thread 0's
  wgmma_ring *ring;
  const uint8_t *blocks;
  ring_place at;
  __device__ __forceinline__ void load(int chunk) {
    mbarrier_wait(&ring->empty[at.stage], at.parity ^ 1);
    mbarrier_arrive_expect(&ring->full[at.stage], BLOCK_BYTES);
    copy_bulk(ring->block[at.stage], blocks + (size_t)chunk * BLOCK_BYTES, BLOCK_BYTES,
              &ring->full[at.stage]);
    at.next();
  }
};

// One run of the tile over its chunks.
__device__ __forceinline__ void attend_run(const exact_args &a, const two_rows &rows, wgmma_ring *ring,
                                           chunk_loader &loader, ring_place &at, int first_position,
                                           int last_position) {
  float out[EACH];
  exact_sums running[2], total[2];
#pragma unroll
  for (int i = 0; i < EACH; i++) out[i] = 0;
  int chunks = last_position / KEYS + 1, seen_by_all = (first_position + 1) / KEYS;
  if (threadIdx.x == 0) loader.load(0);
#pragma unroll 1
  for (int c = 0; c < chunks; c++) {
    if (threadIdx.x == 0 && c + 1 < chunks) loader.load(c + 1);
    __syncwarp();
    mbarrier_wait(&ring->full[at.stage], at.parity);
    const uint8_t *block = ring->block[at.stage];
    const float *units = (const float *)(block + units_offset(DIMS));
    float scores[EACH];
    chunk_of_rows chunk;
    score_keys(scores, rows, wgmma_descriptor(block), units);
    if (c < seen_by_all)
      weigh_keys<false>(chunk, scores, rows, c * KEYS, units + KEYS);
    else
      weigh_keys<true>(chunk, scores, rows, c * KEYS, units + KEYS);
    add_values(out, running, chunk, wgmma_descriptor(block + values_offset(DIMS)));
    if (threadIdx.x % WARP == 0) mbarrier_arrive(&ring->empty[at.stage]);
    at.next();
    if ((c + 1) % GROUP_CHUNKS && c + 1 < chunks) continue;
    fold_group(a, rows, out, running, total, c < GROUP_CHUNKS, c + 1 == chunks);
#pragma unroll
    for (int i = 0; i < EACH; i++) out[i] = 0;
  }
}

__global__ void __launch_bounds__(THREADS, 1) attend_wgmma(const __grid_constant__ exact_args a, int tiles) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t exact_shared[];
  wgmma_ring *ring = (wgmma_ring *)exact_shared;
  const query_limbs &q = a.work.queries;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      mbarrier_init(&ring->full[i], 1);
      mbarrier_init(&ring->empty[i], THREADS / WARP);
    }
    fence_mbarrier_init();
  }
  __syncthreads();
  wait_for_inputs();
  int each = tokens_per_tile(q.n_heads / q.n_kv_heads), kv_head = blockIdx.x % q.n_kv_heads;
  int tile = tiles - 1 - blockIdx.x / q.n_kv_heads; // those with the most keys first
  int start = tile * each, end = min(start + each, a.batch.n);
  two_rows rows;
  chunk_loader loader = {ring, nullptr, {}};
  ring_place at;
  load_queries(rows, a, tile, kv_head);
#pragma unroll 1
  for (int first = start; first < end;) {
    int count = run_length(a.batch, first, end);
    loader.blocks = block_of(a.cache, a.layer, a.batch.sequence[first], kv_head, 0);
    place_rows(rows, a, kv_head, start, first, count);
    attend_run(a, rows, ring, loader, at, a.batch.position[first], a.batch.position[first + count - 1]);
    first += count;
  }
#endif
}

// ---- the host's side ----

// Whether this device is a Hopper and the build has its kernels, which are empty where not built for sm_90a.
static bool has_hopper_kernels() {
  static bool is_known, found;
  if (is_known) return found;
  is_known = true;
  cudaFuncAttributes of = {};
  found = device_attribute(cudaDevAttrComputeCapabilityMajor) == 9 &&
          device_attribute(cudaDevAttrComputeCapabilityMinor) == 0 &&
          cudaFuncGetAttributes(&of, attend_wgmma) == cudaSuccess && of.numRegs > 100;
  return found;
}

bool exact_wgmma_serves(const exact_work *work, limb_cache cache, const dev_batch *) {
  int group = work->queries.n_heads / work->queries.n_kv_heads;
  return work->queries.dims == DIMS && cache.head_dim % 2 == 0 && group <= TILE_ROWS && has_hopper_kernels();
}

status exact_wgmma_launch(float *out, const exact_work *work, limb_cache cache, int layer, const dev_batch *b,
                          cudaStream_t stream) {
  exact_args a = {out, *work, cache, *b, layer};
  int tiles = ceil_div(b->n, tokens_per_tile(work->queries.n_heads / work->queries.n_kv_heads));
  return launch_shared(attend_wgmma, dim3((unsigned)(tiles * work->queries.n_kv_heads)), THREADS,
                       sizeof(wgmma_ring), stream, a, tiles);
}

#else // the emulated GPU has no warpgroups
bool exact_wgmma_serves(const exact_work *, limb_cache, const dev_batch *) {
  return false;
}

status exact_wgmma_launch(float *, const exact_work *, limb_cache, int, const dev_batch *, cudaStream_t) {
  return FAIL("CUDA: no Hopper kernels in this build");
}
#endif
