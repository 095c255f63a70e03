// token_weights: the weights of token.cu on their way to shared memory: which rows are a thread block's and a
// warp's, and what is asked for.
//
// A warp has two places: A for its rows of q, k, v and then of gate and up, B for those of o and then of
// down. Experts are taken by groups: group g, of slot_blocks thread blocks, has gate and up of one expert;
// tile i of down, of every thread block, is of group i / down_tiles. Which slot a group has is
// token_choice.cuh's.
//
// Memory answers in the order of the questions: a number that is passed on while all rows of the experts are
// asked for at once comes when these have come. So rows that are asked for while other thread blocks wait for
// each other go out one by one at a pace that memory keeps up with, and others only as many as come before
// the next number is passed on.
//
// Independent of: the products. Invariant: what is asked for is waited for once, before its place is asked
// for again.
#pragma once
#include "kernels/cuda/decode/token_exchange.cuh"
#include "kernels/cuda/decode/token_plan.cuh"
#include "kernels/cuda/weights_place.cuh"

static constexpr int ROUTER_WARP = 8;

// Long because it is functions, each of them short, over one state.
template <typename Shape> struct token_weights {
  static constexpr int HB = Shape::plan().hidden_blocks, AB = Shape::plan().attended_blocks,
                       WB = Shape::plan().width_blocks;
  const token_args &a;
  weights_place place_a, place_b, place_router;
  int warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, c = blockIdx.x;
  bool has_gate_up = false, has_down = false; // asked for, and not waited for yet
  int next_row = 0, end_row = 0;              // the watching lane's: of gate and up, not asked for yet
  uint32_t since = 0;

  __device__ __forceinline__ token_plan plan() const { return plan_of<Shape>(a); }
  __device__ __forceinline__ int hidden_blocks() const { return HB ? HB : plan().hidden_blocks; }
  __device__ __forceinline__ int width_blocks() const { return WB ? WB : plan().width_blocks; }
  __device__ __forceinline__ int own_rows() const { // of the residual stream, from c * rows on
    return max(0, min(plan().rows, plan().hidden - c * plan().rows));
  }

  // ---- the shared ones ----

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

  __device__ __forceinline__ void ask_qkv(const token_layer &y) const {
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

  __device__ __forceinline__ void ask_o(const token_layer &y) const {
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

  __device__ __forceinline__ void ask_router(const token_layer &y) const {
    __syncwarp();
    if (warp != ROUTER_WARP || lane || !own_experts()) return;
    uint32_t bytes = (uint32_t)(own_experts() * plan().hidden) * (uint32_t)sizeof(float);
    place_router.expect(bytes);
    place_router.copy(0, (const uint8_t *)(y.router + (size_t)c * plan().experts * plan().hidden), bytes);
  }

  // ---- gate and up ----

  __device__ __forceinline__ int group() const { // top_k and more: none
    return c / plan().slot_blocks;
  }

  struct pairs_of_warp { // rows of gate and of up
    int first, count;
  };

  __device__ __forceinline__ pairs_of_warp pairs() const {
    int from = c % plan().slot_blocks * plan().block_pairs, mine = warp * plan().warp_pairs;
    int count = min(min(plan().warp_pairs, plan().block_pairs - mine), plan().width - from - mine);
    return {from + mine, group() < plan().top_k ? max(0, count) : 0};
  }

  // Of an expert of this rank; -1: none. All at once, or else by ask_in_time and ask_rest.
  __device__ __forceinline__ void ask_gate_up(const token_layer &y, int member, bool at_once) {
    pairs_of_warp r = pairs();
    has_gate_up = member >= 0 && r.count;
    next_row = 0;
    end_row = has_gate_up && !at_once ? 2 * r.count : 0;
    since = clock_cycles();
    __syncwarp();
    if (lane != WATCHING_LANE || !has_gate_up) return;
    uint32_t bytes = token_row_bytes((weight_type)y.type[TOKEN_GATE], hidden_blocks());
    place_a.expect(2 * (uint32_t)r.count * bytes);
    if (!at_once) return;
    size_t at = ((size_t)member * plan().width + r.first) * bytes;
    place_a.copy(0, y.data[TOKEN_GATE] + at, (uint32_t)r.count * bytes);
    place_a.copy((uint32_t)plan().warp_pairs * bytes, y.data[TOKEN_UP] + at, (uint32_t)r.count * bytes);
  }

  // By the watching lane: the next row, once it is its turn among those of the thread block's warps.
  __device__ __forceinline__ void ask_in_time(const token_layer &y, int member) {
    if (next_row < end_row && clock_cycles() - since >= (uint32_t)(next_row * TOKEN_WARPS + warp) * a.pace)
      ask_row(y, member);
  }
  __device__ __forceinline__ void ask_rest(const token_layer &y, int member) {
    if (lane != WATCHING_LANE) return;
#pragma unroll 1
    while (next_row < end_row) ask_row(y, member);
  }
  __device__ __forceinline__ void ask_row(const token_layer &y, int member) {
    uint32_t bytes = token_row_bytes((weight_type)y.type[TOKEN_GATE], hidden_blocks());
    int row = next_row / 2, up = next_row % 2;
    place_a.copy((uint32_t)(up * plan().warp_pairs + row) * bytes,
                 y.data[TOKEN_GATE + up] + ((size_t)member * plan().width + pairs().first + row) * bytes,
                 bytes);
    next_row++;
  }

  __device__ __forceinline__ void wait_gate_up() {
    if (has_gate_up) place_a.wait();
    has_gate_up = false;
  }

  // ---- down ----

  struct tile_of_down {
    int group, first, count; // first: among the block's own rows
  };

  __device__ __forceinline__ tile_of_down down_tile(int k) const {
    int rows = tile_rows_of(width_blocks()), i = warp * plan().warp_tiles + k,
        first = i % plan().down_tiles * rows;
    bool is_there = k < plan().warp_tiles && i < plan().top_k * plan().down_tiles;
    return {i / plan().down_tiles, first, is_there ? max(0, min(rows, own_rows() - first)) : 0};
  }

  // Half of the rows of groups that guessed, then the others, and all rows of groups that guessed nothing or
  // wrong. member: lane g's of group g, -1: none; halved: groups, a bit each, of which half the rows are
  // there, or with is_first are asked for.
  __device__ __forceinline__ void ask_down(const token_layer &y, int member, uint32_t halved, bool is_first) {
    uint32_t bytes = token_row_bytes((weight_type)y.type[TOKEN_DOWN], width_blocks()), all = 0;
    uint32_t pitch = (uint32_t)row_pitch((int)bytes);
    uint32_t groups = __ballot_sync(~0u, member >= 0);
    auto range = [&](const tile_of_down &t) { // of its rows
      int half = (t.count + 1) / 2, from = !is_first && halved >> t.group & 1 ? half : 0;
      bool is_asked = groups >> t.group & 1;
      return make_int2(from, is_asked ? (is_first ? half : t.count) - from : 0);
    };
    for (int k = 0; k < plan().warp_tiles; k++) all += (uint32_t)range(down_tile(k)).y * bytes;
    has_down = all > 0;
    __syncwarp();
    if (!all) return;
    if (lane == 0) place_b.expect(all);
    for (int k = 0; k < plan().warp_tiles; k++) {
      tile_of_down t = down_tile(k);
      int of = __shfl_sync(~0u, member, t.group);
      int2 rows = range(t);
      if (lane || !rows.y) continue;
      size_t row = (size_t)of * plan().hidden + c * plan().rows + t.first + rows.x;
      uint32_t to = (uint32_t)(k * tile_rows_of(width_blocks()) + rows.x) * pitch;
      const uint8_t *from = y.data[TOKEN_DOWN] + row * bytes;
      int copies = pitch == bytes ? 1 : rows.y;
#pragma unroll 1
      for (int r = 0; r < copies; r++)
        place_b.copy(to + (uint32_t)r * pitch, from + (size_t)r * bytes,
                     (pitch == bytes ? (uint32_t)rows.y : 1) * bytes);
    }
  }

  __device__ __forceinline__ void wait_down() {
    if (has_down) place_b.wait();
    has_down = false;
  }
};
