// token_plan: the arithmetic of a plan: of any shape when an arm opens, and of the shapes that a kernel is
// compiled for.
#pragma once
#include "kernels/cuda/decode/token_kernel.cuh"
#include "kernels/cuda/decode/token_rows.cuh"

#define PLAN_FN static __host__ __device__ constexpr

PLAN_FN int parts_of(int n, int each) { // that n is cut into
  return (n + each - 1) / each;
}

// ---- rows over thread blocks and warps ----

PLAN_FN bool plan_rows(token_plan *p) {
  int tile = tile_rows_of(p->hidden_blocks), tiles = 0;
  for (int i = 0; i < 3; i++) {
    p->qkv_tiles[i] = parts_of(parts_of(p->qkv_rows[i], tile), p->blocks);
    tiles += p->qkv_tiles[i];
  }
  p->rows = parts_of(p->hidden, p->blocks);
  p->o_rows = parts_of(p->rows, TOKEN_WARPS);
  p->experts = parts_of(p->n_experts, p->blocks);
  p->slot_blocks = p->blocks / p->top_k;
  if (!p->slot_blocks) return false;
  p->block_pairs = parts_of(p->width, p->slot_blocks);
  p->warp_pairs = parts_of(p->block_pairs, TOKEN_WARPS);
  p->down_tiles = parts_of(p->rows, tile_rows_of(p->width_blocks));
  p->warp_tiles = parts_of(p->down_tiles * p->top_k, TOKEN_WARPS);
  p->slices = parts_of(p->n_heads / p->n_kv_heads, 8);
  p->per_slice = p->blocks / (p->n_kv_heads * p->slices);
  return tiles <= TOKEN_WARPS && p->rows <= TOKEN_ROWS && p->hidden_blocks <= TOKEN_WARPS && p->per_slice > 0;
}

// ---- shared memory ----

PLAN_FN int larger(int a, int b) {
  return a > b ? a : b;
}

// Attention's scratch memory is where the stream's row is, and may pass its end; what is behind it is not in
// use then.
PLAN_FN void plan_shared(token_plan *p) {
  int stream = p->hidden * (int)sizeof(float), beyond = larger(0, TOKEN_SCRATCH_BYTES - stream);
  p->at_router = TOKEN_WARPS * (p->place_a + p->place_b);
  p->at_small = p->at_router + p->experts * stream;
  p->at_input = p->at_small + TOKEN_SMALL_BYTES;
  p->at_x = p->at_input + pad_to(shared_row_bytes(p->hidden_blocks), 16);
  p->at_rounded = p->at_x + stream;
  p->at_attended = p->at_rounded + pad_to(beyond, 16);
  int attended = p->at_attended + shared_row_bytes(p->attended_blocks);
  int rounded = p->at_rounded + p->top_k * shared_row_bytes(p->width_blocks);
  p->shared_bytes = pad_to(larger(attended, rounded), 128);
}

// ---- numbers that are passed on ----

PLAN_FN int take_words(int *at, int words) {
  int here = *at;
  *at += pad_to(words, 32);
  return here;
}

PLAN_FN void plan_numbers(token_plan *p) {
  int at = 0;
  p->at_stream = take_words(&at, p->hidden);
  p->at_qkv = take_words(&at, p->qkv_rows[0] + p->qkv_rows[1] + p->qkv_rows[2]);
  p->at_att = take_words(&at, p->qkv_rows[0]);
  p->at_middle = take_words(&at, p->hidden);
  p->at_logits = take_words(&at, p->n_experts);
  p->at_hidden = take_words(&at, p->top_k * p->width);
  p->at_guess = take_words(&at, p->n_experts);
  p->at_guessed = take_words(&at, p->top_k);
  p->layer_words = at;
}

// ---- a shape ----

PLAN_FN token_plan plan_shape(int hidden, int width, int n_heads, int n_kv_heads, int head_dim, int n_experts,
                              int top_k) {
  token_plan p = {};
  p.hidden = hidden;
  p.width = width;
  p.n_heads = n_heads;
  p.n_kv_heads = n_kv_heads;
  p.head_dim = head_dim;
  p.n_experts = n_experts;
  p.top_k = top_k;
  p.qkv_rows[0] = n_heads * head_dim;
  p.qkv_rows[1] = p.qkv_rows[2] = n_kv_heads * head_dim;
  p.hidden_blocks = hidden / QK_K;
  p.attended_blocks = p.qkv_rows[0] / QK_K;
  p.width_blocks = width / QK_K;
  p.slices = parts_of(n_heads / n_kv_heads, 8);
  plan_numbers(&p);
  return p;
}

// With a tile of rows for each warp; more thread blocks would have nothing to do in most phases.
PLAN_FN int plan_blocks(const token_plan &p, int multiprocessors) {
  int wanted = parts_of(p.hidden, TOKEN_WARPS);
  return wanted < multiprocessors ? wanted : multiprocessors;
}

// ---- the shapes that a kernel is compiled for ----

struct any_shape { // those of no kernel of their own: sizes and types as the plan says
  static constexpr bool FIXED = false, LINKED = false; // LINKED: as the launch says
  PLAN_FN token_plan plan() { return {}; }
};

// Qwen3-30B-A3B in a Q4_K_M file: down and v are Q4_K or Q6_K, the other matrices Q4_K.
template <bool HAS_PEERS> struct qwen3_30b_shape {
  static constexpr bool FIXED = true, LINKED = HAS_PEERS;
  PLAN_FN token_plan plan() {
    token_plan p = plan_shape(2048, 768, 32, 4, 128, 128, 8);
    p.blocks = 128;
    p.few_types = true;
    plan_rows(&p);
    p.place_a = 2 * p.warp_pairs * 8 * (int)sizeof(block_q4_K);
    p.place_b = p.warp_tiles * tile_rows_of(p.width_blocks) * row_pitch(3 * 208 + 16);
    plan_shared(&p);
    return p;
  }
};

template <typename Shape> __device__ __forceinline__ token_plan plan_of(const token_args &a) {
  if constexpr (Shape::FIXED) {
    constexpr token_plan fixed = Shape::plan();
    return fixed;
  } else
    return a.p;
}
