// token_attention: attention of token.cu: a key/value head's chunk by a thread block, and the fold of
// several.
//
// Chunks' results pass from block to block like other numbers (token_exchange.cuh), but with a tag of token
// and layer beside each two of them in place of a value that none has: all layers of all tokens share their
// places, which grow with the context, and nobody need clear them.
//
// Owns: which chunks and heads are whose, what is written to the cache. Independent of: how a chunk is
// computed (decode_chunk.cuh), the other phases.
#pragma once
#include "kernels/cuda/decode/decode_chunk.cuh"
#include "kernels/cuda/decode/token_exchange.cuh"
#include "kernels/cuda/decode/token_plan.cuh"

static_assert(sizeof(decode_memory) <= TOKEN_SCRATCH_BYTES && 4 * sizeof(folded<2, 8>) <= TOKEN_FOLDED_BYTES);

// Of a thread block's warps, of which some wait for all, and the others do not wait.
struct some_wait {
  uint64_t arrived;

  __device__ __forceinline__ void init(int warps) { // by one thread
    mbarrier_init(&arrived, warps);
  }
  __device__ __forceinline__ void arrive(bool waits, uint32_t turn) { // turn: how many were before this one
    unsigned turns = 0;
    __syncwarp();
    if (threadIdx.x % WARP == 0) mbarrier_arrive(&arrived);
    while (waits && !mbarrier_try_wait(&arrived, turn % 2)) spin(&turns);
  }
};

// Long because it is functions, each of them short, over one state.
template <int DIM, typename Shape> struct token_attention {
  static constexpr int WARPS = TOKEN_WARPS;
  const token_args &a;
  const token_layer &y;
  uint8_t *scratch; // TOKEN_SCRATCH_BYTES of shared memory
  float *set;
  int l, position;
  unsigned epoch;
  uint32_t meeting;
  some_wait &folds_there;
  int thread = (int)thread_number_late(), warp = thread / WARP, lane = thread % WARP, c = blockIdx.x;

  __device__ __forceinline__ token_plan plan() const { return plan_of<Shape>(a); }

  // The next layer's chunk of this thread block, to the L2 cache. Not where most blocks have one: so many are
  // in the way of what is waited for. By the warps from `first` on.
  __device__ __forceinline__ void prefetch(int next, int first) const {
    constexpr int LINE = 128;
    int kv_slices = plan().n_kv_heads * plan().slices, chunk = c / kv_slices, start = first * WARP;
    if (next >= a.p.n_layers || chunk >= plan().per_slice || chunk > position / KEYS) return;
    if (4 * (position / KEYS) > 3 * plan().per_slice) return;
    const uint8_t *block =
        block_of(a.w.cache, next, a.w.batch.sequence[0], c % kv_slices / plan().slices, chunk);
    for (int at = LINE * ((int)threadIdx.x - start); at < block_bytes(DIMS);
         at += LINE * (TOKEN_THREADS - start))
      prefetch_l2(block + at);
  }

  // ---- whose chunks ----

  // GPUs that divide the groups of chunks of a long cache, of which a thread block alone would have three or
  // more, so that it saves more than a transfer costs (two H200: with two chunks 5 % slower, with four and
  // five 14 % faster); else each has all of them.
  __device__ __forceinline__ int sharers() const {
    bool is_linked = Shape::FIXED ? Shape::LINKED : a.peers.n > 0;
    int most_blocks = parts_of(plan().hidden, WARPS) / (plan().n_kv_heads * plan().slices); // on every GPU
    bool is_long = position >= EXACT_GROUP && position / KEYS >= 2 * most_blocks;
    return is_linked && is_long ? a.peers.n : 1;
  }
  __device__ __forceinline__ int own_group(int i) const { // this GPU's i-th
    return sharers() == 1 ? i : i * sharers() + a.peers.rank;
  }
  __device__ __forceinline__ int own_chunk(int i) const {
    return own_group(i / GROUP_CHUNKS) * GROUP_CHUNKS + i % GROUP_CHUNKS;
  }
  // The thread block that has the new key and value, or where another GPU has them the first one: they go to
  // every GPU's cache.
  __device__ __forceinline__ bool writes_last(int own) const {
    int last = position / KEYS, group = last / GROUP_CHUNKS;
    if (group % sharers() != (sharers() == 1 ? 0 : a.peers.rank)) return own == 0;
    return (group / sharers() * GROUP_CHUNKS + last % GROUP_CHUNKS - own) % plan().per_slice == 0;
  }

  __device__ __forceinline__ bool has_several() const { // chunks, which are folded
    return position >= KEYS;
  }
  __device__ __forceinline__ bool has_chunk(int block) const {
    int own = block / (plan().n_kv_heads * plan().slices);
    return own < plan().per_slice && own_chunk(own) <= position / KEYS;
  }

  __device__ __forceinline__ void attend() {
    int slices = plan().slices, which = c % (plan().n_kv_heads * slices),
        own = c / (plan().n_kv_heads * slices);
    int last = position / KEYS, each = plan().per_slice, chunk = own_chunk(own);
    bool has_last = own < each && writes_last(own);
    if (!has_chunk(c) && !has_last) return;
    int kv = which / slices, slice = which % slices, group = plan().n_heads / plan().n_kv_heads;
    int first_head = kv * group + slice * HEADS, heads = min(HEADS, group - slice * HEADS);
    bool is_query = warp < heads, is_fresh = has_last && warp / 2 == HEADS / 2;
    decode_memory *m = (decode_memory *)scratch;
    uint8_t *blocks = block_of(a.w.cache, l, a.w.batch.sequence[0], kv, 0);
    auto cached = [&](int of) { return min(KEYS, position - of * KEYS); }; // by earlier tokens
    auto block = [&](int of) { return blocks + (size_t)min(of, last) * block_bytes(DIMS); };
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
    for (int next; chunk <= last; chunk = next) {
      next = own_chunk(own += each);
      if (chunk == last) limbs.put_fresh(m, position % KEYS);
      score_keys(m, limbs);
      if (next <= last) limbs.load_keys(block(next), cached(next));
      __syncthreads();
      if (is_query) weigh_keys(m, limbs.value_unit, warp, min(KEYS, position + 1 - chunk * KEYS));
      __syncthreads();
      store_chunk(
          m, limbs, heads, !has_several(),
          [&](int head, int d, float2 out) {
            float *to = set + plan().at_att + (first_head + head) * DIM + d;
            pass_on(to, out.x);
            pass_on(to + 1, out.y);
          },
          [&](int head, int d, float2 out) {
            store_relaxed_tagged(part_at(first_head + head, chunk, d), {out.x, out.y, tag()});
          },
          [&](int head, float max, float sum) {
            store_relaxed_tagged(sums_at(first_head + head, chunk), {max, sum, tag()});
          });
      if (next <= last) limbs.load_values(block(next), cached(next));
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

  // ---- the fold of several chunks: a thread block 64 dimensions of a head, a warp 16 of a group ----

  // So that all of a group's numbers are on their way at once: lane l has two dimensions, 2 (l % 8) and the
  // next, of chunk l / 8 of each four.
  static constexpr int EACH = 2, SLICE = 16, SLICES = 4, LANES = SLICE / EACH, AT_ONCE = WARP / LANES,
                       LOADS = GROUP_CHUNKS / AT_ONCE, PARTS = DIM / (SLICES * SLICE);

  __device__ __forceinline__ uint64_t tag() const {
    return (uint64_t)epoch << 32 | (uint32_t)l;
  }
  __device__ __forceinline__ tagged_pair *sums_at(int head, int chunk) const {
    return a.parts + (size_t)head * (position / KEYS + 1) + chunk;
  }
  __device__ __forceinline__ tagged_pair *part_at(int head, int chunk, int d) const {
    return sums_at(plan().n_heads, 0) + (sums_at(head, chunk) - a.parts) * (DIM / 2) + d / 2;
  }

  // The blocks that have no chunk first: they are waiting already. meanwhile: in each turn of a wait.
  template <typename Meanwhile> __device__ __forceinline__ void fold(const Meanwhile &meanwhile) {
    int n_groups = position / EXACT_GROUP + 1, items = plan().n_heads * PARTS, slice = warp % SLICES;
    bool is_shared = sharers() > 1;
    if (!has_several()) return;
    uint32_t turn = 0, first = gridDim.x - 1 - c, of_layer = ((uint32_t)items - 1 - first) / gridDim.x + 1;
#pragma unroll 1
    for (int item = (int)first; item < items; item += (int)gridDim.x, turn++) {
      folded<EACH, LANES> *groups = (folded<EACH, LANES> *)scratch; // [groups][SLICES]
      int head = item / PARTS, d = (item % PARTS * SLICES + slice) * SLICE + lane % LANES * EACH;
      head_sums<EACH> sums;
      if (n_groups > 1 && !is_shared) __syncthreads(); // the scratch memory is free
#pragma unroll 1
      for (int i = warp / SLICES; own_group(i) < n_groups; i += WARPS / SLICES) {
        group_sums<EACH> group = fold_chunks(head, own_group(i), d, meanwhile);
        if (is_shared)
          send_group(head, own_group(i), d, group);
        else if (n_groups > 1)
          groups[i * SLICES + slice].keep(group);
        else
          sums.take_in(group.max, group.sum, group.out);
      }
      if (n_groups > 1 && !is_shared) folds_there.arrive(warp < SLICES, of_layer * (uint32_t)l + turn);
      if (warp >= SLICES) continue;
      if (is_shared) take_groups(&sums, head, d, n_groups);
#pragma unroll 1
      for (int g = 0; g < n_groups && n_groups > 1 && !is_shared; g++)
        sums.take_in(groups[g * SLICES + slice]);
      if (lane >= LANES) continue;
      for (int i = 0; i < EACH; i++) pass_on(set + plan().at_att + head * DIM + d + i, sums.output(i));
    }
  }

  // ---- groups that GPUs divide ----
  //
  // [n_layers] of [n_heads][most_groups] maximum and sum, then [n_heads][most_groups][DIM / 2] of the output.
  // Layers have places of their own: a GPU that needs nothing of another may be layers ahead of it, but not a
  // token (token_peers.cuh).

  __device__ __forceinline__ tagged_pair *group_sums_at(int head, int g) const {
    size_t of_layer = (size_t)plan().n_heads * a.most_groups;
    return a.groups + l * of_layer * (1 + DIM / 2) + (size_t)head * a.most_groups + g;
  }
  __device__ __forceinline__ tagged_pair *group_at(int head, int g, int d) const {
    tagged_pair *start = group_sums_at(0, 0);
    return start + (size_t)plan().n_heads * a.most_groups + (group_sums_at(head, g) - start) * (DIM / 2) +
           d / 2;
  }

  // By a warp, to all GPUs, this one counted.
  __device__ __forceinline__ void send_group(int head, int g, int d, const group_sums<EACH> &group) const {
    if (l == 0) await_peers(a.peers, meeting);
    __syncwarp();
    if (lane > LANES) return;
    bool is_sums = lane == LANES; // d is the first lane's there
    tagged_pair *own = is_sums ? group_sums_at(head, g) : group_at(head, g, d);
    if (is_sums && d % (SLICES * SLICE)) return;
#pragma unroll 1
    for (int r = 0; r < a.peers.n; r++)
      store_tagged_system(r == a.peers.rank ? own : at_peer(a.peers, own, r),
                          {is_sums ? group.max : group.out[0], is_sums ? group.sum : group.out[1], tag()});
  }

  // By a warp: all groups ascending, four at a time, eight lanes each.
  __device__ __forceinline__ void take_groups(head_sums<EACH> *to, int head, int d, int n_groups) const {
#pragma unroll 1
    for (int from = 0; from < n_groups; from += AT_ONCE) {
      int g = min(from + lane / LANES, n_groups - 1);
      tagged_pair sums, pair;
      wait_for_peer(a.peers, [&] {
        sums = load_tagged_system(group_sums_at(head, g));
        pair = load_tagged_system(group_at(head, g, d));
        return sums.tag == tag() && pair.tag == tag();
      });
      __syncwarp();
#pragma unroll 1
      for (int k = 0; k < AT_ONCE && from + k < n_groups; k++) {
        int source = k * LANES + lane % LANES;
        float max = __shfl_sync(~0u, sums.x, source), sum = __shfl_sync(~0u, sums.y, source);
        to->take_in(max, sum, {__shfl_sync(~0u, pair.x, source), __shfl_sync(~0u, pair.y, source)});
      }
    }
  }

  // Dimensions d and the next of group g of a head.
  template <typename Meanwhile>
  __device__ __forceinline__ group_sums<EACH> fold_chunks(int head, int g, int d,
                                                          const Meanwhile &meanwhile) const {
    int first = g * GROUP_CHUNKS, count = min(GROUP_CHUNKS, position / KEYS + 1 - first);
    unsigned turns = 0;
    const tagged_pair *at = sums_at(head, first + min(lane, count - 1));
    tagged_pair part[LOADS], mine = load_relaxed_tagged(at);
    while (__ballot_sync(~0u, mine.tag == tag()) != ~0u) {
      spin(&turns);
      if (lane == WATCHING_LANE) meanwhile();
      mine = load_relaxed_tagged(at);
    }
    for (bool are_there = false; !are_there;) {
      bool all = true;
#pragma unroll
      for (int i = 0; i < LOADS; i++) {
        int k = i * AT_ONCE + lane / LANES;
        part[i] = {0, 0, tag()};
        if (k < count) part[i] = load_relaxed_tagged(part_at(head, first + k, d));
      }
#pragma unroll
      for (int i = 0; i < LOADS; i++) all = all && part[i].tag == tag();
      are_there = __ballot_sync(~0u, all) == ~0u;
      if (!are_there) spin(&turns);
    }
    group_factors factors(mine.x, mine.y);
    group_sums<EACH> sums = {factors.both, 0, {}};
#pragma unroll
    for (int k = 0; k < GROUP_CHUNKS; k++) {
      if (k >= count) break;
      int from = k % AT_ONCE * LANES + lane % LANES;
      const tagged_pair &p = part[k / AT_ONCE];
      sums.take_in(factors, k, {__shfl_sync(~0u, p.x, from), __shfl_sync(~0u, p.y, from)});
    }
    return sums;
  }
};
