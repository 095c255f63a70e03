// probes: the table of named points of the forward pass. Names are llama.cpp's, so that traces of other
// programs fit.
#include "kernels/backend.h"
#include <math.h>
#include <string.h>

static const probe_info probes[PROBE_COUNT] = {
    [PROBE_INP_EMBD] = {"inp_embd", PROBE_OF_BATCH, false, false},
    [PROBE_ATTN_NORM] = {"attn_norm", PROBE_OF_LAYER, false, false},
    [PROBE_QCUR] = {"Qcur", PROBE_OF_LAYER, false, false},
    [PROBE_KCUR] = {"Kcur", PROBE_OF_LAYER, false, false},
    [PROBE_VCUR] = {"Vcur", PROBE_OF_LAYER, false, false},
    [PROBE_KQV_OUT] = {"kqv_out", PROBE_OF_LAYER, false, false},
    [PROBE_FFN_INP] = {"ffn_inp", PROBE_OF_LAYER, false, false},
    [PROBE_FFN_NORM] = {"ffn_norm", PROBE_OF_LAYER, false, false},
    [PROBE_FFN_MOE_LOGITS] = {"ffn_moe_logits", PROBE_OF_LAYER, false, false},
    [PROBE_FFN_MOE_TOPK] = {"ffn_moe_topk", PROBE_OF_LAYER, false, true},
    [PROBE_FFN_MOE_WEIGHTS_NORM] = {"ffn_moe_weights_norm", PROBE_OF_LAYER, false, false},
    [PROBE_FFN_MOE_GATE] = {"ffn_moe_gate", PROBE_OF_LAYER, true, false},
    [PROBE_FFN_MOE_UP] = {"ffn_moe_up", PROBE_OF_LAYER, true, false},
    [PROBE_FFN_MOE_SWIGLU] = {"ffn_moe_swiglu", PROBE_OF_LAYER, true, false},
    [PROBE_FFN_MOE_DOWN] = {"ffn_moe_down", PROBE_OF_LAYER, true, false},
    [PROBE_FFN_MOE_OUT] = {"ffn_moe_out", PROBE_OF_LAYER, false, false},
    [PROBE_L_OUT] = {"l_out", PROBE_OF_LAYER, false, false},
    [PROBE_RESULT_NORM] = {"result_norm", PROBE_OF_HEAD, false, false},
    [PROBE_RESULT_OUTPUT] = {"result_output", PROBE_OF_HEAD, false, false},
};

const probe_info *probe_get(probe_point point) {
  return &probes[point];
}

bool probe_find(probe_point *out, const char *name) {
  for (int p = 0; p < PROBE_COUNT; p++)
    if (!strcmp(probes[p].name, name)) {
      *out = (probe_point)p;
      return true;
    }
  return false;
}

int64_t probe_width(probe_point point, const model_shape *s) {
  int64_t size[2];
  return probe_dims(size, point, s) == 2 ? size[0] * size[1] : size[0];
}

static int one(int64_t out[2], int64_t a) {
  out[0] = a;
  return 1;
}

static int two(int64_t out[2], int64_t a, int64_t b) {
  out[0] = a;
  out[1] = b;
  return 2;
}

int probe_dims(int64_t out[2], probe_point point, const model_shape *s) {
  switch (point) {
  case PROBE_INP_EMBD:
  case PROBE_ATTN_NORM:
  case PROBE_FFN_INP:
  case PROBE_FFN_NORM:
  case PROBE_FFN_MOE_DOWN:
  case PROBE_FFN_MOE_OUT:
  case PROBE_L_OUT:
  case PROBE_RESULT_NORM:
    return one(out, s->hidden);
  case PROBE_QCUR:
  case PROBE_KQV_OUT:
    return two(out, s->n_heads, s->head_dim);
  case PROBE_KCUR:
  case PROBE_VCUR:
    return two(out, s->n_kv_heads, s->head_dim);
  case PROBE_FFN_MOE_LOGITS:
    return one(out, s->n_experts);
  case PROBE_FFN_MOE_TOPK:
  case PROBE_FFN_MOE_WEIGHTS_NORM:
    return one(out, s->top_k);
  case PROBE_FFN_MOE_GATE:
  case PROBE_FFN_MOE_UP:
  case PROBE_FFN_MOE_SWIGLU:
    return one(out, s->expert_width);
  case PROBE_RESULT_OUTPUT:
    return one(out, s->vocabulary);
  }
  __builtin_unreachable();
}

double probe_factor(probe_point point, const model_shape *s) {
  return point == PROBE_QCUR ? 1 / sqrt((double)s->head_dim) : 1;
}
