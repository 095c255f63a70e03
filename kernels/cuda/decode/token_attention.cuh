// token_attention: attention of token.cu: a key/value head's chunk by a thread block, and the fold of
// several.
//
// Owns: which chunks and heads are whose, what is written to the cache. Independent of: how a chunk is
// computed (decode_chunk.cuh), the other phases.
#pragma once
#include "kernels/cuda/decode/decode_chunk.cuh"
#include "kernels/cuda/decode/token_exchange.cuh"
#include "kernels/cuda/decode/token_plan.cuh"

static_assert(sizeof(decode_memory) <= TOKEN_SCRATCH_BYTES && sizeof(folded) <= TOKEN_FOLDED_BYTES);

// Long because it is functions, each of them short, over one state.
template <int DIM, typename Shape> struct token_attention {
  static constexpr int WARPS = TOKEN_WARPS;
  const token_args &a;
  const token_layer &y;
  uint8_t *scratch; // TOKEN_SCRATCH_BYTES of shared memory
  float *set;
  int l, position;
  int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, c = blockIdx.x;

  __device__ __forceinline__ token_plan plan() const { return plan_of<Shape>(a); }

  // The next layer's chunk of this thread block, to the L2 cache, where long caches leave nothing of the
  // token before. By the warps from `first` on.
  __device__ __forceinline__ void prefetch(int next, int first) const {
    constexpr int LINE = 128;
    int kv_slices = plan().n_kv_heads * plan().slices, chunk = c / kv_slices, start = first * WARP;
    if (next >= a.p.n_layers || chunk >= plan().per_slice || chunk > position / KEYS) return;
    const uint8_t *block =
        block_of(a.w.cache, next, a.w.batch.sequence[0], c % kv_slices / plan().slices, chunk);
    for (int at = LINE * ((int)threadIdx.x - start); at < block_bytes(DIMS);
         at += LINE * (TOKEN_THREADS - start))
      prefetch_l2(block + at);
  }

  __device__ __forceinline__ bool has_chunk(int block) const {
    int chunk = block / (plan().n_kv_heads * plan().slices);
    return chunk < plan().per_slice && chunk <= position / KEYS;
  }

  __device__ __forceinline__ void attend() {
    int slices = plan().slices, which = c % (plan().n_kv_heads * slices),
        chunk = c / (plan().n_kv_heads * slices);
    int last = position / KEYS, each = plan().per_slice;
    if (!has_chunk(c)) return;
    int kv = which / slices, slice = which % slices, group = plan().n_heads / plan().n_kv_heads;
    int first_head = kv * group + slice * HEADS, heads = min(HEADS, group - slice * HEADS);
    bool has_last = (last - chunk) % each == 0, is_query = warp < heads,
         is_fresh = has_last && warp / 2 == HEADS / 2;
    decode_memory *m = (decode_memory *)scratch;
    uint8_t *blocks = block_of(a.w.cache, l, a.w.batch.sequence[0], kv, 0);
    auto cached = [&](int of) { return min(KEYS, position - of * KEYS); }; // by earlier tokens
    auto block = [&](int of) { return blocks + (size_t)of * block_bytes(DIMS); };
    chunk_limbs<DIM, WARPS> limbs;
    limbs.load_keys(block(chunk), cached(chunk));
    limbs.load_values(block(chunk), cached(chunk));
    prepare_heads(m, first_head + warp, kv, is_query, is_fresh, slice ? nullptr : block(last));
    __syncthreads();
    if (has_last && slice == 0 && threadIdx.x == 0) {
      float *units = units_of(block(last), DIMS) + position % KEYS;
      units[0] = m->fresh_unit[0];
      units[KEYS] = exact_value_unit(m->fresh_unit[0], m->fresh_unit[1]);
    }
#pragma unroll 1
    for (; chunk <= last; chunk += each) {
      int next = chunk + each;
      if (chunk == last) limbs.put_fresh(m, position % KEYS);
      score_keys(m, limbs);
      if (next <= last) limbs.load_keys(block(next), cached(next));
      __syncthreads();
      if (is_query) weigh_keys(m, limbs.value_unit, warp, min(KEYS, position + 1 - chunk * KEYS));
      __syncthreads();
      store_chunk(m, limbs, a.w.exact, (size_t)first_head, heads, chunk, last + 1,
                  [&](int head, int d, float2 out) {
                    float *to = set + plan().at_att + (first_head + head) * DIM + d;
                    pass_on(to, out.x);
                    pass_on(to + 1, out.y);
                  });
      if (next <= last) limbs.load_values(block(next), cached(next));
      if (last == 0) continue;
      __syncthreads();
      if (threadIdx.x == 0) add_release((unsigned *)(set + plan().at_counters) + which, 1);
    }
  }

  // Warps 0 .. heads - 1 a query each, warps 8 and 9 the new key and value; `cache`: the block that these go
  // to.
  __device__ __forceinline__ void prepare_heads(decode_memory *m, int head, int kv, bool is_query,
                                                bool is_fresh, uint8_t *cache) const {
    if (!is_query && !is_fresh) return;
    int which = is_query ? -1 : warp - HEADS; // 0: key, 1: value
    head_row<DIM> row = {};
    limb_row<DIM> rounded;
    float balance[DIM / WARP];
    const float *balance_of = which < 0 ? y.q_balance : y.k_balance;
    if (which < 1) row.constants(which < 0 ? y.q_norm : y.k_norm, a.w.rope + (size_t)position * DIM);
    for (int i = 0; i < DIM / WARP; i++) balance[i] = which == 1 ? 1.0f : balance_of[lane + WARP * i];
    int first = which < 0 ? head * DIM : plan().qkv_rows[0] + which * plan().qkv_rows[1] + kv * DIM;
    const float *from = set + plan().at_qkv + first;
    wait_strided(row.x, from);
    if (which < 1) row.norm_and_rotate(a.w.epsilon, which < 0 ? a.scale : 1.0f);
    rounded.round(row, balance);
    if (which >= 0) {
      publish_fresh<DIM>(m, rounded, which, cache, position % KEYS);
      return;
    }
    publish_row<DIM>(m->query[0][warp], m->query[1][warp], rounded, warp);
    if (lane == 0) m->query_unit[warp] = rounded.unit;
  }

  __device__ __forceinline__ void fold() {
    constexpr int PARTS = DIM / WARP;
    int chunks = position / KEYS + 1, n_groups = (chunks + GROUP_CHUNKS - 1) / GROUP_CHUNKS;
    folded *groups = (folded *)scratch;
    if (chunks == 1) return;
#pragma unroll 1
    for (int item = c; item < plan().n_heads * PARTS; item += (int)gridDim.x) {
      int head = item / PARTS, d = item % PARTS * WARP + lane, group = plan().n_heads / plan().n_kv_heads;
      const unsigned *arrived =
          (const unsigned *)(set + plan().at_counters) + head / group * plan().slices + head % group / HEADS;
      __syncthreads(); // the scratch memory is free
      unsigned turns = 0;
      if (threadIdx.x == 0)
        while (load_acquire(arrived) + 1 != (unsigned)chunks) spin(&turns);
      __syncthreads();
      for (int g = warp; g < n_groups; g += WARPS)
        fold_chunks(&groups[g], a.w.exact, (size_t)head * chunks + g * GROUP_CHUNKS,
                    min(GROUP_CHUNKS, chunks - g * GROUP_CHUNKS), DIM, d);
      __syncthreads();
      if (warp == 0) pass_on(set + plan().at_att + head * DIM + d, fold_groups(groups, n_groups));
    }
  }
};
