#include "src/commands/perplexity.h"
#include "src/commands/gate.h"
#include "base/memory.h"
#include "base/progress.h"
#include "src/report/run_state.h"
#include "kernels/formats/numerics.h"
#include <stdlib.h>

typedef struct {
  job *j;
  arm *a;
  double *logits; // [vocabulary]
  int64_t skip;   // of the windows of the sequence at hand
  double nll;
  int64_t scored, computed;
  int64_t kept_tokens; // of `computed`, by an ended run, whose seconds are not in the arm's
  int64_t windows;     // done
  run_state *state;
  size_t index;              // of the arm in run.arms
  const run_state_arm *kept; // of an ended run; n_numbers 0: nothing, or all of it was passed
  uint64_t last;             // digest of the last window's logits
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
    TRY(arm_head(s->a, first, count));
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

// ---- what is kept after a window ----

enum { KEPT_WINDOWS, KEPT_SCORED, KEPT_COMPUTED, KEPT_NUMBERS }; // numbers
enum { KEPT_NLL, KEPT_LAST, KEPT_DIGESTS };                      // words; the digests are the rest

static status keep_sums(scoring *s) {
  size_t n = KEPT_DIGESTS + arm_digest_count(s->a);
  const int64_t numbers[KEPT_NUMBERS] = {s->windows, s->scored, s->computed};
  uint64_t *words;
  TRY(TAKE(&words, n, "the kept state"));
  words[KEPT_NLL] = num_bits_f64(s->nll);
  words[KEPT_LAST] = s->last;
  arm_digests_read(s->a, words + KEPT_DIGESTS);
  status result = run_state_keep(s->state, s->index, numbers, KEPT_NUMBERS, words, n);
  free(words);
  return result;
}

static status keep_window(scoring *s) {
  bool due;
  TRY(run_state_step(s->state, &due));
  if (!due) return 0;
  TRY(arm_finish(s->a));
  TRY(arm_add_parts(s->a));
  TRY(job_agree(s->j, keep_sums(s), "the kept state"));
  return run_state_write(s->state);
}

// The last window that is kept was computed again: its digest must be the kept one, and then the sums are.
static status take_sums(scoring *s) {
  const run_state_arm *kept = s->kept;
  uint64_t digest = s->last;
  TRY(arm_broadcast(s->a, &digest, sizeof digest, "the digest of what is kept"));
  if (digest != kept->word[KEPT_LAST])
    return FAIL(
        "run.resume: window %lld of %s gives the digest %016llx, expected %016llx, which is kept of it",
        (long long)s->windows, arm_name(s->a), (unsigned long long)digest,
        (unsigned long long)kept->word[KEPT_LAST]);
  s->nll = num_from_bits_f64(kept->word[KEPT_NLL]);
  s->scored = kept->number[KEPT_SCORED];
  s->computed = s->kept_tokens = kept->number[KEPT_COMPUTED];
  arm_reset(s->a);
  arm_digests_write(s->a, kept->word + KEPT_DIGESTS);
  s->kept = NULL;
  return 0;
}

static status check_kept(const scoring *s) {
  const run_state_arm *kept = s->kept;
  bool fits = kept->n_numbers == KEPT_NUMBERS && kept->n_words == KEPT_DIGESTS + arm_digest_count(s->a) &&
              kept->number[KEPT_WINDOWS] > 0;
  return fits ? 0 : REFUSE("run.resume: the kept state of %s is none of a perplexity", arm_name(s->a));
}

static status check_kept_end(const scoring *s) {
  return REFUSE("run.resume: the kept state of %s has more windows than the input", arm_name(s->a));
}

static status pass_window(scoring *s, const token_sequence *window, int64_t number) {
  bool again = s->kept && s->windows + 1 == s->kept->number[KEPT_WINDOWS];
  s->windows++;
  if (s->kept && !again) return 0; // it is in the kept sums
  uint64_t before = 0;
  TRY(arm_finish(s->a));
  before = arm_digest(s->a);
  TRY(score_window(s, window, number));
  TRY(arm_finish(s->a));
  s->last = arm_digest(s->a) - before;
  return again ? job_agree(s->j, take_sums(s), "run.resume") : keep_window(s);
}

static status score_sequence(scoring *s, int64_t number) {
  const token_sequence *all = &s->j->sequences[number];
  int64_t window = window_of(s->j, number);
  s->skip = skip_of(s->j, number);
  for (int64_t first = 0; first + window <= all->n; first += window) {
    token_sequence part = {all->tokens + first, window};
    TRY(pass_window(s, &part, number));
  }
  return 0;
}

static status perplexity_arm(job *j, size_t index, run_state *state, report *r) {
  scoring s = {.j = j, .state = state, .index = index};
  TRY(job_open_arm(j, &j->cfg->run.arms.arm[index], &s.a));
  arm_reset(s.a);
  s.shown = progress_start(job_is_reporting(j), arm_name(s.a), "tokens", j->n_tokens);
  status result;
  TRY_DONE(result, TAKE(&s.logits, (size_t)j->m->weights.shape.vocabulary, "a row of logits"));
  if (state->arm[index].n_numbers) s.kept = &state->arm[index];
  if (s.kept) TRY_DONE(result, job_agree(j, check_kept(&s), "run.resume"));
  for (int64_t i = 0; i < j->n_sequences; i++) TRY_DONE(result, score_sequence(&s, i));
  TRY_DONE(result, job_agree(j, s.kept ? check_kept_end(&s) : 0, "run.resume"));
  TRY_DONE(result, arm_finish(s.a));
  TRY_DONE(result, arm_add_parts(s.a));
  TRY_DONE(result, job_agree(j, keep_sums(&s), "the kept state"));
  TRY_DONE(result, job_report_arm(j, s.a, r, index, s.computed));
  if (arm_seconds(s.a) > 0)
    r->arms[index].prefill_tokens_per_s = (double)(s.computed - s.kept_tokens) / arm_seconds(s.a);
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
  run_state state = {.j = NULL};
  status result = job_report_open(j, &r, j->cfg->run.arms.count, 0, 0);
  if (!result) result = run_state_open(&state, j);
  for (size_t a = 0; a < j->cfg->run.arms.count && !result; a++) result = perplexity_arm(j, a, &state, &r);
  if (!result) result = gate_report_finish(j, &r);
  if (!result || result == STATUS_DIFFERS) {
    status removed = run_state_remove(&state);
    if (!result) result = removed;
  }
  run_state_close(&state);
  job_report_close(&r);
  return result;
}
