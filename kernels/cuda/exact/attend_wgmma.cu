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
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/instructions_hopper.cuh"

static constexpr int GROUP = 128, THREADS = 2 * GROUP, KEYS = EXACT_CHUNK, DIMS = 128, STAGES = 3;
static constexpr int BLOCK_BYTES = block_bytes(DIMS);
static constexpr int EACH = 64; // scores, outputs and sums of a lane, of two rows
static_assert(KEYS == 128, "a chunk's scores are one product of 128 columns");
static_assert(BLOCK_BYTES % 1024 == 0, "stages are aligned as wgmma_descriptor wants");

struct wgmma_memory {
  uint8_t block[STAGES][BLOCK_BYTES];
  uint64_t full[STAGES], empty[STAGES];
  // each thread's own: low limbs of its rows' queries, and what their groups before came to
  uint4 query_low[4][THREADS];
  float total_max[2][THREADS], total_sum[2][THREADS];
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

struct two_rows {      // of a lane
  float unit[2];       // of its query, times 256
  uint32_t high[4][4]; // limbs, of 32 dimensions each; the low ones are in shared memory
};

struct token_run {         // tokens of a tile that are of one sequence
  int start, first, count; // start: the tile's first token
};

// Row r of the lane: its token, or -1 where that is not of the run or there is none.
__device__ __forceinline__ int token_of(const exact_args &a, const token_run &run, int r) {
  int group = a.work.queries.n_heads / a.work.queries.n_kv_heads;
  int row = threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4 + 8 * r, t = run.start + row / group;
  bool exists = t >= run.first && t < run.first + run.count && row < tokens_per_tile(group) * group;
  return exists ? t : -1;
}

__device__ __forceinline__ int head_of(const exact_args &a, int kv_head, int r) {
  int group = a.work.queries.n_heads / a.work.queries.n_kv_heads;
  return kv_head * group + (threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4 + 8 * r) % group;
}

struct chunk_of_rows {
  float max[2], sum[2], unit[2];                  // unit: of the weights, times 256
  uint32_t high[KEYS / 32][4], low[KEYS / 32][4]; // weights, as wgmma_k32 takes its rows
};

// ---- scores ----

// A place in shared memory as wgmma_descriptor's low word: only that changes on the way along a block, and it
// never carries over.
__device__ __forceinline__ uint64_t described(uint32_t low) {
  return (uint64_t)low | (uint64_t)(1024 >> 4) << 32 | (uint64_t)1 << 62;
}

__device__ __forceinline__ uint32_t low_word(const void *at) {
  return (uint32_t)wgmma_descriptor(at);
}

// scores[4 i + 2 r + k] of row r: without the query's unit, so that it is applied with the next factor.
__device__ __forceinline__ void score_keys(float (&scores)[EACH], const two_rows &rows, const wgmma_memory *m,
                                           uint32_t keys, const float *units) {
  int sums[EACH];
  uint32_t low[4][4];
#pragma unroll
  for (int k = 0; k < 4; k++) *(uint4 *)low[k] = m->query_low[k][threadIdx.x];
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; k++) wgmma_k32<KEYS, true>(sums, rows.high[k], described(keys + 2 * k), k > 0);
  wgmma_commit_group();
  wgmma_wait_group<0>();
  wgmma_fence_operand(sums);
#pragma unroll
  for (int i = 0; i < EACH; i++) sums[i] = (int)((uint32_t)sums[i] << 8);
  wgmma_fence_operand(sums);
  wgmma_fence();
#pragma unroll
  for (int k = 0; k < 4; k++) {
    wgmma_k32<KEYS, true>(sums, low[k], described(keys + 2 * k), true);
    wgmma_k32<KEYS, true>(sums, rows.high[k], described(keys + KEYS * ROW / 16 + 2 * k), true);
  }
  wgmma_commit_group();
  wgmma_wait_group<0>();
  wgmma_fence_operand(sums);
#pragma unroll
  for (int i = 0; i < EACH / 4; i++) {
    float2 unit = load_shared_late(units + 8 * i + threadIdx.x % 4 * 2);
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

static constexpr int BESIDE = 16; // scores whose chains of instructions run beside each other

// Scores become weights. MASKS: some row does not see every key of the chunk; seen: how many each does.
template <bool MASKS>
__device__ __forceinline__ void weigh_keys(chunk_of_rows &chunk, float (&scores)[EACH], const two_rows &rows,
                                           const int (&seen)[2], const float *value_units) {
  float largest[2] = {-INFINITY, -INFINITY}, bias[2], factor[2];
  uint32_t count[2] = {}, most[2] = {0x0d800000u, 0x0d800000u}; // 2^-100: a row may see no key here
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    int r = i / 2 % 2;
    if (MASKS && i / 4 * 8 + i % 2 + (int)threadIdx.x % 4 * 2 >= seen[r]) scores[i] = -INFINITY;
    largest[r] = fmaxf(largest[r], scores[i]);
  }
#pragma unroll
  for (int r = 0; r < 2; r++) {
    chunk.max[r] = quad_max(largest[r]) * rows.unit[r];
    bias[r] = exact_bias(chunk.max[r]);
    factor[r] = rows.unit[r] * EXACT_LOG2E_32;
  }
#pragma unroll
  for (int first = 0; first < EACH; first += BESIDE) {
    float2 unit[BESIDE / 4];
    float e[BESIDE];
#pragma unroll
    for (int k = 0; k < BESIDE / 4; k++)
      unit[k] = load_shared_late(value_units + (first / 4 + k) * 8 + threadIdx.x % 4 * 2);
#pragma unroll
    for (int k = 0; k < BESIDE; k++) {
      int i = first + k, r = i / 2 % 2;
      e[k] = exact_exp(__saturatef(num_fma_f32(scores[i], factor[r], bias[r])));
      if (MASKS && i / 4 * 8 + i % 2 + (int)threadIdx.x % 4 * 2 >= seen[r]) e[k] = 0.0f;
    }
#pragma unroll
    for (int k = 0; k < BESIDE; k++) {
      int i = first + k, r = i / 2 % 2;
      count[r] += __float_as_uint(num_fma_f32(e[k], 0x1p21f, MAGIC));
      scores[i] = e[k] * (i % 2 ? unit[k / 4].y : unit[k / 4].x);
      // the unit of a key that is not seen may be NaN
      if (MASKS && i / 4 * 8 + i % 2 + (int)threadIdx.x % 4 * 2 >= seen[r]) scores[i] = 0.0f;
      most[r] = max(most[r], __float_as_uint(scores[i]));
    }
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
multiply_values(int (&sums)[WIDE / 2], const uint32_t (&weights)[KEYS / 32][4], uint32_t values, bool adds) {
#pragma unroll
  for (int k = 0; k < KEYS / 32; k++)
    wgmma_k32<WIDE, true>(sums, weights[k], described(values + k / 2 * SPAN_STEP + k % 2 * 2), adds || k > 0);
}

__device__ __forceinline__ int rounded_low(int low_low) {
  return (low_low + 128) >> 8;
}

// Folds the chunk into the rows' running values. exact_output_sum's three terms: high limbs and the low ones
// of half of the dimensions at first, then what is crossed and the other half.
__device__ __forceinline__ void add_values(float (&out)[EACH], exact_sums (&running)[2],
                                           const chunk_of_rows &chunk, uint32_t values) {
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

// Ends a group: its values are folded into those of the groups before it, which wait in `out` in memory.
// After the last one they are the result.
__device__ __forceinline__ void fold_group(const exact_args &a, wgmma_memory *m, const two_rows &rows,
                                           const token_run &run, int kv_head, const float (&out)[EACH],
                                           const exact_sums (&running)[2], bool is_first, bool is_last) {
#pragma unroll
  for (int r = 0; r < 2; r++) {
    int t = token_of(a, run, r), lane_at = threadIdx.x % 4 * 2;
    float old, fresh;
    exact_sums total;
    if (!is_first) {
      total.max = m->total_max[r][threadIdx.x];
      total.sum = m->total_sum[r][threadIdx.x];
    }
    total.fold(running[r].max, running[r].sum, &old, &fresh);
    m->total_max[r][threadIdx.x] = total.max;
    m->total_sum[r][threadIdx.x] = total.sum;
    if (t < 0) continue;
    float inverse = is_last ? exact_inverse(total.sum, rows.unit[r]) : 1.0f;
    float *to =
        a.out + ((size_t)t * a.work.queries.n_heads + head_of(a, kv_head, r)) * a.cache.head_dim + lane_at;
#pragma unroll
    for (int i = 0; i < DIMS / 8; i++) {
      if (8 * i + lane_at >= a.cache.head_dim) break;
      float2 before = is_first ? make_float2(0, 0) : *(const float2 *)(to + 8 * i);
      float x = num_fma_f32(out[4 * i + 2 * r], fresh, before.x * old);
      float y = num_fma_f32(out[4 * i + 2 * r + 1], fresh, before.y * old);
      *(float2 *)(to + 8 * i) = make_float2(x * inverse, y * inverse);
    }
  }
}

__device__ __forceinline__ void load_queries(two_rows &rows, wgmma_memory *m, const exact_args &a, int tile,
                                             int kv_head) {
  const query_limbs &q = a.work.queries;
  size_t from = (((size_t)tile * q.n_kv_heads + kv_head) * 2 + threadIdx.x / GROUP) * 2;
  const uint4 *words = (const uint4 *)(q.words + from * group_words(DIMS)) + threadIdx.x % GROUP;
#pragma unroll
  for (int k = 0; k < 4; k++) {
    *(uint4 *)rows.high[k] = words[k * GROUP];
    m->query_low[k][threadIdx.x] = words[group_words(DIMS) / 4 + k * GROUP];
  }
}

// Tokens first .. of the tile that are of one sequence.
__device__ __forceinline__ int run_length(const dev_batch &b, int first, int end) {
  int n = 1;
  while (first + n < end && b.sequence[first + n] == b.sequence[first]) n++;
  return n;
}

// Thread 0 starts the copy of a chunk.
__device__ __forceinline__ void load_chunk(wgmma_memory *m, const uint8_t *blocks, int chunk, ring_place at) {
  mbarrier_wait(&m->empty[at.stage], at.parity ^ 1);
  mbarrier_arrive_expect(&m->full[at.stage], BLOCK_BYTES);
  copy_bulk(m->block[at.stage], blocks + (size_t)chunk * BLOCK_BYTES, BLOCK_BYTES, &m->full[at.stage]);
}

// Of the chunk's keys how many each row sees. A row of no token sees those of the run's last one.
__device__ __forceinline__ void count_seen(int (&seen)[2], const exact_args &a, const token_run &run,
                                           int chunk) {
#pragma unroll
  for (int r = 0; r < 2; r++) {
    int t = token_of(a, run, r);
    seen[r] = a.batch.position[t < 0 ? run.first + run.count - 1 : t] + 1 - chunk * KEYS;
  }
}

// One run of the tile over its chunks.
__device__ __forceinline__ void attend_run(const exact_args &a, wgmma_memory *m, const two_rows &rows,
                                           const token_run &run, int kv_head, ring_place &at) {
  float out[EACH];
  exact_sums running[2];
#pragma unroll
  for (int i = 0; i < EACH; i++) out[i] = 0;
  const uint8_t *blocks = block_of(a.cache, a.layer, a.batch.sequence[run.first], kv_head, 0);
  int chunks = a.batch.position[run.first + run.count - 1] / KEYS + 1;
  int seen_by_all = (a.batch.position[run.first] + 1) / KEYS;
  if (threadIdx.x == 0) load_chunk(m, blocks, 0, at);
#pragma unroll 1
  for (int c = 0; c < chunks; c++) {
    ring_place ahead = at;
    ahead.next();
    if (threadIdx.x == 0 && c + 1 < chunks) load_chunk(m, blocks, c + 1, ahead);
    __syncwarp();
    mbarrier_wait(&m->full[at.stage], at.parity);
    const uint8_t *block = m->block[at.stage];
    const float *units = (const float *)(block + units_offset(DIMS));
    float scores[EACH];
    chunk_of_rows chunk;
    int seen[2] = {};
    score_keys(scores, rows, m, low_word(block), units);
    if (__all_sync(~0u, c < seen_by_all)) { // else ptxas sees lanes part, and serialises the products (C7520)
      weigh_keys<false>(chunk, scores, rows, seen, units + KEYS);
    } else {
      count_seen(seen, a, run, c);
      weigh_keys<true>(chunk, scores, rows, seen, units + KEYS);
    }
    add_values(out, running, chunk, low_word(block + values_offset(DIMS)));
    mbarrier_arrive_of_warp(&m->empty[at.stage]);
    at = ahead;
    if ((c + 1) % GROUP_CHUNKS && c + 1 < chunks) continue;
    fold_group(a, m, rows, run, kv_head, out, running, c < GROUP_CHUNKS, c + 1 == chunks);
#pragma unroll
    for (int r = 0; r < 2; r++) running[r] = exact_sums();
#pragma unroll
    for (int i = 0; i < EACH; i++) out[i] = 0;
  }
}

__global__ void __launch_bounds__(THREADS, 1) attend_wgmma(const __grid_constant__ exact_args a, int tiles) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  extern __shared__ __align__(1024) uint8_t exact_shared[];
  wgmma_memory *m = (wgmma_memory *)exact_shared;
  const query_limbs &q = a.work.queries;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      mbarrier_init(&m->full[i], 1);
      mbarrier_init(&m->empty[i], THREADS / WARP * ARRIVALS_OF_WARP);
    }
    fence_mbarrier_init();
  }
  __syncthreads();
  wait_for_inputs();
  int each = tokens_per_tile(q.n_heads / q.n_kv_heads), kv_head = blockIdx.x % q.n_kv_heads;
  int tile = tiles - 1 - blockIdx.x / q.n_kv_heads; // those with the most keys first
  int end = min((tile + 1) * each, a.batch.n);
  token_run run = {tile * each, tile * each, 0};
  two_rows rows;
  ring_place at;
  load_queries(rows, m, a, tile, kv_head);
#pragma unroll 1
  for (; run.first < end; run.first += run.count) {
    run.count = run_length(a.batch, run.first, end);
#pragma unroll
    for (int r = 0; r < 2; r++) {
      int t = token_of(a, run, r);
      rows.unit[r] = t < 0 ? 1.0f : 256.0f * q.unit[(size_t)t * q.n_heads + head_of(a, kv_head, r)];
    }
    attend_run(a, m, rows, run, kv_head, at);
  }
#endif
}

// ---- the host's side ----

bool exact_wgmma_serves(const exact_work *work, limb_cache cache, const dev_batch *) {
  static const bool is_built = has_hopper_kernel(attend_wgmma);
  int group = work->queries.n_heads / work->queries.n_kv_heads;
  return work->queries.dims == DIMS && cache.head_dim % 2 == 0 && group <= TILE_ROWS && is_built;
}

status exact_wgmma_launch(float *out, const exact_work *work, limb_cache cache, int layer, const dev_batch *b,
                          cudaStream_t stream) {
  exact_args a = {out, *work, cache, *b, layer};
  int tiles = ceil_div(b->n, tokens_per_tile(work->queries.n_heads / work->queries.n_kv_heads));
  return launch_shared(attend_wgmma, dim3((unsigned)(tiles * work->queries.n_kv_heads)), THREADS,
                       sizeof(wgmma_memory), stream, a, tiles);
}

#else // the emulated GPU has no warpgroups
bool exact_wgmma_serves(const exact_work *, limb_cache, const dev_batch *) {
  return false;
}

status exact_wgmma_launch(float *, const exact_work *, limb_cache, int, const dev_batch *, cudaStream_t) {
  return FAIL("CUDA: no Hopper kernels in this build");
}
#endif
