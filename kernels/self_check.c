#include "kernels/self_check.h"
#include "base/memory.h"
#include "kernels/formats/attention_exact.h"
#include "kernels/formats/numerics.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Three K-blocks to a row of `hidden` and so many positions that attention merges three chunks: of two
// addends no order shows.
enum { HIDDEN = 768, WIDTH = 256, EXPERTS = 4, TOP_K = 3, VOCABULARY = 96, LOUD = 64 };
enum { LONG = 2 * EXACT_CHUNK + 2, SHORT = 17, CONTEXT = LONG + 1, SEQUENCES = 2, MOST_LOGITS = 2 };

// ---- weights ----

#define COUNT_TYPE(name, number, block, elements, on_q8k) +1
enum { MOST_TYPES = 0 WEIGHT_TYPES(COUNT_TYPE) };
#undef COUNT_TYPE
enum { POOL = 97, MOST_BLOCK_BYTES = 512, MOST_BLOCK_ELEMENTS = 256 };

typedef struct { // blocks of one type whose weights are neither huge nor tiny
  const type_info *type;
  char block[POOL][MOST_BLOCK_BYTES];
} pool;

typedef struct {
  pool of_type[MOST_TYPES]; // in the order in which they were first drawn
} pools;

static bool is_moderate(const pool *p, const void *block) {
  float w[MOST_BLOCK_ELEMENTS], most = 0;
  if (row_first_not_finite(p->type->type, block, p->type->elements) >= 0) return false;
  dequantize_row(w, p->type->type, block, p->type->elements);
  for (size_t i = 0; i < p->type->elements; i++) {
    if (!isfinite(w[i])) return false;
    most = fabsf(w[i]) > most ? fabsf(w[i]) : most;
  }
  return most >= 0x1p-6f && most <= 0x1p-2f;
}

// Bits are drawn until their weights are moderate: no format's layout needs to be known for that.
static void pool_fill(pool *p, weight_type type) {
  uint64_t state = (uint64_t)type << 32;
  p->type = type_find(type);
  for (int b = 0; b < POOL; b++) do {
      for (size_t i = 0; i < p->type->bytes; i += 8) {
        uint64_t bits = num_mix64(++state);
        memcpy(p->block[b] + i, &bits, p->type->bytes - i < 8 ? p->type->bytes - i : 8);
      }
    } while (!is_moderate(p, p->block[b]));
}

static const pool *pool_of(pools *all, weight_type type) {
  pool *p = all->of_type;
  while (p->type && p->type->type != type) p++;
  if (!p->type) pool_fill(p, type);
  return p;
}

static status draw_matrix(matrix *m, const matrix *like, int64_t members, int64_t rows, int64_t cols,
                          uint64_t key, pools *all) {
  const pool *p = pool_of(all, like->type);
  size_t n = (size_t)(members * rows * cols) / p->type->elements;
  char *data;
  TRY(memory_take((void **)&data, n, p->type->bytes, "the self-check's weights"));
  *m = (matrix){data, like->type, rows, cols};
  for (size_t i = 0; i < n; i++)
    memcpy(data + i * p->type->bytes, p->block[num_mix64(key << 32 | i) % POOL], p->type->bytes);
  return 0;
}

static status draw_norm(const float **out, int64_t n, uint64_t key) {
  float *w;
  TRY(TAKE(&w, (size_t)n, "the self-check's weights"));
  for (int64_t i = 0; i < n; i++) w[i] = 0.5f + (float)(num_mix64(key << 32 | (uint64_t)i) >> 40) * 0x1p-24f;
  *out = w;
  return 0;
}

// ---- a model like the given one ----

typedef struct {
  model_weights weights;
} small_model;

static int64_t least(int64_t a, int64_t b) {
  return a < b ? a : b;
}

static bool same_types(const layer_weights *a, const layer_weights *b) {
  return a->q.type == b->q.type && a->k.type == b->k.type && a->v.type == b->v.type &&
         a->o.type == b->o.type && a->router.type == b->router.type && a->gate.type == b->gate.type &&
         a->up.type == b->up.type && a->down.type == b->down.type;
}

// A layer for each tuple of types: the first that has it.
static bool is_first_of_its_types(const model_weights *like, int64_t layer) {
  for (int64_t l = 0; l < layer; l++)
    if (same_types(&like->layers[l], &like->layers[layer])) return false;
  return true;
}

// The fewest key/value heads for which every layer's `o` has whole blocks in a row.
static int64_t fewest_kv_heads(const model_weights *like) {
  const model_shape *s = &like->shape;
  int64_t n = 1, width = s->n_heads / s->n_kv_heads * s->head_dim, block = 1;
  for (int64_t l = 0; l < s->n_layers; l++) {
    int64_t elements = (int64_t)type_find(like->layers[l].o.type)->elements;
    block = elements > block ? elements : block;
  }
  while (n < s->n_kv_heads && n * width % block) n++;
  return n;
}

// The last expert's row is the first's: the lower index must win.
static void tie_experts(const matrix *router) {
  size_t bytes = type_row_bytes(type_find(router->type), (size_t)router->cols);
  char *rows = (char *)(uintptr_t)router->data;
  if (router->rows > 1) memcpy(rows + (size_t)(router->rows - 1) * bytes, rows, bytes);
}

static status draw_layer(layer_weights *out, const layer_weights *like, const model_shape *s, uint64_t key,
                         pools *p) {
  int64_t q = s->n_heads * s->head_dim, kv = s->n_kv_heads * s->head_dim;
  key *= 16;
  TRY(draw_norm(&out->attn_norm, s->hidden, key + 1));
  TRY(draw_norm(&out->q_norm, s->head_dim, key + 2));
  TRY(draw_norm(&out->k_norm, s->head_dim, key + 3));
  TRY(draw_norm(&out->ffn_norm, s->hidden, key + 4));
  TRY(draw_matrix(&out->q, &like->q, 1, q, s->hidden, key + 5, p));
  TRY(draw_matrix(&out->k, &like->k, 1, kv, s->hidden, key + 6, p));
  TRY(draw_matrix(&out->v, &like->v, 1, kv, s->hidden, key + 7, p));
  TRY(draw_matrix(&out->o, &like->o, 1, s->hidden, q, key + 8, p));
  TRY(draw_matrix(&out->router, &like->router, 1, s->n_experts, s->hidden, key + 9, p));
  tie_experts(&out->router);
  TRY(draw_matrix(&out->gate, &like->gate, s->n_experts, s->expert_width, s->hidden, key + 10, p));
  TRY(draw_matrix(&out->up, &like->up, s->n_experts, s->expert_width, s->hidden, key + 11, p));
  return draw_matrix(&out->down, &like->down, s->n_experts, s->hidden, s->expert_width, key + 12, p);
}

static status draw_model(small_model *m, const model_weights *like, pools *p) {
  model_shape *s = &m->weights.shape;
  *s = like->shape;
  s->hidden = least(s->hidden, HIDDEN);
  s->expert_width = least(s->expert_width, WIDTH);
  s->vocabulary = least(s->vocabulary, VOCABULARY);
  s->n_experts = least(s->n_experts, EXPERTS);
  s->top_k = least(least(s->top_k, TOP_K), s->n_experts);
  s->n_heads = fewest_kv_heads(like) * (s->n_heads / s->n_kv_heads);
  s->n_kv_heads = fewest_kv_heads(like);
  s->n_layers = 0;
  TRY(TAKE(&m->weights.layers, (size_t)like->shape.n_layers, "the self-check's weights"));
  for (int64_t l = 0; l < like->shape.n_layers; l++)
    if (is_first_of_its_types(like, l)) {
      int64_t to = s->n_layers++;
      TRY(draw_layer(&m->weights.layers[to], &like->layers[l], s, (uint64_t)to + 2, p));
    }
  TRY(draw_norm(&m->weights.output_norm, s->hidden, 1));
  TRY(draw_matrix(&m->weights.embedding, &like->embedding, 1, s->vocabulary, s->hidden, 2, p));
  return draw_matrix(&m->weights.output, &like->output, 1, s->vocabulary, s->hidden, 3, p);
}

static void close_model(small_model *m) {
  model_weights *w = &m->weights;
  for (int64_t l = 0; w->layers && l < w->shape.n_layers; l++) {
    const layer_weights *x = &w->layers[l];
    const void *owned[] = {x->attn_norm, x->q_norm, x->k_norm,      x->ffn_norm,  x->q.data,  x->k.data,
                           x->v.data,    x->o.data, x->router.data, x->gate.data, x->up.data, x->down.data};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++) free((void *)(uintptr_t)owned[i]);
  }
  free((void *)(uintptr_t)w->output_norm);
  free((void *)(uintptr_t)w->embedding.data);
  free((void *)(uintptr_t)w->output.data);
  free(w->layers);
}

// ---- the computation ----

typedef struct {
  backend *b;
  const small_model *m;
  int32_t local[EXPERTS]; // all of them
  const path_info *path;
  int32_t token[LONG], sequence[LONG], position[LONG];
  uint64_t *layer_sums; // [n_layers][SEQUENCES]
  uint64_t logit_sums[SEQUENCES], slot_sum;
} check;

// n tokens of a sequence from a position on.
static token_batch batch_of(check *c, int32_t sequence, int32_t from, int64_t n) {
  for (int64_t i = 0; i < n; i++) {
    c->position[i] = from + (int32_t)i;
    c->sequence[i] = sequence;
    c->token[i] = (int32_t)(num_mix64((uint64_t)c->position[i]) % (uint64_t)c->m->weights.shape.vocabulary);
  }
  return (token_batch){n, c->token, c->sequence, c->position};
}

static status digest(check *c, int64_t layer, const token_batch *rows) {
  return c->b->ops->digest(c->b, layer, rows, 0, rows->n, c->layer_sums + layer * SEQUENCES);
}

// Attention alone, of the first layer. A device takes a layer's digest at the layer's end, so the stream is
// read.
static status attend_only(check *c, int32_t from, int64_t n) {
  token_batch rows = batch_of(c, 0, from, n);
  size_t hidden = (size_t)c->m->weights.shape.hidden;
  double *x;
  TRY(c->b->ops->embed(c->b, &rows));
  TRY(c->b->ops->attention(c->b, 0, &rows));
  TRY(TAKE(&x, (size_t)n * hidden, "the self-check"));
  status result = c->b->ops->stream_read(c->b, 0, n, x);
  for (int64_t i = 0; i < n && !result; i++)
    digest_row(c->layer_sums, path_get(PATH_F64), 0, from + i, x + (size_t)i * hidden, hidden);
  free(x);
  return result;
}

static status layer_in_parts(check *c, int64_t layer, const token_batch *rows) {
  static const slot_places in_order = {.order = SLOTS_IN_ORDER};
  const backend_ops *step = c->b->ops;
  TRY(step->project(c->b, layer, rows, 0, rows->n));
  TRY(step->attend(c->b, layer, rows, 0, rows->n));
  TRY(step->route(c->b, layer, rows, 0, rows->n, ROUTING_NOTHING));
  TRY(step->experts_up(c->b, layer, rows));
  TRY(step->experts_down(c->b, layer, rows, &in_order));
  return step->combine(c->b, layer, rows, 0, rows->n, &in_order);
}

static status layer_whole(check *c, int64_t layer, const token_batch *rows) {
  TRY(c->b->ops->attention(c->b, layer, rows));
  return c->b->ops->moe(c->b, layer, rows);
}

static status pass(check *c, int32_t from, int64_t n,
                   status (*layer)(check *, int64_t, const token_batch *)) {
  token_batch rows = batch_of(c, 1, from, n);
  TRY(c->b->ops->embed(c->b, &rows));
  for (int64_t l = 0; l < c->m->weights.shape.n_layers; l++) {
    TRY(layer(c, l, &rows));
    TRY(digest(c, l, &rows));
  }
  const int64_t row[MOST_LOGITS] = {n - 1, 0};
  int64_t count = n < MOST_LOGITS ? n : MOST_LOGITS;
  TRY(c->b->ops->head(c->b, &rows, row, count));
  return c->b->ops->logits_digest(c->b, &rows, row, count, c->logit_sums);
}

static status check_whole(check *c) {
  int64_t n = 2 * (c->path->attention == ATTENTION_EXACT ? EXACT_CHUNK : ATTENTION_CHUNK) + 2;
  TRY(attend_only(c, 0, n));
  TRY(attend_only(c, (int32_t)n, 1));
  TRY(pass(c, 0, SHORT, layer_in_parts));
  return pass(c, SHORT, 1, layer_whole);
}

static void fill_inputs(check *c, int64_t n) {
  void *rows = c->b->ops->rows_host(c->b, ROWS_NORMED);
  for (int64_t i = 0; i < n; i++) {
    double x = (double)(num_mix64((uint64_t)i) >> 11) * 0x1p-52 - 1;
    if (c->path->real_bytes == sizeof x)
      ((double *)rows)[i] = x;
    else
      ((float *)rows)[i] = (float)x;
  }
}

static status check_experts(check *c) {
  const model_shape *s = &c->m->weights.shape;
  const backend_ops *step = c->b->ops;
  expert_global chosen[SHORT * TOP_K];
  int64_t row_of_slot[SHORT * TOP_K];
  token_batch rows = batch_of(c, 0, 0, SHORT);
  const routing route = {.expert = chosen};
  const slot_places places = {.order = SLOTS_PLACED, .row_of_slot = row_of_slot};
  for (int64_t i = 0; i < SHORT * s->top_k; i++) {
    chosen[i] = (expert_global){(int32_t)((i % s->top_k + i / s->top_k) % s->n_experts)};
    row_of_slot[i] = i;
  }
  for (int64_t l = 0; l < s->n_layers; l++) {
    TRY(step->rows_read(c->b, ROWS_NORMED, 0, 0));
    fill_inputs(c, SHORT * s->hidden);
    TRY(step->rows_write(c->b, ROWS_NORMED, 0, SHORT));
    TRY(step->routing_write(c->b, 0, SHORT, ROUTING_EXPERTS, &route));
    TRY(step->experts_up(c->b, l, &rows));
    TRY(step->experts_down(c->b, l, &rows, &places));
    TRY(step->rows_read(c->b, ROWS_SLOTS, 0, SHORT * s->top_k));
    const char *out = step->rows_host(c->b, ROWS_SLOTS);
    for (int64_t i = 0; i < SHORT * s->top_k; i++)
      digest_row(&c->slot_sum, c->path, l, i, out + (size_t)(i * s->hidden) * c->path->real_bytes,
                 (size_t)s->hidden);
  }
  return 0;
}

static uint64_t sum_up(const check *c) {
  uint64_t sum = c->slot_sum + num_mix64(c->logit_sums[0]) + num_mix64(c->logit_sums[1] + 1);
  for (int64_t i = 0; i < c->m->weights.shape.n_layers * SEQUENCES; i++)
    sum = num_mix64(sum + num_mix64(c->layer_sums[i] + (uint64_t)i));
  return sum ? sum : 1;
}

static status run_on(check *c, const self_check_params *p) {
  backend_params b = {
      .weights = &c->m->weights,
      .shared = p->path,
      .experts = p->path,
      .map = expert_map_of_all(c->local, c->m->weights.shape.n_experts),
      .n_sequences = SEQUENCES,
      .context = CONTEXT,
      .max_batch = LONG,
      .max_logit_rows = MOST_LOGITS,
      .kv_f16 = p->kv_f16,
      .computes_shared = p->part == CHECK_WHOLE,
      .threads = p->threads,
      .host_rank = p->host_rank,
      .row = p->row,
      .n_ranks = 1,
  };
  TRY(p->backend->open(&c->b, &b));
  TRY(p->part == CHECK_WHOLE ? check_whole(c) : check_experts(c));
  return backend_is_on_device(c->b->ops) ? c->b->ops->finish(c->b) : 0;
}

status self_check_run(uint64_t *digest_out, char *row, size_t row_bytes, const self_check_params *p) {
  small_model m = {.weights = {.layers = NULL}};
  check c = {.m = &m};
  pools *blocks = NULL;
  status result;
  TRY_DONE(result, TAKE(&blocks, 1, "the self-check's weights"));
  TRY_DONE(result, draw_model(&m, p->like, blocks));
  c.path = path_for(p->path, &m.weights);
  TRY_DONE(result, TAKE(&c.layer_sums, (size_t)m.weights.shape.n_layers * SEQUENCES, "the self-check"));
  TRY_DONE(result, run_on(&c, p));
  *digest_out = sum_up(&c);
  snprintf(row, row_bytes, "%s", c.b->ops->row(c.b));
done:
  if (c.b) c.b->ops->close(c.b);
  free(c.layer_sums);
  free(blocks);
  close_model(&m);
  return result;
}
