// token_plan: how a model's layers are cut over the thread blocks of token.cu, and whether they fit at all.
//
// Independent of: the arithmetic. Invariant: a plan that is made is one that the kernel holds; every limit of
// the kernel is tested here.
#include "base/memory.h"
#include "kernels/cuda/decode/token_kernel.cuh"
#include "kernels/cuda/decode/token_rows.cuh"
#include "kernels/product_form.h"
#include <stdlib.h>

// ---- types ----

static bool is_q8k(const dev_matrix &m) {
  return product_form(PATH_Q8K, m.type) == ACTIVATION_Q8K;
}

static bool layer_fits(const dev_layer &w) {
  return is_q8k(w.q) && is_q8k(w.k) && is_q8k(w.v) && is_q8k(w.o) && is_q8k(w.gate) &&
         w.gate.type == w.up.type && is_q8k(w.down) && w.router.type == TYPE_F32;
}

// ---- rows over thread blocks and warps ----

static bool cut_rows(token_plan *p) {
  int tile = tile_rows_of(p->hidden_blocks), tiles = 0;
  for (int i = 0; i < 3; i++) {
    p->qkv_tiles[i] = ceil_div(ceil_div(p->qkv_rows[i], tile), p->blocks);
    tiles += p->qkv_tiles[i];
  }
  p->rows = ceil_div(p->hidden, p->blocks);
  p->o_rows = ceil_div(p->rows, TOKEN_WARPS);
  p->experts = ceil_div(p->n_experts, p->blocks);
  p->slot_blocks = p->blocks / p->top_k;
  if (!p->slot_blocks) return false;
  p->block_pairs = ceil_div(p->width, p->slot_blocks);
  p->warp_pairs = ceil_div(p->block_pairs, TOKEN_WARPS);
  p->down_tiles = ceil_div(p->rows, tile_rows_of(p->width_blocks));
  p->warp_tiles = ceil_div(p->down_tiles * p->top_k, TOKEN_WARPS);
  p->slices = ceil_div(p->n_heads / p->n_kv_heads, 8);
  p->per_slice = p->blocks / (p->n_kv_heads * p->slices);
  return tiles <= TOKEN_WARPS && p->rows <= TOKEN_ROWS && p->hidden_blocks <= TOKEN_WARPS && p->per_slice > 0;
}

// ---- shared memory ----

static int larger(int a, int b) {
  return a > b ? a : b;
}

static void size_places(token_plan *p, const dev_layer &w) {
  const dev_matrix *qkv[] = {&w.q, &w.k, &w.v};
  for (const dev_matrix *m : qkv)
    p->place_a = larger(p->place_a, tile_rows_of(p->hidden_blocks) * (int)m->row_bytes);
  p->place_a = larger(p->place_a, 2 * p->warp_pairs * (int)w.gate.row_bytes);
  p->place_b = larger(p->place_b, p->o_rows * (int)w.o.row_bytes);
  p->place_b = larger(p->place_b, p->warp_tiles * tile_rows_of(p->width_blocks) * (int)w.down.row_bytes);
}

// Attention's scratch memory is where the stream's row is, and may pass its end; what is behind it is not in
// use then.
static void lay_out_shared(token_plan *p) {
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

static void lay_out_numbers(token_plan *p) {
  int at = 0;
  auto take = [&](int words) {
    int here = at;
    at += pad_to(words, 32);
    return here;
  };
  p->at_stream = take(p->hidden);
  p->at_qkv = take(p->qkv_rows[0] + p->qkv_rows[1] + p->qkv_rows[2]);
  p->at_att = take(p->qkv_rows[0]);
  p->at_middle = take(p->hidden);
  p->at_logits = take(p->n_experts);
  p->at_hidden = take(p->top_k * p->width);
  p->at_counters = take(p->n_kv_heads * p->slices);
  p->layer_words = at;
}

size_t token_set_floats(const token_plan *p) {
  return (size_t)p->n_layers * (size_t)p->layer_words;
}

// ---- the plan ----

static void take_shape(token_plan *p, const model_shape *s) {
  *p = token_plan{};
  p->n_layers = (int)s->n_layers;
  p->hidden = (int)s->hidden;
  p->width = (int)s->expert_width;
  p->n_heads = (int)s->n_heads;
  p->n_kv_heads = (int)s->n_kv_heads;
  p->head_dim = (int)s->head_dim;
  p->n_experts = (int)s->n_experts;
  p->top_k = (int)s->top_k;
  p->qkv_rows[0] = p->n_heads * p->head_dim;
  p->qkv_rows[1] = p->qkv_rows[2] = p->n_kv_heads * p->head_dim;
  p->hidden_blocks = p->hidden / QK_K;
  p->attended_blocks = p->qkv_rows[0] / QK_K;
  p->width_blocks = p->width / QK_K;
}

void token_plan_size(token_plan *out, const model_shape *s) {
  take_shape(out, s);
  out->slices = ceil_div(out->n_heads / out->n_kv_heads, 8);
  lay_out_numbers(out);
}

static bool shape_fits(const token_plan *p, int64_t context) {
  int64_t groups = (context + EXACT_GROUP - 1) / EXACT_GROUP;
  return p->n_experts <= TOKEN_EXPERTS && p->top_k <= TOKEN_TOP_K && p->hidden % QK_K == 0 &&
         p->qkv_rows[0] % QK_K == 0 && p->width % QK_K == 0 && p->n_heads % p->n_kv_heads == 0 &&
         groups * TOKEN_FOLDED_BYTES <= TOKEN_SCRATCH_BYTES;
}

// With a tile of rows for each warp; more thread blocks would have nothing to do in most phases.
static int blocks_for(const token_plan *p) {
  int wanted = ceil_div(p->hidden, TOKEN_WARPS), most = device_multiprocessors();
  return wanted < most ? wanted : most;
}

// An empty kernel, of a build for older GPUs, needs few registers.
static bool is_built(token_kernel *kernel) {
  cudaFuncAttributes of = {};
  return kernel && device_attribute(cudaDevAttrComputeCapabilityMajor) >= 9 &&
         cudaFuncGetAttributes(&of, kernel) == cudaSuccess && of.numRegs > 60;
}

bool token_plan_make(token_plan *out, const model_shape *s, const dev_weights *w, int64_t context) {
  take_shape(out, s);
  if (!shape_fits(out, context)) return false;
  for (int64_t l = 0; l < s->n_layers; l++)
    if (!layer_fits(w->layers[l])) return false;
  out->blocks = blocks_for(out);
  if (!cut_rows(out)) return false;
  for (int64_t l = 0; l < s->n_layers; l++) size_places(out, w->layers[l]);
  lay_out_shared(out);
  lay_out_numbers(out);
  return (size_t)out->shared_bytes <= device_shared_bytes() && is_built(token_kernel_for(out));
}

// ---- an arm's state ----

static token_layer layer_of(const dev_layer &w) {
  token_layer y = {};
  const dev_matrix *of[TOKEN_MATRICES] = {&w.q, &w.k, &w.v, &w.o, &w.gate, &w.up, &w.down};
  for (int i = 0; i < TOKEN_MATRICES; i++) {
    y.data[i] = of[i]->data;
    y.type[i] = (uint8_t)of[i]->type;
  }
  y.router = (const float *)w.router.data;
  y.attn_norm = w.attn_norm;
  y.ffn_norm = w.ffn_norm;
  y.q_norm = w.q_norm;
  y.k_norm = w.k_norm;
  y.q_balance = w.q_balance;
  y.k_balance = w.k_balance;
  return y;
}

status token_state_fill(token_state *t, const dev_weights *w) {
  size_t n = (size_t)t->plan.n_layers, bytes = token_set_floats(&t->plan) * sizeof(float);
  token_layer *layers;
  TRY(TAKE(&layers, n, "the layers' table"));
  for (size_t l = 0; l < n; l++) layers[l] = layer_of(w->layers[l]);
  cudaError_t error = cudaMemcpy(t->layers, layers, n * sizeof *layers, cudaMemcpyHostToDevice);
  free(layers);
  CUDA_TRY(error);
  for (float *set : t->sets) CUDA_TRY(cudaMemset(set, 0xff, bytes)); // NOT_WRITTEN
  return 0;
}

status token_launch(const token_state *t, const token_work *work, cudaStream_t stream) {
  token_args a = {};
  a.p = t->plan;
  a.w = *work;
  a.layers = t->layers;
  a.sets[0] = t->sets[0];
  a.sets[1] = t->sets[1];
  a.epoch = t->epoch;
  a.scale = (float)(1.0 / __builtin_sqrt((double)t->plan.head_dim));
  return launch_resident(token_kernel_for(&t->plan), t->plan.blocks, TOKEN_THREADS,
                         (size_t)t->plan.shared_bytes, stream, a);
}
