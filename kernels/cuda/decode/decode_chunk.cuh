// decode_chunk: one chunk of exact attention by a thread block of WARPS warps, for one token and up to eight
// heads that share it; and the fold of chunks. For the kernels of one token of a sequence: decode_exact.cu,
// token.cu.
//
// With the high and the low limbs of eight heads the tensor cores' 16 rows are full, and every byte of the
// cache is wanted by one lane only. So it goes from memory to registers, all of a chunk at once. A sum of
// integers has no order: a lane multiplies the 16 neighbours that one load gives it, whichever columns of the
// product they are.
//
// Independent of: which chunks and heads a thread block takes, and how it learns that their inputs are there.
#pragma once
#include "kernels/cuda/decode/head_row.cuh"
#include "kernels/cuda/exact/attend.cuh"

static constexpr int HEADS = 8;
static constexpr int KEYS = EXACT_CHUNK, DIMS = 128, SPANS = KEYS / SPAN;
static constexpr int TILE = 8; // columns of a product
static_assert(SPAN == 4 * 16 && KEYS % WARP == 0);

struct decode_memory {
  __align__(16) uint8_t query[2][HEADS][ROW];  // limbs, pieces permuted as in a block
  __align__(16) uint8_t weight[2][HEADS][ROW]; // in the order of a row of values
  __align__(16) uint8_t fresh[2][2][ROW];      // limbs of the new key and of the new value
  float score[HEADS][KEYS + 4];
  float query_unit[HEADS], unit[HEADS], max[HEADS], sum[HEADS]; // unit: of the weights
  float fresh_unit[2];
};

// The warp's row as limbs, with what is its unit; lane l has elements l + 32 i.
template <int DIM> struct limb_row {
  static constexpr int EACH = DIM / WARP;
  int x[EACH];
  float unit;
  __device__ __forceinline__ void round(const head_row<DIM> &row, const float (&balance)[EACH]) {
    float value[EACH];
    uint32_t largest = 0;
    for (int i = 0; i < EACH; i++) {
      value[i] = row.x[i] * balance[i];
      largest = max(largest, exact_magnitude(value[i]));
    }
    exact_scale s = exact_vector_scale(__reduce_max_sync(~0u, largest));
    for (int i = 0; i < EACH; i++) x[i] = exact_integer(value[i], s);
    unit = s.unit;
  }
};

// ---- what a lane multiplies of a chunk ----

__device__ __forceinline__ void put_byte(uint4 &to, int place, uint32_t byte) {
  int shift = place % 4 * 8;
  uint32_t keep = ~(255u << shift), bits = byte << shift;
  if (place / 4 == 0) to.x = (to.x & keep) | bits;
  if (place / 4 == 1) to.y = (to.y & keep) | bits;
  if (place / 4 == 2) to.z = (to.z & keep) | bits;
  if (place / 4 == 3) to.w = (to.w & keep) | bits;
}

// Where there are more warps than tiles of values, the later ones have rows of zeros.
template <int DIM, int WARPS> struct chunk_limbs {
  static constexpr int WARP_KEYS = KEYS / WARPS, KEY_TILES = WARP_KEYS / TILE;
  static constexpr int PARTS = DIM / 64,
                       VALUE_TILES = (DIM + WARPS * TILE - 1) / (WARPS * TILE); // of 64 dimensions
  static_assert(KEY_TILES >= 1 && WARPS * VALUE_TILES * TILE <= DIMS);
  uint4 key[KEY_TILES][PARTS][2], value[VALUE_TILES][SPANS][2]; // [..][..][limb]
  float2 key_unit[KEY_TILES];
  float value_unit[KEYS / WARP];

  __device__ __forceinline__ static int key_of(int i) {
    return threadIdx.x / WARP * WARP_KEYS + i * TILE + threadIdx.x % WARP / 4;
  }
  __device__ __forceinline__ static int dimension_of(int i) {
    return (threadIdx.x / WARP * VALUE_TILES + i) * TILE + threadIdx.x % WARP / 4;
  }

  // Of the chunk's first n keys; the others are not read.
  __device__ __forceinline__ void load_keys(const uint8_t *block, int n) {
    int c = threadIdx.x % 4;
    const float *units = (const float *)(block + units_offset(DIMS));
#pragma unroll
    for (int i = 0; i < KEY_TILES; i++) {
      const uint8_t *row = block + key_of(i) * ROW;
      key_unit[i] = __ldcg((const float2 *)(units + threadIdx.x / WARP * WARP_KEYS + i * TILE + 2 * c));
#pragma unroll
      for (int j = 0; j < 2 * PARTS; j++) {
        key[i][j / 2][j % 2] = make_uint4(0, 0, 0, 0);
        if (key_of(i) < n)
          key[i][j / 2][j % 2] = load_16_once(row + j % 2 * KEYS * DIMS + piece_at(key_of(i), j / 2 * 4 + c));
      }
    }
  }

  __device__ __forceinline__ void load_values(const uint8_t *block, int n) {
    int c = threadIdx.x % 4;
    const float *units = (const float *)(block + units_offset(DIMS)) + KEYS;
#pragma unroll
    for (int i = 0; i < VALUE_TILES; i++)
#pragma unroll
      for (int j = 0; j < 2 * SPANS; j++) {
        int d = dimension_of(i), span = j / 2;
        value[i][span][j % 2] = make_uint4(0, 0, 0, 0);
        if (span * SPAN + 16 * c < n)
          value[i][span][j % 2] =
              load_16_once(block + value_row(DIMS, span * SPAN, d) + piece_at(d, j % 2 * 4 + c));
      }
#pragma unroll
    for (int i = 0; i < KEYS / WARP; i++) value_unit[i] = __ldcg(units + threadIdx.x % WARP + WARP * i);
  }

  // Puts the new key and value in, which are not in the cache yet.
  __device__ __forceinline__ void put_fresh(const decode_memory *m, int at) {
    int c = threadIdx.x % 4, place = place_of_key(at % 16);
#pragma unroll
    for (int i = 0; i < KEY_TILES; i++) {
      int first = threadIdx.x / WARP * WARP_KEYS + i * TILE + 2 * c;
      if (first == at) key_unit[i].x = m->fresh_unit[0];
      if (first + 1 == at) key_unit[i].y = m->fresh_unit[0];
#pragma unroll
      for (int j = 0; j < 2 * PARTS; j++)
        if (key_of(i) == at) key[i][j / 2][j % 2] = *(const uint4 *)&m->fresh[0][j % 2][(j / 2 * 4 + c) * 16];
    }
#pragma unroll
    for (int i = 0; i < VALUE_TILES; i++)
#pragma unroll
      for (int j = 0; j < 2 * SPANS; j++) {
        if (j / 2 * SPAN + 16 * c != at / 16 * 16) continue;
        put_byte(value[i][j / 2][j % 2], place, m->fresh[1][j % 2][dimension_of(i)]);
      }
    for (int i = 0; i < KEYS / WARP; i++)
      if ((int)threadIdx.x % WARP + WARP * i == at)
        value_unit[i] = exact_value_unit(m->fresh_unit[0], m->fresh_unit[1]);
  }
};

// sums += rows (high limbs of eight heads, then their low ones) times columns, 16 neighbours of each.
__device__ __forceinline__ void multiply_16(int (&sums)[4], const uint4 &high, const uint4 &low,
                                            const uint4 &columns) {
  uint32_t first[4] = {high.x, low.x, high.y, low.y}, second[4] = {high.z, low.z, high.w, low.w};
  mma_k32(sums, first, columns.x, columns.y);
  mma_k32(sums, second, columns.z, columns.w);
}

__device__ __forceinline__ uint4 row_piece(const uint8_t (&row)[ROW], int head, int piece) {
  return *(const uint4 *)&row[piece_at(head, piece)];
}

// Each warp: scores of its keys of all heads.
template <int DIM, int WARPS>
__device__ __forceinline__ void score_keys(decode_memory *m, const chunk_limbs<DIM, WARPS> &limbs) {
  constexpr int KEY_TILES = chunk_limbs<DIM, WARPS>::KEY_TILES,
                WARP_KEYS = chunk_limbs<DIM, WARPS>::WARP_KEYS;
  int c = threadIdx.x % 4, head = threadIdx.x % WARP / 4;
  int by_high[KEY_TILES][4] = {}, by_low[KEY_TILES][4] = {}; // of the keys' limbs
#pragma unroll
  for (int p = 0; p < chunk_limbs<DIM, WARPS>::PARTS; p++) {
    uint4 high = row_piece(m->query[0][head], head, 4 * p + c);
    uint4 low = row_piece(m->query[1][head], head, 4 * p + c);
#pragma unroll
    for (int i = 0; i < KEY_TILES; i++) {
      multiply_16(by_high[i], high, low, limbs.key[i][p][0]);
      multiply_16(by_low[i], high, low, limbs.key[i][p][1]);
    }
  }
#pragma unroll
  for (int i = 0; i < 2 * KEY_TILES; i++) {
    int key = threadIdx.x / WARP * WARP_KEYS + i / 2 * TILE + 2 * c + i % 2;
    int sum = exact_score_sum(by_high[i / 2][i % 2], by_high[i / 2][i % 2 + 2] + by_low[i / 2][i % 2]);
    float unit = i % 2 ? limbs.key_unit[i / 2].y : limbs.key_unit[i / 2].x;
    m->score[head][key] = exact_score(sum, m->query_unit[head] * unit);
  }
}

// Warp h: head h's scores of the chunk's n keys become limbs of weights.
__device__ __forceinline__ void weigh_keys(decode_memory *m, const float (&value_unit)[KEYS / WARP], int h,
                                           int n) {
  constexpr int EACH = KEYS / WARP;
  int lane = threadIdx.x % WARP, count = 0;
  float x[EACH], largest = -INFINITY;
  uint32_t most = 0;
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    x[i] = m->score[h][lane + WARP * i];
    if (lane + WARP * i < n) largest = fmaxf(largest, x[i]);
  }
  largest = warp_max(largest);
  float bias = exact_bias(largest);
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    float e = exact_exp(exact_z(x[i], bias));
    x[i] = 0;
    if (lane + WARP * i >= n) continue;
    count += exact_count(e);
    x[i] = e * value_unit[i];
    most = max(most, exact_magnitude(x[i]));
  }
  exact_scale of_weights = exact_weight_scale(__reduce_max_sync(~0u, most));
  count = warp_sum(count);
#pragma unroll
  for (int i = 0; i < EACH; i++) {
    int key = lane + WARP * i, w = exact_integer(x[i], of_weights),
        at = piece_at(h, key / 16) + place_of_key(key % 16);
    m->weight[0][h][at] = high_limb(w);
    m->weight[1][h][at] = low_limb(w);
  }
  if (lane) return;
  m->unit[h] = of_weights.unit;
  m->max[h] = largest;
  m->sum[h] = exact_sum(count);
}

// Eight dimensions of all heads: of head l / 4, the tile's dimensions 2 (l % 4) and the next.
template <int DIM, int WARPS>
__device__ __forceinline__ float2 weigh_values(const decode_memory *m, const chunk_limbs<DIM, WARPS> &limbs,
                                               int i) {
  int c = threadIdx.x % 4, head = threadIdx.x % WARP / 4;
  int by_high[4] = {}, by_low[4] = {}; // of the values' limbs
#pragma unroll
  for (int span = 0; span < SPANS; span++) {
    uint4 high = row_piece(m->weight[0][head], head, 4 * span + c);
    uint4 low = row_piece(m->weight[1][head], head, 4 * span + c);
    multiply_16(by_high, high, low, limbs.value[i][span][0]);
    multiply_16(by_low, high, low, limbs.value[i][span][1]);
  }
  float unit = m->unit[head];
  return make_float2(exact_output(exact_output_sum(by_high[0], by_high[2] + by_low[0], by_low[2]), unit),
                     exact_output(exact_output_sum(by_high[1], by_high[3] + by_low[1], by_low[3]), unit));
}

// The chunk's result of all heads: of an only chunk output(head, dimension, two numbers); else, each relative
// to the head's maximum, part(head, dimension, two numbers) and sums(head, maximum, sum), for the fold.
template <int DIM, int WARPS, typename Output, typename Part, typename Sums>
__device__ __forceinline__ void store_chunk(const decode_memory *m, const chunk_limbs<DIM, WARPS> &limbs,
                                            int heads, bool is_only, const Output &output, const Part &part,
                                            const Sums &sums) {
  constexpr int TILES = chunk_limbs<DIM, WARPS>::VALUE_TILES;
  int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, head = lane / 4;
  float inverse = is_only ? exact_inverse(m->sum[head], m->query_unit[head]) : 1.0f;
#pragma unroll
  for (int i = 0; i < TILES; i++) {
    float2 out = weigh_values(m, limbs, i);
    int d = (warp * TILES + i) * TILE + lane % 4 * 2;
    if (head >= heads || d >= DIM) continue;
    if (is_only)
      output(head, d, make_float2(out.x * inverse, out.y * inverse));
    else
      part(head, d, out);
  }
  if (is_only || warp >= heads || lane) return;
  float unit = m->query_unit[warp];
  sums(warp, m->max[warp], unit == unit ? m->sum[warp] : unit);
}

// ---- the new token: its queries, key and value ----

// The warp's row, rounded, into shared memory: pieces permuted as for `row`.
template <int DIM>
__device__ __forceinline__ void publish_row(uint8_t *high, uint8_t *low, const limb_row<DIM> &rounded,
                                            int row) {
#pragma unroll
  for (int i = 0; i < limb_row<DIM>::EACH; i++) {
    int d = threadIdx.x % WARP + WARP * i, at = piece_at(row, d / 16) + d % 16;
    high[at] = high_limb(rounded.x[i]);
    low[at] = low_limb(rounded.x[i]);
  }
}

// A warp: the new key (which = 0) or value (1); where `block` is not NULL into the cache as well.
template <int DIM>
__device__ __forceinline__ void publish_fresh(decode_memory *m, const limb_row<DIM> &rounded, int which,
                                              uint8_t *block, int at) {
  int lane = threadIdx.x % WARP;
  publish_row<DIM>(m->fresh[which][0], m->fresh[which][1], rounded, 0);
  if (lane == 0) m->fresh_unit[which] = rounded.unit;
  if (!block) return;
#pragma unroll
  for (int i = 0; i < limb_row<DIM>::EACH; i++) {
    int d = lane + WARP * i, x = rounded.x[i];
    block[which ? value_at(DIMS, 0, at, d) : key_at(DIMS, 0, at, d)] = high_limb(x);
    block[which ? value_at(DIMS, 1, at, d) : key_at(DIMS, 1, at, d)] = low_limb(x);
  }
}

// ---- folds ----

// Of a group of up to 32 chunks: lane k has the k-th one's maximum and sum, and what their sums are rescaled
// by when it is folded in.
struct group_factors {
  float sum, old, fresh, both;

  __device__ __forceinline__ group_factors(float max, float its_sum) : sum(its_sum), both(max) {
    static_assert(GROUP_CHUNKS == WARP);
    for (int s = 1; s < WARP; s *= 2) both = fmaxf(both, __shfl_up_sync(~0u, both, s));
    float previous = __shfl_up_sync(~0u, both, 1);
    if (threadIdx.x % WARP == 0) previous = -INFINITY;
    old = exact_rescale(previous, both);
    fresh = exact_rescale(max, both);
    both = __shfl_sync(~0u, both, WARP - 1);
  }
};

// EACH dimensions of a group in each lane.
template <int EACH> struct group_sums {
  float max, sum, out[EACH];

  __device__ __forceinline__ void take_in(const group_factors &f, int k, const float (&part)[EACH]) {
    float its_sum = __shfl_sync(~0u, f.sum, k), fresh = __shfl_sync(~0u, f.fresh, k),
          old = __shfl_sync(~0u, f.old, k);
    sum = num_fma_f32(its_sum, fresh, sum * old);
    for (int i = 0; i < EACH; i++) out[i] = num_fma_f32(part[i], fresh, out[i] * old);
  }
};

template <int EACH, int LANES> struct folded { // of a group, in shared memory
  float max, sum, out[LANES][EACH];

  __device__ __forceinline__ void keep(const group_sums<EACH> &g) {
    int lane = threadIdx.x % WARP;
    for (int i = 0; i < EACH && lane < LANES; i++) out[lane][i] = g.out[i];
    if (lane) return;
    max = g.max;
    sum = g.sum;
  }
};

// Groups ascending, then over their sum.
template <int EACH> struct head_sums {
  exact_sums total;
  float out[EACH] = {};

  __device__ __forceinline__ void take_in(float max, float sum, const float (&of_group)[EACH]) {
    float old, fresh;
    total.fold(max, sum, &old, &fresh);
    for (int i = 0; i < EACH; i++) out[i] = num_fma_f32(of_group[i], fresh, out[i] * old);
  }
  template <int LANES> __device__ __forceinline__ void take_in(const folded<EACH, LANES> &g) {
    take_in(g.max, g.sum, g.out[threadIdx.x % LANES]);
  }
  __device__ __forceinline__ float output(int i) const { return out[i] * (1.0f / total.sum); }
};
