// The steps of the cuda backend against the portable row of cpu, through kernels/backend.h alone: random
// models of any shape and types, prefill, decode, several sequences, long contexts, all experts or some,
// asked step by step and as a run without probes takes them, with every probe looked at, and captured. Every
// probe, choice, slot row, logit and digest has equal bits.
//
//   test_cuda_steps [SEED [SECONDS [CASES [TOKENS [WRONG]]]]]
//
// At least CASES, until WRONG of them are wrong; batches of at most TOKENS. The printed seed of a case gives
// it again, as the first; 0: those that follow from MOE_SEED.
//
// Without a GPU the cpu backend's best row stands in for a few cases, which tests this program; then it exits
// with 77.
#include "tests/support/random_model.h"
#include "tests/support/seed.h"
#include <omp.h>
#include <stdio.h>
#include <time.h>

enum { MOST_BATCH = 320, MOST_ROWS = 32, MOST_SEQUENCES = 8, BATCHES = 12 };

// Every step apart, with what crosses ranks looked at; whole steps or their parts, with every probe looked
// at; only the end; the same by ops->captured.
typedef enum { APART, WATCHED, BLIND, CAPTURED, MODES } mode;
static const char *const MODE_NAMES[] = {"step by step", "with every probe", "without a look", "captured"};

typedef struct { // the rows of a probe that a step has shown
  int64_t n, room;
  int64_t *row;
  double *numbers; // [n][width]
} shown_rows;

typedef struct {
  backend *b;
  const backend_ops *ops;
  routing route;
  double *rows; // [MOST_BATCH][hidden] of the residual stream
  const model_shape *shape;
  shown_rows shown[PROBE_COUNT];
  uint64_t *layer_sums; // [n_layers][n_sequences]
  uint64_t *logit_sums; // [n_sequences]
} side;

typedef struct {
  model_weights m;
  backend_params params;
  int32_t *local, *first, *holder; // expert_map's
  bool whole;                      // this rank computes every slot
  int64_t cut; // rows before it and after it are computed apart, as of a sharded batch; 0: not so
  side tested, reference;
  int64_t *row_of_slot;           // [MOST_BATCH * top_k]
  slot_range own;                 // of the last layer
  int32_t length[MOST_SEQUENCES]; // positions that the caches hold
  int32_t token[MOST_BATCH], sequence[MOST_BATCH], position[MOST_BATCH];
  char text[800]; // of the case, for faults
} test_case;

static int64_t compared; // numbers, by their bits
static int64_t most_tokens = 300;

// ---- comparing ----

static status same_reals(const test_case *c, const char *what, int64_t layer, const double *found,
                         const double *expected, int64_t rows, int64_t width) {
  compared += rows * width;
  for (int64_t i = 0; i < rows * width; i++) {
    uint64_t a = num_bits_f64(found[i]), b = num_bits_f64(expected[i]);
    if (a == b && isfinite(found[i])) continue;
    return FAIL(
        "%s: %s of layer %d: row %d of %d, element %d of %d: found %.17g (%016llx), expected %.17g (%016llx)",
        c->text, what, (int)layer, (int)(i / width), (int)rows, (int)(i % width), (int)width, found[i],
        (unsigned long long)a, expected[i], (unsigned long long)b);
  }
  return 0;
}

static status same_floats(const test_case *c, const char *what, int64_t layer, const float *found,
                          const float *expected, int64_t rows, int64_t width) {
  compared += rows * width;
  for (int64_t i = 0; i < rows * width; i++) {
    if (num_bits_f32(found[i]) == num_bits_f32(expected[i]) && isfinite(found[i])) continue;
    return FAIL("%s: %s of layer %d: row %d of %d, element %d of %d: found %.9g (%08x), expected %.9g (%08x)",
                c->text, what, (int)layer, (int)(i / width), (int)rows, (int)(i % width), (int)width,
                (double)found[i], num_bits_f32(found[i]), (double)expected[i], num_bits_f32(expected[i]));
  }
  return 0;
}

static status same_sums(const test_case *c, const char *what, const uint64_t *found, const uint64_t *expected,
                        int64_t rows) {
  int64_t n = c->params.n_sequences;
  compared += rows * n;
  for (int64_t i = 0; i < rows * n; i++)
    if (found[i] != expected[i])
      return FAIL("%s: digest of %s %d, sequence %d: found %016llx, expected %016llx", c->text, what,
                  (int)(i / n), (int)(i % n), (unsigned long long)found[i], (unsigned long long)expected[i]);
  return 0;
}

static status same_stream(test_case *c, const char *what, int64_t layer, int64_t n) {
  int64_t hidden = c->m.shape.hidden;
  side *sides[] = {&c->tested, &c->reference};
  for (int i = 0; i < 2; i++) {
    memset(sides[i]->rows, 0xff, (size_t)(n * hidden) * sizeof *sides[i]->rows); // NaN
    TRY(sides[i]->ops->stream_read(sides[i]->b, 0, n, sides[i]->rows));
  }
  return same_reals(c, what, layer, c->tested.rows, c->reference.rows, n, hidden);
}

// ---- probes ----

static void keep_row(void *context, probe_point point, int64_t layer, int64_t row, const void *numbers,
                     size_t bytes) {
  side *s = (side *)context;
  shown_rows *r = &s->shown[point];
  int64_t width = probe_width(point, s->shape);
  (void)layer, (void)bytes; // floats or ids: cuda has no f64
  if (r->n == r->room) {
    r->room = r->room ? 2 * r->room : 64;
    r->row = realloc(r->row, (size_t)r->room * sizeof *r->row);
    r->numbers = realloc(r->numbers, (size_t)(r->room * width) * sizeof *r->numbers);
    if (!r->row || !r->numbers) abort();
  }
  r->row[r->n] = row;
  for (int64_t i = 0; i < width; i++)
    r->numbers[r->n * width + i] = probe_get(point)->is_ids ? (double)((const int32_t *)numbers)[i]
                                                            : (double)((const float *)numbers)[i];
  r->n++;
}

static const double *row_shown(const shown_rows *r, int64_t row, int64_t width) {
  for (int64_t i = 0; i < r->n; i++)
    if (r->row[i] == row) return r->numbers + i * width;
  return NULL;
}

// Everything shown since the last call, of the given scope; every point of it must have been.
static status same_shown(test_case *c, probe_scope scope, int64_t layer) {
  for (int p = 0; p < PROBE_COUNT; p++) {
    const probe_info *info = probe_get((probe_point)p);
    if (info->scope != scope) continue;
    shown_rows *found = &c->tested.shown[p], *expected = &c->reference.shown[p];
    int64_t width = probe_width((probe_point)p, &c->m.shape);
    if (found->n != expected->n || !found->n)
      return FAIL("%s: layer %d: %s was shown %d times, expected %d, and at least once", c->text, (int)layer,
                  info->name, (int)found->n, (int)expected->n);
    for (int64_t i = 0; i < found->n; i++) {
      const double *other = row_shown(expected, found->row[i], width);
      if (!other)
        return FAIL("%s: layer %d: %s shows row %d", c->text, (int)layer, info->name, (int)found->row[i]);
      TRY(same_reals(c, info->name, layer, found->numbers + i * width, other, 1, width));
    }
    found->n = expected->n = 0;
  }
  return 0;
}

static status watch(test_case *c, bool on) {
  side *sides[] = {&c->tested, &c->reference};
  for (int i = 0; i < 2; i++) {
    probe_watch all = {.wanted = on ? (1u << PROBE_COUNT) - 1 : 0, .show = keep_row, .context = sides[i]};
    sides[i]->shape = &c->m.shape;
    for (int p = 0; p < PROBE_COUNT; p++) sides[i]->shown[p].n = 0;
    TRY(sides[i]->ops->probes_watch(sides[i]->b, &all));
  }
  return 0;
}

// ---- a layer ----

enum { MOST_HOLDERS = 3, OWN_RANK = 1 };

// Rows of own slots first, in slot order; how many there are.
static void plan_rows(test_case *c, int64_t layer, const token_batch *batch) {
  int64_t k = c->m.shape.top_k, at = expert_map_at(&c->params.map, layer, c->m.shape.n_experts), next = 0;
  int32_t rank[MAX_TOP_K];
  c->own = (slot_range){0, 0};
  for (int pass = 0; pass < 2; pass++)
    for (int64_t i = 0; i < batch->n * k; i++) {
      int64_t t = i / k;
      if (i % k == 0)
        token_ranks(rank, &c->reference.route.expert[i].id, k, c->first + at, c->holder, batch->sequence[t],
                    batch->position[t]);
      bool own = rank[i % k] == OWN_RANK;
      if (own == (pass == 1)) continue; // own ones first
      c->row_of_slot[i] = next++;
      c->own.count += own;
    }
}

static bool lies_on_device(const side *s) {
  return s->ops->finish != NULL;
}

// Where the rows of one side are cut.
static int64_t cut_of(const test_case *c, const side *s) {
  return s == &c->tested ? c->cut : 0;
}

static status attention_side(test_case *c, side *s, int64_t layer, const token_batch *batch) {
  int64_t cut = cut_of(c, s), n = batch->n;
  if (!cut) return s->ops->attention(s->b, layer, batch);
  TRY(s->ops->project(s->b, layer, batch, 0, cut));
  TRY(s->ops->project(s->b, layer, batch, cut, n - cut));
  if (!lies_on_device(s)) return s->ops->attend(s->b, layer, batch, 0, n); // it rotates keys where they are
  TRY(s->ops->attend(s->b, layer, batch, 0, cut));
  return s->ops->attend(s->b, layer, batch, cut, n - cut);
}

static status route_side(test_case *c, side *s, int64_t layer, const token_batch *batch) {
  unsigned all = ROUTING_EXPERTS | ROUTING_WEIGHTS | ROUTING_MARGINS;
  size_t slots = (size_t)(batch->n * c->m.shape.top_k);
  int64_t cut = cut_of(c, s);
  memset(s->route.expert, 0xff, slots * sizeof *s->route.expert);
  memset(s->route.weight, 0xff, slots * sizeof *s->route.weight);
  memset(s->route.margin, 0xff, (size_t)batch->n * sizeof *s->route.margin);
  if (cut) TRY(s->ops->route(s->b, layer, batch, 0, cut, all));
  TRY(s->ops->route(s->b, layer, batch, cut, batch->n - cut, all));
  TRY(s->ops->routing_fetch(s->b, 0, batch->n, all));
  TRY(s->ops->routing_wait(s->b, &s->route));
  if (cut) return s->ops->routing_arrived(s->b, batch);
  // given back as it came, it changes nothing
  return random_below(3)
             ? 0
             : s->ops->routing_write(s->b, 0, batch->n, ROUTING_EXPERTS | ROUTING_WEIGHTS, &s->route);
}

static status same_routes(const test_case *c, int64_t layer, int64_t n) {
  const routing *found = &c->tested.route, *expected = &c->reference.route;
  for (int64_t i = 0; i < n * c->m.shape.top_k; i++)
    if (found->expert[i].id != expected->expert[i].id)
      return FAIL("%s: route of layer %d, token %d, slot %d: found expert %d, expected %d", c->text,
                  (int)layer, (int)(i / c->m.shape.top_k), (int)(i % c->m.shape.top_k), found->expert[i].id,
                  expected->expert[i].id);
  TRY(same_reals(c, "weights", layer, found->weight, expected->weight, n, c->m.shape.top_k));
  return same_reals(c, "margin", layer, found->margin, expected->margin, n, 1);
}

// The rows of other ranks' slots, the same for both sides.
static void fill_others(test_case *c, int64_t own, int64_t n_slots) {
  int64_t hidden = c->m.shape.hidden;
  float *to[2] = {(float *)c->tested.ops->rows_host(c->tested.b, ROWS_SLOTS),
                  (float *)c->reference.ops->rows_host(c->reference.b, ROWS_SLOTS)};
  for (int64_t i = own * hidden; i < n_slots * hidden; i++) to[0][i] = to[1][i] = random_unit();
}

static status same_slots(test_case *c, int64_t layer, int64_t n_slots) {
  int64_t own = c->own.count, hidden = c->m.shape.hidden;
  side *t = &c->tested;
  TRY(t->ops->rows_write(t->b, ROWS_SLOTS, 0, 0));
  TRY(t->ops->rows_read(t->b, ROWS_SLOTS, 0, own));
  TRY(same_floats(c, "slots", layer, (const float *)t->ops->rows_host(t->b, ROWS_SLOTS),
                  (const float *)c->reference.ops->rows_host(c->reference.b, ROWS_SLOTS), own, hidden));
  fill_others(c, own, n_slots);
  return t->ops->rows_write(t->b, ROWS_SLOTS, 0, n_slots);
}

static slot_places places_of(const test_case *c) {
  return c->whole ? (slot_places){.order = SLOTS_IN_ORDER}
                  : (slot_places){.order = SLOTS_PLACED, .row_of_slot = c->row_of_slot, .own = &c->own};
}

static status experts_side(test_case *c, side *s, int64_t layer, const token_batch *batch) {
  void *rows = s->ops->rows_host(s->b, ROWS_SLOTS);
  slot_places places = places_of(c);
  if (rows) memset(rows, 0xff, (size_t)(batch->n * c->m.shape.top_k * c->m.shape.hidden) * sizeof(float));
  TRY(s->ops->experts_up(s->b, layer, batch));
  return s->ops->experts_down(s->b, layer, batch, &places);
}

static status digest_side(test_case *c, side *s, int64_t layer, const token_batch *batch, int64_t first,
                          int64_t count) {
  return s->ops->digest(s->b, layer, batch, first, count, s->layer_sums + layer * c->params.n_sequences);
}

static status combine_rows(test_case *c, side *s, int64_t layer, const token_batch *batch, int64_t first,
                           int64_t count) {
  slot_places places = places_of(c);
  TRY(s->ops->combine(s->b, layer, batch, first, count, &places));
  return digest_side(c, s, layer, batch, first, count);
}

static status combine_side(test_case *c, side *s, int64_t layer, const token_batch *batch) {
  int64_t cut = cut_of(c, s);
  if (cut) TRY(combine_rows(c, s, layer, batch, 0, cut));
  return combine_rows(c, s, layer, batch, cut, batch->n - cut);
}

static status layer_apart(test_case *c, int64_t layer, const token_batch *batch) {
  side *sides[] = {&c->tested, &c->reference};
  int64_t n_slots = batch->n * c->m.shape.top_k;
  for (int i = 0; i < 2; i++) TRY(attention_side(c, sides[i], layer, batch));
  TRY(same_stream(c, "attention", layer, batch->n));
  for (int i = 0; i < 2; i++) TRY(route_side(c, sides[i], layer, batch));
  TRY(same_routes(c, layer, batch->n));
  plan_rows(c, layer, batch);
  for (int i = 0; i < 2; i++) TRY(experts_side(c, sides[i], layer, batch));
  if (!c->whole) TRY(same_slots(c, layer, n_slots));
  for (int i = 0; i < 2; i++) TRY(combine_side(c, sides[i], layer, batch));
  return same_stream(c, "combine", layer, batch->n);
}

// ---- a batch ----

// One side alone, all its experts, with nothing asked for in between.
static status whole_layer(test_case *c, side *s, int64_t layer, const token_batch *batch) {
  TRY(s->ops->attention(s->b, layer, batch));
  TRY(s->ops->moe(s->b, layer, batch));
  return digest_side(c, s, layer, batch, 0, batch->n);
}

static status plain_steps(test_case *c, side *s, const token_batch *batch) {
  TRY(s->ops->embed(s->b, batch));
  for (int64_t layer = 0; layer < c->m.shape.n_layers; layer++) TRY(whole_layer(c, s, layer, batch));
  return 0;
}

static status captured_steps(void *context, const token_batch *batch) {
  test_case *c = (test_case *)context;
  return plain_steps(c, &c->tested, batch);
}

static status steps_apart(test_case *c, const token_batch *batch) {
  side *sides[] = {&c->tested, &c->reference};
  for (int i = 0; i < 2; i++) TRY(sides[i]->ops->embed(sides[i]->b, batch));
  TRY(same_stream(c, "embed", -1, batch->n));
  for (int64_t layer = 0; layer < c->m.shape.n_layers; layer++) TRY(layer_apart(c, layer, batch));
  return 0;
}

// A stream that is set to what it was, and every probe of whole steps.
static status watched_steps(test_case *c, const token_batch *batch) {
  side *sides[] = {&c->tested, &c->reference};
  TRY(watch(c, true));
  for (int i = 0; i < 2; i++) TRY(sides[i]->ops->embed(sides[i]->b, batch));
  TRY(same_shown(c, PROBE_OF_BATCH, -1));
  TRY(same_stream(c, "embed", -1, batch->n));
  for (int i = 0; i < 2; i++) TRY(sides[i]->ops->stream_write(sides[i]->b, 0, batch->n, sides[i]->rows));
  for (int64_t layer = 0; layer < c->m.shape.n_layers; layer++) {
    for (int i = 0; i < 2; i++) TRY(whole_layer(c, sides[i], layer, batch));
    TRY(same_shown(c, PROBE_OF_LAYER, layer));
  }
  return 0;
}

static status head_side(test_case *c, side *s, const token_batch *batch, const int64_t *rows, int64_t count,
                        const void **logits) {
  TRY(s->ops->head(s->b, batch, rows, count));
  TRY(s->ops->logits_read(s->b, count, logits));
  (void)c;
  return s->ops->logits_digest(s->b, batch, rows, count, s->logit_sums);
}

static status same_heads(test_case *c, const token_batch *batch) {
  int64_t count = 1 + random_below(batch->n < MOST_ROWS ? batch->n : MOST_ROWS), rows[MOST_ROWS];
  int64_t first = random_below(batch->n - count + 1);
  bool scattered = random_below(3) == 0; // as tokens of a shard lie
  for (int64_t i = 0; i < count; i++) rows[i] = scattered ? random_below(batch->n) : first + i;
  const void *found, *expected;
  TRY(head_side(c, &c->tested, batch, rows, count, &found));
  TRY(head_side(c, &c->reference, batch, rows, count, &expected));
  return same_floats(c, "logits", c->m.shape.n_layers, (const float *)found, (const float *)expected, count,
                     c->m.shape.vocabulary);
}

static status run_steps(test_case *c, const token_batch *batch, mode how) {
  side *t = &c->tested;
  switch (how) {
  case APART:
    c->cut = random_below(2) ? random_below(batch->n) : 0;
    TRY(steps_apart(c, batch));
    c->cut = 0;
    return 0;
  case WATCHED:
    return watched_steps(c, batch);
  case BLIND:
    TRY(plain_steps(c, t, batch));
    return plain_steps(c, &c->reference, batch);
  case CAPTURED:
    TRY(lies_on_device(t) ? t->ops->captured(t->b, batch, 0, true, captured_steps, c)
                          : plain_steps(c, t, batch));
    return plain_steps(c, &c->reference, batch);
  case MODES:
    break;
  }
  return FAIL("no such mode");
}

static status run_batch(test_case *c, const token_batch *batch, mode how) {
  side *t = &c->tested;
  TRY(run_steps(c, batch, how));
  TRY(same_stream(c, "the last combine", c->m.shape.n_layers - 1, batch->n));
  TRY(same_heads(c, batch));
  if (how == WATCHED) {
    TRY(same_shown(c, PROBE_OF_HEAD, -1));
    TRY(watch(c, false));
  }
  if (lies_on_device(t)) TRY(t->ops->finish(t->b));
  TRY(same_sums(c, "layer", t->layer_sums, c->reference.layer_sums, c->m.shape.n_layers));
  return same_sums(c, "logits", t->logit_sums, c->reference.logit_sums, 1);
}

// ---- batches of a case ----

static void add_token(test_case *c, int64_t *n, int64_t sequence) {
  c->token[*n] = (int32_t)random_below(c->m.shape.vocabulary);
  c->sequence[*n] = (int32_t)sequence;
  c->position[(*n)++] = c->length[sequence]++;
}

// A full cache is written again from a random place on, as a second run on the same arm does.
static void make_room(test_case *c, int64_t sequence, int64_t n) {
  if (c->length[sequence] + n > c->params.context)
    c->length[sequence] = (int32_t)random_below(c->params.context - n + 1);
}

static token_batch decode_batch(test_case *c) {
  int64_t n = 0, count = 1 + random_below(c->params.n_sequences), first = random_below(c->params.n_sequences);
  for (int64_t i = 0; i < count; i++) {
    int64_t s = (first + i) % c->params.n_sequences;
    make_room(c, s, 1);
    add_token(c, &n, s);
  }
  return (token_batch){n, c->token, c->sequence, c->position};
}

static token_batch prefill_batch(test_case *c, int64_t size) {
  int64_t n = 0, s = random_below(c->params.n_sequences);
  for (int64_t parts = random_below(3) ? 1 : c->params.n_sequences; parts > 0 && n < size; parts--) {
    int64_t part = parts == 1 ? size - n : 1 + random_below(size - n);
    if (part > c->params.context) part = c->params.context;
    make_room(c, s, part);
    for (int64_t i = 0; i < part; i++) add_token(c, &n, s);
    s = (s + 1) % c->params.n_sequences;
  }
  return (token_batch){n, c->token, c->sequence, c->position};
}

static status run_batches(test_case *c, bool is_long) {
  for (int i = 0; i < BATCHES; i++) {
    bool decodes = is_long ? i >= 6 : i % 3 == 2 || random_below(4) == 0;
    int64_t size =
        is_long ? 300
                : RANDOM_OF(1, 2, 3, 4, 5, 6, 7, 8, 9, 15, 16, 17, 31, 33, 63, 64, 65, 100, 129, 200, 300);
    if (size > most_tokens) size = is_long ? most_tokens : 1 + size % most_tokens;
    token_batch batch = decodes ? decode_batch(c) : prefill_batch(c, size);
    mode how = c->whole ? (mode)random_below(MODES) : APART;
    char *end = strrchr(c->text, ';');
    snprintf(end, sizeof c->text - (size_t)(end - c->text), "; batch %d of %d tokens to position %d, %s", i,
             (int)batch.n, batch.position[batch.n - 1], MODE_NAMES[how]);
    TRY(run_batch(c, &batch, how));
  }
  return 0;
}

// ---- a case ----

static model_shape random_shape(bool is_long) {
  model_shape s = {
      .n_layers = 1 + random_below(2), .rms_epsilon = 1e-6, .rope_base = random_below(2) ? 1e6 : 1e7};
  s.hidden = is_long ? 256 : RANDOM_OF(256, 512, 512, 768, 1024, 2048, 160, 96);
  s.head_dim = is_long ? RANDOM_OF(128, 64, 50) : RANDOM_OF(128, 128, 64, 32, 16, 50, 6, 160, 256);
  s.n_kv_heads = is_long ? 1 : RANDOM_OF(1, 2, 4);
  s.n_heads = s.n_kv_heads * RANDOM_OF(1, 2, 3, 4, 8);
  if (s.n_heads * s.head_dim > 2048) s.n_heads = s.n_kv_heads;
  s.n_experts = random_below(8) || s.hidden > 512 ? 1 + random_below(24) : 128;
  s.top_k = 1 + random_below(s.n_experts < 8 ? s.n_experts : 8);
  s.expert_width = s.n_experts == 128 ? 256 : RANDOM_OF(256, 256, 512, 768, 96, 40);
  s.vocabulary = 60 + random_below(500);
  return s;
}

// One that kernels/cuda/decode/decode.cu serves.
static model_shape random_decoded_shape(void) {
  model_shape s = random_shape(false);
  s.hidden = RANDOM_OF(256, 512, 768);
  s.head_dim = RANDOM_OF(64, 128);
  s.n_kv_heads = RANDOM_OF(1, 2);
  s.n_heads = s.n_kv_heads * (QK_K / s.head_dim) * RANDOM_OF(1, 2);
  s.expert_width = RANDOM_OF(256, 512);
  return s;
}

// Some experts of each layer, other ones in each, and some of them with up to three holders.
static void own_experts(test_case *c, uint64_t seed, bool decoded) {
  int64_t n = c->m.shape.n_experts, layers = c->m.shape.n_layers, some = 0;
  bool held[256]; // of layer 0
  c->local = random_room((size_t)(layers * n), sizeof *c->local);
  c->first = random_room((size_t)(layers * n) + 1, sizeof *c->first);
  c->holder = random_room((size_t)(layers * n * MOST_HOLDERS), sizeof *c->holder);
  c->whole = n == 1 || decoded || random_below(3);
  for (int64_t e = 0; e < n; e++) some += held[e] = c->whole || random_below(2);
  if (!c->whole && some == n) held[n - 1] = false;
  if (!some) held[0] = true;
  c->first[0] = 0;
  for (int64_t i = 0, own = 0; i < layers * n; i++) {
    uint64_t bits = c->whole ? 0 : num_mix64(seed ^ (uint64_t)(i << 8 | 1));
    bool here = held[(i % n + i / n) % n];
    if (i % n == 0) own = 0;
    int32_t *holder = c->holder + (c->first[i + 1] = c->first[i]);
    for (int32_t r = 0; r < MOST_HOLDERS; r++)
      if (r == OWN_RANK ? here : (bits >> r & 1) || (!here && r == 0)) *holder++ = r;
    c->first[i + 1] = (int32_t)(holder - c->holder);
    c->local[i] = here ? (int32_t)own++ : -1;
  }
  c->params.map = (expert_map){c->whole, !c->whole, c->local, c->first, c->holder};
}

static status open_side(test_case *c, side *s, const backend_ops *ops, const char *row) {
  const model_shape *m = &c->m.shape;
  s->ops = ops;
  s->route.expert = random_room((size_t)(MOST_BATCH * m->top_k), sizeof *s->route.expert);
  s->route.weight = random_room((size_t)(MOST_BATCH * m->top_k), sizeof *s->route.weight);
  s->route.margin = random_room(MOST_BATCH, sizeof *s->route.margin);
  s->rows = random_room((size_t)(MOST_BATCH * m->hidden), sizeof *s->rows);
  s->layer_sums = random_room((size_t)(m->n_layers * c->params.n_sequences), sizeof *s->layer_sums);
  s->logit_sums = random_room((size_t)c->params.n_sequences, sizeof *s->logit_sums);
  backend_params p = c->params;
  p.row = row;
  return ops->open(&s->b, &p);
}

static void close_side(side *s) {
  if (s->b) s->ops->close(s->b);
  free(s->route.expert);
  free(s->route.weight);
  free(s->route.margin);
  free(s->rows);
  for (int p = 0; p < PROBE_COUNT; p++) {
    free(s->shown[p].row);
    free(s->shown[p].numbers);
  }
  free(s->layer_sums);
  free(s->logit_sums);
}

static void describe(test_case *c, uint64_t seed, bool ties) {
  const model_shape *s = &c->m.shape;
  snprintf(c->text, sizeof c->text,
           "seed %llu: hidden %d, layers %d, heads %d/%d of %d, experts %d of %d top %d%s%s, vocabulary %d, "
           "%s with %s "
           "experts, cache %s, context %d of %d sequences, q %s o %s gate %s down %s; ",
           (unsigned long long)seed, (int)s->hidden, (int)s->n_layers, (int)s->n_heads, (int)s->n_kv_heads,
           (int)s->head_dim, (int)s->n_experts, (int)s->expert_width, (int)s->top_k, c->whole ? "" : " some",
           ties ? " ties" : "", (int)s->vocabulary, path_get(c->params.shared)->name,
           path_get(c->params.experts)->name, c->params.kv_f16 ? "f16" : "f32", (int)c->params.context,
           (int)c->params.n_sequences, type_find(c->m.layers[0].q.type)->name,
           type_find(c->m.layers[0].o.type)->name, type_find(c->m.layers[0].gate.type)->name,
           type_find(c->m.layers[0].down.type)->name);
}

// Half of what would be q8k splits outliers off, by the seed alone: the models of the seeds stay what they
// are.
static path_kind split_or_not(path_kind path, uint64_t bits, bool decoded) {
  return path == PATH_Q8K && !decoded && bits & 1 ? PATH_Q8K_SPLIT : path;
}

static status run_case(uint64_t seed, const backend_ops *ops, const char *row) {
  static test_case c;
  memset(&c, 0, sizeof c);
  random_state = num_mix64(seed);
  bool is_long = random_below(5) == 0, decoded = !is_long && random_below(3) == 0, ties = random_below(2);
  random_k_quants = decoded;
  model_shape shape = decoded ? random_decoded_shape() : random_shape(is_long);
  random_model_open(&c.m, &shape, ties);
  own_experts(&c, seed, decoded);
  c.params = (backend_params){.weights = &c.m,
                              .shared = decoded || random_below(3) ? PATH_Q8K : PATH_F32,
                              .experts = decoded || random_below(3) ? PATH_Q8K : PATH_F32,
                              .map = c.params.map,
                              .rank = OWN_RANK,
                              .n_sequences = 1 + random_below(MOST_SEQUENCES),
                              .context = is_long ? 1500 : MOST_BATCH + random_below(200),
                              .max_batch = MOST_BATCH,
                              .max_logit_rows = MOST_ROWS,
                              .kv_f16 = random_below(2),
                              .computes_shared = true,
                              .n_ranks = 1,
                              .threads = omp_get_max_threads()};
  if (is_long) c.params.n_sequences = 1 + random_below(2);
  c.params.shared = split_or_not(c.params.shared, num_mix64(~seed), decoded);
  c.params.experts = split_or_not(c.params.experts, num_mix64(~seed) >> 1, decoded);
  describe(&c, seed, ties);
  size_t slots = (size_t)(MOST_BATCH * shape.top_k);
  c.row_of_slot = random_room(slots, sizeof *c.row_of_slot);
  status result = open_side(&c, &c.tested, ops, row);
  if (!result) result = open_side(&c, &c.reference, backend_get(BACKEND_CPU), "portable");
  if (!result) result = run_batches(&c, is_long);
  close_side(&c.tested);
  close_side(&c.reference);
  random_model_close(&c.m);
  free(c.local);
  free(c.first);
  free(c.holder);
  free(c.row_of_slot);
  return result;
}

static double seconds_now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

int main(int argc, char **argv) {
  const backend_ops *cuda = backend_get(BACKEND_CUDA);
  bool has_gpu = cuda && strncmp(cuda->rows(), "none", 4) != 0;
  uint64_t given = argc > 1 ? strtoull(argv[1], NULL, 10) : 0, seed = given ? given : test_seed() * 1000;
  double limit = argc > 2 ? atof(argv[2]) : has_gpu ? 40 : 4, start = seconds_now();
  int cases = 0, wrong = 0, least = argc > 3 ? atoi(argv[3]) : has_gpu ? 12 : 3;
  int most_wrong = argc > 5 ? atoi(argv[5]) : 8;
  if (argc > 4) most_tokens = atoi(argv[4]) < 300 ? atoi(argv[4]) : 300;
  random_few_bits = argc > 6; // types of few bits wherever they fit: a case for which seeds make other models
  printf("cases from seed %llu on, %s against cpu portable\n", (unsigned long long)seed,
         has_gpu ? cuda->rows() : "cpu auto");
  for (; cases < least || seconds_now() - start < limit; cases++) {
    if (!run_case(seed + (uint64_t)cases, has_gpu ? cuda : backend_get(BACKEND_CPU), "auto")) continue;
    wrong++;
    printf("FAIL %s\n", status_text());
    fflush(stdout);
    status_reset();
    if (wrong == most_wrong) break;
  }
  printf("%d of %d cases wrong, %lld numbers compared, %.1f s\n", wrong, cases, (long long)compared,
         seconds_now() - start);
  if (!has_gpu && !wrong) printf("skipped: no GPU\n");
  return wrong ? 1 : has_gpu ? 0 : 77;
}
