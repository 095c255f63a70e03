// steps: the cpu backend. Each step is one parallel region of a few named phases over a batch, each phase a loop whose
// iterations are independent, so that threads change no bit.
//
// Owns: activations, KV caches and work space of one arm on one rank. All of it is allocated at open.
// Refuses to know: arithmetic (rows), other ranks.
#include "base/memory.h"
#include "kernels/cpu/row.h"
#include "kernels/half.h"
#include <omp.h>
#include <stdlib.h>
#include <string.h>

// With few tokens a product waits for the memory: threads then take fixed, contiguous shares, so that each knows
// what it reads next. With more it waits for arithmetic, and a share is what a thread has time for.
enum { FEW_TOKENS = 4 };

typedef struct { // activations of one kind for up to max_batch (or max slots) rows
  char *reals;       // [rows][width] of the path's real
  block_q8_K *q8k;   // [rows][width / QK_K]; only on q8k and where width is a multiple of QK_K
  int64_t width;
  void **real_rows;              // pointers to the rows
  const block_q8_K **q8k_rows;
} activations;

typedef struct { // what a product of the shared path fills
  char *reals; // [max_batch][width]
  void **rows; // pointers to the rows
  int64_t width;
} outputs;

typedef struct { // tokens of one sequence, neighbours in the batch, whose attention is one task a head slice
  int64_t first, n;
} token_span;

typedef struct { // one path's operations and what its products need
  const path_info *path;
  const real_ops *ops;
} side;

typedef struct {
  backend base;
  backend_params params;
  model_shape shape;
  const cpu_row *row;
  side shared, experts;
  uint64_t bytes;

  char *x;               // residual stream [max_batch][hidden]
  activations normed;    // what q, k, v, router (shared) read
  activations expert_in; // what own experts read, in the experts' real
  outputs q, k, v;       // [max_batch][heads * head_dim]
  token_span *spans;     // [max_batch]
  activations attended;  // [max_batch][n_heads * head_dim]
  outputs projected;     // [max_batch][hidden]
  char *rope_tables;     // [context][head_dim] of (cos, sin)
  char *keys, *values;   // caches
  size_t kv_head_bytes;  // of one (layer, sequence, head)
  outputs router_logits; // [max_batch][n_experts]
  char *slot_weights;    // [max_batch][top_k]
  char *slot_rows;       // [max_batch * top_k][hidden]

  int64_t n_own;         // experts of this rank in a layer
  expert_global *own;    // [n_own]
  int32_t *first;        // [n_own + 1] begin of each own expert's slots in `slots`
  int32_t *slots;        // token * top_k + slot, grouped by own expert, ascending
  int32_t *active;       // own experts with at least one slot
  activations hidden_in; // [max slots][expert_width]: gate, then silu(gate) * up
  char *up;              // [max slots][expert_width]
  char *narrow;          // [max slots][hidden] of the experts' real, when it is not the shared real
  void **in_rows;        // [max slots] gathered rows
  const block_q8_K **in_q8k;
  void **gate_out, **up_out, **down_out;
  void **logits_out;     // [max_logit_rows]
  char *scratch;         // [threads][scratch_bytes]
  size_t scratch_bytes;
  activations head_in;   // [max_logit_rows][hidden]
} cpu_backend;

// ---- open and close ----

static status take(cpu_backend *b, void *pointer, size_t count, size_t size, const char *what) {
  b->bytes += count * size;
  return memory_take((void **)pointer, count, size, what);
}

static status activations_open(cpu_backend *b, activations *a, const side *s, int64_t rows, int64_t width,
                               const char *what) {
  a->width = width;
  TRY(take(b, &a->reals, (size_t)(rows * width), s->ops->bytes, what));
  TRY(take(b, &a->real_rows, (size_t)rows, sizeof *a->real_rows, what));
  TRY(take(b, &a->q8k_rows, (size_t)rows, sizeof *a->q8k_rows, what));
  bool rounded = s->path->kind == PATH_Q8K && width % QK_K == 0;
  if (rounded) TRY(take(b, &a->q8k, (size_t)(rows * width / QK_K), sizeof *a->q8k, what));
  for (int64_t r = 0; r < rows; r++) {
    a->real_rows[r] = a->reals + (size_t)(r * width) * s->ops->bytes;
    if (rounded) a->q8k_rows[r] = a->q8k + r * (width / QK_K);
  }
  return 0;
}

static status outputs_open(cpu_backend *b, outputs *o, int64_t width, const char *what) {
  size_t rows = (size_t)b->params.max_batch, real = b->shared.ops->bytes;
  o->width = width;
  TRY(take(b, &o->reals, rows * (size_t)width, real, what));
  TRY(take(b, &o->rows, rows, sizeof *o->rows, what));
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
  free(a->real_rows);
  free(a->q8k_rows);
}

static side side_of(const cpu_row *row, path_kind kind) {
  return (side){path_get(kind), kind == PATH_F64 ? row->f64 : row->f32};
}

static void cpu_close(backend *base) {
  cpu_backend *b = (cpu_backend *)base;
  if (!b) return;
  activations *sets[] = {&b->normed, &b->expert_in, &b->attended, &b->hidden_in, &b->head_in};
  for (size_t i = 0; i < sizeof sets / sizeof *sets; i++) activations_close(sets[i]);
  outputs *outs[] = {&b->q, &b->k, &b->v, &b->projected, &b->router_logits};
  for (size_t i = 0; i < sizeof outs / sizeof *outs; i++) outputs_close(outs[i]);
  void *owned[] = {b->x,     b->rope_tables, b->keys,    b->values,  b->slot_rows, b->slot_weights, b->own,
                   b->first, b->slots,       b->active,  b->up,      b->narrow,    b->in_rows,      b->in_q8k,
                   b->gate_out, b->up_out,   b->down_out, b->logits_out, b->spans, b->scratch};
  for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free(owned[i]);
  free(b);
}

static kv_storage storage_of(const cpu_backend *b) {
  return b->params.kv_f16 && b->shared.path->kind != PATH_F64 ? KV_HALF : KV_REAL;
}

static status open_attention(cpu_backend *b) {
  const model_shape *s = &b->shape;
  int64_t n = b->params.max_batch, real = (int64_t)b->shared.ops->bytes;
  int64_t q_width = s->n_heads * s->head_dim, kv_width = s->n_kv_heads * s->head_dim;
  TRY(take(b, &b->x, (size_t)(n * s->hidden), (size_t)real, "the residual stream"));
  TRY(activations_open(b, &b->normed, &b->shared, n, s->hidden, "normed activations"));
  TRY(outputs_open(b, &b->q, q_width, "queries"));
  TRY(outputs_open(b, &b->k, kv_width, "keys"));
  TRY(outputs_open(b, &b->v, kv_width, "values"));
  TRY(take(b, &b->spans, (size_t)n, sizeof *b->spans, "attention spans"));
  TRY(activations_open(b, &b->attended, &b->shared, n, q_width, "attention outputs"));
  TRY(outputs_open(b, &b->projected, s->hidden, "projected attention"));
  TRY(take(b, &b->rope_tables, (size_t)(b->params.context * s->head_dim), (size_t)real, "RoPE tables"));
  size_t kv_bytes = storage_of(b) == KV_HALF ? 2 : (size_t)real;
  int64_t positions = (b->params.context + ATTENTION_CHUNK - 1) / ATTENTION_CHUNK * ATTENTION_CHUNK;
  size_t heads = (size_t)(s->n_layers * b->params.n_sequences * s->n_kv_heads);
  b->kv_head_bytes = (size_t)(positions * s->head_dim) * kv_bytes;
  TRY(take(b, &b->keys, heads, b->kv_head_bytes, "the key cache"));
  return take(b, &b->values, heads, b->kv_head_bytes, "the value cache");
}

static status open_experts(cpu_backend *b) {
  const model_shape *s = &b->shape;
  int64_t n = b->params.max_batch, slots = n * s->top_k;
  for (int64_t e = 0; e < s->n_experts; e++) b->n_own += b->params.local[e] >= 0;
  TRY(take(b, &b->own, (size_t)b->n_own, sizeof *b->own, "expert lists"));
  for (int64_t e = 0; e < s->n_experts; e++)
    if (b->params.local[e] >= 0) b->own[b->params.local[e]] = (expert_global)e;
  TRY(outputs_open(b, &b->router_logits, s->n_experts, "router logits"));
  TRY(take(b, &b->slot_weights, (size_t)slots, b->shared.ops->bytes, "slot weights"));
  TRY(take(b, &b->slot_rows, (size_t)(slots * s->hidden), b->shared.ops->bytes, "slot outputs"));
  TRY(activations_open(b, &b->expert_in, &b->experts, n, s->hidden, "expert inputs"));
  TRY(activations_open(b, &b->hidden_in, &b->experts, slots, s->expert_width, "expert activations"));
  TRY(take(b, &b->up, (size_t)(slots * s->expert_width), b->experts.ops->bytes, "expert activations"));
  if (b->experts.ops->bytes != b->shared.ops->bytes)
    TRY(take(b, &b->narrow, (size_t)(slots * s->hidden), b->experts.ops->bytes, "expert outputs"));
  TRY(take(b, &b->first, (size_t)b->n_own + 1, sizeof *b->first, "expert lists"));
  TRY(take(b, &b->active, (size_t)b->n_own, sizeof *b->active, "expert lists"));
  TRY(take(b, &b->slots, (size_t)slots, sizeof *b->slots, "expert lists"));
  TRY(take(b, &b->in_rows, (size_t)slots, sizeof *b->in_rows, "expert lists"));
  TRY(take(b, &b->in_q8k, (size_t)slots, sizeof *b->in_q8k, "expert lists"));
  TRY(take(b, &b->gate_out, (size_t)slots, sizeof *b->gate_out, "expert lists"));
  TRY(take(b, &b->up_out, (size_t)slots, sizeof *b->up_out, "expert lists"));
  return take(b, &b->down_out, (size_t)slots, sizeof *b->down_out, "expert lists");
}

static int64_t widest_row(const model_shape *s) {
  int64_t q_width = s->n_heads * s->head_dim, widest = s->hidden;
  if (q_width > widest) widest = q_width;
  return s->expert_width > widest ? s->expert_width : widest;
}

static status cpu_open_fields(cpu_backend *b) {
  const backend_params *p = &b->params;
  TRY(open_attention(b));
  TRY(open_experts(b));
  TRY(activations_open(b, &b->head_in, &b->shared, p->max_logit_rows, b->shape.hidden, "head inputs"));
  TRY(take(b, &b->logits_out, (size_t)p->max_logit_rows, sizeof *b->logits_out, "output rows"));
  b->scratch_bytes = (size_t)attention_scratch_reals(b->shape.head_dim) * sizeof(double);
  size_t product_bytes = (size_t)product_scratch_floats(widest_row(&b->shape)) * sizeof(float);
  if (product_bytes > b->scratch_bytes) b->scratch_bytes = product_bytes;
  b->scratch_bytes = (b->scratch_bytes + 63) / 64 * 64;
  TRY(take(b, &b->scratch, (size_t)p->threads, b->scratch_bytes, "thread scratch"));
  for (int64_t t = 0; t < p->context; t++)
    b->shared.ops->rope_table(b->rope_tables + (size_t)(t * b->shape.head_dim) * b->shared.ops->bytes,
                              b->shape.rope_base, t, b->shape.head_dim / 2);
  return 0;
}

static status cpu_open(backend **out, const backend_params *params) {
  *out = NULL;
  const cpu_row *row = cpu_row_find(params->row);
  if (!row) return FAIL("run.rows = \"%s\": this machine or build has no such row of the cpu backend", params->row);
  cpu_backend *b;
  TRY(memory_take((void **)&b, 1, sizeof *b, "the cpu backend"));
  b->base.ops = &cpu_backend_ops;
  b->params = *params;
  b->shape = params->weights->shape;
  b->row = row;
  b->shared = side_of(row, params->shared);
  b->experts = side_of(row, params->experts);
  if (cpu_open_fields(b)) {
    cpu_close(&b->base);
    return 1;
  }
  *out = &b->base;
  return 0;
}

static const char *cpu_rows(void) {
  static char names[256];
  names[0] = 0;
  for (const cpu_row *const *row = cpu_row_table(); *row; row++)
    if ((*row)->usable()) {
      if (names[0]) strcat(names, ", ");
      strncat(names, (*row)->name, sizeof names - strlen(names) - 3);
    }
  return names;
}

static bool cpu_has_path(path_kind kind) {
  return kind == PATH_F64 || kind == PATH_F32 || kind == PATH_Q8K;
}

static const char *cpu_row_name(const backend *base) {
  return ((const cpu_backend *)base)->row->name;
}

static uint64_t cpu_state_bytes(const backend *base) {
  return ((const cpu_backend *)base)->bytes;
}

// ---- products ----

static char *thread_scratch(cpu_backend *b) {
  return b->scratch + (size_t)omp_get_thread_num() * b->scratch_bytes;
}

static bool takes_q8k(const side *s, const matrix *m) {
  return s->path->kind == PATH_Q8K && type_find(m->type)->is_k_quant;
}

static matrix rows_of(const matrix *m, int64_t first, int64_t count) {
  matrix rows = *m;
  rows.data = (const char *)m->data + (size_t)first * type_row_bytes(type_find(m->type), (size_t)m->cols);
  rows.rows = count;
  return rows;
}

static int64_t tiles_of(const matrix *m) {
  return (m->rows + ROW_TILE - 1) / ROW_TILE;
}

typedef struct { // some rows of a matrix times the activations of n tokens, out[t] the row of token t
  const side *side;
  const matrix *m;
  void *const *out;
  void *const *reals;
  const block_q8_K *const *q8k;
  int64_t n;
} product;

// Rows of tile `tile`. ahead: what the thread reads next, or NULL.
static void product_tile(cpu_backend *b, const product *p, int64_t tile, const void *ahead) {
  const real_ops *ops = p->side->ops;
  int64_t first = tile * ROW_TILE, count = p->m->rows - first < ROW_TILE ? p->m->rows - first : ROW_TILE;
  matrix rows = rows_of(p->m, first, count);
  bool rounded = takes_q8k(p->side, p->m);
  if (rounded && p->n == 1 && ops->vector_q8k) {
    ops->vector_q8k((float *)p->out[0] + first, &rows, p->q8k[0], ahead);
    return;
  }
  for (int64_t t = 0; t < p->n; t += TOKEN_TILE) {
    int64_t n = p->n - t < TOKEN_TILE ? p->n - t : TOKEN_TILE;
    void *at[TOKEN_TILE];
    for (int64_t i = 0; i < n; i++) at[i] = (char *)p->out[t + i] + (size_t)first * ops->bytes;
    if (rounded)
      b->row->product_q8k((float *const *)at, &rows, p->q8k + t, n);
    else
      ops->product(at, &rows, (const void *const *)(p->reals + t), n, (float *)thread_scratch(b));
  }
}

static const void *tile_data(const matrix *m, int64_t tile) {
  return rows_of(m, tile * ROW_TILE, 0).data;
}

// All tiles of up to three products, one after the other in the order of the list.
typedef struct {
  product part[3];
  int64_t count, end[3]; // tasks up to the end of each part
} product_list;

static void list_add(product_list *l, product p) {
  l->part[l->count] = p;
  l->end[l->count] = (l->count ? l->end[l->count - 1] : 0) + tiles_of(p.m);
  l->count++;
}

static int64_t list_tasks(const product_list *l) {
  return l->end[l->count - 1];
}

static const product *list_find(const product_list *l, int64_t task, int64_t *tile) {
  int64_t i = 0;
  while (task >= l->end[i]) i++;
  *tile = task - (i ? l->end[i - 1] : 0);
  return &l->part[i];
}

static void list_tile(cpu_backend *b, const product_list *l, int64_t task) {
  int64_t tile, next;
  const product *p = list_find(l, task, &tile);
  const product *q = task + 1 < list_tasks(l) ? list_find(l, task + 1, &next) : NULL;
  product_tile(b, p, tile, q ? tile_data(q->m, next) : NULL);
}

// Inside a parallel region, as all phases.
static void products_phase(cpu_backend *b, const product_list *l) {
  if (l->part[0].n <= FEW_TOKENS) {
#pragma omp for schedule(static)
    for (int64_t task = 0; task < list_tasks(l); task++) list_tile(b, l, task);
  } else {
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < list_tasks(l); task++) list_tile(b, l, task);
  }
}

static product product_shared(const cpu_backend *b, void *const *out, const matrix *m, const activations *a, int64_t n) {
  return (product){&b->shared, m, out, a->real_rows, a->q8k_rows, n};
}

static void quantize(const cpu_backend *b, const side *s, activations *a, int64_t row) {
  if (s->path->kind == PATH_Q8K && a->q8k)
    b->row->quantize_q8k((block_q8_K *)a->q8k_rows[row], (const float *)a->real_rows[row], a->width);
}

static void *row_at(const cpu_backend *b, char *base, int64_t row, int64_t width) {
  return base + (size_t)(row * width) * b->shared.ops->bytes;
}

// normed[t] = rms_norm(x[t]) * weight, rounded where the path rounds
static void norm_phase(cpu_backend *b, activations *out, const float *weight, int64_t first, int64_t n) {
  const model_shape *s = &b->shape;
#pragma omp for
  for (int64_t t = 0; t < n; t++) {
    b->shared.ops->rms_norm(out->real_rows[t], row_at(b, b->x, first + t, s->hidden), weight, s->hidden,
                            s->rms_epsilon);
    quantize(b, &b->shared, out, t);
  }
}

// ---- the steps ----

static status cpu_embed(backend *base, const token_batch *batch) {
  cpu_backend *b = (cpu_backend *)base;
#pragma omp parallel for num_threads(b->params.threads)
  for (int64_t t = 0; t < batch->n; t++)
    b->shared.ops->embed(row_at(b, b->x, t, b->shape.hidden), &b->params.weights->embedding, batch->token[t],
                         (float *)thread_scratch(b));
  return 0;
}

static kv_head kv_of(const cpu_backend *b, int64_t layer, int64_t sequence, int64_t head) {
  size_t index = (size_t)((layer * b->params.n_sequences + sequence) * b->shape.n_kv_heads + head);
  return (kv_head){b->keys + index * b->kv_head_bytes, b->values + index * b->kv_head_bytes, storage_of(b)};
}

// Norm and turn each head of x; `scale` is that of the scores for queries, 1 for keys.
static void turn_heads(cpu_backend *b, char *x, int64_t n_heads, const float *weight, int32_t position, double scale) {
  const model_shape *s = &b->shape;
  const real_ops *ops = b->shared.ops;
  const char *table = b->rope_tables + (size_t)(position * s->head_dim) * ops->bytes;
  for (int64_t h = 0; h < n_heads; h++) {
    void *head = x + (size_t)(h * s->head_dim) * ops->bytes;
    ops->rms_norm(head, head, weight, s->head_dim, s->rms_epsilon);
    ops->rope(head, table, s->head_dim / 2, scale);
  }
}

static void heads_phase(cpu_backend *b, const layer_weights *w, int64_t layer, const token_batch *batch) {
  const model_shape *s = &b->shape;
  size_t real = b->shared.ops->bytes;
  double scale = 1.0 / __builtin_sqrt((double)s->head_dim);
#pragma omp for
  for (int64_t t = 0; t < batch->n; t++) {
    char *k = (char *)b->k.rows[t], *v = (char *)b->v.rows[t];
    turn_heads(b, (char *)b->q.rows[t], s->n_heads, w->q_norm, batch->position[t], scale);
    turn_heads(b, k, s->n_kv_heads, w->k_norm, batch->position[t], 1.0);
    for (int64_t h = 0; h < s->n_kv_heads; h++) {
      kv_head kv = kv_of(b, layer, batch->sequence[t], h);
      size_t at = (size_t)(h * s->head_dim) * real;
      b->shared.ops->kv_store(&kv, batch->position[t], k + at, v + at, s->head_dim);
    }
  }
}

// Cuts the batch into spans; returns their number.
static int64_t find_spans(cpu_backend *b, const token_batch *batch) {
  int64_t n = 0;
  for (int64_t t = 0; t < batch->n; t++) {
    token_span *last = n ? &b->spans[n - 1] : NULL;
    if (last && last->n < ATTEND_TOKENS && batch->sequence[last->first] == batch->sequence[t])
      last->n++;
    else
      b->spans[n++] = (token_span){t, 1};
  }
  return n;
}

// Query heads head .. head + heads - 1, which read one cache, of the tokens of a span.
static void attend_heads(cpu_backend *b, int64_t layer, const token_batch *batch, const token_span *tokens,
                         int64_t head, int64_t heads) {
  const model_shape *s = &b->shape;
  const real_ops *ops = b->shared.ops;
  size_t width = (size_t)s->head_dim * ops->bytes;
  void *out[ATTEND_TOKENS];
  const void *q[ATTEND_TOKENS];
  int64_t n_keys[ATTEND_TOKENS];
  kv_head kv = kv_of(b, layer, batch->sequence[tokens->first], head / (s->n_heads / s->n_kv_heads));
  for (int64_t i = 0; i < tokens->n; i++) {
    int64_t t = tokens->first + i;
    out[i] = (char *)b->attended.real_rows[t] + (size_t)head * width;
    q[i] = (char *)b->q.rows[t] + (size_t)head * width;
    n_keys[i] = batch->position[t] + 1;
  }
  attention_span span = {out, q, n_keys, tokens->n, heads, kv};
  if (ops->attend_span) {
    ops->attend_span(&span, s->head_dim, thread_scratch(b));
    return;
  }
  for (int64_t i = 0; i < tokens->n; i++)
    for (int64_t h = 0; h < heads; h++)
      ops->attend((char *)out[i] + (size_t)h * width, (const char *)q[i] + (size_t)h * width, &kv, n_keys[i],
                  s->head_dim, thread_scratch(b));
}

static void attend_phase(cpu_backend *b, int64_t layer, const token_batch *batch, int64_t n_spans) {
  const model_shape *s = &b->shape;
  int64_t group = s->n_heads / s->n_kv_heads, slices = (group + ATTEND_HEADS - 1) / ATTEND_HEADS;
#pragma omp for collapse(2) schedule(dynamic)
  for (int64_t i = 0; i < n_spans; i++)
    for (int64_t k = 0; k < s->n_kv_heads * slices; k++) {
      int64_t first = k % slices * ATTEND_HEADS, rest = group - first; // late spans have most keys: they go first
      attend_heads(b, layer, batch, &b->spans[n_spans - 1 - i], k / slices * group + first,
                   rest < ATTEND_HEADS ? rest : ATTEND_HEADS);
    }
#pragma omp for
  for (int64_t t = 0; t < batch->n; t++) quantize(b, &b->shared, &b->attended, t);
}

// x += projected
static void add_phase(cpu_backend *b, int64_t n) {
#pragma omp for
  for (int64_t t = 0; t < n; t++)
    b->shared.ops->add(row_at(b, b->x, t, b->shape.hidden), b->projected.rows[t], b->shape.hidden);
}

static status cpu_attention(backend *base, int64_t layer, const token_batch *batch) {
  cpu_backend *b = (cpu_backend *)base;
  const layer_weights *w = &b->params.weights->layers[layer];
  int64_t n = batch->n, n_spans = find_spans(b, batch);
  product_list turned = {0}, projected = {0};
  list_add(&turned, product_shared(b, b->q.rows, &w->q, &b->normed, n));
  list_add(&turned, product_shared(b, b->k.rows, &w->k, &b->normed, n));
  list_add(&turned, product_shared(b, b->v.rows, &w->v, &b->normed, n));
  list_add(&projected, product_shared(b, b->projected.rows, &w->o, &b->attended, n));
#pragma omp parallel num_threads(b->params.threads)
  {
    norm_phase(b, &b->normed, w->attn_norm, 0, n);
    products_phase(b, &turned);
    heads_phase(b, w, layer, batch);
    attend_phase(b, layer, batch, n_spans);
    products_phase(b, &projected);
    add_phase(b, n);
  }
  return 0;
}

static status cpu_route(backend *base, int64_t layer, const token_batch *batch, routing *out) {
  cpu_backend *b = (cpu_backend *)base;
  const model_shape *s = &b->shape;
  const layer_weights *w = &b->params.weights->layers[layer];
  product_list logits = {0};
  list_add(&logits, product_shared(b, b->router_logits.rows, &w->router, &b->normed, batch->n));
#pragma omp parallel num_threads(b->params.threads)
  {
    norm_phase(b, &b->normed, w->ffn_norm, 0, batch->n);
    products_phase(b, &logits);
#pragma omp for
    for (int64_t t = 0; t < batch->n; t++)
      b->shared.ops->route(out->expert + t * s->top_k, row_at(b, b->slot_weights, t, s->top_k), &out->margin[t],
                           b->router_logits.rows[t], s->n_experts, s->top_k);
  }
  return 0;
}

// Groups the batch's slots by own expert; returns the number of active experts.
static int64_t group_slots(cpu_backend *b, int64_t n_slots, const expert_global *expert) {
  const expert_local *local = b->params.local;
  memset(b->first, 0, (size_t)(b->n_own + 1) * sizeof *b->first);
  for (int64_t i = 0; i < n_slots; i++)
    if (local[expert[i]] >= 0) b->first[local[expert[i]] + 1]++;
  int64_t n_active = 0;
  for (int64_t e = 0; e < b->n_own; e++) {
    if (b->first[e + 1]) b->active[n_active++] = (int32_t)e;
    b->first[e + 1] += b->first[e];
  }
  for (int64_t i = 0; i < n_slots; i++) { // fill, moving each begin to its end ...
    int32_t e = local[expert[i]];
    if (e >= 0) b->slots[b->first[e]++] = (int32_t)i;
  }
  for (int64_t e = b->n_own; e > 0; e--) b->first[e] = b->first[e - 1]; // ... and back
  b->first[0] = 0;
  return n_active;
}

static void convert_reals(void *out, size_t out_bytes, const void *in, size_t in_bytes, int64_t n) {
  if (out_bytes == in_bytes)
    memcpy(out, in, (size_t)n * in_bytes);
  else if (out_bytes == sizeof(float))
    for (int64_t i = 0; i < n; i++) ((float *)out)[i] = (float)((const double *)in)[i];
  else
    for (int64_t i = 0; i < n; i++) ((double *)out)[i] = (double)((const float *)in)[i];
}

// expert_in = normed in the experts' real, rounded where their path rounds
static void expert_inputs_phase(cpu_backend *b, int64_t n) {
#pragma omp for
  for (int64_t t = 0; t < n; t++) {
    convert_reals(b->expert_in.real_rows[t], b->experts.ops->bytes, b->normed.real_rows[t],
                  b->shared.ops->bytes, b->shape.hidden);
    quantize(b, &b->experts, &b->expert_in, t);
  }
}

// Where each own slot reads and writes: pointers in the order of `slots`.
static void point_at_rows(cpu_backend *b, int64_t n_own_slots, const int64_t *row_of_slot) {
  const model_shape *s = &b->shape;
  size_t real = b->experts.ops->bytes;
  bool direct = real == b->shared.ops->bytes;
  for (int64_t i = 0; i < n_own_slots; i++) {
    int64_t slot = b->slots[i], token = slot / s->top_k;
    b->in_rows[i] = b->expert_in.real_rows[token];
    b->in_q8k[i] = b->expert_in.q8k_rows[token];
    b->gate_out[i] = b->hidden_in.real_rows[i];
    b->up_out[i] = b->up + (size_t)(i * s->expert_width) * real;
    b->down_out[i] = direct ? row_at(b, b->slot_rows, row_of_slot[slot], s->hidden)
                            : (void *)(b->narrow + (size_t)(i * s->hidden) * real);
  }
}

typedef struct { // a stacked matrix times the inputs of each active expert's slots
  const matrix *m;
  void *const *out, *const *reals;
  const block_q8_K *const *q8k;
} expert_product;

// Tile `tile` of the list's matrices for active expert `index`: for each expert, one matrix after the other.
static product expert_part(const cpu_backend *b, const expert_product *list, int64_t index, int64_t *tile,
                           matrix *room) {
  while (*tile >= tiles_of(list->m)) *tile -= tiles_of(list++->m);
  int64_t e = b->active[index], first = b->first[e];
  *room = rows_of(list->m, b->own[e] * list->m->rows, list->m->rows);
  return (product){&b->experts,         room, list->out + first, list->reals + first, list->q8k + first,
                   b->first[e + 1] - first};
}

static void expert_task(cpu_backend *b, const expert_product *list, int64_t tiles, int64_t task, int64_t n_tasks) {
  int64_t tile = task % tiles, next = (task + 1) % tiles;
  matrix m, ahead;
  product p = expert_part(b, list, task / tiles, &tile, &m);
  if (task + 1 < n_tasks) expert_part(b, list, (task + 1) / tiles, &next, &ahead);
  product_tile(b, &p, tile, task + 1 < n_tasks ? tile_data(&ahead, next) : NULL);
}

// Every (active expert, tile of the list's matrices) is one task.
static void expert_products_phase(cpu_backend *b, const expert_product *list, int64_t n_matrices, int64_t n_active,
                                  int64_t n_tokens) {
  int64_t tiles = 0;
  for (int64_t i = 0; i < n_matrices; i++) tiles += tiles_of(list[i].m);
  if (n_tokens <= FEW_TOKENS) {
#pragma omp for schedule(static)
    for (int64_t task = 0; task < n_active * tiles; task++) expert_task(b, list, tiles, task, n_active * tiles);
  } else {
#pragma omp for schedule(dynamic)
    for (int64_t task = 0; task < n_active * tiles; task++) expert_task(b, list, tiles, task, n_active * tiles);
  }
}

static void swiglu_phase(cpu_backend *b, int64_t n_own_slots) {
#pragma omp for
  for (int64_t i = 0; i < n_own_slots; i++) {
    b->experts.ops->swiglu(b->gate_out[i], b->up_out[i], b->shape.expert_width);
    quantize(b, &b->experts, &b->hidden_in, i);
  }
}

static void widen_phase(cpu_backend *b, int64_t n_own_slots, const int64_t *row_of_slot) {
  if (!b->narrow) return;
#pragma omp for
  for (int64_t i = 0; i < n_own_slots; i++)
    convert_reals(row_at(b, b->slot_rows, row_of_slot[b->slots[i]], b->shape.hidden), b->shared.ops->bytes,
                  b->down_out[i], b->experts.ops->bytes, b->shape.hidden);
}

static status cpu_experts(backend *base, int64_t layer, const token_batch *batch, const routing *route,
                          const int64_t *row_of_slot) {
  cpu_backend *b = (cpu_backend *)base;
  const layer_weights *w = &b->params.weights->layers[layer];
  int64_t n_active = group_slots(b, batch->n * b->shape.top_k, route->expert);
  int64_t n_own_slots = b->first[b->n_own];
  if (!n_own_slots) return 0;
  point_at_rows(b, n_own_slots, row_of_slot);
    const expert_product widening[] = {{&w->gate, b->gate_out, b->in_rows, b->in_q8k}, {&w->up, b->up_out, b->in_rows, b->in_q8k}};
  const expert_product narrowing = {&w->down, b->down_out, b->hidden_in.real_rows, b->hidden_in.q8k_rows};
#pragma omp parallel num_threads(b->params.threads)
  {
    expert_inputs_phase(b, batch->n);
    expert_products_phase(b, widening, 2, n_active, batch->n);
    swiglu_phase(b, n_own_slots);
    expert_products_phase(b, &narrowing, 1, n_active, batch->n);
    widen_phase(b, n_own_slots, row_of_slot);
  }
  return 0;
}

static void *cpu_slot_rows(backend *base) {
  return ((cpu_backend *)base)->slot_rows;
}

static status cpu_combine(backend *base, int64_t layer, const token_batch *batch, const int64_t *row_of_slot) {
  cpu_backend *b = (cpu_backend *)base;
  const model_shape *s = &b->shape;
  (void)layer;
#pragma omp parallel for num_threads(b->params.threads)
  for (int64_t t = 0; t < batch->n; t++) {
    const void *slot[MAX_TOP_K];
    for (int64_t k = 0; k < s->top_k; k++)
      slot[k] = row_at(b, b->slot_rows, row_of_slot[t * s->top_k + k], s->hidden);
    b->shared.ops->combine(row_at(b, b->x, t, s->hidden), slot, row_at(b, b->slot_weights, t, s->top_k), s->top_k,
                           s->hidden);
  }
  return 0;
}

static status cpu_head(backend *base, int64_t first, int64_t count, void *logits) {
  cpu_backend *b = (cpu_backend *)base;
  const model_weights *w = b->params.weights;
  product_list logit_rows = {0};
  for (int64_t i = 0; i < count; i++) b->logits_out[i] = row_at(b, (char *)logits, i, w->output.rows);
  list_add(&logit_rows, product_shared(b, b->logits_out, &w->output, &b->head_in, count));
#pragma omp parallel num_threads(b->params.threads)
  {
    norm_phase(b, &b->head_in, w->output_norm, first, count);
    products_phase(b, &logit_rows);
  }
  return 0;
}

// ---- probes ----

static status cpu_probe(backend *base, probe_point point, int64_t n, double *out) {
  cpu_backend *b = (cpu_backend *)base;
  const char *from = point == PROBE_LAYER_INPUT ? b->x : b->normed.reals;
  convert_reals(out, sizeof(double), from, b->shared.ops->bytes, n * b->shape.hidden);
  return 0;
}

static status cpu_digest(backend *base, int64_t layer, const token_batch *batch, uint64_t *sums) {
  cpu_backend *b = (cpu_backend *)base;
#pragma omp parallel for num_threads(b->params.threads)
  for (int64_t t = 0; t < batch->n; t++) {
    uint64_t sum = 0;
    digest_row(&sum, b->shared.path, layer, batch->position[t], row_at(b, b->x, t, b->shape.hidden),
               (size_t)b->shape.hidden);
#pragma omp atomic
    sums[batch->sequence[t]] += sum;
  }
  return 0;
}

const backend_ops cpu_backend_ops = {
    .name = "cpu",
    .rows = cpu_rows,
    .has_path = cpu_has_path,
    .open = cpu_open,
    .close = cpu_close,
    .row = cpu_row_name,
    .state_bytes = cpu_state_bytes,
    .embed = cpu_embed,
    .attention = cpu_attention,
    .route = cpu_route,
    .experts = cpu_experts,
    .slot_rows = cpu_slot_rows,
    .combine = cpu_combine,
    .head = cpu_head,
    .probe = cpu_probe,
    .digest = cpu_digest,
};
