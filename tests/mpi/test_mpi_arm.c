// Tests of src/run/arm.c over the ranks that they are started with (1 to 4 by ctest): what a run's layers
// read, how they routed and what their steps gave is given back to the next run, in place of its own, and
// every digest stays; given something else, the digests change. MOE_EMULATED: on the emulated GPU, with few
// tokens.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include "base/memory.h"
#include "kernels/formats/numerics.h"
#include "src/run/job.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef MOE_EMULATED
enum { FIRST = 2, REST = 1 }; // the second batch has kernels of its own
static const char ARMS[] = "run.arms=[\"q8k@cuda\"]";
#elif defined __SANITIZE_ADDRESS__ // which is slow
enum { FIRST = 64, REST = 9 };
static const char ARMS[] = "run.arms=[\"q8k@cpu\"]", ALL_ARMS[] = "run.arms=[\"q8k@cpu\",\"ranks\"]";
#else
enum { FIRST = 64, REST = 9 }; // of each rank, enough for token shards; too few
static const char ARMS[] = "run.arms=[\"f64@cpu\",\"f32@cpu\",\"q8k@cpu\"]",
                  ALL_ARMS[] = "run.arms=[\"f64@cpu\",\"f32@cpu\",\"q8k@cpu\",\"ranks\"]";
#endif
enum { MOST_LAYERS = 8 };
static const char MODEL[] = "model.path=" MOE_SOURCE_DIR "/configs/tiny/tiny-qwen3moe-Q4_K_M.gguf";

static comm *ranks; // opened once: MPI starts and ends once
static int rank, size;

// ---- a job of arms ----

typedef struct {
  config cfg;
  job j;
  const model_shape *s;
  int64_t n;                  // tokens
  double *stream;             // [n_layers][n][hidden] before each layer
  expert_global *expert;      // [n_layers][n][top_k]
  expert_global *turned;      // [n][top_k] of the call at hand
  double *weight;             // [n_layers][n][top_k]
  double *probe[PROBE_COUNT]; // [n_layers][n][...] of the points in SETTABLE, on every rank
  comm_part *broadcast;       // [size][size]
  int32_t *token, *others;    // [n] the input; tokens that are none of it
  int32_t *sequence, *position;
} fixture;

static const uint32_t SETTABLE =
    1u << PROBE_QCUR | 1u << PROBE_KCUR | 1u << PROBE_VCUR | 1u << PROBE_KQV_OUT | 1u << PROBE_FFN_INP |
    1u << PROBE_FFN_MOE_GATE | 1u << PROBE_FFN_MOE_UP | 1u << PROBE_FFN_MOE_SWIGLU | 1u << PROBE_FFN_MOE_DOWN;

static bool is_settable(int point) {
  return SETTABLE >> point & 1;
}

static int64_t numbers_of(const fixture *x, int point, int64_t n) {
  probe_point p = (probe_point)point;
  return n * probe_width(p, x->s) * (probe_get(p)->per_slot ? x->s->top_k : 1);
}

static double *probe_at(const fixture *x, int point, int64_t layer, int64_t first) {
  return x->probe[point] + numbers_of(x, point, layer * x->n + first);
}

static int64_t chunk(void) {
  return FIRST * size;
}

static void load_config(fixture *x) {
  static char tokens[4096], cut[64];
  size_t used = (size_t)snprintf(tokens, sizeof tokens, "input.tokens=[0");
  for (int64_t i = 1; i < chunk() + REST; i++)
    used +=
        (size_t)snprintf(tokens + used, sizeof tokens - used, ",%d", (int)(num_mix64((uint64_t)i) % 4096));
  snprintf(tokens + used, sizeof tokens - used, "]");
  snprintf(cut, sizeof cut, "run.chunk=%d", (int)chunk());
  const char *sets[8] = {MODEL, tokens, cut, "run.threads=1", ARMS};
  size_t n = 5;
#ifndef MOE_EMULATED
  if (size > 1) { // with three ranks and more: token shards, and ranks that compute only experts
    sets[4] = ALL_ARMS;
    sets[n++] = "ranks.arm=[\"q8k@cpu\",\"f32@cpu\"]";
    sets[n++] = "ranks.shared=\"q8k@cpu\"";
    sets[n++] = size > 2 ? "ranks.shared_ranks=[0,1]" : "ranks.shared_ranks=[0]";
  }
#endif
  if (config_load(&x->cfg, NULL, sets, n)) fail_msg("%s", status_text());
}

static int open_fixture(void **state) {
  static fixture x;
  *state = &x;
  load_config(&x);
  if (job_open(&x.j, COMMAND_PARITY, &x.cfg, ranks, true)) fail_msg("%s", status_text());
  x.s = &x.j.m->weights.shape;
  x.n = x.j.n_tokens;
  assert_in_range(x.s->n_layers, 1, MOST_LAYERS);
  size_t n = (size_t)x.n, all = n * (size_t)x.s->n_layers;
  assert_int_equal(TAKE(&x.stream, all * (size_t)x.s->hidden, "streams"), 0);
  assert_int_equal(TAKE(&x.expert, all * (size_t)x.s->top_k, "experts"), 0);
  assert_int_equal(TAKE(&x.turned, n * (size_t)x.s->top_k, "experts"), 0);
  assert_int_equal(TAKE(&x.weight, all * (size_t)x.s->top_k, "weights"), 0);
  for (int p = 0; p < PROBE_COUNT; p++)
    if (is_settable(p))
      assert_int_equal(TAKE(&x.probe[p], (size_t)numbers_of(&x, p, (int64_t)all), "probes"), 0);
  assert_int_equal(TAKE(&x.broadcast, (size_t)(size * size), "probes"), 0);
  assert_int_equal(TAKE(&x.others, n, "tokens"), 0);
  assert_int_equal(TAKE(&x.sequence, n, "tokens"), 0);
  assert_int_equal(TAKE(&x.position, n, "tokens"), 0);
  x.token = x.j.sequences[0].tokens;
  for (int64_t t = 0; t < x.n; t++) {
    x.position[t] = (int32_t)t;
    x.others[t] = (x.token[t] + 1) % 4096;
  }
  return 0;
}

static int close_fixture(void **state) {
  fixture *x = *state;
  for (int p = 0; p < PROBE_COUNT; p++) free(x->probe[p]);
  free(x->broadcast);
  free(x->stream);
  free(x->expert);
  free(x->turned);
  free(x->weight);
  free(x->others);
  free(x->sequence);
  free(x->position);
  job_close(&x->j);
  config_close(&x->cfg);
  return 0;
}

// ---- runs ----

typedef struct {
  uint64_t logits, layer[MOST_LAYERS];
} digests;

typedef struct {
  bool watches, keeps; // looks at each layer; and keeps what it sees, which only one that watches can
  bool gives_stream;
  unsigned parts;        // of the routing that is given
  bool gives_choice;     // of a routing, the experts in another order, as a choice
  uint32_t points;       // bits 1 << probe_point that are given
  const int32_t *tokens; // NULL: the input's
} run;

static void good(status result) {
  if (result) fail_msg("rank %d: %s", rank, status_text());
}

static double *stream_at(const fixture *x, int64_t layer, int64_t first) {
  return x->stream + (layer * x->n + first) * x->s->hidden;
}

static int64_t slot_at(const fixture *x, int64_t layer, int64_t first) {
  return (layer * x->n + first) * x->s->top_k;
}

static void keep_routing(fixture *x, arm *e, int64_t layer, int64_t first, int64_t n) {
  for (int64_t t = 0; t < n; t++) {
    int64_t at = slot_at(x, layer, first + t);
    memcpy(x->expert + at, arm_experts(e, t), (size_t)x->s->top_k * sizeof *x->expert);
    memcpy(x->weight + at, arm_weights(e, t), (size_t)x->s->top_k * sizeof *x->weight);
  }
}

// Each of n tokens' experts in reverse order; valid until the next call.
static const expert_global *turned(const fixture *x, const expert_global *experts, int64_t n) {
  int64_t k = x->s->top_k;
  for (int64_t i = 0; i < n * k; i++) x->turned[i] = experts[i - i % k + k - 1 - i % k];
  return x->turned;
}

static void give_back(fixture *x, arm *e, const run *r, int64_t layer, int64_t first, int64_t n) {
  int64_t at = slot_at(x, layer, first);
  bool has = arm_computes_shared(e); // elsewhere nothing is needed
  routing given = {x->expert + at, x->weight + at, NULL};
  if (r->gives_stream) good(arm_stream_write(e, has ? stream_at(x, layer, first) : NULL));
  if (r->parts) good(arm_impose_routing(e, r->parts, has ? &given : NULL));
  if (r->gives_choice) good(arm_impose_choice(e, has ? turned(x, x->expert + at, n) : NULL));
  for (int p = 0; p < PROBE_COUNT; p++)
    if (r->points >> p & 1) good(arm_impose_probe(e, (probe_point)p, probe_at(x, p, layer, first)));
}

// Every rank gets them, for any may compute a slot or cache a key.
static void keep_probes(fixture *x, arm *e, int64_t layer, int64_t first, int64_t n) {
  int from = x->j.roles.reporting;
  for (int p = 0; p < PROBE_COUNT; p++) {
    if (!is_settable(p)) continue;
    const double *numbers;
    size_t bytes = (size_t)numbers_of(x, p, n) * sizeof *numbers;
    double *to = probe_at(x, p, layer, first);
    good(arm_probe_take(e, (probe_point)p, &numbers));
    if (numbers) memcpy(to, numbers, bytes);
    for (int i = 0; i < size * size; i++)
      x->broadcast[i] = (comm_part){0, i / size == from && i % size != from ? bytes : 0};
    good(comm_exchange(ranks, (char *)to, x->broadcast, "probes"));
  }
}

static void run_batch(fixture *x, arm *e, const run *r, const token_batch *batch, int64_t first) {
  bool keeps = r->keeps && arm_computes_shared(e);
  good(arm_embed(e, batch));
  good(arm_probes_want(e, r->keeps ? SETTABLE : 0));
  for (int64_t layer = 0; layer < x->s->n_layers; layer++) {
    if (keeps) good(arm_stream_read(e, stream_at(x, layer, first)));
    give_back(x, e, r, layer, first, batch->n);
    good(arm_layer(e, layer));
    if (keeps) keep_routing(x, e, layer, first, batch->n);
    if (r->keeps) keep_probes(x, e, layer, first, batch->n);
  }
  for (int64_t i = 0; i < batch->n; i += LOGIT_ROWS)
    good(arm_head(e, i, batch->n - i < LOGIT_ROWS ? batch->n - i : LOGIT_ROWS));
}

static digests run_all(fixture *x, arm *e, const run *r) {
  const int32_t *tokens = r->tokens ? r->tokens : x->token;
  digests d;
  arm_reset(e);
  // GPUs that pass slots at fixed places take no routing unless they are watched
  arm_watch_layers(e, r->watches || (r->parts && size > 1 && backend_is_on_device(arm_backend(e))));
  for (int64_t first = 0, n; first < x->n; first += n) {
    n = x->n - first < chunk() ? x->n - first : chunk();
    token_batch batch = {n, tokens + first, x->sequence + first, x->position + first};
    run_batch(x, e, r, &batch, first);
  }
  good(arm_finish(e));
  good(arm_add_parts(e));
  d.logits = arm_digest(e);
  for (int64_t l = 0; l < x->s->n_layers; l++) d.layer[l] = arm_layer_digest(e, l);
  return d;
}

// ---- the tests ----

static bool matters(const arm *e) {
  return arm_computes_shared(e); // elsewhere there are no digests
}

static void same(const fixture *x, const arm *e, const digests *a, const digests *b) {
  if (!matters(e)) return;
  assert_true(a->logits != 0);
  for (int64_t l = 0; l < x->s->n_layers; l++)
    if (a->layer[l] != b->layer[l]) fail_msg("%s: the digest of layer %d", arm_name(e), (int)l);
  if (a->logits != b->logits) fail_msg("%s: the digest of the logits", arm_name(e));
}

// From `layer` on, and not before.
static void differs(const fixture *x, const arm *e, const digests *a, const digests *b, int64_t layer) {
  if (!matters(e)) return;
  for (int64_t l = 0; l < x->s->n_layers; l++)
    if ((a->layer[l] == b->layer[l]) != (l < layer))
      fail_msg("%s: the digest of layer %d", arm_name(e), (int)l);
  assert_true(a->logits != b->logits);
}

static void what_was_is_given_back(fixture *x, arm *e) {
  static const run looks = {.watches = true, .keeps = true}, plain = {.watches = false};
  enum { ROUTING = ROUTING_EXPERTS | ROUTING_WEIGHTS };
  digests d = run_all(x, e, &looks), again = run_all(x, e, &plain);
  same(x, e, &d, &again);
  const run back[] = {{.gives_stream = true, .parts = ROUTING},
                      {.parts = ROUTING},
                      {.parts = ROUTING_EXPERTS, .watches = true},
                      {.gives_choice = true, .watches = true},
                      {.gives_stream = true, .gives_choice = true, .watches = true},
                      {.gives_stream = true, .tokens = x->others}}; // the stream is all that counts
  for (size_t i = 0; i < sizeof back / sizeof *back; i++) {
    again = run_all(x, e, &back[i]);
    same(x, e, &d, &again);
  }
  for (int p = size > 1 ? PROBE_COUNT : 0; p <= PROBE_COUNT && SETTABLE; p++) { // each alone, at last all
    run probes = {.points = p == PROBE_COUNT ? SETTABLE : SETTABLE & 1u << p, .watches = p % 2};
    if (!probes.points) continue;
    again = run_all(x, e, &probes);
    same(x, e, &d, &again);
  }
}

// One token's first slot gets an expert that none of its slots has.
static void change_expert(fixture *x, int64_t layer, int64_t t) {
  expert_global *e = x->expert + slot_at(x, layer, t);
  int32_t other = 0;
  for (int64_t k = 0; k < x->s->top_k; k++)
    if (e[k].id == other) {
      other++;
      k = -1;
    }
  e[0].id = other;
}

static void what_is_changed_shows(fixture *x, arm *e) {
  static const run looks = {.watches = true, .keeps = true};
  static const run stream = {.gives_stream = true}, experts = {.parts = ROUTING_EXPERTS},
                   choice = {.gives_choice = true, .watches = true},
                   weights = {.parts = ROUTING_EXPERTS | ROUTING_WEIGHTS};
  int64_t last = x->s->n_layers - 1, t = x->n - REST - 1; // of the batch that is sharded
  digests d = run_all(x, e, &looks), changed;
  double *number = stream_at(x, last, t), was = *number;
  *number = was * 1.5;
  changed = run_all(x, e, &stream);
  *number = was;
  differs(x, e, &d, &changed, last);
  x->weight[slot_at(x, last, t)] *= 0.5;
  changed = run_all(x, e, &weights);
  differs(x, e, &d, &changed, last);
  change_expert(x, last, t);
  changed = run_all(x, e, &experts); // its weights are the router's own
  differs(x, e, &d, &changed, last);
  changed = run_all(x, e, &choice);
  differs(x, e, &d, &changed, last);
  for (int p = 0; p < PROBE_COUNT; p++) {
    bool crosses = p == PROBE_KCUR || p == PROBE_FFN_MOE_DOWN; // computed by several ranks
    if (!is_settable(p) || (size > 1 && !crosses)) continue;
    run probe = {.points = 1u << p};
    double *of = probe_at(x, p, last, t), kept = *of;
    *of = kept * 1.5;
    changed = run_all(x, e, &probe);
    *of = kept;
    differs(x, e, &d, &changed, last);
  }
}

static void with_each_arm(void **state, void (*test)(fixture *x, arm *e)) {
  fixture *x = *state;
  for (size_t a = 0; a < x->cfg.run.arms.count; a++) {
    arm *e;
    good(job_open_arm(&x->j, &x->cfg.run.arms.arm[a], &e));
    good(arm_impose_open(e, SETTABLE));
    good(arm_probes_open(e, SETTABLE));
    test(x, e);
    arm_close(e);
  }
}

static void what_was_given_back_leaves_every_digest(void **state) {
  with_each_arm(state, what_was_is_given_back);
}

static void what_is_changed_changes_digests(void **state) {
  with_each_arm(state, what_is_changed_shows);
}

static void what_cannot_be_imposed_is_refused(void **state) {
  fixture *x = *state;
  token_batch batch = {1, x->token, x->sequence, x->position};
  arm *e;
  good(job_open_arm(&x->j, &x->cfg.run.arms.arm[0], &e));
  good(arm_embed(e, &batch));
  assert_int_not_equal(arm_impose_routing(e, ROUTING_MARGINS, &(routing){x->expert, x->weight, NULL}), 0);
  assert_non_null(strstr(status_text(), "margins"));
  status_reset();
  assert_int_not_equal(arm_impose_choice(e, x->expert), 0);
  assert_non_null(strstr(status_text(), "watched"));
  status_reset();
  assert_int_not_equal(arm_impose_open(e, 1u << PROBE_L_OUT), 0);
  assert_non_null(strstr(status_text(), "cannot take the probe l_out from outside"));
  status_reset();
  assert_int_not_equal(arm_impose_probe(e, PROBE_QCUR, NULL), 0);
  assert_non_null(strstr(status_text(), "Qcur was not opened"));
  status_reset();
  arm_close(e);
}

int main(int argc, char **argv) {
  if (comm_open(&ranks, &argc, &argv, COMM_DEADLINE)) {
    fprintf(stderr, "%s\n", status_text());
    return 1;
  }
  rank = comm_rank(ranks);
  size = comm_size(ranks);
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(what_was_given_back_leaves_every_digest),
      cmocka_unit_test(what_is_changed_changes_digests),
      cmocka_unit_test(what_cannot_be_imposed_is_refused),
  };
  int failed = cmocka_run_group_tests(tests, open_fixture, close_fixture);
  fflush(stdout);
  if (failed) comm_abort(ranks, 1); // the others may wait for this rank
  comm_close(ranks);
  return 0;
}
