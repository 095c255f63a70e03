// steps: the cuda backend's steps, shared by the files that hold them: step_attention.cu, step_head.cu,
// step_moe.cu, step_peers.cu, step_products.cu, steps.cu.
//
// The whole forward pass runs on the device: token ids go in, logits (or their digest) come out. Steps are
// enqueued on one stream and return; `finish` and every read wait. The same phases in the same order
// everywhere:
//
//   step          phases                     on a CPU                here                  one token on q8k
//   project       norm; q, k, v              norm, products          norm, multiply        decode_qkv
//   attend        norm, RoPE, cache          heads                   heads                 decode_attention
//                 attention; round           attend, attended        attention, round        or decode_exact
//                 o; add                     products, add           product_shared        decode_output
//   route         norm; router               norm, products          norm, product_shared  decode_router
//                 choice                     choose                  choose
//   experts_up    group; round               list_up, expert_inputs  group (norm rounds)   decode_gate_up
//                 gate, up; swiglu, round    up_task                 multiply, swiglu
//   experts_down  down                       down_task, widen_slots  multiply              decode_down
//   combine       weighted sum, add; digest  combine                 combine
//   head          norm; output               norm, products          norm, product_shared  decode_head
//
// One token on q8k of a rank that owns every expert, or of ranks whose GPUs are linked, in a captured run on
// GPUs that hold it: all layers in one launch (decode/token.cu), which the last layer's moe makes; of two or
// three tokens, one such launch after the other where the rank owns every expert. Of few tokens, swiglu and
// its rounding are done where down reads them (product.up).
//
// Where to find what: the launches of products in products/, of one token in decode/; attention in reals in
// attention.cu, in integers in exact/;
// routing.cu; vectors.cu, every other step between the products. state.cu: what an arm allocates; weights.cu:
// the model.
#pragma once
#include "kernels/cuda/decode/decode.cuh"
#include "kernels/cuda/products/product.cuh"
#include "kernels/cuda/routing.cuh"
#include "kernels/cuda/state.cuh"
#include "kernels/cuda/vectors.cuh"
#include "kernels/product_form.h"

// A probe is shown or imposed: every step takes its launches one by one, with the same bits.
static inline bool is_observed(const cuda_backend *b) {
  return b->watch.wanted || b->watch.imposed;
}

// One token on q8k, and no probe is watched: decode.cuh's launches. The same bits.
static inline bool decodes(const cuda_backend *b, const token_batch *rows) {
  return b->decodes && rows->n == 1 && !is_observed(b);
}

// What crossed ranks since the last step, by whatever transport, ends where the next step starts.
static inline status mark_exchange(cuda_backend *b) {
  return b->params.n_ranks > 1 ? phase_mark(b, PHASE_EXCHANGE) : 0;
}

// ---- products: step_products.cu ----

bool takes_q8k(const path_info *path, const dev_matrix *m);
status multiply(cuda_backend *b, const path_info *path, product_set *set);
product shared_product(float *out, const dev_matrix *m, const dev_inputs *in, int n);
// out = m times n rows of in
status product_shared(cuda_backend *b, float *out, const dev_matrix *m, const dev_inputs *in, int n);
dev_inputs rows_from(dev_inputs in, int64_t first); // rows first .. of inputs
// The same rows, to be rounded as the path has it: where it does not split, no outliers are taken out.
dev_inputs rounded_for(dev_inputs in, const path_info *path);
dev_batch batch_from(const dev_batch &b, int first, int n);

// Where the digest of a layer adds up, of the whole batch or of part of it.
static inline int64_t sums_row(const cuda_backend *b, int64_t layer, const token_batch *rows, int64_t count) {
  return count == rows->n ? layer : b->shape.n_layers + 1 + layer;
}

// ---- probes: steps.cu ----

// Shows numbers[count][probe_width] on the device as rows first .. of a probe; waits. Nothing where it is
// not watched.
status show(cuda_backend *b, probe_point point, int64_t layer, const void *numbers, int64_t first,
            int64_t count);
// The same of the slots of owned experts among all n_slots: slot i is row i of numbers, or row place[i].
status show_slots(cuda_backend *b, probe_point point, int64_t layer, const float *numbers,
                  const int64_t *place, int64_t n_slots);

// Overwrites numbers[count][probe_width] on the device, rows first .. of a probe; waits. Nothing where it is
// not imposed.
status impose(cuda_backend *b, probe_point point, float *numbers, int64_t first, int64_t count);
// The same of slots, as show_slots has them.
status impose_slots(cuda_backend *b, probe_point point, float *numbers, const int64_t *place,
                    int64_t n_slots);

// ---- rows that cross ranks: steps.cu ----

struct kind_of_rows {
  void *at;
  size_t bytes; // of a row
};
kind_of_rows device_rows(const cuda_backend *b, row_kind kind);

// A copy to memory that is not pinned would wait as well, unwatched.
status read_device(cuda_backend *b, void *out, const void *from, size_t bytes);

// ---- step_head.cu ----

status cuda_head(backend *base, const token_batch *rows, const int64_t *row, int64_t count);
status cuda_logits_read(backend *base, int64_t count, const void **out);
status cuda_logits_digest(backend *base, const token_batch *rows, const int64_t *row, int64_t count,
                          uint64_t *sums);
status cuda_head_part(backend *base, const token_batch *rows, const int64_t *row, int64_t count);
status cuda_logits_part_digest(backend *base, const token_batch *rows, const int64_t *row, int64_t count,
                               uint64_t *sums);
status cuda_logits_join(backend *base, int64_t count);

// ---- step_peers.cu ----

status cuda_peers_export(backend *base, peer_handle *out);
status cuda_peers_open(backend *base, const peer_handle *all, double seconds);
status cuda_peers_try(backend *base);
void cuda_peers_leave(backend *base);
status cuda_peers_gather(backend *base, const row_kind *kinds, int count, const int64_t *tokens_of_rank);
size_t cuda_peers_row_bytes(backend *base, row_kind kind);
row_owners owners_of(const cuda_backend *b, const int64_t *tokens_of_rank);

// ---- step_attention.cu ----

status cuda_attention(backend *base, int64_t layer, const token_batch *rows);
status cuda_project(backend *base, int64_t layer, const token_batch *rows, int64_t first, int64_t count);
status cuda_attend(backend *base, int64_t layer, const token_batch *rows, int64_t first, int64_t count);
status cuda_attend_apart(backend *base, int64_t layer, const token_batch *rows, int64_t first, int64_t count);
status cuda_cache_others(backend *base, int64_t layer, const token_batch *rows, int64_t first, int64_t count);

// ---- step_moe.cu ----

status cuda_moe(backend *base, int64_t layer, const token_batch *rows);
status cuda_route(backend *base, int64_t layer, const token_batch *rows, int64_t first, int64_t count,
                  unsigned parts);
status cuda_experts_up(backend *base, int64_t layer, const token_batch *rows);
status cuda_experts_down(backend *base, int64_t layer, const token_batch *rows, const slot_places *places);
status cuda_combine(backend *base, int64_t layer, const token_batch *rows, int64_t first, int64_t count,
                    const slot_places *places);
status cuda_routing_fetch(backend *base, int64_t first, int64_t count, unsigned parts);
status cuda_routing_wait(backend *base, routing *out);
status cuda_routing_write(backend *base, int64_t first, int64_t count, unsigned parts, const routing *in);
status cuda_routing_arrived(backend *base, const token_batch *rows);
