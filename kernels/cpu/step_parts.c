// step_parts: the shared steps whose outputs the ranks divide: rows of o and of the head. (This rank's heads:
// step_attention.c.)
//
// Owns: the parts and how they lie. Independent of: arithmetic (ISA rows), how parts cross ranks.
// Invariant: each output is computed by one rank as every rank would compute it, so the parts joined have the
// bits of the whole.
#include "kernels/cpu/steps.h"
#include <stdlib.h>
#include <string.h>

static int64_t group_of(const cpu_backend *b) {
  return b->shape.n_heads / b->shape.n_kv_heads;
}

// Reals of a key/value head and its queries to a token.
static int64_t head_width(const cpu_backend *b) {
  return (group_of(b) + 2) * b->shape.head_dim;
}

status output_parts_open(cpu_backend *b) {
  const backend_params *p = &b->params;
  const model_shape *s = &b->shape;
  output_parts *o = &b->parts;
  int64_t n = p->parts_tokens, rows = n > p->max_logit_rows ? n : p->max_logit_rows;
  size_t real = b->shared.ops->bytes;
  o->kv_heads = output_range_of(s->n_kv_heads, 1, p->rank, p->n_ranks);
  o->outputs = output_range_of(s->hidden, OUTPUT_UNIT, p->rank, p->n_ranks);
  o->logits = output_range_of(s->vocabulary, OUTPUT_UNIT, p->rank, p->n_ranks);
  TRY(cpu_take(b, &o->heads, (size_t)(n * s->n_kv_heads * head_width(b)), real, "parts of heads"));
  TRY(cpu_take(b, &o->output, (size_t)(n * s->hidden), real, "parts of attention"));
  TRY(cpu_take(b, &o->vocabulary, (size_t)(p->max_logit_rows * s->vocabulary), real, "parts of logits"));
  TRY(cpu_take(b, &o->q, (size_t)n, sizeof *o->q, "parts of heads"));
  TRY(cpu_take(b, &o->k, (size_t)n, sizeof *o->k, "parts of heads"));
  TRY(cpu_take(b, &o->v, (size_t)n, sizeof *o->v, "parts of heads"));
  return cpu_take(b, &o->out, (size_t)rows, sizeof *o->out, "parts of outputs");
}

void output_parts_close(cpu_backend *b) {
  void *arrays[] = {b->parts.heads, b->parts.output, b->parts.vocabulary, b->parts.q,
                    b->parts.k,     b->parts.v,      b->parts.out};
  for (size_t i = 0; i < sizeof arrays / sizeof *arrays; i++) free(arrays[i]);
}

// ---- heads ----

// Of token t, key/value head `kv` of a rank's part.
static char *packed_head(const cpu_backend *b, output_range part, int64_t n, int64_t t, int64_t kv) {
  int64_t before = n * part.first + t * part.count + kv - part.first;
  return b->parts.heads + (size_t)(before * head_width(b)) * b->shared.ops->bytes;
}

typedef struct { // where the steps have what a packed head holds
  char *attended, *key, *value;
  size_t attended_bytes, head_bytes;
} head_places;

static head_places places_of(const cpu_backend *b, int64_t t, int64_t kv) {
  size_t head = (size_t)b->shape.head_dim * b->shared.ops->bytes, at = (size_t)kv * head;
  size_t group = (size_t)group_of(b);
  return (head_places){(char *)b->attended.real_rows[t] + at * group, (char *)b->k.rows[t] + at,
                       (char *)b->v.rows[t] + at, head * group, head};
}

void pack_heads(cpu_backend *b, const token_batch *batch) {
  output_range mine = b->parts.kv_heads;
  team_range part = team_share(b->team, batch->n * mine.count);
  for (int64_t i = part.first; i < part.end; i++) {
    int64_t t = i / mine.count, kv = mine.first + i % mine.count;
    head_places p = places_of(b, t, kv);
    char *to = packed_head(b, mine, batch->n, t, kv);
    memcpy(to, p.attended, p.attended_bytes);
    memcpy(to + p.attended_bytes, p.key, p.head_bytes);
    memcpy(to + p.attended_bytes + p.head_bytes, p.value, p.head_bytes);
  }
}

typedef struct {
  cpu_backend *b;
  int64_t layer;
  const token_batch *batch;
  matrix rows; // this rank's of o
  product_list output;
} output_step;

// Another rank's heads of token t: attended, key and value, which are cached here too.
static void take_heads(const output_step *p, output_range part, int64_t t) {
  cpu_backend *b = p->b;
  for (int64_t kv = part.first; kv < part.first + part.count; kv++) {
    head_places to = places_of(b, t, kv);
    const char *from = packed_head(b, part, p->batch->n, t, kv);
    memcpy(to.attended, from, to.attended_bytes);
    memcpy(to.key, from + to.attended_bytes, to.head_bytes);
    memcpy(to.value, from + to.attended_bytes + to.head_bytes, to.head_bytes);
    store_head(b, p->layer, p->batch, t, kv);
  }
}

static void take_phase(const output_step *p) {
  cpu_backend *b = p->b;
  const backend_params *k = &b->params;
  team_range part = team_share(b->team, p->batch->n);
  for (int64_t t = part.first; t < part.end; t++) {
    for (int r = 0; r < k->n_ranks; r++)
      if (r != k->rank) take_heads(p, output_range_of(b->shape.n_kv_heads, 1, r, k->n_ranks), t);
    quantize(b, &b->attention, &b->attended, t);
  }
  phase_end(b, PHASE_EXCHANGE);
  pack_phase(b, PHASE_EXCHANGE, &b->attention, &b->attended, 0, p->batch->n);
}

static void run_output_part(void *context) {
  output_step *p = (output_step *)context;
  take_phase(p);
  product_list_run(p->b, &p->output);
  phase_last(p->b);
}

status cpu_output_part(backend *base, int64_t layer, const token_batch *rows) {
  cpu_backend *b = (cpu_backend *)base;
  const output_range mine = b->parts.outputs;
  output_step p = {.b = b, .layer = layer, .batch = rows};
  step_start(b, rows->n);
  p.rows = matrix_rows(&b->params.weights->layers[layer].o, mine.first, mine.count);
  for (int64_t t = 0; t < rows->n; t++)
    b->parts.out[t] = row_at(b, b->parts.output, rows->n * mine.first + t * mine.count, 1);
  product_list_add(&p.output, product_attention(b, b->parts.out, &p.rows, &b->attended, 0, rows->n));
  step_run(b, run_output_part, &p, PHASE_O);
  return 0;
}

// ---- joined outputs ----

typedef struct {
  cpu_backend *b;
  int64_t total, n;
} join_step;

static void run_output_add(void *context) {
  const join_step *p = (const join_step *)context;
  cpu_backend *b = p->b;
  team_range part = team_share(b->team, p->n);
  for (int r = 0; r < b->params.n_ranks; r++) {
    output_range of = output_range_of(p->total, OUTPUT_UNIT, r, b->params.n_ranks);
    for (int64_t t = part.first; t < part.end; t++)
      b->shared.ops->add(row_at(b, b->x, t * p->total + of.first, 1),
                         row_at(b, b->parts.output, p->n * of.first + t * of.count, 1), of.count);
  }
  phase_last(b);
}

status cpu_output_add(backend *base, const token_batch *rows) {
  cpu_backend *b = (cpu_backend *)base;
  join_step p = {b, b->shape.hidden, rows->n};
  step_start(b, rows->n);
  step_run(b, run_output_add, &p, PHASE_O);
  return 0;
}

static void run_logits_join(void *context) {
  const join_step *p = (const join_step *)context;
  cpu_backend *b = p->b;
  team_range part = team_share(b->team, p->n * b->params.n_ranks);
  for (int64_t i = part.first; i < part.end; i++) {
    int64_t t = i / b->params.n_ranks;
    output_range of = output_range_of(p->total, OUTPUT_UNIT, (int)(i % b->params.n_ranks), b->params.n_ranks);
    memcpy(row_at(b, b->logits.reals, t * p->total + of.first, 1),
           row_at(b, b->parts.vocabulary, p->n * of.first + t * of.count, 1),
           (size_t)of.count * b->shared.ops->bytes);
  }
  phase_last(b);
}

status cpu_logits_join(backend *base, int64_t count) {
  cpu_backend *b = (cpu_backend *)base;
  join_step p = {b, b->shape.vocabulary, count};
  step_start(b, count);
  b->choice = NULL; // it belongs to no layer
  step_run(b, run_logits_join, &p, PHASE_HEAD);
  return 0;
}

// ---- the head ----

typedef struct {
  cpu_backend *b;
  const token_batch *rows;
  const int64_t *row;
  int64_t count;
  matrix part; // this rank's rows of the head
  product_list logits;
} head_step;

static void norm_head_rows(const head_step *p, team_range part) {
  for (int64_t i = part.first; i < part.end; i++)
    norm_row(p->b, &p->b->shared, &p->b->head_in, i, p->row[i], p->b->params.weights->output_norm);
}

static void run_head_part(void *context) {
  head_step *p = (head_step *)context;
  cpu_backend *b = p->b;
  norm_head_rows(p, team_share(b->team, p->count));
  phase_end(b, PHASE_HEAD_NORM);
  pack_phase(b, PHASE_HEAD_NORM, &b->shared, &b->head_in, 0, p->count);
  product_list_run(b, &p->logits);
  phase_last(b);
}

status cpu_head_part(backend *base, const token_batch *rows, const int64_t *row, int64_t count) {
  cpu_backend *b = (cpu_backend *)base;
  const output_range mine = b->parts.logits;
  head_step p = {.b = b, .rows = rows, .row = row, .count = count};
  step_start(b, rows->n);
  if (rows->n > FEW_TOKENS) b->choice = NULL; // it belongs to no layer
  p.part = matrix_rows(&b->params.weights->output, mine.first, mine.count);
  for (int64_t i = 0; i < count; i++)
    b->parts.out[i] = row_at(b, b->parts.vocabulary, count * mine.first + i * mine.count, 1);
  product_list_add(&p.logits, product_shared(b, b->parts.out, &p.part, &b->head_in, 0, count));
  step_run(b, run_head_part, &p, PHASE_HEAD);
  return 0;
}

typedef struct {
  cpu_backend *b;
  const token_batch *rows;
  const int64_t *row;
  int64_t count;
  uint64_t *sums;
} digest_step;

static void run_digest(void *context) {
  const digest_step *p = (const digest_step *)context;
  cpu_backend *b = p->b;
  output_range mine = b->parts.logits;
  team_range part = team_share(b->team, p->count);
  for (int64_t i = part.first; i < part.end; i++) {
    int64_t t = p->row[i];
    uint64_t sum = 0;
    digest_row_part(&sum, b->shared.path, -1, p->rows->position[t], b->parts.out[i], mine.first,
                    (size_t)mine.count);
    __atomic_fetch_add(&p->sums[p->rows->sequence[t]], sum, __ATOMIC_RELAXED);
  }
}

// The rows are those of the last cpu_head_part.
status cpu_logits_part_digest(backend *base, const token_batch *rows, const int64_t *row, int64_t count,
                              uint64_t *sums) {
  digest_step p = {(cpu_backend *)base, rows, row, count, sums};
  team_run(p.b->team, count <= FEW_TOKENS ? 1 : team_choice_threads(&p.b->many), run_digest, &p);
  return 0;
}
