#include "src/commands/perplexity.h"
#include "src/commands/gate.h"
#include "base/memory.h"
#include "base/progress.h"
#include "kernels/formats/numerics.h"
#include <stdlib.h>

typedef struct {
  job *j;
  arm *a;
  double *logits; // [vocabulary]
  int64_t skip;   // of the windows of the sequence at hand
  double nll;
  int64_t scored, computed, total;
  progress shown;
} scoring;

static status score_row(scoring *s, int64_t i, int32_t target) {
  logit_metrics m;
  int64_t n = s->j->m->weights.shape.vocabulary;
  s->scored++;
  if (!arm_computes_shared(s->a)) return 0;
  arm_logits(s->a, i, s->logits);
  metrics_logits(&m, s->logits, s->logits, (size_t)n, target);
  if (!m.row.finite) return FAIL("%s: a logit is not finite; there is no perplexity", arm_name(s->a));
  s->nll += m.nll_a;
  return 0;
}

// Scores the rows of the batch after position skip; the logits of the others are not computed.
static status score_batch(scoring *s, const token_batch *batch, const token_sequence *window) {
  int64_t first = 0;
  while (first < batch->n && batch->position[first] < s->skip) first++;
  for (; first < batch->n; first += LOGIT_ROWS) {
    int64_t count = batch->n - first < LOGIT_ROWS ? batch->n - first : LOGIT_ROWS;
    if (batch->position[first + count - 1] == window->n - 1)
      count--; // the window's last token predicts nothing here
    if (!count) break;
    TRY(arm_head(s->a, batch, first, count));
    for (int64_t i = 0; i < count; i++) TRY(score_row(s, i, window->tokens[batch->position[first + i] + 1]));
  }
  return 0;
}

// A window of sequence `number`, whose cache and digest it uses.
static status score_window(scoring *s, const token_sequence *window, int64_t number) {
  batcher batches;
  token_batch batch;
  const job *j = s->j;
  status result = batcher_open(&batches, window, 1, j->chunk < j->max_batch ? j->chunk : j->max_batch);
  batches.number = number;
  while (!result && batcher_next(&batches, &batch)) {
    result = arm_forward(s->a, &batch);
    if (!result) result = score_batch(s, &batch, window);
    if (result)
      status_within("tokens %lld to %lld", (long long)s->computed + 1, (long long)(s->computed + batch.n));
    s->computed += batch.n;
    progress_at(&s->shown, s->computed);
  }
  batcher_close(&batches);
  return result;
}

// A sequence that is shorter than the context is one window of its own length.
static int64_t window_of(const job *j, int64_t number) {
  int64_t n = j->sequences[number].n;
  return n < j->context ? n : j->context;
}

static int64_t skip_of(const job *j, int64_t number) {
  return j->cfg->perplexity.skip >= 0 ? j->cfg->perplexity.skip : window_of(j, number) / 2;
}

static status score_sequence(scoring *s, int64_t number) {
  const token_sequence *all = &s->j->sequences[number];
  int64_t window = window_of(s->j, number);
  s->skip = skip_of(s->j, number);
  for (int64_t first = 0; first + window <= all->n; first += window) {
    token_sequence part = {all->tokens + first, window};
    TRY(score_window(s, &part, number));
  }
  return 0;
}

static status perplexity_arm(job *j, size_t index, report *r) {
  scoring s = {.j = j};
  TRY(job_open_arm(j, &j->cfg->run.arms.arm[index], &s.a));
  arm_reset(s.a);
  s.shown = progress_start(job_is_reporting(j), arm_name(s.a), "tokens", j->n_tokens);
  status result;
  TRY_DONE(result, TAKE(&s.logits, (size_t)j->m->weights.shape.vocabulary, "a row of logits"));
  for (int64_t i = 0; i < j->n_sequences; i++) TRY_DONE(result, score_sequence(&s, i));
  TRY_DONE(result, job_report_arm(j, s.a, r, index, s.computed));
  r->arms[index].perplexity = num_exp_f64(s.nll / (double)s.scored);
  r->arms[index].scored = s.scored;
  result = job_check_digest(j, s.a);
done:
  progress_end(&s.shown); // before any error is printed
  free(s.logits);
  arm_close(s.a);
  return result;
}

// Every sequence has something to score: one without would be left out in silence.
static status check_windows(const job *j) {
  for (int64_t i = 0; i < j->n_sequences; i++)
    if (skip_of(j, i) + 1 >= window_of(j, i))
      return REFUSE(
          "perplexity: of sequence %lld no token is scored: its windows have %lld tokens, and the first "
          "%lld (perplexity.skip) of a window and its last are not",
          (long long)i, (long long)window_of(j, i), (long long)skip_of(j, i));
  return 0;
}

status perplexity_run(job *j) {
  report r = {.n_arms = 0};
  TRY(job_agree(j, check_windows(j), "perplexity.skip"));
  status result = job_report_open(j, &r, j->cfg->run.arms.count, 0, 0);
  for (size_t a = 0; a < j->cfg->run.arms.count && !result; a++) result = perplexity_arm(j, a, &r);
  if (!result) result = gate_report_finish(j, &r);
  job_report_close(&r);
  return result;
}
