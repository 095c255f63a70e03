#include "src/commands/phase_work.h"
#include <string.h>

uint64_t matrix_bytes(const matrix *m) {
  return (uint64_t)m->rows * type_row_bytes(type_find((uint32_t)m->type), (size_t)m->cols);
}

uint64_t phase_work_bytes(const phase_work *w) {
  uint64_t sum = 0;
  for (int p = 0; p < PHASE_COUNT; p++) sum += w->bytes[p];
  return sum;
}

// A matrix once, and its product with the activations of n tokens.
static void add_matrix(phase_work *w, phase_kind phase, path_kind path, const matrix *m, int64_t n,
                       bool reads) {
  if (reads) w->bytes[phase] += matrix_bytes(m);
  if (product_is_of_bytes(path, m->type))
    w->int8_operations[phase] += 2.0 * (double)m->rows * (double)m->cols * (double)n;
}

// Keys and values up to the position of each token that this rank computes.
static void add_attention(phase_work *w, const phase_counter *c, const arm *a, const token_batch *batch) {
  enum { INT8_PRODUCTS = 3 + 4 }; // of limbs: for scores and for values (docs/paths.md)
  const model_shape *s = &c->m->weights.shape;
  const token_batch own = arm_owned_rows(a);
  uint64_t positions = 0;
  for (int64_t i = 0; i < own.n; i++) positions += (uint64_t)own.position[i] + 1;
  int64_t kv_heads = arm_outputs(a, OUTPUTS_OF_LAYERS, batch->n, s->n_kv_heads, 1).count;
  w->bytes[PHASE_ATTEND] +=
      positions * (uint64_t)(2 * kv_heads) * path_cache_bytes(arm_path(a), s->head_dim, c->kv_f16);
  if (arm_path(a)->attention == ATTENTION_EXACT)
    w->int8_operations[PHASE_ATTEND] += 2.0 * INT8_PRODUCTS * (double)positions *
                                        (double)(s->n_heads / s->n_kv_heads * kv_heads * s->head_dim);
}

// The rows of m that this rank computes where a unit of `of` units is one.
static matrix part_of(const matrix *m, const arm *a, output_kind kind, int64_t n, int64_t of) {
  matrix part = *m;
  int64_t each = m->rows / of, unit = each == 1 ? OUTPUT_UNIT : 1;
  part.rows = each * arm_outputs(a, kind, n, of, unit).count;
  return part;
}

static void add_layer(phase_work *w, const phase_counter *c, const arm *a, const layer_weights *l,
                      const token_batch *batch) {
  const model_shape *s = &c->m->weights.shape;
  path_kind path = arm_path(a)->kind;
  const int64_t n = arm_owned_rows(a).n;
  const matrix *qkv[3] = {&l->q, &l->k, &l->v}, o = part_of(&l->o, a, OUTPUTS_OF_LAYERS, batch->n, l->o.rows);
  w->bytes[PHASE_ATTN_NORM] += (uint64_t)s->hidden * sizeof(float);
  for (int i = 0; i < 3; i++) {
    matrix part = part_of(qkv[i], a, OUTPUTS_OF_LAYERS, batch->n, s->n_kv_heads);
    add_matrix(w, PHASE_QKV, path_before_router(path), &part, n, n > 0);
  }
  w->bytes[PHASE_HEADS] += 2 * (uint64_t)s->head_dim * sizeof(float);
  add_attention(w, c, a, batch);
  add_matrix(w, PHASE_O, path_before_router(path), &o, n, n > 0);
  w->bytes[PHASE_FFN_NORM] += (uint64_t)s->hidden * sizeof(float);
  add_matrix(w, PHASE_ROUTER, path, &l->router, n, n > 0);
}

void phase_work_add_shared(phase_work *w, const phase_counter *c, const arm *a, const token_batch *batch) {
  const model_weights *m = &c->m->weights;
  uint64_t row = matrix_bytes(&m->embedding) / (uint64_t)m->shape.vocabulary;
  if (!c->m->tied) w->bytes[PHASE_EMBED] += (uint64_t)batch->n * row; // else the head reads all of it
  for (int64_t l = 0; l < m->shape.n_layers; l++) add_layer(w, c, a, &m->layers[l], batch);
}

void phase_work_add_experts(phase_work *w, const phase_counter *c, const arm *a, int64_t layer,
                            const token_batch *batch) {
  const layer_weights *l = &c->m->weights.layers[layer];
  const model_shape *s = &c->m->weights.shape;
  path_kind path = arm_expert_path(a)->kind;
  memset(c->chosen, 0, (size_t)s->n_experts);
  for (int64_t t = 0; t < batch->n; t++) {
    int32_t rank[MAX_TOP_K];
    placement_ranks(rank, c->experts, layer, arm_experts(a, t), s->top_k, batch->sequence[t],
                    batch->position[t]);
    for (int64_t k = 0; k < s->top_k; k++) {
      expert_global x = arm_experts(a, t)[k];
      if (rank[k] != c->rank) continue;
      bool reads = !c->chosen[x.id];
      add_matrix(w, PHASE_GATE_UP, path, &l->gate, 1, reads);
      add_matrix(w, PHASE_GATE_UP, path, &l->up, 1, reads);
      add_matrix(w, PHASE_DOWN, path, &l->down, 1, reads);
      c->chosen[x.id] = 1;
    }
  }
}

void phase_work_add_heads(phase_work *w, const phase_counter *c, const arm *a, int64_t n_rows) {
  const model_weights *m = &c->m->weights;
  w->bytes[PHASE_HEAD_NORM] += (uint64_t)m->shape.hidden * sizeof(float);
  const matrix part =
      part_of(&m->output, a, OUTPUTS_OF_HEAD, n_rows < LOGIT_ROWS ? n_rows : LOGIT_ROWS, m->output.rows);
  add_matrix(w, PHASE_HEAD, arm_path(a)->kind, &part, n_rows, true);
}
