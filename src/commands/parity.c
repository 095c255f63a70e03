#include "src/commands/parity.h"
#include "base/memory.h"
#include "kernels/formats/numerics.h"
#include "src/measure/pair_statistics.h"
#include "src/report/npy.h"
#include "src/commands/generate.h"
#include "base/progress.h"
#include <stdio.h>
#include <stdlib.h>

typedef struct {
  job *j;
  size_t n_arms, n_pairs;
  arm *arm[CONFIG_MAX_ARMS];
  npy *logits_file[CONFIG_MAX_ARMS];
  // Each sequence's last logits, [n_sequences][vocabulary], to continue its text; NULL: not needed, or an
  // expert rank.
  double *last[CONFIG_MAX_ARMS];
  double *layer[CONFIG_MAX_ARMS];  // [max_batch][hidden]; on the reporting rank
  double *logits[CONFIG_MAX_ARMS]; // [vocabulary]; on the reporting rank
  double nll[CONFIG_MAX_ARMS];     // sum over positions with a next token; on the reporting rank
  pair_samples *pairs;             // [n_pairs]; on the reporting rank
  report r;
  int64_t position; // of the batch's first token, counted over all sequences
} parity;

// ---- pairs ----

// The truth, f64, where it runs, else the first arm.
static size_t reference_of(const arm_list *arms) {
  for (size_t a = 0; a < arms->count; a++)
    if (arm_is_truth(&arms->arm[a])) return a;
  return 0;
}

// Each arm against the reference first, then the others among themselves; a pair's `b` is what `a` is
// measured against.
static void list_pairs(const arm_list *arms, pair_statistics *out) {
  size_t reference = reference_of(arms), n = 0;
  for (size_t a = 0; a < arms->count; a++)
    if (a != reference) {
      out[n].a = a;
      out[n++].b = reference;
    }
  for (size_t b = 0; b < arms->count; b++)
    for (size_t a = b + 1; a < arms->count; a++)
      if (a != reference && b != reference) {
        out[n].a = a;
        out[n++].b = b;
      }
}

// ---- open and close ----

static status open_reporting(parity *p) {
  const model_shape *s = &p->j->m->weights.shape;
  const config *c = p->j->cfg;
  for (size_t a = 0; a < p->n_arms; a++) {
    TRY(TAKE(&p->layer[a], (size_t)(p->j->max_batch * s->hidden), "a layer's rows"));
    TRY(TAKE(&p->logits[a], (size_t)s->vocabulary, "a row of logits"));
    TRY(arm_checks_open(&p->r.arms[a].checks, s->n_layers, s->hidden, p->j->max_batch));
    if (c->output.logits && c->output.dir[0]) {
      char name[64];
      snprintf(name, sizeof name, "logits.%s.npy", c->run.arms.arm[a].name);
      bool wide = arm_path(p->arm[a])->real_bytes == sizeof(double);
      npy_row row = {wide ? NPY_F64 : NPY_F32, 1, {s->vocabulary}};
      TRY(npy_open(&p->logits_file[a], c->output.dir, name, &row));
    }
  }
  TRY(TAKE(&p->pairs, p->n_pairs, "the comparisons"));
  for (size_t i = 0; i < p->n_pairs; i++) TRY(pair_samples_open(&p->pairs[i], s->n_layers, p->j->n_tokens));
  return 0;
}

static status parity_open(parity *p, job *j) {
  const arm_list *arms = &j->cfg->run.arms;
  *p = (parity){.j = j, .n_arms = arms->count, .n_pairs = arms->count * (arms->count - 1) / 2};
  size_t logit_count = (size_t)(j->n_sequences * j->m->weights.shape.vocabulary);
  TRY(job_report_open(j, &p->r, p->n_arms, p->n_pairs, p->n_pairs * (size_t)j->n_tokens));
  list_pairs(arms, p->r.pairs);
  p->r.has_logits = j->cfg->output.logits && j->cfg->output.dir[0];
  for (size_t a = 0; a < p->n_arms; a++) {
    TRY(job_open_arm(j, &arms->arm[a], &p->arm[a]));
    arm_watch_layers(p->arm[a], true);
    if (j->cfg->run.generate && arm_computes_shared(p->arm[a]))
      TRY(TAKE(&p->last[a], logit_count, "last logits"));
  }
  return job_agree(j, job_is_reporting(j) ? open_reporting(p) : 0, "opening the comparison");
}

static void parity_close(parity *p) {
  for (size_t a = 0; a < p->n_arms; a++) {
    arm_close(p->arm[a]);
    npy_abandon(p->logits_file[a]);
    free(p->last[a]);
    free(p->layer[a]);
    free(p->logits[a]);
  }
  for (size_t i = 0; i < p->n_pairs && p->pairs; i++) pair_samples_close(&p->pairs[i]);
  free(p->pairs);
  job_report_close(&p->r);
}

// ---- the arms in step ----

static status check_embedded(parity *p, int64_t n) {
  int64_t hidden = p->j->m->weights.shape.hidden;
  for (size_t a = 0; a < p->n_arms; a++) {
    TRY(arm_stream_read(p->arm[a], p->layer[a]));
    for (int64_t t = 0; t < n; t++) arm_checks_embedded(&p->r.arms[a].checks, t, p->layer[a] + t * hidden);
  }
  return 0;
}

// Of arm a, whose streams are in p->layer.
static void check_layer(parity *p, size_t a, int64_t layer, int64_t n) {
  const model_shape *s = &p->j->m->weights.shape;
  for (int64_t t = 0; t < n; t++)
    arm_checks_layer(&p->r.arms[a].checks, layer, t, p->layer[a] + t * s->hidden, arm_experts(p->arm[a], t),
                     arm_weights(p->arm[a], t), s->top_k);
}

static status compare_layer(parity *p, int64_t layer, const token_batch *batch) {
  int64_t hidden = p->j->m->weights.shape.hidden, k = p->j->m->weights.shape.top_k;
  for (size_t a = 0; a < p->n_arms; a++) {
    TRY(arm_stream_read(p->arm[a], p->layer[a]));
    check_layer(p, a, layer, batch->n);
  }
  for (size_t i = 0; i < p->n_pairs; i++) {
    const pair_statistics *pair = &p->r.pairs[i];
    const arm *a = p->arm[pair->a], *b = p->arm[pair->b];
    for (int64_t t = 0; t < batch->n; t++)
      pair_samples_layer(&p->pairs[i], layer, p->position + t, p->layer[pair->a] + t * hidden,
                         p->layer[pair->b] + t * hidden, hidden, arm_experts(a, t), arm_experts(b, t), (int)k,
                         arm_margin(b, t));
  }
  return 0;
}

static int64_t target_of(const parity *p, int64_t sequence, int64_t position) {
  const token_sequence *s = &p->j->sequences[sequence];
  return position + 1 < s->n ? s->tokens[position + 1] : -1;
}

// Row i of the arms' last head: token `t` of the batch.
static void compare_logit_row(parity *p, const token_batch *batch, int64_t t, int64_t i) {
  int64_t vocabulary = p->j->m->weights.shape.vocabulary;
  int64_t target = target_of(p, batch->sequence[t], batch->position[t]);
  for (size_t a = 0; a < p->n_arms; a++) {
    arm_logits(p->arm[a], i, p->logits[a]);
    arm_checks_logits(&p->r.arms[a].checks, p->logits[a], vocabulary);
  }
  for (size_t n = 0; n < p->n_pairs; n++) {
    const pair_statistics *pair = &p->r.pairs[n];
    int64_t at = p->position + t;
    pair_samples_logits(&p->pairs[n], at, p->logits[pair->a], p->logits[pair->b], vocabulary, target);
    const logit_metrics *m = &p->pairs[n].logits[at];
    p->r.tokens[(size_t)at * p->n_pairs + n] =
        (report_token){.sequence = batch->sequence[t],
                       .position = batch->position[t],
                       .token = batch->token[t],
                       .pair = n,
                       .rel_l2 = m->row.rel_l2,
                       .one_minus_cos = m->row.one_minus_cos,
                       .max_abs = m->row.max_abs,
                       .max_rel = m->row.max_rel,
                       .kl = m->kl,
                       .top1_agrees = m->top1_agrees,
                       .margin = m->margin,
                       .router_flips = pair_samples_flips(&p->pairs[n], at)};
  }
  if (target < 0) return;
  for (size_t a = 0; a < p->n_arms; a++) {
    logit_metrics m;
    metrics_logits(&m, p->logits[a], p->logits[a], (size_t)vocabulary, target);
    p->nll[a] += m.nll_a;
  }
}

static void keep_last(parity *p, const token_batch *batch, int64_t first, int64_t count) {
  int64_t vocabulary = p->j->m->weights.shape.vocabulary;
  for (int64_t i = 0; i < count && p->j->cfg->run.generate; i++) {
    int64_t s = batch->sequence[first + i];
    if (batch->position[first + i] != p->j->sequences[s].n - 1) continue;
    for (size_t a = 0; a < p->n_arms; a++)
      if (p->last[a]) arm_logits(p->arm[a], i, p->last[a] + s * vocabulary);
  }
}

static status logit_rows(parity *p, const token_batch *batch, int64_t first, int64_t count) {
  for (size_t a = 0; a < p->n_arms; a++) TRY(arm_head(p->arm[a], batch, first, count));
  keep_last(p, batch, first, count);
  if (!job_is_reporting(p->j)) return 0;
  for (size_t a = 0; a < p->n_arms; a++)
    if (p->logits_file[a]) TRY(npy_append(p->logits_file[a], arm_logit_rows(p->arm[a]), (size_t)count));
  for (int64_t i = 0; i < count; i++) compare_logit_row(p, batch, first + i, i);
  return 0;
}

// All arms take the same step before any takes the next, so one batch of one layer is all that must be kept.
static status compute_batch(parity *p, const token_batch *batch) {
  for (size_t a = 0; a < p->n_arms; a++) TRY(arm_embed(p->arm[a], batch));
  if (job_is_reporting(p->j)) TRY(check_embedded(p, batch->n));
  for (int64_t layer = 0; layer < p->j->m->weights.shape.n_layers; layer++) {
    for (size_t a = 0; a < p->n_arms; a++) TRY(arm_layer(p->arm[a], layer));
    if (job_is_reporting(p->j)) TRY(compare_layer(p, layer, batch));
  }
  for (int64_t first = 0; first < batch->n; first += LOGIT_ROWS)
    TRY(logit_rows(p, batch, first, batch->n - first < LOGIT_ROWS ? batch->n - first : LOGIT_ROWS));
  p->position += batch->n;
  return 0;
}

static status compute_all(parity *p) {
  progress shown = progress_start(job_is_reporting(p->j), "parity", "tokens", p->j->n_tokens);
  batcher batches;
  token_batch batch;
  status result = batcher_open(&batches, p->j->sequences, p->j->n_sequences, p->j->cfg->run.chunk);
  while (!result && batcher_next(&batches, &batch)) {
    result = compute_batch(p, &batch);
    if (result)
      status_within("tokens %lld to %lld", (long long)p->position + 1, (long long)(p->position + batch.n));
    progress_at(&shown, p->position);
  }
  progress_end(&shown);
  batcher_close(&batches);
  return result;
}

// ---- results ----

static status finish_arm(parity *p, size_t a) {
  int64_t targets = p->j->n_tokens - p->j->n_sequences;
  TRY(job_report_arm(p->j, p->arm[a], &p->r, a, p->j->n_tokens));
  if (targets > 0) p->r.arms[a].perplexity = num_exp_f64(p->nll[a] / (double)targets);
  p->r.arms[a].scored = targets;
  arm_watch_layers(p->arm[a], false); // nothing is compared from here on
  if (p->j->cfg->run.generate) TRY(generate_continue(p->j, p->arm[a], p->last[a], &p->r.arms[a]));
  return job_check_digest(p->j, p->arm[a]);
}

static status finish_reporting(parity *p) {
  for (size_t i = 0; i < p->n_pairs; i++) TRY(pair_samples_reduce(&p->pairs[i], &p->r.pairs[i]));
  for (size_t a = 0; a < p->n_arms; a++) {
    npy *f = p->logits_file[a];
    p->logits_file[a] = NULL;
    if (f) TRY(npy_finish(f));
  }
  return 0;
}

static status check_output(const config *c) {
  if (!c->output.logits || c->output.dir[0]) return 0;
  return REFUSE("output.logits = true: expected a folder for them (output.dir, --out), found none");
}

status parity_run(job *j) {
  parity p;
  status result;
  TRY(job_agree(j, check_output(j->cfg), "output.logits"));
  TRY_DONE(result, parity_open(&p, j));
  for (size_t a = 0; a < p.n_arms; a++) arm_reset(p.arm[a]);
  TRY_DONE(result, compute_all(&p));
  for (size_t a = 0; a < p.n_arms; a++) TRY_DONE(result, finish_arm(&p, a));
  TRY_DONE(result, job_agree(j, job_is_reporting(j) ? finish_reporting(&p) : 0, "reducing the comparison"));
  result = job_report_finish(j, &p.r);
done:
  parity_close(&p);
  return result;
}
