// attend_exact: what the cpu backend keeps for attention in integers, and its tasks: whole spans, or where
// these are fewer than threads can use, pieces of their keys.
//
// Owns: caches, factors of channels, results of chunks. Independent of: arithmetic (ISA rows), the order of
// folds (exact.c). Invariant: a result does not depend on how keys are cut into pieces.
#include "kernels/cpu/steps.h"
#include <stdlib.h>

enum {
  SPLIT_TOKENS = 4, // tokens of the largest batch whose keys are split
  PIECE_CHUNKS = 4, // chunks of the smallest piece: some 20 us of eight heads with VNNI
  PIECES_A_THREAD = 2,
};

static int64_t chunks_of(int64_t positions) {
  return (positions + EXACT_CHUNK - 1) / EXACT_CHUNK;
}

static status open_parts(cpu_backend *b) {
  const model_shape *s = &b->shape;
  exact_parts *p = &b->exact.parts;
  if (b->params.threads == 1) return 0;
  p->n = s->n_heads * (b->params.max_batch < SPLIT_TOKENS ? b->params.max_batch : SPLIT_TOKENS);
  size_t rows = (size_t)(p->n * chunks_of(b->params.context)), width = (size_t)exact_width(s->head_dim);
  TRY(cpu_take(b, &p->rows.out, rows * width, sizeof(float), "results of chunks"));
  TRY(cpu_take(b, &p->rows.max, rows, sizeof(float), "results of chunks"));
  TRY(cpu_take(b, &p->rows.sum, rows, sizeof(float), "results of chunks"));
  return cpu_take(b, &p->unit, (size_t)p->n, sizeof(float), "results of chunks");
}

status exact_open(cpu_backend *b) {
  const model_shape *s = &b->shape;
  size_t heads = (size_t)(s->n_layers * b->params.n_sequences * s->n_kv_heads);
  b->kv_head_bytes = (size_t)chunks_of(b->params.context) * exact_chunk_bytes(exact_width(s->head_dim));
  TRY(cpu_take(b, &b->keys, heads, b->kv_head_bytes, "the key and value cache"));
  TRY(cpu_take(b, &b->exact.factors, (size_t)(s->n_layers * 3 * s->head_dim), sizeof(float),
               "channel factors"));
  for (int64_t l = 0; l < s->n_layers; l++) {
    const layer_weights *w = &b->params.weights->layers[l];
    float *f = b->exact.factors + l * 3 * s->head_dim;
    exact_factors_fill(f, f + s->head_dim, f + 2 * s->head_dim, w->q_norm, w->k_norm, s->head_dim);
  }
  return open_parts(b);
}

void exact_close(cpu_backend *b) {
  free(b->exact.factors);
  free(b->exact.parts.rows.out);
  free(b->exact.parts.rows.max);
  free(b->exact.parts.rows.sum);
  free(b->exact.parts.unit);
}

static exact_cache cache_of(const cpu_backend *b, int64_t layer, int64_t sequence, int64_t head) {
  size_t index = (size_t)((layer * b->params.n_sequences + sequence) * b->shape.n_kv_heads + head);
  return (exact_cache){b->keys + index * b->kv_head_bytes, exact_width(b->shape.head_dim)};
}

static exact_factors factors_of(const cpu_backend *b, int64_t layer) {
  const float *f = b->exact.factors + layer * 3 * b->shape.head_dim;
  return (exact_factors){f, f + b->shape.head_dim, f + 2 * b->shape.head_dim};
}

void exact_store_head(cpu_backend *b, int64_t layer, int64_t sequence, int64_t head, int64_t position,
                      const float *k, const float *v) {
  const exact_cache kv = cache_of(b, layer, sequence, head);
  const exact_factors factors = factors_of(b, layer);
  b->row->exact->store(&kv, position, k, v, &factors, b->shape.head_dim);
}

typedef struct { // a task: heads of a span's tokens, and its arrays
  token_span tokens;
  head_slice heads;
  span_rows rows;
  exact_span span;
} exact_task;

static void task_fill(exact_task *t, const cpu_backend *b, int64_t layer, const token_batch *batch,
                      const token_span *tokens, int64_t slice) {
  t->tokens = *tokens;
  t->heads = head_slice_at(&b->shape, slice);
  span_rows_fill(&t->rows, b, batch, tokens, t->heads.first);
  t->span = (exact_span){t->rows.out,
                         t->rows.q,
                         t->rows.n_keys,
                         tokens->n,
                         t->heads.n,
                         factors_of(b, layer),
                         cache_of(b, layer, batch->sequence[tokens->first], t->heads.kv)};
}

void exact_attend_span(cpu_backend *b, int64_t layer, const token_batch *batch, const token_span *span,
                       int64_t slice) {
  exact_task t;
  task_fill(&t, b, layer, batch, span, slice);
  b->row->exact->attend(b->row->exact, &t.span, b->shape.head_dim, cpu_thread_scratch(b));
}

// A task's first row in the results of chunks: those of earlier tokens, then those of earlier heads.
static int64_t first_row(const cpu_backend *b, const exact_task *t) {
  return (t->tokens.first - b->spans[0].first) * b->shape.n_heads + t->tokens.n * t->heads.first;
}

static void piece(cpu_backend *b, const exact_task *t, int64_t index, int64_t pieces) {
  int64_t n_chunks = 0;
  for (int64_t i = 0; i < t->span.n; i++)
    n_chunks = chunks_of(t->span.n_keys[i]) > n_chunks ? chunks_of(t->span.n_keys[i]) : n_chunks;
  exact_attend_chunks(b->row->exact, &b->exact.parts, first_row(b, t), &t->span, b->shape.head_dim,
                      n_chunks * index / pieces, n_chunks * (index + 1) / pieces, cpu_thread_scratch(b));
}

typedef struct {
  int64_t layer, n_spans, pieces;
  slice_range slices;
  const token_batch *batch;
} attend_part;

static void attend_task(cpu_backend *b, const void *what, int64_t task, int64_t after) {
  const attend_part *p = (const attend_part *)what;
  int64_t at = task / p->pieces, span = at / p->slices.count, slice = p->slices.first + at % p->slices.count;
  (void)after;
  if (p->pieces == 1) { // late spans have most keys: they go first
    exact_attend_span(b, p->layer, p->batch, &b->spans[p->n_spans - 1 - span], slice);
    return;
  }
  exact_task t;
  task_fill(&t, b, p->layer, p->batch, &b->spans[span], slice);
  piece(b, &t, task % p->pieces, p->pieces);
}

static void fold_rows(cpu_backend *b, const attend_part *p) {
  enum { ROWS = SPLIT_TOKENS * ATTEND_HEADS }; // of a span's slice
  int64_t slices = p->slices.count, head_dim = b->shape.head_dim;
  team_range part = team_share(b->team, p->n_spans * slices * ROWS);
  for (int64_t i = part.first; i < part.end; i++) {
    exact_task t;
    task_fill(&t, b, p->layer, p->batch, &b->spans[i / ROWS / slices], p->slices.first + i / ROWS % slices);
    int64_t r = i % ROWS, token = r / t.span.heads, head = r % t.span.heads;
    if (token >= t.span.n) continue;
    exact_fold_chunks(b->row->exact, (float *)t.span.out[token] + head * head_dim, &b->exact.parts,
                      first_row(b, &t) + r, t.span.n_keys[token], head_dim);
  }
}

int64_t exact_pieces(const cpu_backend *b, const token_batch *batch, int64_t n_spans, slice_range slices) {
  int64_t tasks = n_spans * slices.count, wanted = PIECES_A_THREAD * b->n_threads, tokens = 0, most = 0;
  for (int64_t i = 0; i < n_spans; i++) {
    const token_span *s = &b->spans[i];
    tokens += s->n;
    for (int64_t t = s->first; t < s->first + s->n; t++)
      most = chunks_of(batch->position[t] + 1) > most ? chunks_of(batch->position[t] + 1) : most;
  }
  if (tokens * b->shape.n_heads > b->exact.parts.n || tasks >= wanted || !tasks) return 1;
  int64_t pieces = (wanted + tasks - 1) / tasks, largest = most / PIECE_CHUNKS;
  return pieces < largest ? pieces : largest > 1 ? largest : 1;
}

void exact_attend_run(cpu_backend *b, int64_t layer, const token_batch *batch, int64_t n_spans,
                      slice_range slices, int64_t pieces, task_queue *tasks) {
  const attend_part p = {layer, n_spans, pieces, slices, batch};
  tasks_run(b, tasks, attend_task, &p);
  if (pieces == 1) return;
  phase_end(b, PHASE_ATTEND);
  fold_rows(b, &p);
}
