// The names are those of ggml's qwen3moe architecture (llama.cpp: src/llama-arch.cpp,
// gguf-py/gguf/constants.py). An unknown tensor, or a setting of another value than the one that can be
// computed, is refused: without it another model would be computed. A setting that is in no row here has no
// effect; `inspect` names it.
#include "src/model/qwen3moe.h"
#include <stddef.h>

// ---- tensors ----

#define IN_LAYER(field) .per_layer = true, .to = offsetof(layer_weights, field)
#define IN_MODEL(field) .per_layer = false, .to = offsetof(model_weights, field)

// clang-format off
static const tensor_row tensors[] = {
    {TENSOR_TOKEN_EMBD,    "token_embd",    IN_MODEL(embedding),   .kind = TENSOR_MATRIX,  .dim = {SIZE_HIDDEN, SIZE_VOCABULARY}},
    {TENSOR_ATTN_NORM,     "attn_norm",     IN_LAYER(attn_norm),   .kind = TENSOR_VECTOR,  .dim = {SIZE_HIDDEN}},
    {TENSOR_ATTN_Q,        "attn_q",        IN_LAYER(q),           .kind = TENSOR_MATRIX,  .dim = {SIZE_HIDDEN, SIZE_QUERIES}},
    {TENSOR_ATTN_K,        "attn_k",        IN_LAYER(k),           .kind = TENSOR_MATRIX,  .dim = {SIZE_HIDDEN, SIZE_KEYS}},
    {TENSOR_ATTN_V,        "attn_v",        IN_LAYER(v),           .kind = TENSOR_MATRIX,  .dim = {SIZE_HIDDEN, SIZE_KEYS}},
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

// ---- settings ----

static int64_t share_of_hidden(const model_settings *s) {
  return s->shape.hidden / s->shape.n_heads;
}

static int64_t as_head_dim(const model_settings *s) {
  return s->shape.head_dim;
}

#define TO(field)         .to = offsetof(model_settings, field)
#define SIZE(low_, high_) .kind = SETTING_SIZE, .low = (low_), .high = (high_)
#define REAL(low_, high_) .kind = SETTING_REAL, .low = (low_), .high = (high_)
#define ONLY(x)           .kind = SETTING_ONLY, .only = (x)
#define ONLY_TEXT(x)      .kind = SETTING_ONLY_TEXT, .only_text = (x)
#define UNUSED            .kind = SETTING_UNUSED
#define WRITTEN           .written = true

// clang-format off
static const setting_row settings[] = {
    {"block_count",                      SIZE(1, 4096),      TO(shape.n_layers), WRITTEN},
    {"context_length",                   SIZE(1, INT32_MAX), TO(context_length), WRITTEN},
    {"embedding_length",                 SIZE(2, 1 << 20),   TO(shape.hidden), WRITTEN},
    {"feed_forward_length",              UNUSED,             TO(dense_width), WRITTEN,
                                         .why = "the width of dense layers, of which there are none"},
    {"expert_feed_forward_length",       SIZE(1, 1 << 20),   TO(shape.expert_width), WRITTEN},
    {"expert_count",                     SIZE(1, 65536),     TO(shape.n_experts), WRITTEN},
    {"expert_used_count",                SIZE(1, MAX_TOP_K), TO(shape.top_k), WRITTEN},
    {"attention.head_count",             SIZE(1, 4096),      TO(shape.n_heads), WRITTEN},
    {"attention.head_count_kv",          SIZE(1, 4096),      TO(shape.n_kv_heads), WRITTEN},
    {"attention.key_length",             SIZE(1, INT32_MAX), TO(shape.head_dim), WRITTEN, .fallback = share_of_hidden},
    {"attention.value_length",           SIZE(1, INT32_MAX), TO(value_length), WRITTEN, .fallback = as_head_dim},
    {"rope.dimension_count",             SIZE(1, INT32_MAX), TO(rotated), .fallback = as_head_dim},
    {"attention.layer_norm_rms_epsilon", REAL(0, 1),         TO(shape.rms_epsilon), WRITTEN},
    {"rope.freq_base",                   REAL(1, 1e15),      TO(shape.rope_base), WRITTEN},
    {"vocab_size",                       UNUSED,             TO(vocab_size), WRITTEN,
                                         .why = "the embedding's rows are counted"},
    // llama.cpp reads these for any architecture (src/llama-model.cpp) or for other mixtures of experts
    {"expert_weights_norm",              ONLY(1),            .why = "the chosen experts' weights are normalised to a sum of 1"},
    {"expert_weights_scale",             ONLY(1),            .why = "the chosen experts' weights are not scaled"},
    {"expert_shared_count",              ONLY(0),            .why = "there is no shared expert"},
    {"expert_gating_func",               ONLY(1),            .why = "llama.cpp's number of softmax; 2 is sigmoid"},
    {"leading_dense_block_count",        ONLY(0),            .why = "every layer has experts"},
    {"rope.scaling.factor",              ONLY(1),            .why = "positions are not scaled"},
    {"rope.scaling.type",                ONLY_TEXT("none"),  .why = "positions are not scaled"},
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
    .settings = settings,
    .n_settings = sizeof settings / sizeof *settings,
    .check = check,
};
