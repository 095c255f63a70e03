// weights: the model's tensors in device memory, one copy for all arms of this process. Blocks keep their
// bits; rows of Q6_K are re-ordered into planes (planes_q6k.cuh), those of no other type.
#include "base/memory.h"
#include "kernels/cuda/planes_q6k.cuh"
#include "kernels/cuda/weights.cuh"
#include "kernels/formats/attention_exact.h"
#include <stdlib.h>
#include <string.h>

static dev_weights *held; // of the one model that a process runs

__global__ void split_q6k_rows(uint8_t *out, const uint8_t *in, int64_t rows, int n, size_t out_bytes) {
  for (int64_t r = blockIdx.x; r < rows; r += gridDim.x) {
    uint8_t *to = out + r * out_bytes;
    const uint8_t *from = in + r * n * 210;
    for (int i = threadIdx.x; i < n * 210; i += blockDim.x) {
      int b = i / 210, at = i % 210;
      uint8_t v = from[i];
      if (at < 128)
        q6k_low(to, b)[at] = v;
      else if (at < 192)
        q6k_high(to, n, b)[at - 128] = v;
      else if (at < 208)
        q6k_scales(to, n, b)[at - 192] = v;
      else
        q6k_d(to, n, b)[at - 208] = v;
    }
    // Kernels that copy four bytes of the last plane take the padding along.
    for (size_t i = (size_t)n * 210 + threadIdx.x; i < out_bytes; i += blockDim.x) to[i] = 0;
  }
}

// Of a type's rows.
enum device_layout { BLOCKS, PLANES };

static device_layout layout_of(weight_type type) {
  switch (type) {
  case TYPE_F32:
  case TYPE_F16:
  case TYPE_BF16:
  case TYPE_Q8_0:
  case TYPE_Q4_K:
  case TYPE_Q5_K:
    return BLOCKS;
  case TYPE_Q6_K:
    return PLANES;
    CASES_OF_FEW_BITS
    return BLOCKS;
  }
  __builtin_unreachable();
}

// Copies those that this rank holds (without `local` all) of a stack of n_members matrices, one after the
// other.
static status upload(dev_weights *w, dev_matrix *out, const matrix *m, const int32_t *local,
                     int64_t n_members) {
  const type_info *t = type_find(m->type);
  size_t native = type_row_bytes(t, (size_t)m->cols), member_native = native * (size_t)m->rows;
  int64_t count = 0;
  for (int64_t e = 0; e < n_members; e++) count += !local || local[e] >= 0;
  *out = dev_matrix{nullptr, m->type, (int)m->rows, (int)m->cols, native, 0};
  bool in_planes = layout_of(m->type) == PLANES;
  if (in_planes) out->row_bytes = q6k_row_bytes(m->cols);
  out->member_bytes = out->row_bytes * (size_t)m->rows;
  void *data = nullptr, *staging = nullptr;
  TRY(device_take_bytes(w, &data, out->member_bytes * (size_t)count, local ? PART_EXPERTS : PART_SHARED));
  size_t staged = in_planes ? member_native * (size_t)count : 0;
  if (staged > w->staging) w->staging = staged;
  if (w->plan) return 0;
  out->data = (const uint8_t *)data;
  if (staged) CUDA_TRY(cudaMalloc(&staging, staged));
  uint8_t *to = (uint8_t *)(staging ? staging : data);
  for (int64_t e = 0; e < n_members; e++) {
    if (local && local[e] < 0) continue;
    CUDA_TRY(cudaMemcpy(to, (const char *)m->data + (size_t)e * member_native, member_native,
                        cudaMemcpyHostToDevice));
    to += member_native; // what does not lie in planes keeps its row length
  }
  if (!staging) return 0;
  cudaLaunchConfig_t how = {};
  how.gridDim = dim3(4096);
  how.blockDim = dim3(256);
  CUDA_TRY(cudaLaunchKernelEx(&how, split_q6k_rows, (uint8_t *)data, (const uint8_t *)staging,
                              m->rows * count, (int)(m->cols / QK_K), out->row_bytes));
  CUDA_TRY(cudaFree(staging));
  return 0;
}

static status upload_floats(dev_weights *w, const float **out, const float *from, int64_t n) {
  void *to = nullptr;
  TRY(device_take_bytes(w, &to, (size_t)n * sizeof(float), PART_SHARED));
  if (w->plan) return 0;
  CUDA_TRY(cudaMemcpy(to, from, (size_t)n * sizeof(float), cudaMemcpyHostToDevice));
  *out = (const float *)to;
  return 0;
}

static status upload_balance(dev_weights *w, dev_layer *out, const layer_weights *from) {
  int64_t dim = w->source->shape.head_dim, pairs = dim / 2;
  float *factors;
  TRY(TAKE(&factors, 2 * (size_t)dim, "channel factors"));
  for (int64_t i = 0; i < pairs; i++) {
    int32_t e =
        exact_balance(from->k_norm[i], from->k_norm[i + pairs], from->q_norm[i], from->q_norm[i + pairs]);
    factors[i] = factors[i + pairs] = exact_power(e);
    factors[dim + i] = factors[dim + i + pairs] = exact_power(-e);
  }
  status result = upload_floats(w, &out->q_balance, factors, 2 * dim);
  free(factors);
  out->k_balance = out->q_balance + dim;
  return result;
}

static status upload_experts(dev_weights *w, int64_t layer) {
  int64_t n = w->source->shape.n_experts;
  dev_layer *out = &w->layers[layer];
  const layer_weights *from = &w->source->layers[layer];
  const int32_t *local = w->map.local + expert_map_at(&w->map, layer, n);
  TRY(upload(w, &out->gate, &from->gate, local, n));
  TRY(upload(w, &out->up, &from->up, local, n));
  return upload(w, &out->down, &from->down, local, n);
}

static status upload_attention(dev_weights *w, dev_layer *out, const layer_weights *from) {
  const model_shape *s = &w->source->shape;
  TRY(upload_floats(w, &out->attn_norm, from->attn_norm, s->hidden));
  TRY(upload_floats(w, &out->q_norm, from->q_norm, s->head_dim));
  TRY(upload_floats(w, &out->k_norm, from->k_norm, s->head_dim));
  TRY(upload_floats(w, &out->ffn_norm, from->ffn_norm, s->hidden));
  TRY(upload_balance(w, out, from));
  TRY(upload(w, &out->q, &from->q, nullptr, 1));
  TRY(upload(w, &out->k, &from->k, nullptr, 1));
  TRY(upload(w, &out->v, &from->v, nullptr, 1));
  TRY(upload(w, &out->o, &from->o, nullptr, 1));
  return upload(w, &out->router, &from->router, nullptr, 1);
}

static status take_layers(dev_weights *w) {
  return memory_take((void **)&w->layers, (size_t)w->source->shape.n_layers, sizeof *w->layers,
                     "the layers' table");
}

static status upload_owned(dev_weights *w) {
  const model_weights *m = w->source;
  const model_shape *s = &m->shape;
  void *to = nullptr;
  size_t bytes = (size_t)((w->map.is_same ? 1 : s->n_layers) * s->n_experts) * sizeof(int);
  w->n_local = (int)expert_map_most(&w->map, s->n_layers, s->n_experts);
  TRY(device_take_bytes(w, &to, bytes, PART_SHARED));
  if (!w->plan) CUDA_TRY(cudaMemcpy(to, w->map.local, bytes, cudaMemcpyHostToDevice));
  w->local_of_expert = (int *)to;
  TRY(take_layers(w));
  for (int64_t l = 0; l < s->n_layers; l++) TRY(upload_experts(w, l));
  if (w->plan) return 0;
  CUDA_TRY(cudaDeviceSynchronize());
  return 0;
}

static status upload_shared(dev_weights *w) {
  const model_weights *m = w->source;
  const model_shape *s = &m->shape;
  TRY(upload(w, &w->embedding, &m->embedding, nullptr, 1));
  w->output = w->embedding;
  if (m->output.data != m->embedding.data) TRY(upload(w, &w->output, &m->output, nullptr, 1));
  TRY(upload_floats(w, &w->output_norm, m->output_norm, s->hidden));
  for (int64_t l = 0; l < s->n_layers; l++) TRY(upload_attention(w, &w->layers[l], &m->layers[l]));
  if (w->plan) return 0;
  CUDA_TRY(cudaDeviceSynchronize());
  w->has_shared = true;
  return 0;
}

static void weights_free(dev_weights *w) {
  for (int i = 0; i < w->n_blocks && !device_is_stuck(); i++) cudaFree(w->blocks[i]);
  free(w->layers);
  free(w);
}

static bool is_held(const model_weights *source, const expert_map *map) {
  return held && held->source == source && held->map.local == map->local;
}

status weights_plan(memory_plan *out, const model_weights *source, const expert_map *map, bool wants_shared) {
  bool has_owned = is_held(source, map), has_shared = has_owned && held->has_shared;
  dev_weights *w;
  TRY(memory_take((void **)&w, 1, sizeof *w, "the weights' table"));
  w->source = source;
  w->map = *map;
  w->plan = out;
  status result = has_owned ? take_layers(w) : upload_owned(w);
  if (!result && wants_shared && !has_shared) result = upload_shared(w);
  memory_plan_add(out, PART_SHARED, w->staging);
  weights_free(w);
  return result;
}

status weights_acquire(dev_weights **out, const model_weights *source, const expert_map *map,
                       bool wants_shared) {
  *out = nullptr;
  if (is_held(source, map)) {
    if (wants_shared && !held->has_shared) TRY(upload_shared(held));
    held->users++;
    *out = held;
    return 0;
  }
  dev_weights *w;
  TRY(memory_take((void **)&w, 1, sizeof *w, "the weights' table"));
  w->source = source;
  w->map = *map;
  w->users = 1;
  if (upload_owned(w) || (wants_shared && upload_shared(w))) {
    weights_free(w);
    return 1;
  }
  *out = held = w;
  return 0;
}

void weights_release(dev_weights *w) {
  if (!w || --w->users) return;
  if (held == w) held = nullptr;
  weights_free(w);
}
