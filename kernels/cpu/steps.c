// steps: the cpu backend. Each step is one parallel region of a few named phases over a batch, each phase a
// loop whose iterations are independent, so that threads change no bit.
//
// Owns: the order of the phases. Refuses to know: arithmetic (rows), other ranks.
#include "kernels/cpu/products.h"
#include <string.h>

// m times rows first .. first + n - 1 of a
static product product_shared(const cpu_backend *b, void *const *out, const matrix *m, const activations *a,
                              int64_t first, int64_t n) {
  return (product){&b->shared, m, out + first, a->real_rows + first, a->q8k_rows + first, n};
}

static void quantize(const cpu_backend *b, const side *s, activations *a, int64_t row) {
  if (s->path->kind == PATH_Q8K && a->q8k)
    b->row->quantize_q8k((block_q8_K *)a->q8k_rows[row], (const float *)a->real_rows[row], a->width);
}

// out[to] = rms_norm(x[from]) * weight, rounded where the path rounds
static void norm_row(cpu_backend *b, activations *out, int64_t to, int64_t from, const float *weight) {
  const model_shape *s = &b->shape;
  b->shared.ops->rms_norm(out->real_rows[to], row_at(b, b->x, from, s->hidden), weight, s->hidden,
                          s->rms_epsilon);
  quantize(b, &b->shared, out, to);
}

// normed = rms_norm(x) * weight
static void norm_phase(cpu_backend *b, const float *weight, int64_t first, int64_t count) {
#pragma omp for
  for (int64_t t = first; t < first + count; t++) norm_row(b, &b->normed, t, t, weight);
}

// ---- the steps ----

static status cpu_embed(backend *base, const token_batch *batch) {
  cpu_backend *b = (cpu_backend *)base;
#pragma omp parallel for num_threads(b->params.threads)
  for (int64_t t = 0; t < batch->n; t++)
    b->shared.ops->embed(row_at(b, b->x, t, b->shape.hidden), &b->params.weights->embedding, batch->token[t],
                         (float *)cpu_thread_scratch(b));
  return 0;
}

static kv_head kv_of(const cpu_backend *b, int64_t layer, int64_t sequence, int64_t head) {
  size_t index = (size_t)((layer * b->params.n_sequences + sequence) * b->shape.n_kv_heads + head);
  return (kv_head){b->keys + index * b->kv_head_bytes, b->values + index * b->kv_head_bytes,
                   cpu_kv_storage(b)};
}

// Norm and turn each head of x; `scale` is that of the scores for queries, 1 for keys.
static void rotate_heads(cpu_backend *b, char *x, int64_t n_heads, const float *weight, int32_t position,
                         double scale) {
  const model_shape *s = &b->shape;
  const real_ops *ops = b->shared.ops;
  const char *table = b->rope_tables + (size_t)(position * s->head_dim) * ops->bytes;
  for (int64_t h = 0; h < n_heads; h++) {
    void *head = x + (size_t)(h * s->head_dim) * ops->bytes;
    ops->rms_norm(head, head, weight, s->head_dim, s->rms_epsilon);
    ops->rope(head, table, s->head_dim / 2, scale);
  }
}

// Keys and values of the whole batch, queries of `count` tokens from `first` on.
static void heads_phase(cpu_backend *b, const layer_weights *w, int64_t layer, const token_batch *batch,
                        int64_t first, int64_t count) {
  const model_shape *s = &b->shape;
  size_t real = b->shared.ops->bytes;
  double scale = 1.0 / __builtin_sqrt((double)s->head_dim);
#pragma omp for
  for (int64_t t = 0; t < batch->n; t++) {
    char *k = (char *)b->k.rows[t], *v = (char *)b->v.rows[t];
    if (t >= first && t < first + count)
      rotate_heads(b, (char *)b->q.rows[t], s->n_heads, w->q_norm, batch->position[t], scale);
    rotate_heads(b, k, s->n_kv_heads, w->k_norm, batch->position[t], 1.0);
    for (int64_t h = 0; h < s->n_kv_heads; h++) {
      kv_head kv = kv_of(b, layer, batch->sequence[t], h);
      size_t at = (size_t)(h * s->head_dim) * real;
      b->shared.ops->kv_store(&kv, batch->position[t], k + at, v + at, s->head_dim);
    }
  }
}

// Cuts `count` tokens from `from` on into spans; returns their number.
static int64_t find_spans(cpu_backend *b, const token_batch *batch, int64_t from, int64_t count) {
  int64_t n = 0;
  for (int64_t t = from; t < from + count; t++) {
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
    ops->attend_span(&span, s->head_dim, cpu_thread_scratch(b));
    return;
  }
  for (int64_t i = 0; i < tokens->n; i++)
    for (int64_t h = 0; h < heads; h++)
      ops->attend((char *)out[i] + (size_t)h * width, (const char *)q[i] + (size_t)h * width, &kv, n_keys[i],
                  s->head_dim, cpu_thread_scratch(b));
}

static void attend_phase(cpu_backend *b, int64_t layer, const token_batch *batch, int64_t n_spans) {
  const model_shape *s = &b->shape;
  int64_t group = s->n_heads / s->n_kv_heads, slices = (group + ATTEND_HEADS - 1) / ATTEND_HEADS;
#pragma omp for collapse(2) schedule(dynamic)
  for (int64_t i = 0; i < n_spans; i++)
    for (int64_t k = 0; k < s->n_kv_heads * slices; k++) {
      int64_t first = k % slices * ATTEND_HEADS,
              rest = group - first; // late spans have most keys: they go first
      attend_heads(b, layer, batch, &b->spans[n_spans - 1 - i], k / slices * group + first,
                   rest < ATTEND_HEADS ? rest : ATTEND_HEADS);
    }
}

// attended rounded where the path rounds
static void attended_phase(cpu_backend *b, int64_t first, int64_t count) {
#pragma omp for
  for (int64_t t = first; t < first + count; t++) quantize(b, &b->shared, &b->attended, t);
}

// x += projected
static void add_phase(cpu_backend *b, int64_t first, int64_t count) {
#pragma omp for
  for (int64_t t = first; t < first + count; t++)
    b->shared.ops->add(row_at(b, b->x, t, b->shape.hidden), b->projected.rows[t], b->shape.hidden);
}

typedef struct { // rows first .. first + count - 1 of a layer's attention
  const layer_weights *w;
  int64_t layer, first, count, n_spans;
  const token_batch *batch;
  product_list rotated, projected; // q, k, v; and o
} attention_part;

static attention_part part_of(cpu_backend *b, int64_t layer, const token_batch *batch, int64_t first,
                              int64_t count) {
  const layer_weights *w = &b->params.weights->layers[layer];
  attention_part p = {.w = w, .layer = layer, .first = first, .count = count, .batch = batch};
  p.n_spans = find_spans(b, batch, first, count);
  product_list_add(&p.rotated, product_shared(b, b->q.rows, &w->q, &b->normed, first, count));
  product_list_add(&p.rotated, product_shared(b, b->k.rows, &w->k, &b->normed, first, count));
  product_list_add(&p.rotated, product_shared(b, b->v.rows, &w->v, &b->normed, first, count));
  product_list_add(&p.projected, product_shared(b, b->projected.rows, &w->o, &b->attended, first, count));
  return p;
}

static void project_phases(cpu_backend *b, attention_part *p) {
  norm_phase(b, p->w->attn_norm, p->first, p->count);
  products_phase(b, &p->rotated);
}

static void attend_phases(cpu_backend *b, attention_part *p) {
  heads_phase(b, p->w, p->layer, p->batch, p->first, p->count);
  attend_phase(b, p->layer, p->batch, p->n_spans);
  attended_phase(b, p->first, p->count);
  products_phase(b, &p->projected);
  add_phase(b, p->first, p->count);
}

static status cpu_attention(backend *base, int64_t layer, const token_batch *batch) {
  cpu_backend *b = (cpu_backend *)base;
  attention_part p = part_of(b, layer, batch, 0, batch->n);
#pragma omp parallel num_threads(b->params.threads)
  {
    project_phases(b, &p);
    attend_phases(b, &p);
  }
  return 0;
}

static status cpu_project(backend *base, int64_t layer, const token_batch *batch, int64_t first,
                          int64_t count) {
  cpu_backend *b = (cpu_backend *)base;
  attention_part p = part_of(b, layer, batch, first, count);
#pragma omp parallel num_threads(b->params.threads)
  project_phases(b, &p);
  return 0;
}

static status cpu_attend(backend *base, int64_t layer, const token_batch *batch, int64_t first,
                         int64_t count) {
  cpu_backend *b = (cpu_backend *)base;
  attention_part p = part_of(b, layer, batch, first, count);
#pragma omp parallel num_threads(b->params.threads)
  attend_phases(b, &p);
  return 0;
}

static status cpu_route(backend *base, int64_t layer, const token_batch *batch, int64_t first, int64_t count,
                        routing *out) {
  cpu_backend *b = (cpu_backend *)base;
  const model_shape *s = &b->shape;
  const layer_weights *w = &b->params.weights->layers[layer];
  product_list logits = {0};
  (void)batch;
  product_list_add(&logits, product_shared(b, b->router_logits.rows, &w->router, &b->normed, first, count));
#pragma omp parallel num_threads(b->params.threads)
  {
    norm_phase(b, w->ffn_norm, first, count);
    products_phase(b, &logits);
#pragma omp for
    for (int64_t t = first; t < first + count; t++)
      b->shared.ops->route(out->expert + t * s->top_k, row_at(b, b->slot_weights, t, s->top_k),
                           &out->margin[t], b->router_logits.rows[t], s->n_experts, s->top_k);
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

typedef struct { // every (active expert, tile of its matrices) is one task
  expert_product part[2];
  int64_t tiles; // of one expert, of one matrix after the other
  task_queue tasks;
} expert_list;

static void expert_list_add(expert_list *l, int64_t index, expert_product p, int64_t n_active,
                            int64_t n_tokens) {
  l->part[index] = p;
  l->tiles += matrix_tiles(p.m);
  l->tasks.count = l->tiles * n_active;
  l->tasks.ahead = n_tokens <= FEW_TOKENS;
}

// The product that task `task` is a tile of; `room` holds the expert's matrix.
static product expert_part(const cpu_backend *b, const expert_list *l, int64_t task, int64_t *tile,
                           matrix *room) {
  const expert_product *part = l->part;
  int64_t e = b->active[task / l->tiles], first = b->first[e];
  *tile = task % l->tiles;
  if (*tile >= matrix_tiles(part->m)) *tile -= matrix_tiles(part++->m);
  *room = matrix_rows(part->m, b->own[e] * part->m->rows, part->m->rows);
  return (product){
      &b->experts, room, part->out + first, part->reals + first, part->q8k + first, b->first[e + 1] - first};
}

static void expert_task(cpu_backend *b, const void *what, int64_t task, int64_t after) {
  const expert_list *l = (const expert_list *)what;
  int64_t tile, next;
  matrix m, ahead;
  product p = expert_part(b, l, task, &tile, &m);
  if (after >= 0) expert_part(b, l, after, &next, &ahead);
  product_tile(b, &p, tile, after >= 0 ? matrix_tile_data(&ahead, next) : NULL);
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
  expert_list widening = {0}, narrowing = {0};
  expert_list_add(&widening, 0, (expert_product){&w->gate, b->gate_out, b->in_rows, b->in_q8k}, n_active,
                  batch->n);
  expert_list_add(&widening, 1, (expert_product){&w->up, b->up_out, b->in_rows, b->in_q8k}, n_active,
                  batch->n);
  expert_list_add(&narrowing, 0,
                  (expert_product){&w->down, b->down_out, b->hidden_in.real_rows, b->hidden_in.q8k_rows},
                  n_active, batch->n);
#pragma omp parallel num_threads(b->params.threads)
  {
    expert_inputs_phase(b, batch->n);
    tasks_phase(b, &widening.tasks, expert_task, &widening);
    swiglu_phase(b, n_own_slots);
    tasks_phase(b, &narrowing.tasks, expert_task, &narrowing);
    widen_phase(b, n_own_slots, row_of_slot);
  }
  return 0;
}

static void *cpu_rows_host(backend *base, row_kind kind) {
  cpu_backend *b = (cpu_backend *)base;
  switch (kind) {
  case ROWS_RESIDUAL:
    return b->x;
  case ROWS_KEYS:
    return b->k.reals;
  case ROWS_VALUES:
    return b->v.reals;
  case ROWS_NORMED:
    return b->normed_rows;
  case ROWS_EXPERTS:
    return NULL;
  case ROWS_SLOTS:
    return b->slot_rows;
  }
  return NULL;
}

// Of the rows that cross ranks only the normed ones lie apart from those that the steps use.
static status cpu_rows_read(backend *base, row_kind kind, int64_t first, int64_t count) {
  cpu_backend *b = (cpu_backend *)base;
  size_t bytes = (size_t)b->shape.hidden * b->shared.ops->bytes;
  for (int64_t t = first; t < first + count && kind == ROWS_NORMED; t++)
    memcpy(b->normed_rows + (size_t)t * bytes, b->normed.real_rows[t], bytes);
  return 0;
}

static status cpu_rows_write(backend *base, row_kind kind, int64_t first, int64_t count) {
  cpu_backend *b = (cpu_backend *)base;
  size_t bytes = (size_t)b->shape.hidden * b->shared.ops->bytes;
  for (int64_t t = first; t < first + count && kind == ROWS_NORMED; t++)
    memcpy(b->normed.real_rows[t], b->normed_rows + (size_t)t * bytes, bytes);
  return 0;
}

static status cpu_combine(backend *base, int64_t layer, const token_batch *batch, int64_t first,
                          int64_t count, const int64_t *row_of_slot) {
  cpu_backend *b = (cpu_backend *)base;
  const model_shape *s = &b->shape;
  (void)layer, (void)batch;
#pragma omp parallel for num_threads(b->params.threads)
  for (int64_t t = first; t < first + count; t++) {
    const void *slot[MAX_TOP_K];
    for (int64_t k = 0; k < s->top_k; k++)
      slot[k] = row_at(b, b->slot_rows, row_of_slot[t * s->top_k + k], s->hidden);
    b->shared.ops->combine(row_at(b, b->x, t, s->hidden), slot, row_at(b, b->slot_weights, t, s->top_k),
                           s->top_k, s->hidden);
  }
  return 0;
}

static status cpu_head(backend *base, const int64_t *rows, int64_t count, void *logits) {
  cpu_backend *b = (cpu_backend *)base;
  const model_weights *w = b->params.weights;
  product_list logit_rows = {0};
  for (int64_t i = 0; i < count; i++) b->logits_out[i] = row_at(b, (char *)logits, i, w->output.rows);
  product_list_add(&logit_rows, product_shared(b, b->logits_out, &w->output, &b->head_in, 0, count));
#pragma omp parallel num_threads(b->params.threads)
  {
#pragma omp for
    for (int64_t i = 0; i < count; i++) norm_row(b, &b->head_in, i, rows[i], w->output_norm);
    products_phase(b, &logit_rows);
  }
  return 0;
}

// ---- probes ----

static status cpu_probe(backend *base, probe_point point, int64_t n, double *out) {
  cpu_backend *b = (cpu_backend *)base;
  for (int64_t t = 0; t < n; t++, out += b->shape.hidden) {
    const void *from =
        point == PROBE_LAYER_INPUT ? row_at(b, b->x, t, b->shape.hidden) : b->normed.real_rows[t];
    convert_reals(out, sizeof(double), from, b->shared.ops->bytes, b->shape.hidden);
  }
  return 0;
}

static status cpu_digest(backend *base, int64_t layer, const token_batch *batch, int64_t first, int64_t count,
                         uint64_t *sums) {
  cpu_backend *b = (cpu_backend *)base;
#pragma omp parallel for num_threads(b->params.threads)
  for (int64_t t = first; t < first + count; t++) {
    uint64_t sum = 0;
    digest_row(&sum, b->shared.path, layer, batch->position[t], row_at(b, b->x, t, b->shape.hidden),
               (size_t)b->shape.hidden);
#pragma omp atomic
    sums[batch->sequence[t]] += sum;
  }
  return 0;
}

const backend_ops cpu_backend_ops = {
    .kind = BACKEND_CPU,
    .rows = cpu_rows,
    .has_path = cpu_has_path,
    .open = cpu_open,
    .close = cpu_close,
    .row = cpu_row_name,
    .state_bytes = cpu_state_bytes,
    .embed = cpu_embed,
    .attention = cpu_attention,
    .project = cpu_project,
    .attend = cpu_attend,
    .route = cpu_route,
    .experts = cpu_experts,
    .rows_host = cpu_rows_host,
    .rows_read = cpu_rows_read,
    .rows_write = cpu_rows_write,
    .combine = cpu_combine,
    .head = cpu_head,
    .probe = cpu_probe,
    .digest = cpu_digest,
};
