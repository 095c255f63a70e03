#include "kernels/cpu/state.h"
#include "base/memory.h"
#include "kernels/cpu/steps.h"
#include "kernels/product_form.h"
#include <stdlib.h>
#include <string.h>

enum { CACHE_LINE = 64 };

status cpu_take(cpu_backend *b, void *pointer, size_t count, size_t size, const char *what) {
  b->bytes += count * size;
  return memory_take((void **)pointer, count, size, what);
}

// row[i]: rounded row i, as row.h lays it out.
static status rounded_open(cpu_backend *b, char **out, const block_q8_K **row, int64_t rows, int64_t width,
                           bool splits, const char *what) {
  size_t before = b->reads_q8_0 ? (size_t)(width / QK_32) * sizeof(block_q8_32) : 0;
  size_t after = splits ? split_row_bytes(width / QK_K) : (size_t)(width / QK_K) * sizeof(block_q8_K);
  TRY(cpu_take(b, out, (size_t)rows, before + after, what));
  for (int64_t r = 0; r < rows; r++)
    row[r] = (const block_q8_K *)(const void *)(*out + (size_t)r * (before + after) + before);
  return 0;
}

static status activations_open(cpu_backend *b, activations *a, const path_kernels *s, int64_t rows,
                               int64_t width, const char *what) {
  a->width = width;
  // An odd number of cache lines apart: rows of a power of two bytes would all compete for a few sets of a
  // cache.
  size_t lines = ((size_t)width * s->ops->bytes + CACHE_LINE - 1) / CACHE_LINE | 1;
  TRY(cpu_take(b, &a->reals, (size_t)rows, lines * CACHE_LINE, what));
  TRY(cpu_take(b, &a->real_rows, (size_t)rows, sizeof *a->real_rows, what));
  TRY(cpu_take(b, &a->q8k_rows, (size_t)rows, sizeof *a->q8k_rows, what));
  for (int64_t r = 0; r < rows; r++) a->real_rows[r] = a->reals + (size_t)r * lines * CACHE_LINE;
  bool has_q8k = b->reads_q8k && width % QK_K == 0, has_q8_0 = b->reads_q8_0 && width % QK_32 == 0;
  if (path_rounded_form(s->path->kind) == ACTIVATION_REAL || !(has_q8k || has_q8_0)) return 0;
  return rounded_open(b, &a->q8k, a->q8k_rows, rows, width, path_splits_outliers(s->path->kind), what);
}

// For up to `groups` groups of rounded rows.
static status groups_open(cpu_backend *b, packed_groups *p, const packed_ops *ops, int64_t groups,
                          int64_t width, const char *what) {
  if (!ops || width % ops->block) return 0;
  p->ops = ops;
  p->group_bytes = ops->group_bytes(width);
  return cpu_take(b, &p->groups, (size_t)groups, p->group_bytes, what);
}

static status packed_open(cpu_backend *b, packed_rows *p, int64_t groups, int64_t width, const char *what) {
  p->width = width;
  if (b->reads_q8k) TRY(groups_open(b, &p->of_256, b->row->packed, groups, width, what));
  if (b->reads_q8_0) TRY(groups_open(b, &p->of_32, b->row->packed_32, groups, width, what));
  return 0;
}

static void packed_close(packed_rows *p) {
  free(p->of_256.groups);
  free(p->of_32.groups);
}

// For all rows of `a`, where many tokens are at once.
static status packed_rows_open(cpu_backend *b, activations *a, int64_t rows, const char *what) {
  if (rows < LEAST_PACKED || !a->q8k) return 0;
  return packed_open(b, &a->packed, (rows + PACKED_TOKENS - 1) / PACKED_TOKENS, a->width, what);
}

static status outputs_open(cpu_backend *b, outputs *o, int64_t n_rows, int64_t width, const char *what) {
  size_t rows = (size_t)n_rows, real = b->shared.ops->bytes;
  TRY(cpu_take(b, &o->reals, rows * (size_t)width, real, what));
  TRY(cpu_take(b, &o->rows, rows, sizeof *o->rows, what));
  for (size_t r = 0; r < rows; r++) o->rows[r] = o->reals + r * (size_t)width * real;
  return 0;
}

static void outputs_close(outputs *o) {
  free(o->reals);
  free(o->rows);
}

static void activations_close(activations *a) {
  free(a->reals);
  free(a->q8k);
  packed_close(&a->packed);
  free(a->real_rows);
  free(a->q8k_rows);
}

static path_kernels kernels_of(const cpu_row *row, path_kind kind, const model_weights *weights) {
  const real_ops *ops = row->f32;
  switch (kind) {
  case PATH_F64:
    ops = row->f64;
    break;
  case PATH_F32:
  case PATH_Q8K:
  case PATH_Q8K_SPLIT:
    break;
  }
  return (path_kernels){path_for(kind, weights), ops};
}

void cpu_close(backend *base) {
  cpu_backend *b = (cpu_backend *)base;
  if (!b) return;
  activations *sets[] = {&b->normed, &b->expert_in, &b->attended, &b->hidden_in, &b->head_in};
  for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) activations_close(sets[i]);
  outputs *outs[] = {&b->q, &b->k, &b->v, &b->projected, &b->router_logits, &b->logits};
  for (size_t i = 0; i < sizeof outs / sizeof *outs; i++) outputs_close(outs[i]);
  void *arrays[] = {b->x,           b->rope_tables,  b->keys,    b->values,   b->slot_rows,
                    b->normed_rows, b->slot_weights, b->owned,   b->first,    b->slots,
                    b->member,      b->active,       b->up,      b->narrow,   b->in_rows,
                    b->in_q8k,      b->gate_out,     b->up_out,  b->down_out, b->chosen,
                    b->margin,      b->spans,        b->scratch, b->groups,   b->group_of};
  for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
  packed_close(&b->packed_in);
  exact_close(b);
  output_parts_close(b);
  team_close(b->team);
  free(b->waits);
  free(b);
}

kv_storage cpu_kv_storage(const cpu_backend *b) {
  return b->shared.path->attention == ATTENTION_RUN_KV && b->params.kv_f16 ? KV_HALF : KV_REAL;
}

static status open_caches(cpu_backend *b) {
  const model_shape *s = &b->shape;
  size_t heads = (size_t)(s->n_layers * b->params.n_sequences * s->n_kv_heads);
  if (b->shared.path->attention == ATTENTION_EXACT) return exact_open(b);
  size_t kv_bytes = cpu_kv_storage(b) == KV_HALF ? 2 : b->shared.ops->bytes;
  int64_t positions = (b->params.context + ATTENTION_CHUNK - 1) / ATTENTION_CHUNK * ATTENTION_CHUNK;
  b->kv_head_bytes = (size_t)(positions * s->head_dim) * kv_bytes;
  TRY(cpu_take(b, &b->keys, heads, b->kv_head_bytes, "the key cache"));
  return cpu_take(b, &b->values, heads, b->kv_head_bytes, "the value cache");
}

static status open_attention(cpu_backend *b) {
  const model_shape *s = &b->shape;
  int64_t n = b->params.max_batch, real = (int64_t)b->shared.ops->bytes;
  int64_t q_width = s->n_heads * s->head_dim, kv_width = s->n_kv_heads * s->head_dim;
  TRY(cpu_take(b, &b->x, (size_t)(n * s->hidden), (size_t)real, "the residual stream"));
  TRY(outputs_open(b, &b->q, n, q_width, "queries"));
  TRY(outputs_open(b, &b->k, n, kv_width, "keys"));
  TRY(outputs_open(b, &b->v, n, kv_width, "values"));
  TRY(cpu_take(b, &b->spans, (size_t)n, sizeof *b->spans, "attention spans"));
  TRY(activations_open(b, &b->attended, &b->attention, n, q_width, "attention outputs"));
  TRY(packed_rows_open(b, &b->attended, n, "attention outputs"));
  TRY(outputs_open(b, &b->projected, n, s->hidden, "projected attention"));
  TRY(cpu_take(b, &b->rope_tables, (size_t)(b->params.context * s->head_dim), (size_t)real, "RoPE tables"));
  return open_caches(b);
}

static status list_owned(cpu_backend *b) {
  const expert_map *map = &b->params.map;
  int64_t maps = map->is_same ? 1 : b->shape.n_layers, n = b->shape.n_experts;
  b->n_owned = expert_map_most(map, b->shape.n_layers, n);
  TRY(cpu_take(b, &b->owned, (size_t)(maps * b->n_owned), sizeof *b->owned, "expert lists"));
  for (int64_t i = 0; i < maps * n; i++)
    if (map->local[i] >= 0) b->owned[i / n * b->n_owned + map->local[i]] = (expert_global){(int32_t)(i % n)};
  return 0;
}

static status open_groups(cpu_backend *b, int64_t slots) {
  const model_shape *s = &b->shape;
  int64_t most = slots / PACKED_TOKENS + b->n_owned; // the last of each expert may be short
  if (!b->hidden_in.q8k || slots < LEAST_PACKED) return 0;
  TRY(cpu_take(b, &b->groups, (size_t)most, sizeof *b->groups, "expert lists"));
  TRY(cpu_take(b, &b->group_of, (size_t)b->n_owned, sizeof *b->group_of, "expert lists"));
  TRY(packed_open(b, &b->packed_in, most, s->hidden, "expert inputs"));
  return packed_open(b, &b->hidden_in.packed, most, s->expert_width, "expert activations");
}

static status open_experts(cpu_backend *b) {
  const model_shape *s = &b->shape;
  int64_t n = b->params.max_batch, slots = n * s->top_k;
  TRY(list_owned(b));
  TRY(cpu_take(b, &b->member, (size_t)slots, sizeof *b->member, "routing"));
  TRY(cpu_take(b, &b->chosen, (size_t)slots, sizeof *b->chosen, "routing"));
  TRY(activations_open(b, &b->normed, &b->shared, n, s->hidden, "normed activations"));
  if (b->params.computes_shared) TRY(packed_rows_open(b, &b->normed, n, "normed activations"));
  if (b->params.n_ranks > 1 || !b->params.computes_shared)
    TRY(cpu_take(b, &b->normed_rows, (size_t)(n * s->hidden), b->shared.ops->bytes, "normed activations"));
  TRY(cpu_take(b, &b->slot_rows, (size_t)(slots * s->hidden), b->shared.ops->bytes, "slot outputs"));
  TRY(activations_open(b, &b->expert_in, &b->experts, n, s->hidden, "expert inputs"));
  TRY(activations_open(b, &b->hidden_in, &b->experts, slots, s->expert_width, "expert activations"));
  TRY(cpu_take(b, &b->up, (size_t)(slots * s->expert_width), b->experts.ops->bytes, "expert activations"));
  if (b->experts.ops->bytes != b->shared.ops->bytes)
    TRY(cpu_take(b, &b->narrow, (size_t)(slots * s->hidden), b->experts.ops->bytes, "expert outputs"));
  TRY(cpu_take(b, &b->first, (size_t)b->n_owned + 1, sizeof *b->first, "expert lists"));
  TRY(cpu_take(b, &b->active, (size_t)b->n_owned, sizeof *b->active, "expert lists"));
  TRY(cpu_take(b, &b->slots, (size_t)slots, sizeof *b->slots, "expert lists"));
  TRY(cpu_take(b, &b->in_rows, (size_t)slots, sizeof *b->in_rows, "expert lists"));
  TRY(cpu_take(b, &b->in_q8k, (size_t)slots, sizeof *b->in_q8k, "expert lists"));
  TRY(cpu_take(b, &b->gate_out, (size_t)slots, sizeof *b->gate_out, "expert lists"));
  TRY(cpu_take(b, &b->up_out, (size_t)slots, sizeof *b->up_out, "expert lists"));
  TRY(open_groups(b, slots));
  return cpu_take(b, &b->down_out, (size_t)slots, sizeof *b->down_out, "expert lists");
}

static int64_t widest_row(const model_shape *s) {
  int64_t q_width = s->n_heads * s->head_dim, widest = s->hidden;
  if (q_width > widest) widest = q_width;
  return s->expert_width > widest ? s->expert_width : widest;
}

// The shared steps but attention.
static status open_router_and_head(cpu_backend *b) {
  const model_shape *s = &b->shape;
  size_t rows = (size_t)b->params.max_logit_rows, slots = (size_t)(b->params.max_batch * s->top_k);
  TRY(outputs_open(b, &b->router_logits, b->params.max_batch, s->n_experts, "router logits"));
  TRY(cpu_take(b, &b->slot_weights, slots, b->shared.ops->bytes, "slot weights"));
  TRY(activations_open(b, &b->head_in, &b->shared, (int64_t)rows, s->hidden, "head inputs"));
  TRY(packed_rows_open(b, &b->head_in, (int64_t)rows, "head inputs"));
  TRY(cpu_take(b, &b->margin, (size_t)b->params.max_batch, sizeof *b->margin, "routing"));
  return outputs_open(b, &b->logits, (int64_t)rows, s->vocabulary, "logits");
}

static status cpu_open_fields(cpu_backend *b) {
  const backend_params *p = &b->params;
  if (p->computes_shared) TRY(open_attention(b));
  if (p->computes_shared) TRY(open_router_and_head(b));
  if (p->parts_tokens || p->parts_head) TRY(output_parts_open(b));
  TRY(open_experts(b));
  b->scratch_bytes = (size_t)attention_scratch_reals(b->shape.head_dim) * sizeof(double);
  bool is_exact = p->computes_shared && b->shared.path->attention == ATTENTION_EXACT;
  if (is_exact && exact_scratch_bytes(b->shape.head_dim) > b->scratch_bytes)
    b->scratch_bytes = exact_scratch_bytes(b->shape.head_dim);
  size_t product_bytes = (size_t)product_scratch_floats(widest_row(&b->shape)) * sizeof(float);
  if (product_bytes > b->scratch_bytes) b->scratch_bytes = product_bytes;
  b->scratch_bytes = (b->scratch_bytes + CACHE_LINE - 1) / CACHE_LINE * CACHE_LINE;
  TRY(cpu_take(b, &b->scratch, (size_t)p->threads, b->scratch_bytes, "thread scratch"));
  for (int64_t t = 0; t < p->context && p->computes_shared; t++)
    b->shared.ops->rope_table(b->rope_tables + (size_t)(t * b->shape.head_dim) * b->shared.ops->bytes,
                              b->shape.rope_base, t, b->shape.head_dim / 2);
  return 0;
}

static_assert(TEAM_CANDIDATES * (TEAM_TURNS + 1) <= TEAM_BATCHES, "a team is chosen by then");

static status open_team(cpu_backend *b) {
  TRY(team_open(&b->team, b->params.threads));
  return cpu_take(b, &b->waits, (size_t)b->params.threads, sizeof *b->waits, "threads' clocks");
}

// A library built with fast math may have switched them off when it was loaded; bits are not the path's then.
static bool keeps_subnormals(void) {
  volatile float small = 0x1p-126f;
  return small * 0.5f > 0;
}

status cpu_open(backend **out, const backend_params *params) {
  *out = NULL;
  if (!keeps_subnormals()) return FAIL("backend cpu: this process flushes subnormal numbers to zero");
  const cpu_row *row = cpu_row_find(params->row);
  if (!row)
    return REFUSE("run.rows = \"%s\": expected \"auto\" or a row of the cpu backend that runs here: %s",
                  params->row, cpu_rows());
  cpu_backend *b;
  TRY(memory_take((void **)&b, 1, sizeof *b, "the cpu backend"));
  b->base.ops = &cpu_backend_ops;
  b->params = *params;
  b->shape = params->weights->shape;
  b->row = row;
  b->shared = kernels_of(row, params->shared, params->weights);
  b->attention = kernels_of(row, path_before_router(params->shared), params->weights);
  b->experts = kernels_of(row, params->experts, params->weights);
  b->reads_q8k = model_reads(params->weights, ACTIVATION_Q8K);
  b->reads_q8_0 = model_reads(params->weights, ACTIVATION_Q8_0);
  bool chooses = params->fits_team && params->computes_shared; // a turn starts where a layer's attention does
  team_choice_init(&b->few, params->threads, chooses, TEAM_CANDIDATES);
  team_choice_init(&b->many, params->threads, chooses, TEAM_CANDIDATES_MANY);
  if (open_team(b) || cpu_open_fields(b)) {
    cpu_close(&b->base);
    return 1;
  }
  *out = &b->base;
  return 0;
}

const char *cpu_rows(void) {
  static char names[256];
  names[0] = 0;
  for (const cpu_row *const *row = cpu_row_table(); *row; row++)
    if ((*row)->usable()) {
      if (names[0]) strcat(names, ", ");
      strncat(names, (*row)->name, sizeof names - strlen(names) - 3);
    }
  return names;
}

bool cpu_has_path(path_kind kind) {
  switch (kind) {
  case PATH_F64:
  case PATH_F32:
  case PATH_Q8K:
  case PATH_Q8K_SPLIT:
    return true;
  }
  return false;
}

const char *cpu_row_name(const backend *base) {
  return ((const cpu_backend *)base)->row->name;
}

uint64_t cpu_state_bytes(const backend *base) {
  return ((const cpu_backend *)base)->bytes;
}
