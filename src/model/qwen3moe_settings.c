// Every key that llama.cpp knows under an architecture's name (src/llama-arch.cpp, LLM_KV_NAMES), by what a
// qwen3moe can mean by it. `only` starts with what the arithmetic here is; after it stand the numbers that
// readers take for "not set" and llama.cpp's saver writes for it (src/llama-model-saver.cpp, with the
// defaults of src/llama-hparams.h), so that a model which it saved again is the same model. Where llama.cpp's
// own qwen3moe would ignore a key that asks for other arithmetic, the file is refused: it was meant for a
// reader that obeys. A key in no row is unknown: a warning, which every report repeats.
#include "src/model/qwen3moe.h"
#include <math.h>
#include <stddef.h>

static int64_t share_of_hidden(const model_settings *s) {
  return s->shape.n_heads ? s->shape.hidden / s->shape.n_heads : 0; // 0 was refused
}

static int64_t as_head_dim(const model_settings *s) {
  return s->shape.head_dim;
}

static double hidden_size(const model_settings *s) {
  return (double)s->shape.hidden;
}

static double attention_scale(const model_settings *s) { // as a writer has it, in float
  return (double)(float)(1 / sqrt((double)s->shape.head_dim));
}

#define TO(field)         .to = offsetof(model_settings, field)
#define SIZE(low_, high_) .kind = SETTING_SIZE, .low = (low_), .high = (high_)
#define REAL(low_, high_) .kind = SETTING_REAL, .low = (low_), .high = (high_)
#define COUNT_OF(...)     ((int)(sizeof((const double[]){__VA_ARGS__}) / sizeof(double)))
#define ONLY(...)         .kind = SETTING_ONLY, .only = {__VA_ARGS__}, .n_only = COUNT_OF(__VA_ARGS__)
#define ONLY_TEXT(...)    .kind = SETTING_ONLY_TEXT, .only_text = {__VA_ARGS__}
#define UNUSED            .kind = SETTING_UNUSED
#define WRITTEN           .written = true
#define WHY(text)         .why = text

// clang-format off
const setting_row qwen3moe_settings[QWEN3MOE_SETTINGS] = {
    // obeyed
    {"block_count",                       SIZE(1, 4096),      TO(shape.n_layers), WRITTEN},
    {"context_length",                    SIZE(1, INT32_MAX), TO(context_length), WRITTEN},
    {"embedding_length",                  SIZE(2, 1 << 20),   TO(shape.hidden), WRITTEN},
    {"feed_forward_length",               UNUSED, TO(dense_width), WRITTEN, WHY("the width of dense layers, of which there are none")},
    {"expert_feed_forward_length",        SIZE(1, 1 << 20),   TO(shape.expert_width), WRITTEN},
    {"expert_count",                      SIZE(1, 65536),     TO(shape.n_experts), WRITTEN},
    {"expert_used_count",                 SIZE(1, MAX_TOP_K), TO(shape.top_k), WRITTEN},
    {"attention.head_count",              SIZE(1, 4096),      TO(shape.n_heads), WRITTEN},
    {"attention.head_count_kv",           SIZE(1, 4096),      TO(shape.n_kv_heads), WRITTEN},
    {"attention.key_length",              SIZE(1, INT32_MAX), TO(shape.head_dim), WRITTEN, .fallback = share_of_hidden},
    {"attention.value_length",            SIZE(1, INT32_MAX), TO(value_length), WRITTEN, .fallback = as_head_dim},
    {"rope.dimension_count",              SIZE(1, INT32_MAX), TO(rotated), .fallback = as_head_dim},
    {"attention.layer_norm_rms_epsilon",  REAL(0, 1),         TO(shape.rms_epsilon), WRITTEN},
    {"rope.freq_base",                    REAL(1, 1e15),      TO(shape.rope_base), WRITTEN},
    {"vocab_size",                        UNUSED, TO(vocab_size), WRITTEN, WHY("the embedding's rows are counted")},

    // experts and their router
    {"expert_weights_norm",               ONLY(1), .unset_by = "expert_gating_func", .unset = 0, WHY("the chosen experts' weights are normalised to a sum of 1")},
    {"expert_weights_scale",              ONLY(1, 0),  WHY("the chosen experts' weights are not scaled")},
    {"expert_shared_count",               ONLY(0),     WHY("there is no shared expert")},
    {"expert_shared_feed_forward_length", UNUSED,      WHY("the width of shared experts, of which there are none")},
    {"expert_chunk_feed_forward_length",  ONLY(0),     WHY("there are no chunk experts")},
    {"expert_latent_length",              ONLY(0),     WHY("experts read the whole stream")},
    {"moe_latent_size",                   ONLY(0),     WHY("experts read the whole stream")},
    {"expert_gating_func",                ONLY(1, 0),  WHY("llama.cpp's number of softmax; 2 is sigmoid")},
    {"expert_group_count",                ONLY(0, 1),  WHY("experts are chosen from all")},
    {"expert_group_used_count",           UNUSED,      WHY("of groups of experts, of which there are none")},
    {"expert_group_scale",                UNUSED,      WHY("of chunk experts, of which there are none")},
    {"experts_per_group",                 ONLY(0, 1),  WHY("experts are chosen from all")},
    {"leading_dense_block_count",         ONLY(0),     WHY("every layer has experts")},
    {"moe_every_n_layers",                ONLY(1, 0),  WHY("every layer has experts")},
    {"interleave_moe_layer_step",         ONLY(1, 0),  WHY("every layer has experts")},
    {"router_logit_softcapping",          ONLY(0, 30), WHY("the router's logits are not capped; 30 is llama.cpp's \"not set\"")},
    {"swiglu_clamp_exp",                  ONLY(0),     WHY("SwiGLU is not clamped")},
    {"swiglu_clamp_shexp",                UNUSED,      WHY("of shared experts, of which there are none")},
    {"hidden_activation",                 ONLY_TEXT("silu", "swish"), WHY("the experts' activation")},
    {"activation.situ_beta",              UNUSED,      WHY("of another activation")},
    {"activation.situ_linear_beta",       ONLY(0),     WHY("the experts' activation is SiLU")},

    // positions
    {"rope.scale_linear",                 ONLY(1, 0),  WHY("positions are not scaled; llama.cpp reads it where rope.scaling.factor is absent")},
    {"rope.scaling.factor",               ONLY(1, 0),  WHY("positions are not scaled")},
    {"rope.scaling.type",                 ONLY_TEXT("none", "linear"), WHY("positions are not scaled: linear with a factor of 1")},
    {"rope.scaling.attn_factor",          ONLY(1),     WHY("RoPE does not scale keys and queries")},
    {"rope.scaling.yarn_attn_factor",     ONLY(1),     WHY("RoPE does not scale keys and queries")},
    {"rope.scaling.yarn_ext_factor",      ONLY(0, -1), WHY("there is no YaRN")},
    {"rope.scaling.yarn_log_multiplier",  ONLY(0),     WHY("there is no YaRN")},
    {"rope.scaling.yarn_beta_fast",       UNUSED,      WHY("of YaRN, which is refused")},
    {"rope.scaling.yarn_beta_slow",       UNUSED,      WHY("of YaRN, which is refused")},
    {"rope.scaling.original_context_length", UNUSED,   WHY("of YaRN, which is refused")},
    {"rope.scaling.finetuned",            UNUSED,      WHY("how the model was trained")},
    {"rope.scaling.alpha",                ONLY(1, 0),  WHY("RoPE's base is not scaled")},
    {"rope.dimension_sections",           ONLY(0),     WHY("one position rotates all of a head")},
    {"rope.dimension_count_swa",          UNUSED,      WHY("of layers with a window, of which there are none")},
    {"rope.freq_base_swa",                UNUSED,      WHY("of layers with a window, of which there are none")},
    {"attention.rope_pattern",            ONLY(1),     WHY("every layer has RoPE")},

    // attention
    {"attention.causal",                  ONLY(1),     WHY("a token sees those before it")},
    {"attention.scale",                   ONLY(0), .also = attention_scale, WHY("scores are divided by sqrt(head_dim); 0 is \"not set\"")},
    {"attention.output_scale",            ONLY(1, 0),  WHY("attention's output is not scaled")},
    {"attention.value_scale",             ONLY(1, 0),  WHY("values are not scaled")},
    {"attention.max_alibi_bias",          ONLY(0),     WHY("there is no ALiBi")},
    {"attention.clamp_kqv",               ONLY(0),     WHY("keys, queries and values are not clamped")},
    {"attn_logit_softcapping",            ONLY(0, 50), WHY("scores are not capped; 50 is llama.cpp's \"not set\"")},
    {"attention.temperature_length",      ONLY(0),     WHY("scores do not depend on the position")},
    {"attention.temperature_scale",       UNUSED,      WHY("of temperature_length, which is 0")},
    {"attention.sliding_window",          ONLY(0),     WHY("a token sees all those before it")},
    {"attention.sliding_window_pattern",  UNUSED,      WHY("of layers with a window, of which there are none")},
    {"attention.key_length_swa",          UNUSED,      WHY("of layers with a window, of which there are none")},
    {"attention.value_length_swa",        UNUSED,      WHY("of layers with a window, of which there are none")},
    {"attention.key_length_mla",          ONLY(0),     WHY("there is no latent attention")},
    {"attention.value_length_mla",        ONLY(0),     WHY("there is no latent attention")},
    {"attention.key_length_mla_swa",      ONLY(0),     WHY("there is no latent attention")},
    {"attention.value_length_mla_swa",    ONLY(0),     WHY("there is no latent attention")},
    {"attention.q_lora_rank",             ONLY(0),     WHY("there is no latent attention")},
    {"attention.kv_lora_rank",            ONLY(0),     WHY("there is no latent attention")},
    {"attention.kv_lora_rank_swa",        ONLY(0),     WHY("there is no latent attention")},
    {"attention.output_lora_rank",        ONLY(0),     WHY("attention's output is one matrix")},
    {"attention.output_group_count",      ONLY(0),     WHY("attention's output is one matrix")},
    {"attention.decay_lora_rank",         ONLY(0),     WHY("of RWKV")},
    {"attention.iclr_lora_rank",          ONLY(0),     WHY("of RWKV")},
    {"attention.value_residual_mix_lora_rank", ONLY(0), WHY("of RWKV")},
    {"attention.gate_lora_rank",          ONLY(0),     WHY("of RWKV")},
    {"attention.relative_buckets_count",  ONLY(0),     WHY("there is no relative bias")},
    {"attention.shared_kv_layers",        ONLY(0),     WHY("every layer has its own keys and values")},
    {"attention.recurrent_layers",        ONLY(0),     WHY("every layer has attention")},
    {"full_attention_interval",           ONLY(1, 0),  WHY("every layer has attention")},
    {"attention.compress_ratios",         ONLY(0),     WHY("keys and values are not compressed")},
    {"attention.compress_rope_freq_base", UNUSED,      WHY("of compressed keys, of which there are none")},
    {"attention.indexer.kpool_select_tail", UNUSED,    WHY("of an indexer, of which there is none")},
    {"attention.indexer.",                ONLY(0),     WHY("attention has no indexer")},
    {"attention.layer_norm_epsilon",      UNUSED,      WHY("of LayerNorm; norms here are RMS")},
    {"attention.group_norm_epsilon",      UNUSED,      WHY("of GroupNorm; norms here are RMS")},
    {"attention.group_norm_groups",       ONLY(0),     WHY("norms are over a whole row")},

    // the stream and the logits
    {"embedding_scale",                   ONLY(1, 0),  WHY("the embedding is not scaled")},
    {"residual_scale",                    ONLY(1, 0),  WHY("what a layer adds is not scaled")},
    {"logit_scale",                       ONLY(1, 0),  WHY("logits are not scaled")},
    {"final_logit_softcapping",           ONLY(0, 30), WHY("logits are not capped; 30 is llama.cpp's \"not set\"")},
    {"use_parallel_residual",             ONLY(0),     WHY("experts read what attention added")},
    {"norm_before_residual",              ONLY(0),     WHY("of a draft model")},
    {"norm_before_fc",                    ONLY(0),     WHY("of a draft model")},
    {"swin_norm",                         ONLY(0),     WHY("norms come before attention and experts")},
    {"rescale_every_n_layers",            ONLY(0),     WHY("of RWKV")},
    {"nextn_predict_layers",              ONLY(0),     WHY("every layer is part of the model")},
    {"num_loops",                         ONLY(1, 0),  WHY("layers run once")},
    {"skip_loop_final_norm",              UNUSED,      WHY("of looped layers, of which there are none")},
    {"hash_layer_count",                  ONLY(0),     WHY("routers are matrices")},
    {"n_deepstack_layers",                ONLY(0),     WHY("the input is text")},
    {"deepstack_mapping",                 ONLY(-1),    WHY("the input is text")},
    {"embedding_length_out",              ONLY(0), .also = hidden_size, WHY("logits follow from the whole stream")},
    {"embedding_length_per_layer_input",  ONLY(0),     WHY("there is one embedding")},
    {"features_length",                   ONLY(0),     WHY("the input is text")},
    {"decoder_block_count",               ONLY(0),     WHY("there is no encoder")},
    {"decoder_start_token_id",            UNUSED,      WHY("of an encoder's decoder")},
    {"pooling_type",                      UNUSED,      WHY("of embeddings of texts")},
    {"classifier.",                       UNUSED,      WHY("of a classifier's head")},
    {"dense_2_feat_in",                   UNUSED,      WHY("of embeddings of texts")},
    {"dense_2_feat_out",                  UNUSED,      WHY("of embeddings of texts")},
    {"dense_3_feat_in",                   UNUSED,      WHY("of embeddings of texts")},
    {"dense_3_feat_out",                  UNUSED,      WHY("of embeddings of texts")},
    {"tensor_data_layout",                ONLY_TEXT("reference"), WHY("rows of keys and queries lie as in the training program")},

    // layers of other kinds
    {"token_shift_count",                 UNUSED,      WHY("of RWKV")},
    {"time_mix_extra_dim",                ONLY(0),     WHY("of RWKV")},
    {"time_decay_extra_dim",              ONLY(0),     WHY("of RWKV")},
    {"kda.gate_lower_bound",              UNUSED,      WHY("of linear attention, which is refused")},
    {"kda.",                              ONLY(0),     WHY("every layer has attention")},
    {"ssm.",                              ONLY(0),     WHY("every layer has attention")},
    {"wkv.",                              ONLY(0),     WHY("every layer has attention")},
    {"shortconv.",                        ONLY(0),     WHY("every layer has attention")},
    {"hyper_connection.",                 ONLY(0),     WHY("there is one stream")},
    {"attn_res.",                         ONLY(0),     WHY("a layer reads the one before")},
    {"hrm.",                              ONLY(0),     WHY("layers run once")},
    {"ple.",                              ONLY(0),     WHY("there is one embedding")},
    {"posnet.",                           ONLY(0),     WHY("of audio")},
    {"convnext.",                         ONLY(0),     WHY("of audio")},
    {"adapters.",                         ONLY(0),     WHY("there are no adapters")},
    {"target_layers",                     ONLY(0),     WHY("of a draft model")},
    {"target_hidden_size",                ONLY(0),     WHY("of a draft model")},
    {"block_size",                        ONLY(0),     WHY("of a draft model")},
    {"conv_group_size",                   ONLY(0),     WHY("of a draft model")},
    {"conv_kernel_size",                  ONLY(0),     WHY("of a draft model")},
    {"selector_rank",                     ONLY(0),     WHY("of a draft model")},
    {"selector_top_k",                    ONLY(0),     WHY("of a draft model")},
};
// clang-format on
