#include "src/run/arms_in_step.h"
#include "base/memory.h"
#include "base/progress.h"
#include <stdlib.h>
#include <string.h>

typedef struct {
  const arms_in_step *s;
  int64_t hidden, top_k, n_layers;
  double *stream;       // [max_batch][hidden] of the reference, where the mode imposes it
  expert_global *given; // [max_batch][top_k] of the reference, where the mode imposes it
  int64_t first;        // the batch's first token
} pass;

size_t arms_reference(const arm_list *arms) {
  for (size_t a = 0; a < arms->count; a++)
    if (arm_is_truth(&arms->arm[a])) return a;
  return 0;
}

static status pass_open(pass *p, const arms_in_step *s) {
  const model_shape *shape = &s->j->m->weights.shape;
  size_t n = (size_t)s->j->max_batch;
  *p = (pass){.s = s, .hidden = shape->hidden, .top_k = shape->top_k, .n_layers = shape->n_layers};
  if (parity_mode_imposes_stream(s->mode)) TRY(TAKE(&p->stream, n * (size_t)p->hidden, "the truth's stream"));
  if (parity_mode_imposes_routing(s->mode)) TRY(TAKE(&p->given, n * (size_t)p->top_k, "the truth's routing"));
  return 0;
}

static void pass_close(pass *p) {
  free(p->stream);
  free(p->given);
}

// ---- what the reference has, on every rank ----

// Its expert ranks have no stream and no routing, but other arms may compute shared steps there.
static status take_stream(pass *p, const token_batch *batch) {
  arm *reference = p->s->arms[p->s->reference];
  if (arm_computes_shared(reference)) TRY(arm_stream_read(reference, p->stream));
  return arm_broadcast(reference, p->stream, (size_t)(batch->n * p->hidden) * sizeof *p->stream,
                       "the truth's stream");
}

static status take_routing(pass *p, const token_batch *batch) {
  arm *reference = p->s->arms[p->s->reference];
  size_t row = (size_t)p->top_k * sizeof *p->given;
  for (int64_t t = 0; t < batch->n && arm_computes_shared(reference); t++)
    memcpy(p->given + t * p->top_k, arm_experts(reference, t), row);
  return arm_broadcast(reference, p->given, (size_t)batch->n * row, "the truth's routing");
}

// ---- a batch ----

// Gives every arm but the reference the reference's stream.
static status impose_stream(pass *p, const token_batch *batch) {
  TRY(take_stream(p, batch));
  for (size_t a = 0; a < p->s->n_arms; a++)
    if (a != p->s->reference) TRY(arm_stream_write(p->s->arms[a], p->stream));
  return 0;
}

static status impose_routing(pass *p, size_t a, int64_t layer) {
  if (p->s->imposed) return arm_impose_choice(p->s->arms[a], routes_at(p->s->imposed, layer, p->first));
  if (!p->given || a == p->s->reference) return 0;
  return arm_impose_choice(p->s->arms[a], p->given);
}

// The reference first: the others may need its routing.
static status compute_layer(pass *p, int64_t layer, const token_batch *batch) {
  const arms_in_step *s = p->s;
  if (p->stream) TRY(impose_stream(p, batch));
  TRY(impose_routing(p, s->reference, layer));
  TRY(arm_layer(s->arms[s->reference], layer));
  if (p->given) TRY(take_routing(p, batch));
  for (size_t a = 0; a < s->n_arms; a++) {
    if (a == s->reference) continue;
    TRY(impose_routing(p, a, layer));
    TRY(arm_layer(s->arms[a], layer));
  }
  return s->observer.layer ? s->observer.layer(s->observer.context, layer, batch, p->first) : 0;
}

static status compute_logits(pass *p, const token_batch *batch) {
  const arms_in_step *s = p->s;
  for (int64_t from = 0; from < batch->n; from += LOGIT_ROWS) {
    int64_t count = batch->n - from < LOGIT_ROWS ? batch->n - from : LOGIT_ROWS;
    for (size_t a = 0; a < s->n_arms; a++) TRY(arm_head(s->arms[a], from, count));
    if (s->observer.logits) TRY(s->observer.logits(s->observer.context, batch, p->first, from, count));
  }
  return 0;
}

static status compute_batch(pass *p, const token_batch *batch) {
  const arms_in_step *s = p->s;
  for (size_t a = 0; a < s->n_arms; a++) TRY(arm_embed(s->arms[a], batch));
  if (s->observer.embedded) TRY(s->observer.embedded(s->observer.context, batch, p->first));
  for (int64_t layer = 0; layer < p->n_layers; layer++) TRY(compute_layer(p, layer, batch));
  if (s->without_logits) return 0;
  if (p->stream) TRY(impose_stream(p, batch));
  return compute_logits(p, batch);
}

// ---- the whole input ----

static status compute_all(pass *p) {
  const job *j = p->s->j;
  const char *of_mode = p->s->mode == MODE_FREE ? "parity" : parity_mode_name(p->s->mode);
  const char *what = p->s->what ? p->s->what : of_mode;
  progress shown = progress_start(job_is_reporting(j), what, "tokens", j->n_tokens);
  batcher batches;
  token_batch batch;
  status result = batcher_open(&batches, j->sequences, j->n_sequences, j->chunk);
  while (!result && batcher_next(&batches, &batch)) {
    result = compute_batch(p, &batch);
    if (result)
      status_within("tokens %lld to %lld", (long long)p->first + 1, (long long)(p->first + batch.n));
    p->first += batch.n;
    progress_at(&shown, p->first);
  }
  progress_end(&shown);
  batcher_close(&batches);
  return result;
}

status arms_in_step_run(const arms_in_step *s) {
  pass p;
  status result = job_agree(s->j, pass_open(&p, s), "opening a run of arms in step");
  for (size_t a = 0; a < s->n_arms; a++) {
    arm_watch_layers(s->arms[a], true);
    arm_reset(s->arms[a]);
  }
  if (!result) result = compute_all(&p);
  pass_close(&p);
  return result;
}
