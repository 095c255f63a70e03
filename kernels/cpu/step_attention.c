// step_attention: x += o(attention(norm(x))), whole or as project and attend.
//
// Owns: the order of the phases. Independent of: arithmetic (ISA rows), other ranks.
#include "kernels/cpu/steps.h"

static kv_head kv_of(const cpu_backend *b, int64_t layer, int64_t sequence, int64_t head) {
  size_t index = (size_t)((layer * b->params.n_sequences + sequence) * b->shape.n_kv_heads + head);
  return (kv_head){b->keys + index * b->kv_head_bytes, b->values + index * b->kv_head_bytes,
                   cpu_kv_storage(b)};
}

// Key and value of one head of row t into the cache.
void store_head(cpu_backend *b, int64_t layer, const token_batch *batch, int64_t t, int64_t head) {
  int64_t position = batch->position[t], head_dim = b->shape.head_dim;
  size_t at = (size_t)(head * head_dim) * b->shared.ops->bytes;
  const char *k = (char *)b->k.rows[t] + at, *v = (char *)b->v.rows[t] + at;
  switch (b->shared.path->attention) {
  case ATTENTION_REALS:
  case ATTENTION_RUN_KV: {
    kv_head kv = kv_of(b, layer, batch->sequence[t], head);
    b->shared.ops->kv_store(&kv, position, k, v, head_dim);
    return;
  }
  case ATTENTION_EXACT:
    exact_store_head(b, layer, batch->sequence[t], head, position, (const float *)(const void *)k,
                     (const float *)(const void *)v);
    return;
  }
  __builtin_unreachable();
}

// Norm and RoPE of each head of x; `scale` is that of the scores for queries, 1 for keys.
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

// Keys and values of a row's heads kv .. end - 1, and the queries that read them where `queries`.
static void rotate_row(cpu_backend *b, const layer_weights *w, int64_t layer, const token_batch *batch,
                       int64_t t, int64_t kv, int64_t end, bool queries) {
  const model_shape *s = &b->shape;
  int64_t group = s->n_heads / s->n_kv_heads;
  size_t head_bytes = (size_t)s->head_dim * b->shared.ops->bytes, at = (size_t)kv * head_bytes;
  double scale = 1.0 / __builtin_sqrt((double)s->head_dim);
  if (queries)
    rotate_heads(b, (char *)b->q.rows[t] + at * (size_t)group, (end - kv) * group, w->q_norm,
                 batch->position[t], scale);
  rotate_heads(b, (char *)b->k.rows[t] + at, end - kv, w->k_norm, batch->position[t], 1.0);
  for (int64_t h = kv; h < end; h++) store_head(b, layer, batch, t, h);
}

// A whole row, whose probes may be imposed before it is cached.
static void rotate_imposed_row(cpu_backend *b, const layer_weights *w, int64_t layer,
                               const token_batch *batch, int64_t t, bool queries) {
  const model_shape *s = &b->shape;
  size_t real = b->shared.ops->bytes;
  double scale = 1.0 / __builtin_sqrt((double)s->head_dim);
  if (queries) {
    rotate_heads(b, (char *)b->q.rows[t], s->n_heads, w->q_norm, batch->position[t], scale);
    impose_row(b, PROBE_QCUR, t, b->q.rows[t], real);
  }
  rotate_heads(b, (char *)b->k.rows[t], s->n_kv_heads, w->k_norm, batch->position[t], 1.0);
  impose_row(b, PROBE_KCUR, t, b->k.rows[t], real);
  impose_row(b, PROBE_VCUR, t, b->v.rows[t], real);
  for (int64_t h = 0; h < s->n_kv_heads; h++) store_head(b, layer, batch, t, h);
}

enum { POINTS_OF_HEADS = 1u << PROBE_QCUR | 1u << PROBE_KCUR | 1u << PROBE_VCUR };

// Keys and values of the whole batch, queries of `count` tokens from `first` on; of these key/value heads.
static void heads_phase(cpu_backend *b, const layer_weights *w, int64_t layer, const token_batch *batch,
                        int64_t first, int64_t count, output_range kv_heads) {
  bool whole = needs_points(b, POINTS_OF_HEADS);
  int64_t parts = whole ? 1 : kv_heads.count;
  team_range share = team_share(b->team, batch->n * parts);
  for (int64_t i = share.first; i < share.end; i++) {
    int64_t t = i / parts, kv = kv_heads.first + i % parts;
    bool queries = t >= first && t < first + count;
    if (whole)
      rotate_imposed_row(b, w, layer, batch, t, queries);
    else
      rotate_row(b, w, layer, batch, t, kv, kv + 1, queries);
  }
  phase_end(b, PHASE_HEADS);
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

static void attend_heads(cpu_backend *b, int64_t layer, const token_batch *batch, const token_span *tokens,
                         head_slice heads) {
  const real_ops *ops = b->shared.ops;
  int64_t head_dim = b->shape.head_dim;
  size_t width = (size_t)head_dim * ops->bytes;
  span_rows r;
  span_rows_fill(&r, b, batch, tokens, heads.first);
  kv_head kv = kv_of(b, layer, batch->sequence[tokens->first], heads.kv);
  attention_span span = {r.out, r.q, r.n_keys, tokens->n, heads.n, kv};
  if (ops->attend_span) {
    ops->attend_span(&span, head_dim, cpu_thread_scratch(b));
    return;
  }
  for (int64_t i = 0; i < tokens->n; i++)
    for (int64_t h = 0; h < heads.n; h++)
      ops->attend((char *)r.out[i] + (size_t)h * width, (const char *)r.q[i] + (size_t)h * width, &kv,
                  r.n_keys[i], head_dim, cpu_thread_scratch(b));
}

// attended, rounded where the path rounds
static void attended_rows(cpu_backend *b, int64_t first, team_range part) {
  for (int64_t t = first + part.first; t < first + part.end; t++) {
    impose_row(b, PROBE_KQV_OUT, t, b->attended.real_rows[t], b->shared.ops->bytes);
    quantize(b, &b->attention, &b->attended, t);
  }
}

typedef struct { // rows first .. first + count - 1 of a layer's attention
  cpu_backend *b;
  const layer_weights *w;
  int64_t layer, first, count, n_spans, pieces;
  const token_batch *batch;
  output_range kv_heads;    // all, or this rank's
  slice_range slices;       // theirs
  matrix rows[3];           // this rank's of q, k, v, where it has not all
  bool heads_in_tasks;      // a task of attention also has what heads_phase does
  product_list qkv, output; // q, k, v; and o
  task_queue attend;
} attention_part;

// Few tokens, each span all that its sequence has in the batch, each key/value head one task of a span: then
// no task reads what another one stores.
static bool heads_fit_tasks(const attention_part *p) {
  const cpu_backend *b = p->b;
  if (p->batch->n > FEW_TOKENS || p->count != p->batch->n || needs_points(b, POINTS_OF_HEADS)) return false;
  for (int64_t i = 1; i < p->n_spans; i++)
    for (int64_t j = 0; j < i; j++)
      if (p->batch->sequence[b->spans[i].first] == p->batch->sequence[b->spans[j].first]) return false;
  return head_slices(&b->shape) == b->shape.n_kv_heads && p->pieces == 1;
}

// But for the products.
static attention_part tasks_of(cpu_backend *b, int64_t layer, const token_batch *batch, int64_t first,
                               int64_t count, output_range kv_heads) {
  const layer_weights *w = &b->params.weights->layers[layer];
  attention_part p = {.b = b, .w = w, .layer = layer, .first = first, .count = count, .batch = batch};
  p.kv_heads = kv_heads;
  p.slices = head_slices_of(&b->shape, kv_heads);
  p.n_spans = find_spans(b, batch, first, count);
  p.pieces = b->shared.path->attention == ATTENTION_EXACT ? exact_pieces(b, batch, p.n_spans, p.slices) : 1;
  p.heads_in_tasks = heads_fit_tasks(&p);
  p.attend = task_queue_of(p.n_spans * p.slices.count * p.pieces, false);
  return p;
}

static attention_part part_of(cpu_backend *b, int64_t layer, const token_batch *batch, int64_t first,
                              int64_t count) {
  attention_part p = tasks_of(b, layer, batch, first, count, (output_range){0, b->shape.n_kv_heads});
  const layer_weights *w = p.w;
  product_list_add(&p.qkv, product_attention(b, b->q.rows, &w->q, &b->normed, first, count));
  product_list_add(&p.qkv, product_attention(b, b->k.rows, &w->k, &b->normed, first, count));
  product_list_add(&p.qkv, product_attention(b, b->v.rows, &w->v, &b->normed, first, count));
  product_list_add(&p.output, product_attention(b, b->projected.rows, &w->o, &b->attended, first, count));
  return p;
}

static void attend_task(cpu_backend *b, const void *what, int64_t task, int64_t after) {
  const attention_part *p = (const attention_part *)what;
  int64_t slices = p->slices.count, slice = p->slices.first + task % slices;
  const token_span *span =
      &b->spans[p->n_spans - 1 - task / slices]; // late spans have most keys: they go first
  (void)after;
  for (int64_t t = span->first; t < span->first + span->n && p->heads_in_tasks; t++)
    rotate_row(b, p->w, p->layer, p->batch, t, slice, slice + 1, true);
  switch (b->shared.path->attention) {
  case ATTENTION_REALS:
  case ATTENTION_RUN_KV:
    attend_heads(b, p->layer, p->batch, span, head_slice_at(&b->shape, slice));
    return;
  case ATTENTION_EXACT:
    exact_attend_span(b, p->layer, p->batch, span, slice);
    return;
  }
  __builtin_unreachable();
}

static void attended_alone(cpu_backend *b, void *what) {
  const attention_part *p = (const attention_part *)what;
  attended_rows(b, p->first, (team_range){0, p->count});
}

static void attend_tasks(attention_part *p) {
  cpu_backend *b = p->b;
  if (p->pieces > 1)
    exact_attend_run(b, p->layer, p->batch, p->n_spans, p->slices, p->pieces, &p->attend);
  else
    tasks_run(b, &p->attend, attend_task, p);
}

static void attend_phase(attention_part *p) {
  cpu_backend *b = p->b;
  attend_tasks(p);
  if (p->count <= FEW_TOKENS) {
    phase_end_then(b, PHASE_ATTEND, PHASE_ATTEND, attended_alone, p);
    return;
  }
  phase_end(b, PHASE_ATTEND);
  attended_rows(b, p->first, team_share(b->team, p->count));
  phase_end(b, PHASE_ATTEND);
  pack_phase(b, PHASE_ATTEND, &b->attention, &b->attended, p->first, p->count);
}

// Rows of o, and these rows of x += projected
static void output_task(cpu_backend *b, const void *what, int64_t task, int64_t after) {
  const attention_part *p = (const attention_part *)what;
  const product *o = &p->output.part[0];
  const product_part at = product_part_of(o, task);
  const int64_t first = p->first + at.tokens.first;
  size_t skip = (size_t)at.rows.first * b->shared.ops->bytes;
  product_tile(b, o, task, after >= 0 ? matrix_tile_data(o->m, o->tile, after) : NULL);
  for (int64_t t = first; t < first + at.tokens.count; t++)
    b->shared.ops->add((char *)row_at(b, b->x, t, b->shape.hidden) + skip,
                       (char *)b->projected.rows[t] + skip, at.rows.count);
}

static void impose_stream(attention_part *p) {
  cpu_backend *b = p->b;
  team_range part = team_share(b->team, p->count);
  for (int64_t t = p->first + part.first; t < p->first + part.end; t++)
    impose_row(b, PROBE_FFN_INP, t, row_at(b, b->x, t, b->shape.hidden), b->shared.ops->bytes);
  phase_end(b, PHASE_O);
}

static void output_phase(attention_part *p) {
  cpu_backend *b = p->b;
  tasks_run(b, &p->output.tasks, output_task, p);
  if (!needs_points(b, 1u << PROBE_FFN_INP)) return;
  phase_end(b, PHASE_O);
  impose_stream(p);
  show_stream_phase(b, PROBE_FFN_INP, p->layer, p->first, p->count);
}

// ---- the steps ----

static void project_phases(attention_part *p) {
  cpu_backend *b = p->b;
  norm_phase(b, PHASE_ATTN_NORM, &b->attention, p->w->attn_norm, p->first, p->count);
  pack_phase(b, PHASE_ATTN_NORM, &b->attention, &b->normed, p->first, p->count);
  show_phase(b, PROBE_ATTN_NORM, p->layer, b->normed.real_rows + p->first, p->first, p->count,
             b->shared.ops->bytes);
  product_list_run(b, &p->qkv);
}

static void attend_phases(attention_part *p) {
  cpu_backend *b = p->b;
  size_t real = b->shared.ops->bytes;
  int64_t layer = p->layer, first = p->first, count = p->count;
  if (!p->heads_in_tasks) heads_phase(b, p->w, layer, p->batch, first, count, p->kv_heads);
  show_phase(b, PROBE_QCUR, layer, b->q.rows + first, first, count, real);
  show_phase(b, PROBE_KCUR, layer, b->k.rows + first, first, count, real);
  show_phase(b, PROBE_VCUR, layer, b->v.rows + first, first, count, real);
  attend_phase(p);
  show_phase(b, PROBE_KQV_OUT, layer, b->attended.real_rows + first, first, count, real);
  output_phase(p);
}

static void run_project(void *context) {
  attention_part *p = (attention_part *)context;
  project_phases(p);
  phase_last(p->b);
}

static void run_attend(void *context) {
  attention_part *p = (attention_part *)context;
  attend_phases(p);
  phase_last(p->b);
}

static void run_attention(void *context) {
  attention_part *p = (attention_part *)context;
  project_phases(p);
  phase_end(p->b, PHASE_QKV);
  attend_phases(p);
  phase_last(p->b);
}

status cpu_attention(backend *base, int64_t layer, const token_batch *rows) {
  cpu_backend *b = (cpu_backend *)base;
  layer_start(b, layer, rows->n);
  step_start(b, rows->n);
  attention_part p = part_of(b, layer, rows, 0, rows->n);
  norm_alone(b, PHASE_ATTN_NORM, &b->attention, p.w->attn_norm, 0, rows->n);
  step_run(b, run_attention, &p, PHASE_O);
  return 0;
}

status cpu_project(backend *base, int64_t layer, const token_batch *rows, int64_t first, int64_t count) {
  cpu_backend *b = (cpu_backend *)base;
  layer_start(b, layer, rows->n);
  step_start(b, count);
  attention_part p = part_of(b, layer, rows, first, count);
  norm_alone(b, PHASE_ATTN_NORM, &b->attention, p.w->attn_norm, first, count);
  step_run(b, run_project, &p, PHASE_QKV);
  return 0;
}

status cpu_attend(backend *base, int64_t layer, const token_batch *rows, int64_t first, int64_t count) {
  cpu_backend *b = (cpu_backend *)base;
  step_start(b, rows->n);
  attention_part p = part_of(b, layer, rows, first, count);
  step_run(b, run_attend, &p, PHASE_O);
  return 0;
}

// ---- this rank's heads alone ----

// Rows of m that give heads kv_heads, `each` rows to one, into the rows' places among all heads.
static void add_rows(attention_part *p, int index, void **at, void *const *rows, const matrix *m,
                     int64_t each) {
  cpu_backend *b = p->b;
  int64_t first = p->kv_heads.first * each;
  p->rows[index] = matrix_rows(m, first, p->kv_heads.count * each);
  for (int64_t t = 0; t < p->count; t++) at[t] = (char *)rows[t] + (size_t)first * b->shared.ops->bytes;
  product_list_add(&p->qkv, product_attention(b, at, &p->rows[index], &b->normed, 0, p->count));
}

static void run_heads_part(void *context) {
  attention_part *p = (attention_part *)context;
  cpu_backend *b = p->b;
  norm_phase(b, PHASE_ATTN_NORM, &b->attention, p->w->attn_norm, 0, p->count);
  pack_phase(b, PHASE_ATTN_NORM, &b->attention, &b->normed, 0, p->count);
  product_list_run(b, &p->qkv);
  phase_end(b, PHASE_QKV);
  if (!p->heads_in_tasks) heads_phase(b, p->w, p->layer, p->batch, 0, p->count, p->kv_heads);
  attend_tasks(p);
  phase_end(b, PHASE_ATTEND);
  pack_heads(b, p->batch);
  phase_last(b);
}

status cpu_heads_part(backend *base, int64_t layer, const token_batch *rows) {
  cpu_backend *b = (cpu_backend *)base;
  const model_shape *s = &b->shape;
  layer_start(b, layer, rows->n);
  step_start(b, rows->n);
  attention_part p = tasks_of(b, layer, rows, 0, rows->n, b->parts.kv_heads);
  int64_t group = s->n_heads / s->n_kv_heads;
  add_rows(&p, 0, b->parts.q, b->q.rows, &p.w->q, group * s->head_dim);
  add_rows(&p, 1, b->parts.k, b->k.rows, &p.w->k, s->head_dim);
  add_rows(&p, 2, b->parts.v, b->v.rows, &p.w->v, s->head_dim);
  norm_alone(b, PHASE_ATTN_NORM, &b->attention, p.w->attn_norm, 0, rows->n);
  step_run(b, run_heads_part, &p, PHASE_ATTEND);
  return 0;
}
