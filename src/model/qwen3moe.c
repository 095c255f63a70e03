// The names are those of ggml's qwen3moe architecture (llama.cpp: src/llama-arch.cpp,
// gguf-py/gguf/constants.py). An unknown tensor is refused: without it another model would be computed. The
// settings stand in qwen3moe_settings.c.
#include "src/model/qwen3moe.h"
#include <stddef.h>

// ---- tensors ----

#define IN_LAYER(field) .per_layer = true, .to = offsetof(layer_weights, field)
#define IN_MODEL(field) .per_layer = false, .to = offsetof(model_weights, field)

// clang-format off
static const tensor_row tensors[] = {
    {TENSOR_TOKEN_EMBD,    "token_embd",    IN_MODEL(embedding),   .kind = TENSOR_MATRIX,  .dim = {SIZE_HIDDEN, SIZE_VOCABULARY}},
    {TENSOR_ATTN_NORM,     "attn_norm",     IN_LAYER(attn_norm),   .kind = TENSOR_VECTOR,  .dim = {SIZE_HIDDEN}},
    {TENSOR_ATTN_Q,        "attn_q",        IN_LAYER(q),           .kind = TENSOR_MATRIX,  .dim = {SIZE_HIDDEN, SIZE_QUERIES}, .fused = "attn_qkv"},
    {TENSOR_ATTN_K,        "attn_k",        IN_LAYER(k),           .kind = TENSOR_MATRIX,  .dim = {SIZE_HIDDEN, SIZE_KEYS}, .fused = "attn_qkv"},
    {TENSOR_ATTN_V,        "attn_v",        IN_LAYER(v),           .kind = TENSOR_MATRIX,  .dim = {SIZE_HIDDEN, SIZE_KEYS}, .fused = "attn_qkv"},
    {TENSOR_ATTN_Q_NORM,   "attn_q_norm",   IN_LAYER(q_norm),      .kind = TENSOR_VECTOR,  .dim = {SIZE_HEAD}},
    {TENSOR_ATTN_K_NORM,   "attn_k_norm",   IN_LAYER(k_norm),      .kind = TENSOR_VECTOR,  .dim = {SIZE_HEAD}},
    {TENSOR_ATTN_OUTPUT,   "attn_output",   IN_LAYER(o),           .kind = TENSOR_MATRIX,  .dim = {SIZE_QUERIES, SIZE_HIDDEN}},
    {TENSOR_FFN_NORM,      "ffn_norm",      IN_LAYER(ffn_norm),    .kind = TENSOR_VECTOR,  .dim = {SIZE_HIDDEN}},
    {TENSOR_FFN_GATE_INP,  "ffn_gate_inp",  IN_LAYER(router),      .kind = TENSOR_ROUTER,  .dim = {SIZE_HIDDEN, SIZE_EXPERTS}},
    {TENSOR_FFN_GATE_EXPS, "ffn_gate_exps", IN_LAYER(gate),        .kind = TENSOR_EXPERTS, .dim = {SIZE_HIDDEN, SIZE_EXPERT_WIDTH, SIZE_EXPERTS}},
    {TENSOR_FFN_UP_EXPS,   "ffn_up_exps",   IN_LAYER(up),          .kind = TENSOR_EXPERTS, .dim = {SIZE_HIDDEN, SIZE_EXPERT_WIDTH, SIZE_EXPERTS}},
    {TENSOR_FFN_DOWN_EXPS, "ffn_down_exps", IN_LAYER(down),        .kind = TENSOR_EXPERTS, .dim = {SIZE_EXPERT_WIDTH, SIZE_HIDDEN, SIZE_EXPERTS}},
    {TENSOR_OUTPUT_NORM,   "output_norm",   IN_MODEL(output_norm), .kind = TENSOR_VECTOR,  .dim = {SIZE_HIDDEN}},
    {TENSOR_OUTPUT,        "output",        IN_MODEL(output),      .kind = TENSOR_MATRIX,  .dim = {SIZE_HIDDEN, SIZE_VOCABULARY}, .tied = true},
};
// clang-format on

static status check(const model_settings *m, const char *file) {
  const model_shape *s = &m->shape;
  if (s->n_heads % s->n_kv_heads)
    return FAIL("%s: %lld query heads cannot share %lld key/value heads", file, (long long)s->n_heads,
                (long long)s->n_kv_heads);
  if (s->head_dim < 2 || s->head_dim > 4096 || s->head_dim % 2)
    return FAIL("%s: key qwen3moe.attention.key_length: expected an even number up to 4096, found %lld", file,
                (long long)s->head_dim);
  if (m->value_length != s->head_dim || m->rotated != s->head_dim)
    return FAIL("%s: head of %lld keys, %lld values, %lld rotated by RoPE: expected the same three", file,
                (long long)s->head_dim, (long long)m->value_length, (long long)m->rotated);
  if (s->top_k > s->n_experts)
    return FAIL("%s: key qwen3moe.expert_used_count: expected 1 to %lld, found %lld", file,
                (long long)s->n_experts, (long long)s->top_k);
  return 0;
}

const architecture qwen3moe = {
    .name = "qwen3moe",
    .title = "Qwen3-MoE",
    .tensors = tensors,
    .n_tensors = sizeof tensors / sizeof *tensors,
    .settings = qwen3moe_settings,
    .n_settings = QWEN3MOE_SETTINGS,
    .check = check,
};
