#include "src/commands/route.h"
#include "base/memory.h"
#include "base/progress.h"
#include "src/report/npy.h"
#include "src/run/placement_counted.h"
#include <stdio.h>
#include <stdlib.h>

typedef struct {
  job *j;
  arm *a;
  int32_t *count; // [n_layers][n_experts]; on the reporting rank
  int64_t done;
  progress shown;
} counting;

// ---- the text ----

static status count_batch(counting *c, const token_batch *batch) {
  const model_shape *s = &c->j->m->weights.shape;
  TRY(arm_embed(c->a, batch));
  for (int64_t l = 0; l < s->n_layers; l++) {
    TRY(arm_layer(c->a, l));
    for (int64_t t = 0; t < batch->n && c->count; t++)
      for (int64_t k = 0; k < s->top_k; k++) c->count[l * s->n_experts + arm_experts(c->a, t)[k].id]++;
  }
  return 0;
}

// A window of sequence `number`, whose cache it uses.
static status count_window(counting *c, const token_sequence *window, int64_t number) {
  batcher batches;
  token_batch batch;
  const job *j = c->j;
  status result = batcher_open(&batches, window, 1, j->chunk < j->max_batch ? j->chunk : j->max_batch);
  batches.number = number;
  while (!result && batcher_next(&batches, &batch)) {
    result = count_batch(c, &batch);
    if (result) status_within("tokens %lld to %lld", (long long)c->done + 1, (long long)(c->done + batch.n));
    c->done += batch.n;
    progress_at(&c->shown, c->done);
  }
  batcher_close(&batches);
  return result;
}

// In windows of the context, the last one shorter.
static status count_text(counting *c) {
  const job *j = c->j;
  for (int64_t i = 0; i < j->n_sequences; i++) {
    const token_sequence *all = &j->sequences[i];
    for (int64_t first = 0; first < all->n; first += j->context) {
      int64_t rest = all->n - first;
      const token_sequence window = {all->tokens + first, rest < j->context ? rest : j->context};
      TRY(count_window(c, &window, i));
    }
  }
  return 0;
}

// ---- what came of it ----

static void print_layers(const counting *c) {
  const model_shape *s = &c->j->m->weights.shape;
  double mean = (double)(c->j->n_tokens * s->top_k) / (double)s->n_experts;
  printf("| layer | most chosen | times the mean | least chosen | times the mean | never |\n"
         "|---|---|---|---|---|---|\n");
  for (int64_t l = 0; l < s->n_layers; l++) {
    const int32_t *count = c->count + l * s->n_experts;
    int64_t most = 0, least = 0, never = 0;
    for (int64_t e = 0; e < s->n_experts; e++) {
      if (count[e] > count[most]) most = e;
      if (count[e] < count[least]) least = e;
      never += !count[e];
    }
    printf("| %lld | %lld | %.2f | %lld | %.2f | %lld |\n", (long long)l, (long long)most, count[most] / mean,
           (long long)least, count[least] / mean, (long long)never);
  }
}

enum { MOST_RANKS = 16 };

// holds: [n_layers][n_experts][MOST_RANKS], for work
static status print_ranks(placement_question *q, bool *holds) {
  printf("\nLoad of the busiest rank over the mean rank's, of this text, if ranks held experts\n\n"
         "| ranks | contiguous | counted |\n|---|---|---|\n");
  for (q->n_ranks = 2; q->n_ranks <= MOST_RANKS && q->n_ranks <= q->n_experts; q->n_ranks *= 2) {
    double contiguous, counted;
    TRY(placement_load_contiguous(&contiguous, q));
    TRY(placement_count(holds, q));
    TRY(placement_load(&counted, holds, q));
    printf("| %d | %.3f | %.3f |\n", q->n_ranks, contiguous, counted);
  }
  return 0;
}

static status print_outlook(const counting *c) {
  const model_shape *s = &c->j->m->weights.shape;
  size_t n = (size_t)(s->n_layers * s->n_experts);
  int64_t *counts = NULL;
  bool *holds = NULL;
  status result;
  TRY_DONE(result, TAKE(&counts, n, "the counts of experts"));
  TRY_DONE(result, TAKE(&holds, n * MOST_RANKS, "the placement"));
  for (size_t i = 0; i < n; i++) counts[i] = c->count[i];
  placement_question q = {.counts = counts,
                          .n_tokens = c->j->n_tokens,
                          .n_layers = s->n_layers,
                          .n_experts = s->n_experts,
                          .bytes = UINT64_MAX};
  result = print_ranks(&q, holds);
done:
  free(counts);
  free(holds);
  return result;
}

static status write_counts(const counting *c) {
  const model_shape *s = &c->j->m->weights.shape;
  const char *dir = c->j->cfg->output.dir;
  const npy_row row = {NPY_I32, 1, {s->n_experts}};
  npy *f;
  if (!dir[0]) return 0;
  TRY(npy_open(&f, dir, "counts.npy", &row));
  status result = npy_append(f, c->count, (size_t)s->n_layers);
  if (!result) return npy_finish(f);
  npy_abandon(f);
  return result;
}

static status finish(counting *c) {
  const model_shape *s = &c->j->m->weights.shape;
  TRY(write_counts(c));
  printf("%s, %lld tokens, %lld layers, %lld of %lld experts to a token\n\n", arm_name(c->a),
         (long long)c->j->n_tokens, (long long)s->n_layers, (long long)s->top_k, (long long)s->n_experts);
  print_layers(c);
  TRY(print_outlook(c));
  return fflush(stdout) ? FAIL("standard output: could not be written: %m") : 0;
}

// ---- the command ----

static status check(const job *j) {
  size_t n = j->cfg->run.arms.count;
  if (n != 1) return REFUSE("run.arms: route counts the choices of one arm, found %zu", n);
  return j->n_tokens <= INT32_MAX ? 0 : REFUSE("input: expected at most %d tokens to count", INT32_MAX);
}

static status open_counts(counting *c) {
  const model_shape *s = &c->j->m->weights.shape;
  arm_watch_layers(c->a, true);
  arm_reset(c->a);
  return job_is_reporting(c->j)
             ? TAKE(&c->count, (size_t)(s->n_layers * s->n_experts), "the counts of experts")
             : 0;
}

status route_run(job *j) {
  counting c = {.j = j};
  status result;
  TRY(job_agree(j, check(j), "what to count"));
  TRY(job_open_arm(j, &j->cfg->run.arms.arm[0], &c.a));
  c.shown = progress_start(job_is_reporting(j), arm_name(c.a), "tokens", j->n_tokens);
  TRY_DONE(result, job_agree(j, open_counts(&c), "the counts of experts"));
  TRY_DONE(result, count_text(&c));
  progress_end(&c.shown);
  TRY_DONE(result, job_agree(j, c.count ? finish(&c) : 0, "writing the counts"));
done:
  progress_end(&c.shown); // before any error is printed
  free(c.count);
  arm_close(c.a);
  return result;
}
