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
static void store_head(cpu_backend *b, int64_t layer, const token_batch *batch, int64_t t, int64_t head) {
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

// Keys and values of the whole batch, queries of `count` tokens from `first` on.
static void heads_phase(cpu_backend *b, const layer_weights *w, int64_t layer, const token_batch *batch,
                        int64_t first, int64_t count) {
  const model_shape *s = &b->shape;
  size_t real = b->shared.ops->bytes;
  double scale = 1.0 / __builtin_sqrt((double)s->head_dim);
#pragma omp for
  for (int64_t t = 0; t < batch->n; t++) {
    char *k = (char *)b->k.rows[t], *v = (char *)b->v.rows[t];
    if (t >= first && t < first + count) {
      rotate_heads(b, (char *)b->q.rows[t], s->n_heads, w->q_norm, batch->position[t], scale);
      impose_row(b, PROBE_QCUR, t, b->q.rows[t], real);
    }
    rotate_heads(b, k, s->n_kv_heads, w->k_norm, batch->position[t], 1.0);
    impose_row(b, PROBE_KCUR, t, k, real);
    impose_row(b, PROBE_VCUR, t, v, real);
    for (int64_t h = 0; h < s->n_kv_heads; h++) store_head(b, layer, batch, t, h);
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

static void attend_phase(cpu_backend *b, int64_t layer, const token_batch *batch, int64_t n_spans) {
  int64_t slices = head_slices(&b->shape);
#pragma omp for collapse(2) schedule(dynamic)
  for (int64_t i = 0; i < n_spans; i++)
    for (int64_t k = 0; k < slices; k++) // late spans have most keys: they go first
      attend_heads(b, layer, batch, &b->spans[n_spans - 1 - i], head_slice_at(&b->shape, k));
}

// attended, rounded where the path rounds
static void attended_phase(cpu_backend *b, int64_t first, int64_t count) {
#pragma omp for
  for (int64_t t = first; t < first + count; t++) {
    impose_row(b, PROBE_KQV_OUT, t, b->attended.real_rows[t], b->shared.ops->bytes);
    quantize(b, &b->shared, &b->attended, t, WITH_REMAINDER);
  }
}

// x += projected
static void add_phase(cpu_backend *b, int64_t first, int64_t count) {
#pragma omp for
  for (int64_t t = first; t < first + count; t++) {
    void *x = row_at(b, b->x, t, b->shape.hidden);
    b->shared.ops->add(x, b->projected.rows[t], b->shape.hidden);
    impose_row(b, PROBE_FFN_INP, t, x, b->shared.ops->bytes);
  }
}

typedef struct { // rows first .. first + count - 1 of a layer's attention
  const layer_weights *w;
  int64_t layer, first, count, n_spans;
  const token_batch *batch;
  product_list qkv, output; // q, k, v; and o
} attention_part;

static attention_part part_of(cpu_backend *b, int64_t layer, const token_batch *batch, int64_t first,
                              int64_t count) {
  const layer_weights *w = &b->params.weights->layers[layer];
  attention_part p = {.w = w, .layer = layer, .first = first, .count = count, .batch = batch};
  p.n_spans = find_spans(b, batch, first, count);
  product_list_add(&p.qkv, product_precise(b, b->q.rows, &w->q, &b->normed, first, count));
  product_list_add(&p.qkv, product_precise(b, b->k.rows, &w->k, &b->normed, first, count));
  product_list_add(&p.qkv, product_precise(b, b->v.rows, &w->v, &b->normed, first, count));
  product_list_add(&p.output, product_precise(b, b->projected.rows, &w->o, &b->attended, first, count));
  return p;
}

static void project_phases(cpu_backend *b, attention_part *p) {
  size_t real = b->shared.ops->bytes;
  norm_phase(b, p->w->attn_norm, p->first, p->count, WITH_REMAINDER);
  show_phase(b, PROBE_ATTN_NORM, p->layer, b->normed.real_rows + p->first, p->first, p->count, real);
  products_phase(b, &p->qkv);
}

static void attend_phases(cpu_backend *b, attention_part *p) {
  size_t real = b->shared.ops->bytes;
  int64_t layer = p->layer, first = p->first, count = p->count;
  heads_phase(b, p->w, layer, p->batch, first, count);
  show_phase(b, PROBE_QCUR, layer, b->q.rows + first, first, count, real);
  show_phase(b, PROBE_KCUR, layer, b->k.rows + first, first, count, real);
  show_phase(b, PROBE_VCUR, layer, b->v.rows + first, first, count, real);
  switch (b->shared.path->attention) {
  case ATTENTION_REALS:
  case ATTENTION_RUN_KV:
    attend_phase(b, layer, p->batch, p->n_spans);
    break;
  case ATTENTION_EXACT:
    exact_attend_phase(b, layer, p->batch, p->n_spans);
    break;
  }
  attended_phase(b, first, count);
  show_phase(b, PROBE_KQV_OUT, layer, b->attended.real_rows + first, first, count, real);
  products_phase(b, &p->output);
  add_phase(b, first, count);
  show_stream_phase(b, PROBE_FFN_INP, layer, first, count);
}

status cpu_attention(backend *base, int64_t layer, const token_batch *rows) {
  cpu_backend *b = (cpu_backend *)base;
  attention_part p = part_of(b, layer, rows, 0, rows->n);
#pragma omp parallel num_threads(b->params.threads)
  {
    project_phases(b, &p);
    attend_phases(b, &p);
  }
  return 0;
}

status cpu_project(backend *base, int64_t layer, const token_batch *rows, int64_t first, int64_t count) {
  cpu_backend *b = (cpu_backend *)base;
  attention_part p = part_of(b, layer, rows, first, count);
#pragma omp parallel num_threads(b->params.threads)
  project_phases(b, &p);
  return 0;
}

status cpu_attend(backend *base, int64_t layer, const token_batch *rows, int64_t first, int64_t count) {
  cpu_backend *b = (cpu_backend *)base;
  attention_part p = part_of(b, layer, rows, first, count);
#pragma omp parallel num_threads(b->params.threads)
  attend_phases(b, &p);
  return 0;
}
