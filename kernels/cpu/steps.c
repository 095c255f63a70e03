// steps: the cpu backend. Each step is a few named phases over a batch, each phase a parallel loop whose iterations
// are independent, so that threads change no bit.
//
// Owns: activations, KV caches and work space of one arm on one rank. All of it is allocated at open.
// Refuses to know: arithmetic (rows), other ranks.
#include "base/memory.h"
#include "kernels/cpu/row.h"
#include "kernels/half.h"
#include <omp.h>
#include <stdlib.h>
#include <string.h>

enum { ROW_TILE = 32 }; // rows of a matrix that one thread takes at a time

typedef struct { // activations of one kind for up to max_batch (or max slots) rows
  char *reals;       // [rows][width] of the path's real
  block_q8_K *q8k;   // [rows][width / QK_K]; only on q8k and where width is a multiple of QK_K
  int64_t width;
  const void **real_rows;        // pointers to the rows
  const block_q8_K **q8k_rows;
} activations;

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
  char *q, *k, *v;       // [max_batch][heads * head_dim]
  activations attended;  // [max_batch][n_heads * head_dim]
  char *projected;       // [max_batch][hidden]
  char *rope_tables;     // [context][head_dim] of (cos, sin)
  char *keys, *values;   // caches
  size_t kv_head_bytes;  // of one (layer, sequence, head)
  char *router_logits;   // [max_batch][n_experts]
  char *slot_weights;    // [max_batch][top_k]
  char *slot_rows;       // [max_batch * top_k][hidden]

  int64_t n_own;         // experts of this rank in a layer
  int32_t *first;        // [n_own + 1] begin of each own expert's slots in `slots`
  int32_t *slots;        // token * top_k + slot, grouped by own expert, ascending
  int32_t *active;       // own experts with at least one slot
  activations hidden_in; // [max slots][expert_width]: gate, then silu(gate) * up
  char *up;              // [max slots][expert_width]
  char *narrow;          // [max slots][hidden] of the experts' real, when it is not the shared real
  const void **in_rows;  // [max slots] gathered rows
  const block_q8_K **in_q8k;
  void **gate_out, **up_out, **down_out, **token_out;
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
  void *owned[] = {b->x,         b->q,       b->k,      b->v,        b->projected, b->rope_tables,   b->keys,
                   b->values,    b->slot_rows, b->slot_weights, b->router_logits, b->first, b->slots, b->active,
                   b->up,        b->narrow,  b->in_rows, b->in_q8k,  b->gate_out,  b->up_out,        b->down_out,
                   b->token_out, b->scratch};
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
  TRY(take(b, &b->q, (size_t)(n * q_width), (size_t)real, "queries"));
  TRY(take(b, &b->k, (size_t)(n * kv_width), (size_t)real, "keys"));
  TRY(take(b, &b->v, (size_t)(n * kv_width), (size_t)real, "values"));
  TRY(activations_open(b, &b->attended, &b->shared, n, q_width, "attention outputs"));
  TRY(take(b, &b->projected, (size_t)(n * s->hidden), (size_t)real, "projected attention"));
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
  TRY(take(b, &b->router_logits, (size_t)(n * s->n_experts), b->shared.ops->bytes, "router logits"));
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
  int64_t outs = p->max_batch > p->max_logit_rows ? p->max_batch : p->max_logit_rows;
  TRY(take(b, &b->token_out, (size_t)outs, sizeof *b->token_out, "output rows"));
  b->scratch_bytes = (size_t)attention_scratch_reals(b->shape.head_dim) * sizeof(double);
  size_t row_bytes = (size_t)widest_row(&b->shape) * sizeof(float);
  if (row_bytes > b->scratch_bytes) b->scratch_bytes = row_bytes;
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

// Rows of tile `tile` of m times n inputs; out[t] points at the output row of input t.
static void product_tile(cpu_backend *b, const side *s, const matrix *m, int64_t tile, void *const *out,
                         const void *const *reals, const block_q8_K *const *q8k, int64_t n) {
  enum { GROUP = 256 };
  int64_t first = tile * ROW_TILE, count = m->rows - first < ROW_TILE ? m->rows - first : ROW_TILE;
  matrix rows = rows_of(m, first, count);
  for (int64_t t = 0; t < n; t += GROUP) {
    int64_t group = n - t < GROUP ? n - t : GROUP;
    void *at[GROUP];
    for (int64_t i = 0; i < group; i++) at[i] = (char *)out[t + i] + (size_t)first * s->ops->bytes;
    if (takes_q8k(s, m))
      b->row->product_q8k((float *const *)at, &rows, q8k + t, group);
    else
      s->ops->product(at, &rows, reals + t, group, (float *)thread_scratch(b));
  }
}

static void quantize(const cpu_backend *b, const side *s, activations *a, int64_t row) {
  if (s->path->kind == PATH_Q8K && a->q8k)
    b->row->quantize_q8k((block_q8_K *)a->q8k_rows[row], (const float *)a->real_rows[row], a->width);
}

// out[n][m->rows] = m times each of n activations, in the shared path.
static void product_shared(cpu_backend *b, char *out, const matrix *m, const activations *a, int64_t n) {
  for (int64_t t = 0; t < n; t++) b->token_out[t] = out + (size_t)(t * m->rows) * b->shared.ops->bytes;
#pragma omp parallel for schedule(dynamic) num_threads(b->params.threads)
  for (int64_t tile = 0; tile < tiles_of(m); tile++)
    product_tile(b, &b->shared, m, tile, b->token_out, a->real_rows, a->q8k_rows, n);
}

static void *row_at(const cpu_backend *b, char *base, int64_t row, int64_t width) {
  return base + (size_t)(row * width) * b->shared.ops->bytes;
}

// normed[t] = rms_norm(x[t]) * weight, rounded where the path rounds
static void norm_phase(cpu_backend *b, activations *out, const float *weight, int64_t first, int64_t n) {
  const model_shape *s = &b->shape;
#pragma omp parallel for num_threads(b->params.threads)
  for (int64_t t = 0; t < n; t++) {
    b->shared.ops->rms_norm((void *)out->real_rows[t], row_at(b, b->x, first + t, s->hidden), weight, s->hidden,
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
#pragma omp parallel for num_threads(b->params.threads)
  for (int64_t t = 0; t < batch->n; t++) {
    char *k = row_at(b, b->k, t, s->n_kv_heads * s->head_dim), *v = row_at(b, b->v, t, s->n_kv_heads * s->head_dim);
    turn_heads(b, row_at(b, b->q, t, s->n_heads * s->head_dim), s->n_heads, w->q_norm, batch->position[t], scale);
    turn_heads(b, k, s->n_kv_heads, w->k_norm, batch->position[t], 1.0);
    for (int64_t h = 0; h < s->n_kv_heads; h++) {
      kv_head kv = kv_of(b, layer, batch->sequence[t], h);
      size_t at = (size_t)(h * s->head_dim) * real;
      b->shared.ops->kv_store(&kv, batch->position[t], k + at, v + at, s->head_dim);
    }
  }
}

static void attend_phase(cpu_backend *b, int64_t layer, const token_batch *batch) {
  const model_shape *s = &b->shape;
  size_t real = b->shared.ops->bytes;
  int64_t group = s->n_heads / s->n_kv_heads;
#pragma omp parallel num_threads(b->params.threads)
  {
#pragma omp for collapse(2) schedule(dynamic, 4)
    for (int64_t t = 0; t < batch->n; t++)
      for (int64_t h = 0; h < s->n_heads; h++) {
        kv_head kv = kv_of(b, layer, batch->sequence[t], h / group);
        size_t at = (size_t)((t * s->n_heads + h) * s->head_dim) * real;
        b->shared.ops->attend(b->attended.reals + at, b->q + at, &kv, batch->position[t] + 1, s->head_dim,
                              thread_scratch(b));
      }
#pragma omp for
    for (int64_t t = 0; t < batch->n; t++) quantize(b, &b->shared, &b->attended, t);
  }
}

static void add_phase(cpu_backend *b, int64_t n) {
#pragma omp parallel for num_threads(b->params.threads)
  for (int64_t t = 0; t < n; t++)
    b->shared.ops->add(row_at(b, b->x, t, b->shape.hidden), row_at(b, b->projected, t, b->shape.hidden),
                       b->shape.hidden);
}

static status cpu_attention(backend *base, int64_t layer, const token_batch *batch) {
  cpu_backend *b = (cpu_backend *)base;
  const layer_weights *w = &b->params.weights->layers[layer];
  norm_phase(b, &b->normed, w->attn_norm, 0, batch->n);
  product_shared(b, b->q, &w->q, &b->normed, batch->n);
  product_shared(b, b->k, &w->k, &b->normed, batch->n);
  product_shared(b, b->v, &w->v, &b->normed, batch->n);
  heads_phase(b, w, layer, batch);
  attend_phase(b, layer, batch);
  product_shared(b, b->projected, &w->o, &b->attended, batch->n);
  add_phase(b, batch->n);
  return 0;
}

static status cpu_route(backend *base, int64_t layer, const token_batch *batch, routing *out) {
  cpu_backend *b = (cpu_backend *)base;
  const model_shape *s = &b->shape;
  const layer_weights *w = &b->params.weights->layers[layer];
  norm_phase(b, &b->normed, w->ffn_norm, 0, batch->n);
  product_shared(b, b->router_logits, &w->router, &b->normed, batch->n);
#pragma omp parallel for num_threads(b->params.threads)
  for (int64_t t = 0; t < batch->n; t++)
    b->shared.ops->route(out->expert + t * s->top_k, row_at(b, b->slot_weights, t, s->top_k), &out->margin[t],
                         row_at(b, b->router_logits, t, s->n_experts), s->n_experts, s->top_k);
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
#pragma omp parallel for num_threads(b->params.threads)
  for (int64_t t = 0; t < n; t++) {
    convert_reals((void *)b->expert_in.real_rows[t], b->experts.ops->bytes, b->normed.real_rows[t],
                  b->shared.ops->bytes, b->shape.hidden);
    quantize(b, &b->experts, &b->expert_in, t);
  }
}

// Where each own slot reads and writes: pointers in the order of `slots`.
static void expert_rows_phase(cpu_backend *b, int64_t n_own_slots, const int64_t *row_of_slot) {
  const model_shape *s = &b->shape;
  size_t real = b->experts.ops->bytes;
  bool direct = real == b->shared.ops->bytes;
  for (int64_t i = 0; i < n_own_slots; i++) {
    int64_t slot = b->slots[i], token = slot / s->top_k;
    b->in_rows[i] = b->expert_in.real_rows[token];
    b->in_q8k[i] = b->expert_in.q8k_rows[token];
    b->gate_out[i] = (void *)b->hidden_in.real_rows[i];
    b->up_out[i] = b->up + (size_t)(i * s->expert_width) * real;
    b->down_out[i] = direct ? row_at(b, b->slot_rows, row_of_slot[slot], s->hidden)
                            : (void *)(b->narrow + (size_t)(i * s->hidden) * real);
  }
}

// Every (active expert, row tile) of a stacked matrix is one task. The products of tiles of `m` go to out[slot].
static void expert_products(cpu_backend *b, const matrix *m, int64_t n_active, void *const *out,
                            const void *const *reals, const block_q8_K *const *q8k) {
  int64_t tiles = tiles_of(m);
#pragma omp parallel for schedule(dynamic) num_threads(b->params.threads)
  for (int64_t task = 0; task < n_active * tiles; task++) {
    int64_t e = b->active[task / tiles], first = b->first[e], n = b->first[e + 1] - first;
    const expert_local *local = b->params.local;
    int64_t global = 0;
    while (local[global] != e) global++;
    matrix expert = rows_of(m, global * m->rows, m->rows);
    product_tile(b, &b->experts, &expert, task % tiles, out + first, reals + first, q8k + first, n);
  }
}

static void swiglu_phase(cpu_backend *b, int64_t n_own_slots) {
#pragma omp parallel for num_threads(b->params.threads)
  for (int64_t i = 0; i < n_own_slots; i++) {
    b->experts.ops->swiglu(b->gate_out[i], b->up_out[i], b->shape.expert_width);
    quantize(b, &b->experts, &b->hidden_in, i);
  }
}

static void widen_phase(cpu_backend *b, int64_t n_own_slots, const int64_t *row_of_slot) {
  if (!b->narrow) return;
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
  expert_inputs_phase(b, batch->n);
  expert_rows_phase(b, n_own_slots, row_of_slot);
  expert_products(b, &w->gate, n_active, b->gate_out, b->in_rows, b->in_q8k);
  expert_products(b, &w->up, n_active, b->up_out, b->in_rows, b->in_q8k);
  swiglu_phase(b, n_own_slots);
  expert_products(b, &w->down, n_active, b->down_out, b->hidden_in.real_rows, b->hidden_in.q8k_rows);
  widen_phase(b, n_own_slots, row_of_slot);
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
  norm_phase(b, &b->head_in, b->params.weights->output_norm, first, count);
  product_shared(b, (char *)logits, &b->params.weights->output, &b->head_in, count);
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
  for (int64_t t = 0; t < batch->n; t++)
    digest_row(&sums[batch->sequence[t]], b->shared.path, layer, batch->position[t],
               row_at(b, b->x, t, b->shape.hidden), (size_t)b->shape.hidden);
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
