#include "kernels/phases.h"

const phase_info *phase_get(phase_kind phase) {
  static const phase_info PHASES[PHASE_COUNT] = {
      [PHASE_EMBED] = {"embed", PHASE_ONCE},           [PHASE_ATTN_NORM] = {"attn_norm", PHASE_IN_LAYER},
      [PHASE_QKV] = {"q, k, v", PHASE_IN_LAYER},       [PHASE_HEADS] = {"RoPE, cache", PHASE_IN_LAYER},
      [PHASE_ATTEND] = {"attention", PHASE_IN_LAYER},  [PHASE_O] = {"o", PHASE_IN_LAYER},
      [PHASE_FFN_NORM] = {"ffn_norm", PHASE_IN_LAYER}, [PHASE_ROUTER] = {"router", PHASE_IN_LAYER},
      [PHASE_TOP_K] = {"top-k", PHASE_IN_LAYER},       [PHASE_GATE_UP] = {"gate, up", PHASE_IN_LAYER},
      [PHASE_SWIGLU] = {"swiglu", PHASE_IN_LAYER},     [PHASE_DOWN] = {"down", PHASE_IN_LAYER},
      [PHASE_COMBINE] = {"combine", PHASE_IN_LAYER},   [PHASE_EXCHANGE] = {"exchange", PHASE_IN_LAYER},
      [PHASE_HEAD_NORM] = {"head norm", PHASE_ONCE},   [PHASE_HEAD] = {"head", PHASE_ONCE},
      [PHASE_DIGEST] = {"digest", PHASE_ONCE},
  };
  return &PHASES[phase];
}
