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

static status cpu_embed(backend *base, const token_batch *rows) {
  cpu_backend *b = (cpu_backend *)base;
#pragma omp parallel for num_threads(b->params.threads)
  for (int64_t t = 0; t < rows->n; t++)
    b->shared.ops->embed(row_at(b, b->x, t, b->shape.hidden), &b->params.weights->embedding, rows->token[t],
                         (float *)cpu_thread_scratch(b));
  show_stream_phase(b, PROBE_INP_EMBD, -1, 0, rows->n);
  return 0;
}

static status cpu_head(backend *base, const token_batch *rows, const int64_t *row, int64_t count) {
  cpu_backend *b = (cpu_backend *)base;
  const model_weights *w = b->params.weights;
  size_t real = b->shared.ops->bytes;
  product_list logits = {0};
  (void)rows;
  product_list_add(&logits, product_shared(b, b->logits.rows, &w->output, &b->head_in, 0, count));
#pragma omp parallel num_threads(b->params.threads)
  {
#pragma omp for
    for (int64_t i = 0; i < count; i++)
      norm_row(b, &b->head_in, i, row[i], w->output_norm, WITHOUT_REMAINDER);
    show_phase(b, PROBE_RESULT_NORM, -1, b->head_in.real_rows, 0, count, real);
    products_phase(b, &logits);
    show_phase(b, PROBE_RESULT_OUTPUT, -1, b->logits.rows, 0, count, real);
  }
  return 0;
}

static status cpu_logits_read(backend *base, int64_t count, const void **out) {
  (void)count;
  *out = ((cpu_backend *)base)->logits.reals;
  return 0;
}

static status cpu_logits_digest(backend *base, const token_batch *rows, const int64_t *row, int64_t count,
                                uint64_t *sums) {
  cpu_backend *b = (cpu_backend *)base;
#pragma omp parallel for num_threads(b->params.threads)
  for (int64_t i = 0; i < count; i++) {
    uint64_t sum = 0;
    digest_row(&sum, b->shared.path, -1, rows->position[row[i]], b->logits.rows[i],
               (size_t)b->shape.vocabulary);
#pragma omp atomic
    sums[rows->sequence[row[i]]] += sum;
  }
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
  cpu_backend *b = (cpu_backend *)base;
#pragma omp parallel for num_threads(b->params.threads)
  for (int64_t t = first; t < first + count; t++) {
    uint64_t sum = 0;
    digest_row(&sum, b->shared.path, layer, rows->position[t], row_at(b, b->x, t, b->shape.hidden),
               (size_t)b->shape.hidden);
#pragma omp atomic
    sums[rows->sequence[t]] += sum;
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
};
