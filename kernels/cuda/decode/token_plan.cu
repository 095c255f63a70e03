// token_plan: how a model's layers are cut over the thread blocks of token.cu, and whether they fit at all.
//
// Independent of: the arithmetic. Invariant: a plan that is made is one that the kernel holds; every limit of
// the kernel is tested here.
#include "base/memory.h"
#include "kernels/cuda/decode/token_plan.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/product_form.h"
#include <stdlib.h>

// ---- types ----

// The types whose rows token_rows.cuh knows; of another that reads Q8_K the model keeps the launches of
// decode.cuh.
static bool is_q8k(const dev_matrix &m) {
  bool known = m.type == TYPE_Q4_K || m.type == TYPE_Q5_K || m.type == TYPE_Q6_K;
  return known && type_has_q8k_kernels(m.type);
}

static bool layer_fits(const dev_layer &w) {
  return is_q8k(w.q) && is_q8k(w.k) && is_q8k(w.v) && is_q8k(w.o) && is_q8k(w.gate) &&
         w.gate.type == w.up.type && is_q8k(w.down) && w.router.type == TYPE_F32;
}

// Rows of Q4_K alone, but for v and down, which may be of Q6_K too.
static bool has_few_types(const dev_layer &w) {
  const dev_matrix *one[] = {&w.q, &w.k, &w.o, &w.gate}, *two[] = {&w.v, &w.down};
  bool few = true;
  for (const dev_matrix *m : one) few = few && m->type == TYPE_Q4_K;
  for (const dev_matrix *m : two) few = few && (m->type == TYPE_Q4_K || m->type == TYPE_Q6_K);
  return few;
}

// ---- the plan ----

static void size_places(token_plan *p, const dev_layer &w) {
  const dev_matrix *qkv[] = {&w.q, &w.k, &w.v};
  for (const dev_matrix *m : qkv)
    p->place_a = larger(p->place_a, tile_rows_of(p->hidden_blocks) * (int)m->row_bytes);
  p->place_a = larger(p->place_a, 2 * p->warp_pairs * (int)w.gate.row_bytes);
  p->place_b = larger(p->place_b, p->o_rows * (int)w.o.row_bytes);
  p->place_b =
      larger(p->place_b, p->warp_tiles * tile_rows_of(p->width_blocks) * row_pitch((int)w.down.row_bytes));
}

size_t token_set_floats(const token_plan *p) {
  return (size_t)p->n_layers * (size_t)p->layer_words;
}

size_t token_parts(const token_plan *p, int64_t context) {
  size_t chunks = (size_t)((context + EXACT_CHUNK - 1) / EXACT_CHUNK);
  return (size_t)p->n_heads * chunks * (size_t)(1 + p->head_dim / 2);
}

static int64_t most_groups(int64_t context) {
  return (context + EXACT_GROUP - 1) / EXACT_GROUP;
}

size_t token_groups(const model_shape *s, int64_t context) {
  return (size_t)(s->n_heads * most_groups(context) * (1 + s->head_dim / 2));
}

static bool shape_fits(const token_plan *p, int64_t context) {
  return p->n_experts <= TOKEN_EXPERTS && p->top_k <= TOKEN_TOP_K && p->hidden % QK_K == 0 &&
         p->qkv_rows[0] % QK_K == 0 && p->width % QK_K == 0 && p->n_heads % p->n_kv_heads == 0 &&
         most_groups(context) * TOKEN_FOLDED_BYTES <= TOKEN_SCRATCH_BYTES;
}

bool token_plan_size(token_plan *out, const model_shape *s, int64_t context) {
  *out = plan_shape((int)s->hidden, (int)s->expert_width, (int)s->n_heads, (int)s->n_kv_heads,
                    (int)s->head_dim, (int)s->n_experts, (int)s->top_k);
  out->n_layers = (int)s->n_layers;
  return shape_fits(out, context);
}

static bool is_built(token_kernel *kernel) {
  return kernel && device_attribute(cudaDevAttrComputeCapabilityMajor) >= 9 && has_code(kernel);
}

bool token_plan_make(token_plan *out, const model_shape *s, const dev_weights *w, int64_t context) {
  if (!token_plan_size(out, s, context)) return false;
  out->few_types = true;
  for (int64_t l = 0; l < s->n_layers; l++) {
    if (!layer_fits(w->layers[l])) return false;
    out->few_types = out->few_types && has_few_types(w->layers[l]);
  }
  out->blocks = plan_blocks(*out, device_multiprocessors());
  if (!plan_rows(out)) return false;
  for (int64_t l = 0; l < s->n_layers; l++) size_places(out, w->layers[l]);
  plan_shared(out);
  return (size_t)out->shared_bytes <= device_shared_bytes() && is_built(token_kernel_for(out, false)) &&
         is_built(token_kernel_for(out, true));
}

// ---- an arm's state ----

// Cycles in which memory brings so many bytes at PACE of its nominal bandwidth; 1 where that is not known.
static uint32_t pace_of(size_t bytes) {
  static const double PACE = 0.85;
  double per_ms = 2.0 * device_attribute(cudaDevAttrMemoryClockRate) *
                  (device_attribute(cudaDevAttrGlobalMemoryBusWidth) / 8.0);
  return per_ms > 0 ? (uint32_t)((double)bytes / (PACE * per_ms) * device_attribute(cudaDevAttrClockRate))
                    : 1;
}

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

status token_state_fill(token_state *t, const dev_weights *w, int64_t context) {
  size_t n = (size_t)t->plan.n_layers, bytes = token_set_floats(&t->plan) * sizeof(float);
  size_t parts = token_parts(&t->plan, context);
  t->most_groups = (int)most_groups(context);
  token_layer *layers;
  TRY(TAKE(&layers, n, "the layers' table"));
  for (size_t l = 0; l < n; l++) layers[l] = layer_of(w->layers[l]);
  cudaError_t error = cudaMemcpy(t->layers, layers, n * sizeof *layers, cudaMemcpyHostToDevice);
  free(layers);
  CUDA_TRY(error);
  for (float *set : t->sets) CUDA_TRY(cudaMemset(set, 0xff, bytes)); // NOT_WRITTEN
  CUDA_TRY(cudaMemset(t->parts, 0xff, parts * sizeof *t->parts));    // a tag of no token
  t->pace = pace_of((size_t)t->plan.blocks * w->layers[0].gate.row_bytes);
  return 0;
}

status token_launch(const token_state *t, const token_work *work, const peer_links &peers,
                    cudaStream_t stream) {
  token_args a = {};
  a.p = t->plan;
  a.w = *work;
  a.layers = t->layers;
  a.sets[0] = t->sets[0];
  a.sets[1] = t->sets[1];
  a.epoch = t->epoch;
  a.parts = t->parts;
  a.groups = t->groups;
  a.most_groups = t->most_groups;
  a.peers = peers;
  a.inbox[0] = t->inbox[0];
  a.inbox[1] = t->inbox[1];
  a.scale = (float)(1.0 / __builtin_sqrt((double)t->plan.head_dim));
  a.pace = t->pace;
  return launch_resident(token_kernel_for(&t->plan, peers.n > 0), t->plan.blocks, TOKEN_THREADS,
                         (size_t)t->plan.shared_bytes, stream, a);
}
