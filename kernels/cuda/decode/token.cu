// token: all layers of one token in one launch. Every thread block has a share of every matrix; between
// phases numbers pass from block to block (token_exchange.cuh), and the next phases' weights travel to shared
// memory meanwhile.
//
//   phase     a thread block                                   passes on
//   qkv       norm; its rows of q, k and v                     qkv
//   attend    a key/value head's chunk, if there is one for it  att
//   fold      of several chunks: 64 dimensions of a head       att
//   output    its rows of o, and of the residual stream        middle
//   route     norm; its experts of the router                  logits
//   gate_up   choice; its rows of a slot's gate and up         hidden
//   down      its rows of the stream of all slots' down; sum   stream
//
// The experts are guessed while the stream is normed, and the weights of those travel during attention
// (token_choice.cuh).
//
// Where several GPUs have the experts, each runs all phases but the other GPUs' slots, whose rows of down
// each block exchanges with the block of its number there (token_peers.cuh); gate and up of a GPU's own slots
// go over all its blocks. They divide the chunks of a long cache (token_attention.cuh).
//
// Every thread block norms and rounds, and chooses the experts, for itself: that is faster than to wait for
// one that does. What bounds a layer is latency, so a phase's loads that depend on nothing come before its
// wait.
//
// Invariant: the bits of decode.cuh's launches, which docs/paths.md defines.
#include "kernels/cuda/decode/token_attention.cuh"
#include "kernels/cuda/decode/token_choice.cuh"
#include "kernels/cuda/decode/token_peers.cuh"
#include "kernels/cuda/decode/token_weights.cuh"
#include <string.h>

static constexpr int WARPS = TOKEN_WARPS, THREADS = TOKEN_THREADS;
// The first warps round, or wait for the stream, meanwhile.
static constexpr int GUESS_WARP = ROUTER_WARP, COMBINE_WARP = 9;
static_assert(GUESS_WARP == WARPS / 2 && COMBINE_WARP < WARPS);

struct token_small { // shared memory of a thread block
  uint64_t landed_a[WARPS], landed_b[WARPS], landed_router;
  some_wait folds_there;
  token_layer layer[2]; // this one's and the next
  float y[TOKEN_TOP_K][TOKEN_ROWS];
  float stream[TOKEN_ROWS]; // the block's own rows
  float g[TOKEN_TOP_K], weight[TOKEN_TOP_K];
  int member[TOKEN_TOP_K], guess[TOKEN_TOP_K];
  choice_memory choice;
  float guess_part[WARPS - GUESS_WARP], inverse;
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
  token_weights<Shape> weights;
  float *set;       // this token's numbers of this layer
  unsigned epoch;   // tokens so far
  uint32_t meeting; // linked: of the ranks, before this token's first store to them
  int warp, lane, c, l, position;
  int member,
      group; // of expert 8 warp + lane % 8, read when the layer starts; the group that guessed it, -1: none
  int guess; // the member that the lane's group guessed, -1: none
  group_slot taken; // since the choice

  __device__ __forceinline__ token_block(const token_args &args, uint8_t *shared)
      : a(args), memory(shared), small((token_small *)(shared + plan().at_small)), weights{args, {}, {}, {}},
        warp(threadIdx.x / WARP), lane(threadIdx.x % WARP), c(blockIdx.x), l(0) {
    uint8_t *places = memory + warp * (plan().place_a + plan().place_b);
    weights.place_a = {places, &small->landed_a[warp], 0};
    weights.place_b = {places + plan().place_a, &small->landed_b[warp], 0};
    weights.place_router = {memory + plan().at_router, &small->landed_router, 0};
  }

  __device__ __forceinline__ token_plan plan() const { return plan_of<Shape>(a); }
  __device__ __forceinline__ bool is_linked() const { // some experts are other ranks'
    return Shape::FIXED ? Shape::LINKED : a.peers.n > 0;
  }
  __device__ __forceinline__ token_attention<DIM, Shape> attention() const {
    return {a, layer(l), memory + plan().at_x, set, l, position, epoch, meeting, small->folds_there};
  }
  __device__ __forceinline__ int hidden_blocks() const { return HB ? HB : plan().hidden_blocks; }
  __device__ __forceinline__ int width_blocks() const { return WB ? WB : plan().width_blocks; }
  __device__ __forceinline__ float *stream_row() const { // [hidden]
    return (float *)(memory + plan().at_x);
  }
  __device__ __forceinline__ shared_row<HB> input() const { // normed and rounded
    return shared_row_at<HB>(memory + plan().at_input, hidden_blocks());
  }
  __device__ __forceinline__ int local_of(int expert) const { // in this layer
    return expert < plan().n_experts ? a.w.local_of_expert[l * a.w.local_stride + expert] : -1;
  }
  __device__ __forceinline__ const token_layer &layer(int of) const { return small->layer[of % 2]; }
  __device__ __forceinline__ int own_rows() const { return weights.own_rows(); }
  __device__ __forceinline__ bool is_local(int slot) const { // else it comes from a peer
    return !is_linked() || small->member[slot] >= 0;
  }

  __device__ __forceinline__ bool guesses() const {
    return a.pace && plan().experts == 1 && plan().hidden_blocks <= WARPS - GUESS_WARP;
  }

  // ---- norm of a row of the residual stream, and its rounding into input() ----

  // arrives: the row is passed on by other blocks. keeps: leaves the normed numbers in stream_row(). The
  // caller's barrier stands between this and the products. with_guess: the later warps, which have no block
  // of the row, see to it meanwhile.
  __device__ __forceinline__ void norm(const float *from, bool arrives, const float *weight, bool keeps,
                                       bool with_guess) {
    float v[8] = {}, of_norm[8] = {};
    bool is_guessing = with_guess && warp >= GUESS_WARP;
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
    int part = at - GUESS_WARP * QK_K;
    if (is_guessing && part < plan().hidden) load_8(of_norm, layer(l).ffn_norm + part);
    __syncthreads();
    if (is_guessing && weights.own_experts()) guess_part(part, of_norm);
    if (warp == 0) {
      float sum = sum_of_row<HB>(row, plan().hidden);
      if (lane == 0) small->inverse = inverse_rms(sum, plan().hidden, a.w.epsilon);
    }
    if (warp == 1 && lane < own_rows()) small->stream[lane] = row[c * plan().rows + lane];
    if (warp) ask_behind(keeps); // the first one has more to do
    __syncthreads();
    if (with_guess && warp == GUESS_WARP && weights.own_experts()) {
      float sum = warp_tree(lane < WARPS - GUESS_WARP ? small->guess_part[lane] : 0.0f);
      if (lane == 0) pass_on(set + plan().at_guess + c, sum);
    }
    float inverse = small->inverse;
    if (mine) {
      for (int i = 0; i < 8; i++) v[i] = v[i] * inverse * of_norm[i];
      if (keeps) store_8(row + at, v);
    }
    if (keeps) __syncthreads();
    if (mine) round_into(input(), warp, v);
  }

  // What is asked for when the stream has come, and nothing else is waited for for a while: o, or with
  // is_middle half of the guessed rows of down.
  __device__ __forceinline__ void ask_behind(bool is_middle) {
    if (!is_middle)
      weights.ask_o(layer(l));
    else if (guesses())
      weights.ask_down(layer(l), guess, ~0u, true);
  }

  // ---- the guess of the experts: token_choice.cuh ----

  // The router's row of the block's expert times a warp's part of the stream, in any order; without the
  // norm's factor, which is the same for all experts.
  __device__ __forceinline__ void guess_part(int part, const float (&of_norm)[8]) {
    float sum = 0;
    weights.place_router.wait();
    if (part < plan().hidden) {
      float x[8], w[8];
      load_8(x, stream_row() + part);
      load_8(w, (const float *)weights.place_router.at + part);
      for (int i = 0; i < 8; i++) sum = num_fma_f32(x[i] * of_norm[i], w[i], sum);
    }
    sum = warp_tree(sum);
    if (lane == 0) small->guess_part[warp - GUESS_WARP] = sum;
  }

  // Blocks that attend get the guess from the last one, where that does not: it was there before they had
  // ended.
  __device__ __forceinline__ void guess_experts() {
    float *told = set + plan().at_guessed;
    bool attends = attention().has_chunk(c), all_attend = attention().has_chunk(plan().blocks - 1);
    guess = group = -1;
    if (!guesses()) return;
    if (attends && !all_attend) {
      if (lane < plan().top_k) guess = (int)__float_as_uint(wait_one(told + lane)) - 1;
      __syncwarp();
#pragma unroll 1
      for (int k = 0; k < plan().top_k; k++) {
        int guessed = __shfl_sync(~0u, guess, k);
        if (member >= 0 && guessed == member) group = k;
      }
    } else {
      float g;
      int e = threadIdx.x;
      bool may = !is_linked() || local_of(e) >= 0;
      if (threadIdx.x < TOKEN_TOP_K) small->guess[threadIdx.x] = -1;
      int rank = rank_expert(&g, &small->choice, set + plan().at_guess, plan().n_experts, may);
      if (rank < plan().top_k) group = rank;
      if (rank < plan().top_k && lane < 8) small->guess[rank] = member;
      __syncthreads();
      if (lane < plan().top_k) guess = small->guess[lane];
      if (c == plan().blocks - 1 && !attends && warp == 0 && lane < plan().top_k)
        pass_on(told + lane, __uint_as_float((uint32_t)(guess + 1)));
    }
    __syncwarp();
    // at once where it is few who ask
    weights.ask_gate_up(layer(l), guess_of_block(), attends && !attention().has_several());
  }

  __device__ __forceinline__ int guess_of_block() const {
    return __shfl_sync(~0u, guess, weights.group() % WARP);
  }

  __device__ __forceinline__ void choose_experts() {
    choice_memory *m = &small->choice;
    float g;
    if (threadIdx.x < TOKEN_TOP_K) m->slot_of_group[threadIdx.x] = plan().top_k;
    int slot = rank_expert(&g, m, set + plan().at_logits, plan().n_experts, true);
    if (slot < plan().top_k && lane < 8) {
      small->member[slot] = member;
      small->g[slot] = g;
      m->is_open[slot] = group < 0 && member >= 0;
      if (group >= 0) m->slot_of_group[group] = slot;
    }
    __syncthreads();
  }

  // Asks for what was not guessed, once what was guessed wrong has come.
  __device__ __forceinline__ void ask_experts() {
    uint32_t missed;
    taken = slot_of_group(&missed, &small->choice, small->member, plan().top_k);
    int of_group = __shfl_sync(~0u, taken.member, weights.group() % WARP);
    if (missed >> weights.group() % WARP & 1) {
      weights.wait_gate_up();
      weights.ask_gate_up(layer(l), of_group, true);
    }
    weights.wait_down();
    weights.ask_down(layer(l), taken.member, ~missed, false);
  }

  // ---- phases ----

  __device__ __forceinline__ void qkv() {
    const token_layer &y = layer(l);
    norm(l ? set + plan().at_stream : a.w.x, l > 0, y.attn_norm, false, guesses());
    if (warp == 0) ask_behind(false);
    __syncthreads();
    auto r = weights.qkv_rows();
    if (r.count) {
      weight_type type = (weight_type)y.type[r.matrix];
      uint32_t bytes = token_row_bytes(type, hidden_blocks());
      weights.place_a.wait();
      float found = tile_product<SOME>(
          type, [&](int i) { return weights.place_a.at + (uint32_t)min(i, r.count - 1) * bytes; }, input());
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

  __device__ __forceinline__ void output(int guessed) {
    const token_layer &y = layer(l);
    shared_row<AB> in = shared_row_at<AB>(memory + plan().at_attended, plan().attended_blocks);
    for (int b = warp; b < in.blocks(); b += WARPS) {
      float v[8];
      wait_block(v, set + plan().at_att + b * QK_K, [&] { weights.ask_in_time(y, guessed); });
      round_into(in, b, v);
    }
    __syncthreads();
    weights.ask_rest(y, guessed);
    int count = weights.o_rows();
    weight_type type = (weight_type)y.type[TOKEN_O];
    uint32_t bytes = token_row_bytes(type, in.blocks());
    if (count) weights.place_b.wait();
    for (int k = 0; k < count; k++) {
      float found = 0;
      int own = warp * plan().o_rows + k;
      auto row = [&](int) { return weights.place_b.at + (uint32_t)k * bytes; };
      found = of_type<MOST>(type, [&](auto t) { return wide_rows<decltype(t)::value, 1>(row, in); });
      if (lane == 0) pass_on(set + plan().at_middle + c * plan().rows + own, small->stream[own] + found);
    }
  }

  __device__ __forceinline__ void route(int next) {
    norm(set + plan().at_middle, true, layer(l).ffn_norm, true, false);
    if (warp == 0) ask_behind(true);
    if (warp == ROUTER_WARP && weights.own_experts()) {
      const float *x = stream_row();
      if (!guesses()) weights.place_router.wait();
      for (int i = 0; i < weights.own_experts(); i++) {
        const float *row = (const float *)weights.place_router.at + (size_t)i * plan().hidden;
        float sum = 0;
#pragma unroll 16
        for (int k = lane; k < (HB ? HB * QK_K : plan().hidden); k += WARP)
          sum = num_fma_f32(row[k], x[k], sum);
        sum = warp_tree(sum);
        if (lane == 0) pass_on(set + plan().at_logits + c * plan().experts + i, sum);
      }
    }
    if (next < a.p.n_layers) weights.ask_router(layer(next));
  }

  __device__ __forceinline__ void gate_up() {
    const token_layer &y = layer(l);
    choose_experts();
    ask_experts();
    if (warp == 1 && lane < plan().top_k) {
      float sum = 0;
      for (int slot = 0; slot < plan().top_k; slot++) sum = sum + small->g[slot];
      small->weight[lane] = small->g[lane] / sum;
    }
    auto r = weights.pairs();
    int slot = __shfl_sync(~0u, taken.slot, weights.group() % WARP);
    if (!weights.has_gate_up) return;
    weight_type type = (weight_type)y.type[TOKEN_GATE];
    uint32_t bytes = token_row_bytes(type, hidden_blocks()), to_up = (uint32_t)plan().warp_pairs * bytes;
    float *to = set + plan().at_hidden + slot * plan().width + r.first;
    bool is_tall = hidden_blocks() < 4;
    int pairs = tile_rows_of(hidden_blocks()) / 2;
    weights.wait_gate_up();
#pragma unroll 1
    for (int i = 0; i < r.count; i += pairs) {
      auto row = [&](int k) {
        return weights.place_a.at + (k % 2 ? to_up : 0) + (uint32_t)min(i + k / 2, r.count - 1) * bytes;
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
    uint32_t pitch = (uint32_t)row_pitch((int)token_row_bytes(type, n));
    weights.wait_down();
    if (next < a.p.n_layers)
      weights.ask_qkv(layer(next)); // not earlier: it would delay what everyone waits for
    for (int k = 0; k < plan().warp_tiles; k++) {
      auto t = weights.down_tile(k);
      int slot = __shfl_sync(~0u, taken.slot, t.group);
      if (!t.count || slot == plan().top_k) continue;
      const uint8_t *at = weights.place_b.at + (uint32_t)(k * rows) * pitch;
      float found = tile_product<SOME>(
          type, [&](int i) { return at + (uint32_t)min(i, t.count - 1) * pitch; }, slot_row(slot));
      int row = rows == 8 ? lane / 4 : lane;
      if (row < t.count && lane == tile_lane(n, row)) keep(slot, t.first + row, found);
    }
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
      small->folds_there.init(WARPS);
      fence_mbarrier_init();
    }
    if (warp == 1) take_layer(0);
    position = a.w.batch.position[0];
    epoch = *a.epoch;
    if (is_linked()) meeting = *a.peers.epoch + 1;
    if (is_linked() && c == 0 && warp == 2) { // all that was enqueued before has ended
      __threadfence_system();
      tell_peers(a.peers, meeting);
    }
    __syncthreads();
    weights.ask_qkv(layer(0));
    weights.ask_router(layer(0));
  }

  __device__ __forceinline__ void run() {
    start();
    float *other = a.sets[(epoch + 1) % 2];
    set = a.sets[epoch % 2];
#pragma unroll 1
    for (l = 0; l < a.p.n_layers; l++) {
      member = local_of(8 * warp + lane % 8);
      qkv();
      attention().attend();
      guess_experts();
      clear(other);
      if (warp == 1) take_layer(l + 1);
      int guessed = guess_of_block();
      attention().fold([&] { weights.ask_in_time(layer(l), guessed); });
      output(guessed);
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
