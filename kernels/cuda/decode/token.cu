// token: all layers of one token in one launch. Every thread block has a share of every matrix; between
// phases numbers pass from block to block (token_exchange.cuh), and the next phases' weights travel to shared
// memory meanwhile.
//
//   phase     a thread block                                   passes on
//   qkv       norm; its rows of q, k and v                     qkv
//   attend    a key/value head's chunk, if there is one for it  att
//   fold      of several chunks: 32 dimensions of a head       att
//   output    its rows of o, and of the residual stream        middle
//   route     norm; its experts of the router                  logits
//   gate_up   choice; its rows of a slot's gate and up         hidden
//   down      its rows of the stream of all slots' down; sum   stream
//
// Where several GPUs have the experts, each runs all phases but the other GPUs' slots, whose rows of down
// each block exchanges with the block of its number there (token_peers.cuh); gate and up of a GPU's own slots
// go over all its blocks.
//
// Every thread block norms and rounds, and chooses the experts, for itself: that is faster than to wait for
// one that does. What bounds a layer is latency, so a phase's loads that depend on nothing come before its
// wait.
//
// Invariant: the bits of decode.cuh's launches, which docs/paths.md defines.
#include "kernels/cuda/decode/token_attention.cuh"
#include "kernels/cuda/decode/token_choice.cuh"
#include "kernels/cuda/decode/token_peers.cuh"
#include <string.h>

static constexpr int WARPS = TOKEN_WARPS, THREADS = TOKEN_THREADS;
enum { ROUTER_WARP = 8, COMBINE_WARP = 9 }; // the first ones round, or wait for the stream, meanwhile

struct token_small { // shared memory of a thread block
  uint64_t landed_a[WARPS], landed_b[WARPS], landed_router;
  token_layer layer[2]; // this one's and the next
  float y[TOKEN_TOP_K][TOKEN_ROWS];
  float stream[TOKEN_ROWS]; // the block's own rows
  float g[TOKEN_TOP_K], weight[TOKEN_TOP_K];
  int member[TOKEN_TOP_K];
  slot_share share; // linked: the block's
  float inverse;
};
static_assert(sizeof(token_small) <= TOKEN_SMALL_BYTES && sizeof(token_layer) % 4 == 0);

// ---- a thread block ----

// HB, AB, WB: blocks of 256 of the hidden row, of attention's output and of an expert's row, or 0: as the
// plan says.
//
// Long because it is functions, each of them short, over one state.
template <int DIM, typename Shape> struct token_block {
  static constexpr int HB = Shape::plan().hidden_blocks, AB = Shape::plan().attended_blocks,
                       WB = Shape::plan().width_blocks;
  static constexpr type_set MOST = Shape::FIXED ? Q4_ALONE : ALL_TYPES,
                            SOME = Shape::FIXED ? Q4_OR_Q6 : ALL_TYPES;
  const token_args &a;
  uint8_t *memory;
  token_small *small;
  weights_place place_a, place_b, place_router;
  float *set;       // this token's numbers of this layer
  unsigned epoch;   // tokens so far
  uint32_t meeting; // linked: of the ranks, before this token's first store to them
  int warp, lane, c, l, position;
  int local[TOKEN_EXPERTS / WARP]; // warp 0: members of the lane's experts

  __device__ __forceinline__ token_block(const token_args &args, uint8_t *shared)
      : a(args), memory(shared), small((token_small *)(shared + plan().at_small)), warp(threadIdx.x / WARP),
        lane(threadIdx.x % WARP), c(blockIdx.x), l(0) {
    place_a = {memory + warp * (plan().place_a + plan().place_b), &small->landed_a[warp], 0};
    place_b = {place_a.at + plan().place_a, &small->landed_b[warp], 0};
    place_router = {memory + plan().at_router, &small->landed_router, 0};
  }

  __device__ __forceinline__ token_plan plan() const { return plan_of<Shape>(a); }
  __device__ __forceinline__ bool is_linked() const { // some experts are other ranks'
    return Shape::FIXED ? Shape::LINKED : a.peers.n > 0;
  }
  __device__ __forceinline__ token_attention<DIM, Shape> attention() const {
    return {a, layer(l), memory + plan().at_x, set, l, position};
  }
  __device__ __forceinline__ int hidden_blocks() const { return HB ? HB : plan().hidden_blocks; }
  __device__ __forceinline__ int width_blocks() const { return WB ? WB : plan().width_blocks; }
  __device__ __forceinline__ float *stream_row() const { // [hidden]
    return (float *)(memory + plan().at_x);
  }
  __device__ __forceinline__ shared_row<HB> input() const { // normed and rounded
    return shared_row_at<HB>(memory + plan().at_input, hidden_blocks());
  }
  __device__ __forceinline__ const token_layer &layer(int of) const { return small->layer[of % 2]; }
  __device__ __forceinline__ int own_rows() const { // of the residual stream, from c * rows on
    return max(0, min(plan().rows, plan().hidden - c * plan().rows));
  }

  // ---- weights: what is asked for, and where ----

  struct rows_of_warp {
    int matrix, first, count, out; // out: its place among q, k and v
  };

  __device__ __forceinline__ rows_of_warp qkv_rows() const {
    int tile = tile_rows_of(hidden_blocks()), w = warp, out = 0;
    rows_of_warp r = {TOKEN_Q, 0, 0, 0};
    for (int i = 0; i < 3; i++) {
      if (w >= 0 && w < plan().qkv_tiles[i]) {
        int first = (c * plan().qkv_tiles[i] + w) * tile;
        r = {TOKEN_Q + i, first, max(0, min(tile, plan().qkv_rows[i] - first)), out + first};
      }
      w -= plan().qkv_tiles[i];
      out += plan().qkv_rows[i];
    }
    return r;
  }

  __device__ __forceinline__ void ask_qkv(int of) const {
    const token_layer &y = layer(of);
    rows_of_warp r = qkv_rows();
    __syncwarp();
    if (lane || !r.count) return;
    uint32_t bytes = token_row_bytes((weight_type)y.type[r.matrix], hidden_blocks());
    place_a.expect((uint32_t)r.count * bytes);
    place_a.copy(0, y.data[r.matrix] + (size_t)r.first * bytes, (uint32_t)r.count * bytes);
  }

  __device__ __forceinline__ int o_rows() const { // of the warp, from warp * o_rows on among the block's own
    return max(0, min(plan().o_rows, own_rows() - warp * plan().o_rows));
  }

  __device__ __forceinline__ void ask_o(int of) const {
    const token_layer &y = layer(of);
    int count = o_rows();
    __syncwarp();
    if (lane || !count) return;
    uint32_t bytes = token_row_bytes((weight_type)y.type[TOKEN_O], AB ? AB : plan().attended_blocks);
    place_b.expect((uint32_t)count * bytes);
    place_b.copy(0, y.data[TOKEN_O] + (size_t)(c * plan().rows + warp * plan().o_rows) * bytes,
                 (uint32_t)count * bytes);
  }

  __device__ __forceinline__ int own_experts() const { // of the router, from c * experts on
    return max(0, min(plan().experts, plan().n_experts - c * plan().experts));
  }

  __device__ __forceinline__ void ask_router(int of) const {
    __syncwarp();
    if (warp != ROUTER_WARP || lane || !own_experts()) return;
    uint32_t bytes = (uint32_t)(own_experts() * plan().hidden) * (uint32_t)sizeof(float);
    place_router.expect(bytes);
    place_router.copy(0, (const uint8_t *)(layer(of).router + (size_t)c * plan().experts * plan().hidden),
                      bytes);
  }

  struct pairs_of_warp { // rows of gate and of up
    int slot, first, count;
  };

  __device__ __forceinline__ bool is_local(int slot) const { // else it comes from a peer
    return !is_linked() || small->member[slot] >= 0;
  }

  __device__ __forceinline__ pairs_of_warp gate_up_pairs() const {
    slot_share s = is_linked()
                       ? small->share
                       : slot_share{c / plan().slot_blocks, c % plan().slot_blocks * plan().block_pairs,
                                    plan().block_pairs, plan().warp_pairs};
    int mine = warp * s.warp_pairs;
    int count = min(min(s.warp_pairs, s.block_pairs - mine), plan().width - s.first - mine);
    return {s.slot, s.first + mine, s.slot < plan().top_k ? max(0, count) : 0};
  }

  __device__ __forceinline__ void ask_gate_up() const {
    const token_layer &y = layer(l);
    pairs_of_warp r = gate_up_pairs();
    if (lane || !r.count) return;
    uint32_t bytes = token_row_bytes((weight_type)y.type[TOKEN_GATE], hidden_blocks());
    size_t at = ((size_t)small->member[r.slot] * plan().width + r.first) * bytes;
    place_a.expect(2 * (uint32_t)r.count * bytes);
    place_a.copy(0, y.data[TOKEN_GATE] + at, (uint32_t)r.count * bytes);
    place_a.copy((uint32_t)plan().warp_pairs * bytes, y.data[TOKEN_UP] + at, (uint32_t)r.count * bytes);
  }

  struct tile_of_down {
    int slot, first, count; // first: among the block's own rows
  };

  __device__ __forceinline__ tile_of_down down_tile(int k) const {
    int rows = tile_rows_of(width_blocks()), i = warp * plan().warp_tiles + k,
        first = i % plan().down_tiles * rows;
    bool is_there =
        k < plan().warp_tiles && i < plan().top_k * plan().down_tiles && is_local(i / plan().down_tiles);
    return {i / plan().down_tiles, first, is_there ? max(0, min(rows, own_rows() - first)) : 0};
  }

  __device__ __forceinline__ void ask_down() const {
    const token_layer &y = layer(l);
    uint32_t bytes = token_row_bytes((weight_type)y.type[TOKEN_DOWN], width_blocks()), all = 0;
    if (lane) return;
    for (int k = 0; k < plan().warp_tiles; k++) all += (uint32_t)down_tile(k).count * bytes;
    if (!all) return;
    place_b.expect(all);
    for (int k = 0; k < plan().warp_tiles; k++) {
      tile_of_down t = down_tile(k);
      if (!t.count) continue;
      size_t row = (size_t)small->member[t.slot] * plan().hidden + c * plan().rows + t.first;
      place_b.copy((uint32_t)(k * tile_rows_of(width_blocks())) * bytes, y.data[TOKEN_DOWN] + row * bytes,
                   (uint32_t)t.count * bytes);
    }
  }

  // ---- norm of a row of the residual stream, and its rounding into input() ----

  __device__ __forceinline__ float sum_of_row() const { // sum32 of squares, on the lanes of one warp
    const float *x = stream_row();
    if constexpr (HB > 0) { // all loads before the chain
      float v[HB * QK_K / WARP], sum = 0;
#pragma unroll
      for (int i = 0; i < HB * QK_K / WARP; i++) v[i] = x[WARP * i + lane];
#pragma unroll
      for (int i = 0; i < HB * QK_K / WARP; i++) sum = num_fma_f32(v[i], v[i], sum);
      return warp_tree(sum);
    } else
      return sum_of_squares(x, plan().hidden);
  }

  // arrives: the row is passed on by other blocks. keeps: leaves the normed numbers in stream_row(). The
  // caller's barrier stands between this and the products.
  __device__ __forceinline__ void norm(const float *from, bool arrives, const float *weight, bool keeps) {
    float v[8] = {}, of_norm[8] = {};
    int at = warp * QK_K + 8 * lane;
    bool mine = warp < hidden_blocks();
    float *row = stream_row();
    if (mine) {
      load_8(of_norm, weight + at);
      if (arrives)
        wait_block(v, from + warp * QK_K);
      else
        load_8(v, from + at);
      store_8(row + at, v);
    }
    __syncthreads();
    if (warp == 0) {
      float sum = sum_of_row();
      if (lane == 0) small->inverse = inverse_rms(sum, plan().hidden, a.w.epsilon);
    }
    if (warp == 1 && lane < own_rows()) small->stream[lane] = row[c * plan().rows + lane];
    __syncthreads();
    float inverse = small->inverse;
    if (mine) {
      for (int i = 0; i < 8; i++) v[i] = v[i] * inverse * of_norm[i];
      if (keeps) store_8(row + at, v);
    }
    if (keeps) __syncthreads();
    if (mine) round_into(input(), warp, v);
  }

  __device__ __forceinline__ static void load_8(float v[8], const float *from) {
    float4 x = *(const float4 *)from, y = *(const float4 *)(from + 4);
    v[0] = x.x, v[1] = x.y, v[2] = x.z, v[3] = x.w;
    v[4] = y.x, v[5] = y.y, v[6] = y.z, v[7] = y.w;
  }
  __device__ __forceinline__ static void store_8(float *to, const float v[8]) {
    *(float4 *)to = make_float4(v[0], v[1], v[2], v[3]);
    *(float4 *)(to + 4) = make_float4(v[4], v[5], v[6], v[7]);
  }

  // ---- phases ----

  __device__ __forceinline__ void qkv() {
    const token_layer &y = layer(l);
    norm(l ? set + plan().at_stream : a.w.x, l > 0, y.attn_norm, false);
    __syncthreads();
    rows_of_warp r = qkv_rows();
    if (r.count) {
      weight_type type = (weight_type)y.type[r.matrix];
      uint32_t bytes = token_row_bytes(type, hidden_blocks());
      place_a.wait();
      float found = tile_product<SOME>(
          type, [&](int i) { return place_a.at + (uint32_t)min(i, r.count - 1) * bytes; }, input());
      int n = tile_rows_of(hidden_blocks()), row = n == 8 ? lane / 4 : lane;
      if (row < r.count && lane == tile_lane(hidden_blocks(), row))
        pass_on(set + plan().at_qkv + r.out + row, found);
    }
  }

  // The other set's numbers of this layer, for the next token.
  __device__ __forceinline__ void clear(float *other) const {
    for (int i = c * THREADS + threadIdx.x; i < plan().layer_words; i += (int)gridDim.x * THREADS)
      other[i] = __uint_as_float(NOT_WRITTEN);
    for (int slot = warp; slot < plan().top_k && is_linked(); slot += WARPS)
      clear_slot(slots_from_peers(), slot, c * plan().rows, own_rows());
  }

  __device__ __forceinline__ void output() {
    const token_layer &y = layer(l);
    shared_row<AB> in = shared_row_at<AB>(memory + plan().at_attended, plan().attended_blocks);
    for (int b = warp; b < in.blocks(); b += WARPS) {
      float v[8];
      wait_block(v, set + plan().at_att + b * QK_K);
      round_into(in, b, v);
    }
    __syncthreads();
    int count = o_rows();
    weight_type type = (weight_type)y.type[TOKEN_O];
    uint32_t bytes = token_row_bytes(type, in.blocks());
    if (count) place_b.wait();
    for (int k = 0; k < count; k++) {
      float found = 0;
      int own = warp * plan().o_rows + k;
      auto row = [&](int) { return place_b.at + (uint32_t)k * bytes; };
      found = of_type<MOST>(type, [&](auto t) { return wide_rows<decltype(t)::value, 1>(row, in); });
      if (lane == 0) pass_on(set + plan().at_middle + c * plan().rows + own, small->stream[own] + found);
    }
  }

  __device__ __forceinline__ void route(int next) {
    norm(set + plan().at_middle, true, layer(l).ffn_norm, true);
    if (warp == ROUTER_WARP && own_experts()) {
      const float *x = stream_row();
      place_router.wait();
      for (int i = 0; i < own_experts(); i++) {
        const float *row = (const float *)place_router.at + (size_t)i * plan().hidden;
        float sum = 0;
#pragma unroll 16
        for (int k = lane; k < (HB ? HB * QK_K : plan().hidden); k += WARP)
          sum = num_fma_f32(row[k], x[k], sum);
        sum = warp_tree(sum);
        if (lane == 0) pass_on(set + plan().at_logits + c * plan().experts + i, sum);
      }
    }
    if (next < a.p.n_layers) ask_router(next);
  }

  __device__ __forceinline__ void gate_up() {
    const token_layer &y = layer(l);
    if (warp == 0)
      choose_slots(small->member, small->g, set + plan().at_logits, plan().n_experts, plan().top_k, local);
    if (warp == 0 && is_linked()) {
      __syncwarp();
      small->share = share_of_block(small->member, plan().top_k, plan().width);
    }
    __syncthreads();
    ask_gate_up();
    ask_down();
    if (warp == 1 && lane < plan().top_k) {
      float sum = 0;
      for (int slot = 0; slot < plan().top_k; slot++) sum = sum + small->g[slot];
      small->weight[lane] = small->g[lane] / sum;
    }
    pairs_of_warp r = gate_up_pairs();
    if (!r.count) return;
    weight_type type = (weight_type)y.type[TOKEN_GATE];
    uint32_t bytes = token_row_bytes(type, hidden_blocks()), to_up = (uint32_t)plan().warp_pairs * bytes;
    float *to = set + plan().at_hidden + r.slot * plan().width + r.first;
    bool is_tall = hidden_blocks() < 4;
    int pairs = tile_rows_of(hidden_blocks()) / 2;
    place_a.wait();
#pragma unroll 1
    for (int i = 0; i < r.count; i += pairs) {
      auto row = [&](int k) {
        return place_a.at + (k % 2 ? to_up : 0) + (uint32_t)min(i + k / 2, r.count - 1) * bytes;
      };
      float found = 0;
      if (!is_tall && r.count - i == 1)
        found = of_type<MOST>(type, [&](auto t) { return wide_rows<decltype(t)::value, 2>(row, input()); });
      else
        found = tile_product<MOST>(type, row, input());
      float up = __shfl_down_sync(~0u, found, is_tall ? 4 : 1);
      int k = is_tall ? lane / 8 : lane / 2;
      if (k < min(pairs, r.count - i) && lane == tile_lane(hidden_blocks(), 2 * k))
        pass_on(to + i + k, silu_straight(found) * up);
    }
  }

  __device__ __forceinline__ void down(int next) {
    const token_layer &y = layer(l);
    int rows = tile_rows_of(width_blocks()), n = width_blocks();
    auto slot_row = [&](int slot) {
      return shared_row_at<WB>(memory + plan().at_rounded + slot * shared_row_bytes(n), n);
    };
    for (int i = warp; i < plan().top_k * n; i += WARPS) {
      float v[8];
      if (!is_local(i / n)) continue;
      wait_block(v, set + plan().at_hidden + i * QK_K);
      round_into(slot_row(i / n), i % n, v);
    }
    if (is_linked() && l == 0 && warp == WARPS - 1) await_peers(a.peers, meeting);
    __syncthreads();
    weight_type type = (weight_type)y.type[TOKEN_DOWN];
    uint32_t bytes = token_row_bytes(type, n);
    bool has_rows = false;
    for (int k = 0; k < plan().warp_tiles; k++) has_rows = has_rows || down_tile(k).count;
    if (has_rows) place_b.wait();
    if (next < a.p.n_layers) ask_qkv(next); // not earlier: it would delay what everyone waits for
    for (int k = 0; k < plan().warp_tiles; k++) {
      tile_of_down t = down_tile(k);
      if (!t.count) continue;
      const uint8_t *at = place_b.at + (uint32_t)(k * rows) * bytes;
      float found = tile_product<SOME>(
          type, [&](int i) { return at + (uint32_t)min(i, t.count - 1) * bytes; }, slot_row(t.slot));
      int row = rows == 8 ? lane / 4 : lane;
      if (row < t.count && lane == tile_lane(n, row)) keep(t.slot, t.first + row, found);
    }
    if (next < a.p.n_layers) ask_o(next);
    // after the warp's own rows, which the peers wait for
    for (int slot = warp; slot < plan().top_k && is_linked(); slot += WARPS)
      if (!is_local(slot))
        take_slot(small->y[slot], a.peers, slots_from_peers(), slot, c * plan().rows, own_rows());
    __syncthreads();
    if (warp == COMBINE_WARP) combine(next);
    if (warp > COMBINE_WARP) attention().prefetch(next, COMBINE_WARP + 1);
  }

  __device__ __forceinline__ token_slots slots_from_peers() const {
    return slots_of_layer(a.inbox, epoch, l, plan().top_k, plan().hidden);
  }

  // An own row of a slot, for this block's sum and for those of the peers.
  __device__ __forceinline__ void keep(int slot, int row, float found) const {
    small->y[slot][row] = found;
    if (is_linked())
      send_value(a.peers, slots_from_peers().now + (size_t)slot * plan().hidden + c * plan().rows + row,
                 found);
  }

  __device__ __forceinline__ void combine(int next) const {
    unsigned long long digest = 0;
    if (lane < own_rows()) {
      float total = 0;
      for (int slot = 0; slot < plan().top_k; slot++) {
        float w = small->weight[slot], part = small->y[slot][lane];
        total = slot ? num_fma_f32(w, part, total) : w * part;
      }
      float x = small->stream[lane] + total;
      int row = c * plan().rows + lane;
      if (next < a.p.n_layers)
        pass_on(set + plan().layer_words + plan().at_stream + row, x);
      else
        a.w.x[row] = x;
      digest = num_digest_element(num_digest_row(a.w.tag, l, position), row, __float_as_uint(x));
    }
    add_digest(&a.w.sums[(size_t)l * a.w.n_sequences + a.w.batch.sequence[0]], digest);
  }

  // ---- all of it ----

  __device__ __forceinline__ void take_layer(int of) const { // its pointers, by one warp
    if (of >= a.p.n_layers) return;
    const uint32_t *from = (const uint32_t *)(a.layers + of);
    uint32_t *to = (uint32_t *)&small->layer[of % 2];
    for (int i = lane; i < (int)(sizeof(token_layer) / 4); i += WARP) to[i] = from[i];
  }

  __device__ __forceinline__ void start() {
    if (threadIdx.x == 0) {
      for (int w = 0; w < WARPS; w++) {
        mbarrier_init(&small->landed_a[w], 1);
        mbarrier_init(&small->landed_b[w], 1);
      }
      mbarrier_init(&small->landed_router, 1);
      fence_mbarrier_init();
    }
    if (warp == 1) take_layer(0);
    for (int i = 0; i < TOKEN_EXPERTS / WARP; i++) {
      int e = TOKEN_EXPERTS / WARP * lane + i;
      local[i] = warp == 0 && e < plan().n_experts ? a.w.local_of_expert[e] : 0;
    }
    position = a.w.batch.position[0];
    epoch = *a.epoch;
    if (is_linked()) meeting = *a.peers.epoch + 1;
    if (is_linked() && c == 0 && warp == 2) { // all that was enqueued before has ended
      __threadfence_system();
      tell_peers(a.peers, meeting);
    }
    __syncthreads();
    ask_qkv(0);
    ask_o(0);
    ask_router(0);
  }

  __device__ __forceinline__ void run() {
    start();
    float *other = a.sets[(epoch + 1) % 2];
    set = a.sets[epoch % 2];
#pragma unroll 1
    for (l = 0; l < a.p.n_layers; l++) {
      qkv();
      attention().attend();
      clear(other);
      if (warp == 1) take_layer(l + 1);
      attention().fold();
      output();
      route(l + 1);
      gate_up();
      down(l + 1);
      set += plan().layer_words;
      other += plan().layer_words;
    }
    // everyone has read it: all blocks have passed numbers on since
    if (c == 0 && threadIdx.x == 0) *a.epoch = epoch + 1;
    if (c == 0 && threadIdx.x == 0 && is_linked()) *a.peers.epoch = meeting;
  }
};

template <int DIM, typename Shape>
__global__ void __launch_bounds__(THREADS, 1) token_layers(const __grid_constant__ token_args a) {
#if !defined __CUDA_ARCH__ || __CUDA_ARCH__ >= 900
  extern __shared__ __align__(128) uint8_t memory[];
  token_block<DIM, Shape> block(a, memory);
  block.run();
#endif
}

// ---- which one ----

static bool is_plan(const token_plan *p, token_plan fixed) {
  fixed.n_layers = p->n_layers; // the only number that a compiled plan leaves open
  return memcmp(p, &fixed, sizeof fixed) == 0;
}

token_kernel *token_kernel_for(const token_plan *p, bool linked) {
  if (is_plan(p, qwen3_30b_shape<false>::plan()))
    return linked ? token_layers<128, qwen3_30b_shape<true>> : token_layers<128, qwen3_30b_shape<false>>;
  return p->head_dim == 128  ? token_layers<128, any_shape>
         : p->head_dim == 64 ? token_layers<64, any_shape>
                             : nullptr;
}
