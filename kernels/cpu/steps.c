// steps: the cpu backend's table, and its steps but for attention (step_attention.c) and the experts
// (step_moe.c): embedding, head, rows that cross ranks, digests and probes.
//
// Independent of: arithmetic (ISA rows), other ranks.
#include "kernels/cpu/steps.h"
#include <string.h>

void convert_reals(void *out, size_t out_bytes, const void *in, size_t in_bytes, int64_t n) {
  if (out_bytes == in_bytes)
    memcpy(out, in, (size_t)n * in_bytes);
  else if (out_bytes == sizeof(float))
    for (int64_t i = 0; i < n; i++) ((float *)out)[i] = (float)((const double *)in)[i];
  else
    for (int64_t i = 0; i < n; i++) ((double *)out)[i] = (double)((const float *)in)[i];
}

typedef struct {
  cpu_backend *b;
  const token_batch *rows;
} embed_part;

static void embed_rows(cpu_backend *b, const token_batch *rows, team_range part) {
  for (int64_t t = part.first; t < part.end; t++)
    b->shared.ops->embed(row_at(b, b->x, t, b->shape.hidden), &b->params.weights->embedding, rows->token[t],
                         (float *)cpu_thread_scratch(b));
}

static void run_embed(void *context) {
  const embed_part *p = (const embed_part *)context;
  embed_rows(p->b, p->rows, team_share(p->b->team, p->rows->n));
  phase_last(p->b);
}

static status cpu_embed(backend *base, const token_batch *rows) {
  cpu_backend *b = (cpu_backend *)base;
  if (rows->n <= FEW_TOKENS) team_choice_turn(&b->few, rows->n, true);
  step_start(b, rows->n);
  if (rows->n <= FEW_TOKENS) {
    embed_rows(b, rows, (team_range){0, rows->n});
    phase_alone(b, PHASE_EMBED);
  } else {
    embed_part p = {b, rows};
    step_run(b, run_embed, &p, PHASE_EMBED);
  }
  show_stream_phase(b, PROBE_INP_EMBD, -1, 0, rows->n);
  return 0;
}

typedef struct {
  cpu_backend *b;
  const int64_t *row;
  int64_t count;
  product_list logits;
} head_part;

static void head_rows(cpu_backend *b, const int64_t *row, team_range part) {
  for (int64_t i = part.first; i < part.end; i++)
    norm_row(b, &b->shared, &b->head_in, i, row[i], b->params.weights->output_norm);
}

static void run_head(void *context) {
  head_part *p = (head_part *)context;
  cpu_backend *b = p->b;
  size_t real = b->shared.ops->bytes;
  if (p->count > FEW_TOKENS) {
    head_rows(b, p->row, team_share(b->team, p->count));
    phase_end(b, PHASE_HEAD_NORM);
    pack_phase(b, PHASE_HEAD_NORM, &b->shared, &b->head_in, 0, p->count);
  }
  show_phase(b, PROBE_RESULT_NORM, -1, b->head_in.real_rows, 0, p->count, real);
  product_list_run(b, &p->logits);
  if (probe_is_watched(&b->watch, PROBE_RESULT_OUTPUT)) team_barrier(b->team);
  show_phase(b, PROBE_RESULT_OUTPUT, -1, b->logits.rows, 0, p->count, real);
  phase_last(b);
}

static status cpu_head(backend *base, const token_batch *rows, const int64_t *row, int64_t count) {
  cpu_backend *b = (cpu_backend *)base;
  head_part p = {.b = b, .row = row, .count = count};
  step_start(b, rows->n);
  if (rows->n > FEW_TOKENS) b->choice = NULL; // it belongs to no layer
  product_list_add(&p.logits,
                   product_shared(b, b->logits.rows, &b->params.weights->output, &b->head_in, 0, count));
  if (count <= FEW_TOKENS) {
    head_rows(b, row, (team_range){0, count});
    phase_alone(b, PHASE_HEAD_NORM);
  }
  step_run(b, run_head, &p, PHASE_HEAD);
  return 0;
}

static status cpu_logits_read(backend *base, int64_t count, const void **out) {
  (void)count;
  *out = ((cpu_backend *)base)->logits.reals;
  return 0;
}

typedef struct { // rows to digest into the sum of each one's sequence
  cpu_backend *b;
  const token_batch *rows;
  const int64_t *row; // of logits: their rows in the batch; NULL: rows first .. of the residual stream
  int64_t layer, first, count;
  uint64_t *sums;
} digest_part;

static void run_digest(void *context) {
  const digest_part *p = (const digest_part *)context;
  cpu_backend *b = p->b;
  team_range part = team_share(b->team, p->count);
  for (int64_t i = part.first; i < part.end; i++) {
    int64_t t = p->row ? p->row[i] : p->first + i;
    const void *reals = p->row ? b->logits.rows[i] : row_at(b, b->x, t, b->shape.hidden);
    uint64_t sum = 0;
    digest_row(&sum, b->shared.path, p->layer, p->rows->position[t], reals,
               (size_t)(p->row ? b->shape.vocabulary : b->shape.hidden));
    __atomic_fetch_add(&p->sums[p->rows->sequence[t]], sum, __ATOMIC_RELAXED);
  }
}

// The rows of a batch of few tokens are the caller's alone.
static void digest_rows(digest_part *p) {
  cpu_backend *b = p->b;
  team_run(b->team, p->count <= FEW_TOKENS ? 1 : team_choice_threads(&b->many), run_digest, p);
}

static status cpu_logits_digest(backend *base, const token_batch *rows, const int64_t *row, int64_t count,
                                uint64_t *sums) {
  digest_part p = {(cpu_backend *)base, rows, row, -1, 0, count, sums};
  digest_rows(&p);
  return 0;
}

// ---- rows that cross ranks ----

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
    return b->chosen;
  case ROWS_SLOTS:
    return b->slot_rows;
  case PARTS_HEADS:
    return b->parts.heads;
  case PARTS_OUTPUT:
    return b->parts.output;
  case PARTS_LOGITS:
    return b->parts.vocabulary;
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

// ---- the residual stream, probes and digests ----

static status cpu_stream_read(backend *base, int64_t first, int64_t count, double *out) {
  cpu_backend *b = (cpu_backend *)base;
  convert_reals(out, sizeof *out, row_at(b, b->x, first, b->shape.hidden), b->shared.ops->bytes,
                count * b->shape.hidden);
  return 0;
}

static status cpu_stream_write(backend *base, int64_t first, int64_t count, const double *in) {
  cpu_backend *b = (cpu_backend *)base;
  convert_reals(row_at(b, b->x, first, b->shape.hidden), b->shared.ops->bytes, in, sizeof *in,
                count * b->shape.hidden);
  return 0;
}

static status cpu_probes_watch(backend *base, const probe_watch *watch) {
  ((cpu_backend *)base)->watch = *watch;
  return 0;
}

static status cpu_digest(backend *base, int64_t layer, const token_batch *rows, int64_t first, int64_t count,
                         uint64_t *sums) {
  digest_part p = {(cpu_backend *)base, rows, NULL, layer, first, count, sums};
  digest_rows(&p);
  return 0;
}

static int cpu_threads(const backend *base, int64_t tokens) {
  const cpu_backend *b = (const cpu_backend *)base;
  return team_choice_threads(tokens <= FEW_TOKENS ? &b->few : &b->many);
}

const backend_ops cpu_backend_ops = {
    .kind = BACKEND_CPU,
    .rows = cpu_rows,
    .has_path = cpu_has_path,
    .prompt_chunk = 512,
    .open = cpu_open,
    .close = cpu_close,
    .row = cpu_row_name,
    .state_bytes = cpu_state_bytes,
    .embed = cpu_embed,
    .attention = cpu_attention,
    .moe = cpu_moe,
    .project = cpu_project,
    .attend = cpu_attend,
    .route = cpu_route,
    .experts_up = cpu_experts_up,
    .experts_down = cpu_experts_down,
    .combine = cpu_combine,
    .head = cpu_head,
    .logits_read = cpu_logits_read,
    .logits_digest = cpu_logits_digest,
    .routing_fetch = cpu_routing_fetch,
    .routing_wait = cpu_routing_wait,
    .routing_write = cpu_routing_write,
    .routing_arrived = cpu_routing_arrived,
    .rows_host = cpu_rows_host,
    .rows_read = cpu_rows_read,
    .rows_write = cpu_rows_write,
    .stream_read = cpu_stream_read,
    .stream_write = cpu_stream_write,
    .settable = 1u << PROBE_QCUR | 1u << PROBE_KCUR | 1u << PROBE_VCUR | 1u << PROBE_KQV_OUT |
                1u << PROBE_FFN_INP | 1u << PROBE_FFN_MOE_GATE | 1u << PROBE_FFN_MOE_UP |
                1u << PROBE_FFN_MOE_SWIGLU | 1u << PROBE_FFN_MOE_DOWN,
    .probes_watch = cpu_probes_watch,
    .digest = cpu_digest,
    .phases_watch = cpu_phases_watch,
    .peaks = cpu_peaks,
    .threads = cpu_threads,
    .heads_part = cpu_heads_part,
    .output_part = cpu_output_part,
    .output_add = cpu_output_add,
    .head_part = cpu_head_part,
    .logits_part_digest = cpu_logits_part_digest,
    .logits_join = cpu_logits_join,
};
