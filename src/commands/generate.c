#include "src/commands/generate.h"
#include "src/commands/gate.h"
#include "base/memory.h"
#include "base/progress.h"
#include "src/run/sampler.h"
#include "src/run/stops.h"
#include <stdlib.h>
#include <string.h>

typedef struct {                // one decoding run
  int64_t n;                    // sequences
  int32_t *token;               // [n] the next input token of each sequence
  int32_t *sequence, *position; // [n] of the step's batch
  int32_t *written;             // [n] sampled in the last step, in the order of its batch
  bool *ended;                  // [n] stopped
  stops *stops;
  double *logits; // [vocabulary]
  sampler *s;
} decoding;

static void decoding_close(decoding *d) {
  free(d->token);
  free(d->sequence);
  free(d->position);
  free(d->written);
  free(d->ended);
  free(d->logits);
  sampler_close(d->s);
  stops_close(d->stops);
}

static status decoding_open(decoding *d, const job *j) {
  const config *c = j->cfg;
  *d = (decoding){.n = j->n_sequences};
  TRY(TAKE(&d->token, (size_t)d->n, "decoding"));
  TRY(TAKE(&d->sequence, (size_t)d->n, "decoding"));
  TRY(TAKE(&d->position, (size_t)d->n, "decoding"));
  TRY(TAKE(&d->written, (size_t)d->n, "decoding"));
  TRY(TAKE(&d->ended, (size_t)d->n, "decoding"));
  TRY(TAKE(&d->logits, (size_t)j->m->weights.shape.vocabulary, "decoding"));
  TRY(stops_open(&d->stops, c, j->ends, j->tokenizer, d->n));
  sampler_settings s = {c->run.temperature, c->run.top_k, c->run.top_p, c->run.seed};
  return sampler_open(&d->s, &s, j->m->weights.shape.vocabulary);
}

// Appends d->written, of the n sequences in d->sequence. Shared ranks have sampled it, expert ranks receive
// it.
static status append_tokens(arm *a, decoding *d, int64_t n, report_text *texts) {
  TRY(arm_broadcast(a, d->written, (size_t)n * sizeof *d->written, "the tokens written"));
  for (int64_t i = 0; i < n; i++) {
    int32_t s = d->sequence[i], token = d->written[i];
    texts[s].tokens[texts[s].n_tokens++] = token;
    d->token[s] = token;
    TRY(stops_see(&d->ended[s], d->stops, s, token));
  }
  return 0;
}

// The sequences that have not ended, packed to the front of a batch.
static token_batch next_batch(const decoding *d, const job *j, int64_t step, int32_t *packed) {
  int64_t n = 0;
  for (int64_t s = 0; s < d->n; s++) {
    if (d->ended[s]) continue;
    packed[n] = d->token[s];
    d->sequence[n] = (int32_t)s;
    d->position[n++] = (int32_t)(j->sequences[s].n + step);
  }
  return (token_batch){n, packed, d->sequence, d->position};
}

static status decode_step(arm *a, decoding *d, const token_batch *batch, report_text *texts) {
  TRY(arm_forward(a, batch));
  for (int64_t first = 0; first < batch->n; first += LOGIT_ROWS) {
    int64_t count = batch->n - first < LOGIT_ROWS ? batch->n - first : LOGIT_ROWS;
    TRY(arm_head(a, first, count));
    for (int64_t i = 0; i < count && arm_computes_shared(a); i++) {
      arm_logits(a, i, d->logits);
      TRY(sampler_next(d->s, d->logits, batch->position[first + i], &d->written[first + i]));
    }
  }
  return append_tokens(a, d, batch->n, texts);
}

// The first token of each sequence, from the logits `last` of its prompt.
static status decode_first(const job *j, arm *a, decoding *d, const double *last, report_text *texts) {
  for (int64_t s = 0; s < d->n; s++) {
    d->sequence[s] = (int32_t)s;
    if (arm_computes_shared(a))
      TRY(sampler_next(d->s, last + s * j->m->weights.shape.vocabulary, j->sequences[s].n - 1,
                       &d->written[s]));
  }
  return append_tokens(a, d, d->n, texts);
}

// ---- what is kept: of each sequence its number of tokens and these, and the digest of all logits so far
// ----

static status keep_tokens(run_state *s, size_t index, arm *a, const report_text *texts, int64_t n_texts) {
  int64_t *numbers;
  size_t n = 0, room = 0;
  for (int64_t t = 0; t < n_texts; t++) room += texts[t].n_tokens + 1;
  TRY(TAKE(&numbers, room, "the kept state"));
  for (int64_t t = 0; t < n_texts; t++) {
    numbers[n++] = (int64_t)texts[t].n_tokens;
    for (size_t i = 0; i < texts[t].n_tokens; i++) numbers[n++] = texts[t].tokens[i];
  }
  status result = arm_finish(a);
  uint64_t digest = arm_digest(a);
  if (!result) result = run_state_keep(s, index, numbers, n, &digest, 1);
  free(numbers);
  return result;
}

static status keep_step(run_state *s, size_t index, arm *a, const report_text *texts, int64_t n_texts) {
  bool due;
  TRY(run_state_step(s, &due));
  if (!due) return 0;
  TRY(job_agree(s->j, keep_tokens(s, index, a, texts, n_texts), "the kept state"));
  return run_state_write(s);
}

static status refuse_lists(void) {
  return REFUSE("run.resume: the kept state of this arm is none of a generation of run.generate tokens");
}

// The tokens that are kept of this arm, into the texts. *found: there are some.
static status take_tokens(const job *j, const run_state_arm *kept, report_text *texts, bool *found) {
  size_t at = 0;
  *found = kept->n_numbers;
  for (int64_t s = 0; s < j->n_sequences && *found; s++) {
    int64_t n = at < kept->n_numbers ? kept->number[at++] : 0;
    if (n < 1 || n > j->cfg->run.generate || (size_t)n > kept->n_numbers - at) return refuse_lists();
    for (int64_t i = 0; i < n; i++) {
      int64_t token = kept->number[at++];
      if (token < 0 || token >= j->m->weights.shape.vocabulary) return refuse_lists();
      texts[s].tokens[texts[s].n_tokens++] = (int32_t)token;
    }
  }
  return *found && (at != kept->n_numbers || kept->n_words != 1) ? refuse_lists() : 0;
}

static status open_written(const job *j, int64_t s, const report_text *text, token_sequence *whole,
                           batcher *batches) {
  TRY(TAKE(&whole->tokens, (size_t)whole->n, "the sequence"));
  memcpy(whole->tokens, j->sequences[s].tokens, (size_t)j->sequences[s].n * sizeof *whole->tokens);
  memcpy(whole->tokens + j->sequences[s].n, text->tokens, (text->n_tokens - 1) * sizeof *whole->tokens);
  return batcher_open(batches, whole, 1, j->chunk < j->max_batch ? j->chunk : j->max_batch);
}

// Computes, of sequence s, the positions of the tokens written so far but for the last, which is the next
// input.
static status compute_written(job *j, arm *a, int64_t s, const report_text *text) {
  token_sequence whole = {.n = j->sequences[s].n + (int64_t)text->n_tokens - 1};
  batcher batches = {.chunk = 0};
  token_batch batch;
  status result = job_agree(j, open_written(j, s, text, &whole, &batches), "the tokens that are kept");
  batches.number = s;
  batches.position = j->sequences[s].n;
  while (!result && batcher_next(&batches, &batch)) {
    result = arm_forward(a, &batch);
    for (int64_t first = 0; first < batch.n && !result; first += LOGIT_ROWS)
      result = arm_head(a, first, batch.n - first < LOGIT_ROWS ? batch.n - first : LOGIT_ROWS);
  }
  batcher_close(&batches);
  free(whole.tokens);
  return result;
}

// By the law the tokens that are kept, computed at once, give the digest of when they were written one by
// one.
static status check_resumed(job *j, arm *a, uint64_t kept) {
  TRY(arm_finish(a));
  uint64_t digest = arm_digest(a);
  TRY(arm_broadcast(a, &digest, sizeof digest, "the digest of what is kept"));
  return job_agree(j,
                   digest == kept
                       ? 0
                       : FAIL("run.resume: the tokens that are kept of %s give the digest %016llx, "
                              "expected %016llx, as when they were written",
                              arm_name(a), (unsigned long long)digest, (unsigned long long)kept),
                   "run.resume");
}

static status resume_texts(job *j, arm *a, decoding *d, const run_state_arm *kept, report_text *texts,
                           bool *found) {
  TRY(job_agree(j, take_tokens(j, kept, texts, found), "run.resume"));
  if (!*found) return 0;
  for (int64_t s = 0; s < d->n; s++) {
    TRY(compute_written(j, a, s, &texts[s]));
    d->token[s] = texts[s].tokens[texts[s].n_tokens - 1];
    for (size_t i = 0; i < texts[s].n_tokens; i++)
      TRY(stops_see(&d->ended[s], d->stops, s, texts[s].tokens[i]));
  }
  return check_resumed(j, a, kept->word[0]);
}

static int64_t most_tokens(const report_text *texts, int64_t n) {
  size_t most = 0;
  for (int64_t s = 0; s < n; s++) most = texts[s].n_tokens > most ? texts[s].n_tokens : most;
  return (int64_t)most;
}

static status decode_start(job *j, arm *a, decoding *d, const double *last, const generate_kept *kept,
                           report_text *texts) {
  bool found = false;
  if (kept) TRY(resume_texts(j, a, d, &kept->state->arm[kept->index], texts, &found));
  return found ? 0 : decode_first(j, a, d, last, texts);
}

// *before: the arm's seconds before the first of the *decoded tokens.
static status decode_all(job *j, arm *a, decoding *d, const double *last, const generate_kept *kept,
                         report_text *texts, int64_t *decoded, double *before) {
  int64_t limit = j->cfg->run.generate;
  progress shown = progress_start(job_is_reporting(j), arm_name(a), "tokens written", limit);
  int32_t *packed;
  TRY(TAKE(&packed, (size_t)d->n, "decoding"));
  status result = decode_start(j, a, d, last, kept, texts);
  if (result) status_within("decoded token 1");
  *before = arm_seconds(a); // what was kept has been computed again
  for (int64_t step = most_tokens(texts, d->n) - 1; step + 1 < limit && !result; step++) {
    token_batch batch = next_batch(d, j, step, packed);
    if (!batch.n) break;
    result = decode_step(a, d, &batch, texts);
    if (result) status_within("decoded token %lld", (long long)step + 2);
    *decoded += batch.n;
    if (!result && kept) result = keep_step(kept->state, kept->index, a, texts, d->n);
    progress_at(&shown, step + 2);
  }
  progress_end(&shown);
  free(packed);
  return result;
}

static status open_texts(const job *j, report_arm *out) {
  out->n_texts = (size_t)j->n_sequences;
  TRY(TAKE(&out->texts, out->n_texts, "the written texts"));
  for (size_t s = 0; s < out->n_texts; s++) {
    out->texts[s].sequence = (int64_t)s;
    TRY(TAKE(&out->texts[s].tokens, (size_t)j->cfg->run.generate, "the written texts"));
  }
  return 0;
}

// A text ends at a NUL, so of these each becomes U+FFFD.
static status text_of(char **out, const char *bytes, size_t length) {
  static const char instead[] = "\xef\xbf\xbd";
  size_t room = length + 1, at = 0;
  for (size_t i = 0; i < length; i++) room += bytes[i] ? 0 : sizeof instead - 2;
  TRY(TAKE(out, room, "the written texts"));
  for (size_t i = 0; i < length; i++) {
    size_t n = bytes[i] ? 1 : sizeof instead - 1;
    memcpy(*out + at, bytes[i] ? bytes + i : instead, n);
    at += n;
  }
  return 0;
}

static status decode_text(const job *j, report_text *t) {
  char *bytes;
  size_t length;
  if (!j->tokenizer) return 0;
  TRY(tokenizer_decode(j->tokenizer, t->tokens, t->n_tokens, &bytes, &length));
  status result = text_of(&t->text, bytes, length);
  free(bytes);
  return result;
}

static status finish_texts(const job *j, const arm *a, const decoding *d, report_arm *out) {
  for (size_t s = 0; s < out->n_texts; s++) {
    report_text *t = &out->texts[s];
    t->digest = arm_sequence_digest(a, s);
    TRY(TAKE(&t->stopped_by, strlen(stops_reason(d->stops, (int64_t)s)) + 1, "the written texts"));
    strcpy(t->stopped_by, stops_reason(d->stops, (int64_t)s));
    TRY(decode_text(j, t));
  }
  return 0;
}

status generate_continue(job *j, arm *a, const double *last, const generate_kept *kept, report_arm *out) {
  decoding d;
  int64_t decoded = 0;
  double before = 0;
  status result;
  TRY_DONE(result, decoding_open(&d, j));
  TRY_DONE(result, open_texts(j, out));
  TRY_DONE(result, decode_all(j, a, &d, last, kept, out->texts, &decoded, &before));
  if (decoded) out->decode_tokens_per_s = (double)decoded / (arm_seconds(a) - before);
  arm_attention(a, out->attention, sizeof out->attention); // of what was written too
  TRY_DONE(result, finish_texts(j, a, &d, out));
  TRY_DONE(result, arm_audit_coverage(a, &out->audit)); // of the prompt and what was written
  if (kept)
    result = job_agree(j, keep_tokens(kept->state, kept->index, a, out->texts, d.n), "the kept state");
done:
  decoding_close(&d);
  return result;
}

// Computes the prompts; the text is continued from each sequence's last logits, but the digest covers all.
static status compute_prompts(job *j, arm *a, double *last) {
  int64_t vocabulary = j->m->weights.shape.vocabulary, done = 0;
  progress shown = progress_start(job_is_reporting(j), arm_name(a), "tokens read", j->n_tokens);
  batcher batches;
  token_batch batch;
  status result = batcher_open(&batches, j->sequences, j->n_sequences, j->chunk);
  while (!result && batcher_next(&batches, &batch)) {
    result = arm_forward(a, &batch);
    for (int64_t first = 0; first < batch.n && !result; first += LOGIT_ROWS) {
      int64_t count = batch.n - first < LOGIT_ROWS ? batch.n - first : LOGIT_ROWS;
      result = arm_head(a, first, count);
      for (int64_t i = 0; i < count && !result && arm_computes_shared(a); i++) {
        int64_t s = batch.sequence[first + i];
        if (batch.position[first + i] == j->sequences[s].n - 1) arm_logits(a, i, last + s * vocabulary);
      }
    }
    if (result) status_within("prompt tokens %lld to %lld", (long long)done + 1, (long long)(done + batch.n));
    progress_at(&shown, done += batch.n);
  }
  progress_end(&shown);
  batcher_close(&batches);
  return result;
}

static status generate_arm(job *j, size_t index, run_state *state, report *r) {
  const generate_kept kept = {state, index};
  arm *a;
  double *last = NULL;
  TRY(job_open_arm(j, &j->cfg->run.arms.arm[index], &a));
  arm_reset(a);
  status result;
  if (arm_computes_shared(a))
    TRY_DONE(result, TAKE(&last, (size_t)(j->n_sequences * j->m->weights.shape.vocabulary), "last logits"));
  TRY_DONE(result, compute_prompts(j, a, last));
  TRY_DONE(result, job_report_arm(j, a, r, index, j->n_tokens));
  if (j->cfg->run.generate) TRY_DONE(result, generate_continue(j, a, last, &kept, &r->arms[index]));
  result = job_check_digest(j, a);
done:
  free(last);
  arm_close(a);
  return result;
}

status generate_run(job *j) {
  report r = {.n_arms = 0};
  bool writes = j->cfg->run.generate > 0;
  TRY(job_agree(j, writes ? 0 : REFUSE("run.generate = 0: expected a number of tokens to write"),
                "run.generate"));
  run_state state = {.j = NULL};
  status result = job_report_open(j, &r, j->cfg->run.arms.count, 0, 0);
  if (!result) result = run_state_open(&state, j);
  for (size_t a = 0; a < j->cfg->run.arms.count && !result; a++) result = generate_arm(j, a, &state, &r);
  if (!result) result = gate_report_finish(j, &r);
  if (!result || result == STATUS_DIFFERS) {
    status removed = run_state_remove(&state);
    if (!result) result = removed;
  }
  run_state_close(&state);
  job_report_close(&r);
  return result;
}
