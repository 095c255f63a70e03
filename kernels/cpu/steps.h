// steps: the cpu backend's steps, shared by the files that hold them: step_attention.c, step_route.c,
// step_moe.c, step_parts.c, steps.c, and attend_exact.c.
//
// A step is one run of the team through a few named phases over a batch, each phase a loop whose iterations
// are independent, so that threads change no bit. CUDA's files of the same names have the same phases in the
// same order. Barriers cost most where a batch has few tokens: there what little lies between two products is
// thread 0's alone (phase_alone, phase_end_then), or part of the tasks beside it.
#pragma once
#include "kernels/cpu/phase_clock.h"
#include "kernels/cpu/products.h"
#include "kernels/product_form.h"

// m times rows first .. first + n - 1 of a, which pack_phase has packed, by the definition of `kernels`
static inline product product_by(const cpu_backend *b, const path_kernels *kernels, void *const *out,
                                 const matrix *m, const activations *a, int64_t first, int64_t n) {
  packed_groups packed = packed_for(kernels, &a->packed, 0, m, n);
  int64_t tile = tile_rows_of(b, kernels, m, 1, n);
  return (product){.kernels = kernels,
                   .m = m,
                   .out = out + first,
                   .reals = a->real_rows + first,
                   .q8k = a->q8k_rows + first,
                   .n = n,
                   .tile = tile,
                   .chunk = token_chunk_of(b, kernels, m, tile, n, packed.groups),
                   .packed = packed};
}

static inline product product_shared(const cpu_backend *b, void *const *out, const matrix *m,
                                     const activations *a, int64_t first, int64_t n) {
  return product_by(b, &b->shared, out, m, a, first, n);
}

// The same of q, k, v and o.
static inline product product_attention(const cpu_backend *b, void *const *out, const matrix *m,
                                        const activations *a, int64_t first, int64_t n) {
  return product_by(b, &b->attention, out, m, a, first, n);
}

// Row `row` of a in the form that products by `s` read.
static inline void quantize(const cpu_backend *b, const path_kernels *s, activations *a, int64_t row) {
  block_q8_K *out = (block_q8_K *)a->q8k_rows[row];
  const float *x = (const float *)a->real_rows[row];
  bool splits = path_splits_outliers(s->path->kind) && a->width % QK_K == 0;
  if (!a->q8k || path_rounded_form(s->path->kind) == ACTIVATION_REAL) return;
  if (b->reads_q8_0 && a->width % QK_32 == 0)
    b->row->round_q8_0((block_q8_32 *)blocks_32_of(out, a->width),
                       splits ? (row_outliers *)outliers_of(out, a->width / QK_K) : NULL, x, a->width);
  if (!b->reads_q8k || a->width % QK_K) return;
  (splits ? b->row->split_q8k : b->row->quantize_q8k)(out, x, a->width);
}

// out[to] = rms_norm(x[from]) * weight, in the form that products by `s` read
static inline void norm_row(cpu_backend *b, const path_kernels *s, activations *out, int64_t to, int64_t from,
                            const float *weight) {
  int64_t hidden = b->shape.hidden;
  b->shared.ops->rms_norm(out->real_rows[to], row_at(b, b->x, from, hidden), weight, hidden,
                          b->shape.rms_epsilon);
  quantize(b, s, out, to);
}

// normed = rms_norm(x) * weight of rows first + part.first ..
static inline void norm_rows(cpu_backend *b, const path_kernels *s, const float *weight, int64_t first,
                             team_range part) {
  for (int64_t t = first + part.first; t < first + part.end; t++) norm_row(b, s, &b->normed, t, t, weight);
}

// The same by the caller alone, before the run, where tokens are few; the phase of the run is then empty.
static inline void norm_alone(cpu_backend *b, phase_kind phase, const path_kernels *s, const float *weight,
                              int64_t first, int64_t count) {
  if (count > FEW_TOKENS) return;
  norm_rows(b, s, weight, first, (team_range){0, count});
  phase_alone(b, phase);
}

static inline void norm_phase(cpu_backend *b, phase_kind phase, const path_kernels *s, const float *weight,
                              int64_t first, int64_t count) {
  if (count <= FEW_TOKENS) return;
  norm_rows(b, s, weight, first, team_share(b->team, count));
  phase_end(b, phase);
}

// Rows first .. first + count - 1 of a into groups, from the first one on, where products by `s` read those:
// after a phase that filled the rows.
static inline void pack_phase(cpu_backend *b, phase_kind phase, const path_kernels *s, const activations *a,
                              int64_t first, int64_t count) {
  if (!has_packed(&a->packed) || count < LEAST_PACKED || path_rounded_form(s->path->kind) == ACTIVATION_REAL)
    return;
  pack_rows(b, &a->packed, a->q8k_rows + first, count);
  phase_end(b, phase);
}

// Shows numbers[i] as row first + i of a probe. By all threads of a run, or outside of one.
static inline void show_phase(cpu_backend *b, probe_point point, int64_t layer, void *const *numbers,
                              int64_t first, int64_t count, size_t real_bytes) {
  if (!probe_is_watched(&b->watch, point)) return;
  for (int64_t i = 0; i < count && !team_thread(); i++)
    b->watch.show(b->watch.context, point, layer, first + i, numbers[i], real_bytes);
  team_barrier(b->team);
}

// The same of rows that lie one after the other.
static inline void show_rows_phase(cpu_backend *b, probe_point point, int64_t layer, const void *numbers,
                                   int64_t first, int64_t count, size_t row_bytes, size_t real_bytes) {
  if (!probe_is_watched(&b->watch, point)) return;
  for (int64_t i = 0; i < count && !team_thread(); i++)
    b->watch.show(b->watch.context, point, layer, first + i, (const char *)numbers + (size_t)i * row_bytes,
                  real_bytes);
  team_barrier(b->team);
}

static inline void show_stream_phase(cpu_backend *b, probe_point point, int64_t layer, int64_t first,
                                     int64_t count) {
  size_t real = b->shared.ops->bytes;
  show_rows_phase(b, point, layer, row_at(b, b->x, first, b->shape.hidden), first, count,
                  (size_t)b->shape.hidden * real, real);
}

// One of the points is watched or imposed: then phases are not fused over it.
static inline bool needs_points(const cpu_backend *b, uint32_t points) {
  return (b->watch.wanted | b->watch.imposed) & points;
}

// Overwrites numbers of one row where the probe is imposed.
static inline void impose_row(cpu_backend *b, probe_point point, int64_t row, void *numbers,
                              size_t real_bytes) {
  if (probe_is_imposed(&b->watch, point))
    b->watch.impose(b->watch.impose_context, point, row, numbers, real_bytes);
}

// out[n] = in[n], of 4 or 8 bytes each
void convert_reals(void *out, size_t out_bytes, const void *in, size_t in_bytes, int64_t n);

// ---- attention's tasks ----

typedef struct { // query heads first .. first + n - 1, which read the cache of key/value head `kv`
  int64_t first, n, kv;
} head_slice;

// Slices of all heads, at most ATTEND_HEADS each.
static inline int64_t head_slices(const model_shape *s) {
  return s->n_kv_heads * ((s->n_heads / s->n_kv_heads + ATTEND_HEADS - 1) / ATTEND_HEADS);
}

static inline head_slice head_slice_at(const model_shape *s, int64_t index) {
  int64_t group = s->n_heads / s->n_kv_heads, slices = head_slices(s) / s->n_kv_heads;
  int64_t kv = index / slices, at = index % slices * ATTEND_HEADS, rest = group - at;
  return (head_slice){kv * group + at, rest < ATTEND_HEADS ? rest : ATTEND_HEADS, kv};
}

typedef struct { // of head_slices
  int64_t first, count;
} slice_range;

// Those of some key/value heads.
static inline slice_range head_slices_of(const model_shape *s, output_range kv_heads) {
  int64_t each = head_slices(s) / s->n_kv_heads;
  return (slice_range){kv_heads.first * each, kv_heads.count * each};
}

typedef struct { // of each token of a span
  void *out[ATTEND_TOKENS];
  const void *q[ATTEND_TOKENS];
  int64_t n_keys[ATTEND_TOKENS];
} span_rows;

static inline void span_rows_fill(span_rows *r, const cpu_backend *b, const token_batch *batch,
                                  const token_span *tokens, int64_t head) {
  size_t at = (size_t)(head * b->shape.head_dim) * b->shared.ops->bytes;
  for (int64_t i = 0; i < tokens->n; i++) {
    int64_t t = tokens->first + i;
    r->out[i] = (char *)b->attended.real_rows[t] + at;
    r->q[i] = (char *)b->q.rows[t] + at;
    r->n_keys[i] = batch->position[t] + 1;
  }
}

// ---- attend_exact.c ----

// The state of ATTENTION_EXACT: caches, factors of channels, room for results of chunks.
status exact_open(cpu_backend *b);
void exact_close(cpu_backend *b);
// Key and value of a head into the cache.
void exact_store_head(cpu_backend *b, int64_t layer, int64_t sequence, int64_t head, int64_t position,
                      const float *k, const float *v);
// Attention of b->spans[n_spans]: pieces into which each one's keys are cut (1: none), by the caller alone;
// its tasks; and by all threads of a run the attention, which no barrier ends.
int64_t exact_pieces(const cpu_backend *b, const token_batch *batch, int64_t n_spans, slice_range slices);
void exact_attend_run(cpu_backend *b, int64_t layer, const token_batch *batch, int64_t n_spans,
                      slice_range slices, int64_t pieces, task_queue *tasks);
// One task of them where there is one piece.
void exact_attend_span(cpu_backend *b, int64_t layer, const token_batch *batch, const token_span *span,
                       int64_t slice);

// ---- step_attention.c ----

status cpu_attention(backend *base, int64_t layer, const token_batch *rows);
status cpu_project(backend *base, int64_t layer, const token_batch *rows, int64_t first, int64_t count);
status cpu_attend(backend *base, int64_t layer, const token_batch *rows, int64_t first, int64_t count);
status cpu_heads_part(backend *base, int64_t layer, const token_batch *rows);
// Key and value of one head of row t, rotated, into the cache.
void store_head(cpu_backend *b, int64_t layer, const token_batch *batch, int64_t t, int64_t head);

// ---- step_parts.c: steps whose outputs ranks divide ----

status output_parts_open(cpu_backend *b);
void output_parts_close(cpu_backend *b);
// By all threads of a run: this rank's heads, attended, into PARTS_HEADS.
void pack_heads(cpu_backend *b, const token_batch *batch);
status cpu_output_part(backend *base, int64_t layer, const token_batch *rows);
status cpu_output_add(backend *base, const token_batch *rows);
status cpu_head_part(backend *base, const token_batch *rows, const int64_t *row, int64_t count);
status cpu_logits_part_digest(backend *base, const token_batch *rows, const int64_t *row, int64_t count,
                              uint64_t *sums);
status cpu_logits_join(backend *base, int64_t count);

// ---- step_route.c ----

typedef struct {
  cpu_backend *b;
  const layer_weights *w;
  int64_t layer, first, count;
  product_list logits;
  alone_function *then; // of thread 0 when the choice is made; NULL: nothing
  void *what;
} route_part;

route_part route_of(cpu_backend *b, int64_t layer, int64_t first, int64_t count);
// By all threads of a run: norm and logits, the choice, and what probes see of it.
void logits_phase(route_part *p);
void choose_phase(route_part *p);
void show_routing(route_part *p);

// ---- step_moe.c ----

status cpu_moe(backend *base, int64_t layer, const token_batch *rows);
status cpu_route(backend *base, int64_t layer, const token_batch *rows, int64_t first, int64_t count,
                 unsigned parts);
status cpu_experts_up(backend *base, int64_t layer, const token_batch *rows);
status cpu_experts_down(backend *base, int64_t layer, const token_batch *rows, const slot_places *places);
status cpu_combine(backend *base, int64_t layer, const token_batch *rows, int64_t first, int64_t count,
                   const slot_places *places);
status cpu_routing_fetch(backend *base, int64_t first, int64_t count, unsigned parts);
status cpu_routing_wait(backend *base, routing *out);
status cpu_routing_write(backend *base, int64_t first, int64_t count, unsigned parts, const routing *in);
status cpu_routing_arrived(backend *base, const token_batch *rows);
