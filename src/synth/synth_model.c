#include "src/synth/synth_model.h"
#include <strings.h>

// clang-format off
#define AS_OTHERS TYPE_F32
static const synth_mix mixes[] = {
    {"q4_k_m", 15, TYPE_Q4_K,   TYPE_Q6_K,   TYPE_Q6_K, AS_OTHERS},
    {"q5_k_m", 17, TYPE_Q5_K,   TYPE_Q6_K,   TYPE_Q6_K, AS_OTHERS},
    {"q6_k",   18, TYPE_Q6_K,   TYPE_Q6_K,   TYPE_Q6_K, AS_OTHERS},
    {"q8_0",   7,  TYPE_Q8_0,   TYPE_Q8_0,   TYPE_Q8_0, AS_OTHERS},
    {"f16",    1,  TYPE_F16,    TYPE_F16,    TYPE_F16, AS_OTHERS},
    {"f32",    0,  TYPE_F32,    TYPE_F32,    TYPE_F32, AS_OTHERS},
    {"q2_k",   10, TYPE_Q2_K,   TYPE_Q3_K,   TYPE_Q6_K, AS_OTHERS},
    {"q3_k_m", 12, TYPE_Q3_K,   TYPE_Q4_K,   TYPE_Q6_K, AS_OTHERS},
    {"iq4_xs", 30, TYPE_IQ4_XS, TYPE_Q5_K,   TYPE_Q6_K, AS_OTHERS},
    {"iq4_nl", 25, TYPE_IQ4_NL, TYPE_Q5_K,   TYPE_Q6_K, AS_OTHERS},
    {"q4_0",   2,  TYPE_Q4_0,   TYPE_Q4_0,   TYPE_Q6_K, AS_OTHERS},
    {"q4_1",   3,  TYPE_Q4_1,   TYPE_Q4_1,   TYPE_Q6_K, AS_OTHERS},
    {"q5_0",   8,  TYPE_Q5_0,   TYPE_Q5_0,   TYPE_Q6_K, AS_OTHERS},
    {"q5_1",   9,  TYPE_Q5_1,   TYPE_Q5_1,   TYPE_Q6_K, AS_OTHERS},
    {"mxfp4",  38, TYPE_MXFP4,  TYPE_Q8_0,   TYPE_Q8_0, AS_OTHERS},
    {"ud-q4_k_xl", 15, TYPE_Q4_K, TYPE_Q5_K, TYPE_Q6_K, TYPE_Q8_0}, // like the dynamic mixes of that name
};
// clang-format on
enum { N_MIXES = sizeof mixes / sizeof *mixes };

const synth_mix *synth_mix_at(int i) {
  return i < N_MIXES ? &mixes[i] : NULL;
}

const synth_mix *synth_mix_find(const char *name) {
  for (int i = 0; i < N_MIXES; i++)
    if (!strcasecmp(mixes[i].name, name)) return &mixes[i];
  return NULL;
}

// The layers whose attn_v and ffn_down_exps have more bits in llama.cpp's *_K_M mixes (its use_more_bits).
static bool layer_has_more_bits(int64_t i, int64_t n) {
  return i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2;
}

static bool has_more_bits(const synth_model *m, tensor_id id, int64_t layer) {
  if (id == TENSOR_ATTN_V || id == TENSOR_FFN_DOWN_EXPS)
    return layer_has_more_bits(layer, m->settings.shape.n_layers);
  return false;
}

static bool is_output(const synth_model *m, tensor_id id) {
  return id == TENSOR_OUTPUT || (m->tied && id == TENSOR_TOKEN_EMBD);
}

static bool is_attention(tensor_id id) {
  return id == TENSOR_ATTN_Q || id == TENSOR_ATTN_K || id == TENSOR_ATTN_V || id == TENSOR_ATTN_OUTPUT;
}

weight_type synth_type(const synth_model *m, const tensor_row *row, int64_t layer) {
  if (row->kind == TENSOR_VECTOR || row->kind == TENSOR_ROUTER) return TYPE_F32;
  weight_type type = is_output(m, row->id)                                     ? m->mix->output
                     : is_attention(row->id) && m->mix->attention != AS_OTHERS ? m->mix->attention
                     : has_more_bits(m, row->id, layer)                        ? m->mix->better
                                                                               : m->mix->most;
  int64_t cols = tensor_row_dim(row, 0, &m->settings.shape);
  if (cols % (int64_t)type_find((uint32_t)type)->elements) type = TYPE_Q8_0;
  if (cols % (int64_t)type_find((uint32_t)type)->elements) type = TYPE_F16;
  return type;
}
