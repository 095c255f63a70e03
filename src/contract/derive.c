#include "src/contract/derive.h"
#include "base/memory.h"
#include "base/progress.h"
#include "base/read_file.h"
#include "kernels/formats/numerics.h"
#include "src/contract/derive_draft.h"
#include "src/lab/pair_figures.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { TEXT_LIMIT = 1 << 28 };

typedef struct {
  job *j;
  size_t n_arms, n_pairs, n_draws, n_checks; // draws that give bounds; fresh ones that try them
  arm *arm[CONFIG_MAX_ARMS];
  int32_t **input; // [n_sequences] the input itself
  int32_t *corpus; // [n_corpus] tokens that windows are cut from
  size_t n_corpus;
  pair_statistics *pairs; // [n_pairs] of the run at hand; a and b on every rank
  double *rows[CONFIG_MAX_ARMS];
  uint64_t draw;
  pair_figures figures;
  derive_gates gates; // on the reporting rank
} derivation;

// ---- texts ----

static status read_corpus(derivation *d) {
  job *j = d->j;
  const char *path = j->cfg->derive.file;
  char *text;
  size_t length;
  if (!*path) {
    for (int64_t s = 0; s < j->n_sequences; s++) d->n_corpus += (size_t)j->sequences[s].n;
    TRY(TAKE(&d->corpus, d->n_corpus, "the input"));
    size_t at = 0;
    for (int64_t s = 0; s < j->n_sequences; s++)
      for (int64_t i = 0; i < j->sequences[s].n; i++) d->corpus[at++] = j->sequences[s].tokens[i];
    return 0;
  }
  TRY(job_need_tokenizer(j));
  if (!j->tokenizer) return REFUSE("derive.file: this model has no tokenizer for a text");
  TRY(read_file(&text, &length, path, "derive.file", TEXT_LIMIT, READ_REGULAR));
  status result = tokenizer_encode(j->tokenizer, text, length, &d->corpus, &d->n_corpus);
  free(text);
  return result;
}

static status open_texts(derivation *d) {
  job *j = d->j;
  TRY(TAKE(&d->input, (size_t)j->n_sequences, "the input"));
  TRY(read_corpus(d));
  for (int64_t s = 0; s < j->n_sequences; s++) {
    size_t n = (size_t)j->sequences[s].n;
    TRY(TAKE(&d->input[s], n, "the input"));
    memcpy(d->input[s], j->sequences[s].tokens, n * sizeof **d->input);
    if (n > d->n_corpus)
      return REFUSE(
          "derive.file: %s has %zu tokens: expected at least the %zu of the input's longest sequence",
          j->cfg->derive.file, d->n_corpus, n);
  }
  return 0;
}

static uint64_t random_of(const derivation *d, uint64_t what, uint64_t index) {
  return num_mix64(num_mix64(num_mix64((uint64_t)d->j->cfg->derive.seed + what) + d->draw) + index);
}

// The text of this draw: each sequence is a window at a random place.
static void choose_texts(derivation *d) {
  for (int64_t s = 0; s < d->j->n_sequences; s++) {
    size_t n = (size_t)d->j->sequences[s].n;
    size_t first = (size_t)(random_of(d, 1, (uint64_t)s) % (d->n_corpus - n + 1));
    memcpy(d->j->sequences[s].tokens, d->draw ? d->corpus + first : d->input[s], n * sizeof *d->corpus);
  }
}

// ---- the last bit ----

// x (1 + u 2^-24) with u uniform in [-1, 1], as float: a random part of the numbers moves to the next float.
// From the first arm's stream for all arms, so that all have the same input.
static void perturb(const derivation *d, double *row, int64_t token) {
  int64_t hidden = d->j->m->weights.shape.hidden;
  for (int64_t i = 0; i < hidden && d->draw; i++) {
    double u = (double)(random_of(d, 2, (uint64_t)(token * hidden + i)) >> 11) * 0x1p-52 - 1;
    row[i] = (double)(float)(row[i] * (1 + u * 0x1p-24));
  }
}

static status see_embedded(void *context, const token_batch *batch, int64_t first) {
  derivation *d = context;
  int64_t hidden = d->j->m->weights.shape.hidden;
  for (size_t a = 0; a < d->n_arms; a++) {
    if (arm_computes_shared(d->arm[a])) {
      TRY(arm_stream_read(d->arm[a], d->rows[a]));
      for (int64_t t = 0; t < batch->n; t++) perturb(d, d->rows[a] + t * hidden, first + t);
    }
    TRY(arm_stream_write(d->arm[a], d->rows[a]));
  }
  return pair_figures_embedded(&d->figures, batch, first);
}

static status see_layer(void *context, int64_t layer, const token_batch *batch, int64_t first) {
  return pair_figures_layer(&((derivation *)context)->figures, layer, batch, first);
}

static status see_logits(void *context, const token_batch *batch, int64_t first, int64_t from,
                         int64_t count) {
  return pair_figures_logits(&((derivation *)context)->figures, batch, first, from, count);
}

// ---- a draw ----

static status keep(derivation *d, parity_mode mode) {
  size_t n_layers = (size_t)d->j->m->weights.shape.n_layers;
  status result = pair_figures_reduce(&d->figures, d->pairs);
  for (size_t p = 0; p < d->n_pairs; p++) {
    if (!result) result = derive_gates_add(&d->gates, &d->pairs[p], mode, n_layers, (size_t)d->draw);
    free(d->pairs[p].probes);
    free(d->pairs[p].experts);
    d->pairs[p].probes = NULL;
    d->pairs[p].experts = NULL;
  }
  return result;
}

static status run_mode(derivation *d, parity_mode mode) {
  const arms_in_step s = {.j = d->j,
                          .arms = d->arm,
                          .n_arms = d->n_arms,
                          .reference = arms_reference(&d->j->cfg->run.arms),
                          .mode = mode,
                          .observer = {d, see_embedded, see_layer, see_logits}};
  status result;
  TRY_DONE(result,
           pair_figures_open(&d->figures, d->j, d->arm, d->n_arms, d->pairs, d->n_pairs, mode, false, NULL));
  TRY_DONE(result, arms_in_step_run(&s));
  result = job_agree(d->j, job_is_reporting(d->j) ? keep(d, mode) : 0, "the figures of a draw");
done:
  pair_figures_close(&d->figures);
  return result;
}

static status run_draws(derivation *d) {
  size_t n = d->n_draws + d->n_checks;
  progress shown = progress_start(job_is_reporting(d->j), "derive", "draws", (int64_t)n);
  status result = 0;
  for (size_t i = 0; i < n && !result; i++) {
    d->draw = i;
    choose_texts(d);
    for (int m = 0; m < MODE_COUNT && !result; m++)
      if (d->j->cfg->parity.modes >> m & 1) result = run_mode(d, (parity_mode)m);
    progress_at(&shown, (int64_t)i + 1);
  }
  progress_end(&shown);
  return result;
}

// ---- open and close ----

static void list_pairs(derivation *d) {
  size_t reference = arms_reference(&d->j->cfg->run.arms), n = 0;
  for (size_t a = 0; a < d->n_arms; a++)
    if (a != reference) {
      d->pairs[n].a = a;
      d->pairs[n++].b = reference;
    }
  for (size_t b = 0; b < d->n_arms; b++)
    for (size_t a = b + 1; a < d->n_arms; a++)
      if (a != reference && b != reference) {
        d->pairs[n].a = a;
        d->pairs[n++].b = b;
      }
}

static status open_local(derivation *d) {
  const job *j = d->j;
  const model_shape *s = &j->m->weights.shape;
  if (d->n_arms < 2)
    return REFUSE("verify --derive: expected at least two arms in run.arms, found %zu", d->n_arms);
  if (j->cfg->contract.path[0])
    return REFUSE("verify --derive: contract.path has no effect here, expected it empty");
  if (j->cfg->parity.routes[0])
    return REFUSE("verify --derive: parity.routes has no effect here, expected it empty");
  TRY(open_texts(d));
  TRY(TAKE(&d->pairs, d->n_pairs, "the pairs"));
  list_pairs(d);
  for (size_t p = 0; p < d->n_pairs; p++) TRY(TAKE(&d->pairs[p].layers, (size_t)s->n_layers, "the pairs"));
  for (size_t a = 0; a < d->n_arms; a++)
    TRY(TAKE(&d->rows[a], (size_t)(j->max_batch * s->hidden), "a batch's rows"));
  return 0;
}

static status derivation_open(derivation *d, job *j) {
  const config *c = j->cfg;
  size_t n = c->run.arms.count;
  *d = (derivation){.j = j,
                    .n_arms = n,
                    .n_pairs = n * (n - 1) / 2,
                    .n_draws = (size_t)c->derive.draws,
                    .n_checks = (size_t)c->derive.checks};
  d->gates.n_draws = d->n_draws + d->n_checks;
  TRY(job_agree(j, open_local(d), "verify --derive"));
  for (size_t a = 0; a < n; a++) TRY(job_open_arm(j, &c->run.arms.arm[a], &d->arm[a]));
  return 0;
}

static void derivation_close(derivation *d) {
  for (int64_t s = 0; s < d->j->n_sequences && d->input; s++) free(d->input[s]);
  for (size_t p = 0; p < d->n_pairs && d->pairs; p++) free(d->pairs[p].layers);
  for (size_t a = 0; a < CONFIG_MAX_ARMS; a++) {
    arm_close(d->arm[a]);
    free(d->rows[a]);
  }
  free(d->input);
  free(d->corpus);
  free(d->pairs);
  derive_gates_close(&d->gates);
}

status derive_run(job *j, const char *run) {
  derivation d;
  status result;
  TRY_DONE(result, derivation_open(&d, j));
  TRY_DONE(result, run_draws(&d));
  for (size_t a = 0; a < d.n_arms; a++) TRY_DONE(result, job_check_digest(j, d.arm[a]));
  result =
      job_agree(j, job_is_reporting(j) ? derive_gates_propose(&d.gates, j, run, d.n_draws) : 0, "the draft");
done:
  derivation_close(&d);
  return result;
}
