#include "src/commands/trace.h"
#include "base/memory.h"
#include "src/report/trace_index.h"
#include "base/progress.h"
#include <inttypes.h>
#include <stdlib.h>

typedef struct {
  job *j;
  uint32_t points;   // bits 1 << probe_point
  bool *layers;      // [n_layers] that are traced
  trace_files files; // the reporting rank's
  report r;
  token_batch all; // tokens of all sequences, in order; the reporting rank's
  // of the arm at hand
  size_t index;
  arm *a;
} trace;

// ---- what is asked for ----

static uint32_t points_of(uint32_t points, probe_scope scope) {
  uint32_t found = 0;
  for (int p = 0; p < PROBE_COUNT; p++)
    if (points >> p & 1 && probe_get((probe_point)p)->scope == scope) found |= 1u << p;
  return found;
}

static status choose_layers(trace *t) {
  const config *c = t->j->cfg;
  int64_t n_layers = t->j->m->weights.shape.n_layers;
  TRY(TAKE(&t->layers, (size_t)n_layers, "the layers of a trace"));
  for (int64_t l = 0; l < n_layers && !c->trace.n_layers; l++) t->layers[l] = true;
  for (size_t i = 0; i < c->trace.n_layers; i++) {
    int32_t layer = c->trace.layers[i];
    if (layer >= n_layers)
      return REFUSE("trace.layers: %s has layers 0 to %" PRId64 ", found %" PRId32 ": did you mean %" PRId64
                    "?",
                    gguf_path(t->j->m->file), n_layers - 1, layer, n_layers - 1);
    t->layers[layer] = true;
  }
  return 0;
}

static status choose(trace *t) {
  const config *c = t->j->cfg;
  t->points = c->trace.probes ? c->trace.probes : (1u << PROBE_COUNT) - 1;
  if (!c->output.dir[0]) return REFUSE("trace: expected a folder for it (--out, output.dir), found none");
  if (c->trace.n_layers && !points_of(t->points, PROBE_OF_LAYER))
    return REFUSE("trace.layers: none of trace.probes is a layer's");
  return choose_layers(t);
}

// ---- the reporting rank's files ----

static status open_tokens(trace *t) {
  const job *j = t->j;
  int32_t *token, *sequence, *position;
  TRY(TAKE(&token, (size_t)j->n_tokens, "the tokens"));
  t->all.token = token;
  TRY(TAKE(&sequence, (size_t)j->n_tokens, "the tokens"));
  t->all.sequence = sequence;
  TRY(TAKE(&position, (size_t)j->n_tokens, "the tokens"));
  t->all.position = position;
  for (int64_t s = 0; s < j->n_sequences; s++)
    for (int64_t i = 0; i < j->sequences[s].n; i++) {
      token[t->all.n] = j->sequences[s].tokens[i];
      sequence[t->all.n] = (int32_t)s;
      position[t->all.n++] = (int32_t)i;
    }
  return 0;
}

static status open_files(trace *t) {
  const job *j = t->j;
  int64_t most = j->max_batch > LOGIT_ROWS ? j->max_batch : LOGIT_ROWS;
  TRY(open_tokens(t));
  return trace_files_open(&t->files, j->cfg->output.dir, &j->m->weights.shape, t->points, t->layers,
                          j->cfg->run.arms.count, most);
}

// Some of its numbers are doubles: those of the shared steps, or of some rank's experts.
static bool has_f64(const job *j, const arm_choice *a) {
  bool has = a->kind == ARM_MIXED && j->roles.shared_arm.path == PATH_F64;
  for (int r = 0; r < comm_size(j->c); r++) has = has || job_arm_of_rank(j, a, r)->path == PATH_F64;
  return has;
}

// ---- an arm ----

static status take(trace *t, uint32_t points, int64_t layer, int64_t n_tokens) {
  for (int p = 0; p < PROBE_COUNT; p++) {
    const double *numbers;
    if (!(points >> p & 1)) continue;
    TRY(arm_probe_take(t->a, (probe_point)p, &numbers));
    if (numbers) TRY(trace_files_append(&t->files, t->index, (probe_point)p, layer, numbers, n_tokens));
  }
  return 0;
}

// Only what the next step is asked for is watched, so that the others run as they would without a trace.
static status trace_batch(trace *t, const token_batch *batch) {
  uint32_t of_batch = points_of(t->points, PROBE_OF_BATCH), of_layer = points_of(t->points, PROBE_OF_LAYER),
           of_head = points_of(t->points, PROBE_OF_HEAD);
  TRY(arm_probes_want(t->a, of_batch));
  TRY(arm_embed(t->a, batch));
  TRY(take(t, of_batch, -1, batch->n));
  for (int64_t layer = 0; layer < t->j->m->weights.shape.n_layers; layer++) {
    uint32_t wanted = t->layers[layer] ? of_layer : 0;
    TRY(arm_probes_want(t->a, wanted));
    TRY(arm_layer(t->a, layer));
    TRY(take(t, wanted, layer, batch->n));
  }
  TRY(arm_probes_want(t->a, of_head));
  for (int64_t first = 0; first < batch->n; first += LOGIT_ROWS) {
    int64_t count = batch->n - first < LOGIT_ROWS ? batch->n - first : LOGIT_ROWS;
    TRY(arm_head(t->a, first, count)); // for the digest, whatever is asked for
    TRY(take(t, of_head, -1, count));
  }
  return 0;
}

static status trace_input(trace *t) {
  const job *j = t->j;
  progress shown = progress_start(job_is_reporting(j), arm_name(t->a), "tokens", j->n_tokens);
  int64_t done = 0;
  batcher batches;
  token_batch batch;
  status result = batcher_open(&batches, j->sequences, j->n_sequences, j->chunk);
  while (!result && batcher_next(&batches, &batch)) {
    result = trace_batch(t, &batch);
    if (result) status_within("tokens %lld to %lld", (long long)done + 1, (long long)(done + batch.n));
    done += batch.n;
    progress_at(&shown, done);
  }
  progress_end(&shown);
  batcher_close(&batches);
  return result;
}

static status open_arm(trace *t, const arm_choice *a) {
  TRY(arm_probes_open(t->a, t->points));
  arm_keep_logits(t->a, false);
  return job_is_reporting(t->j) ? trace_files_add(&t->files, t->index, a->name, has_f64(t->j, a)) : 0;
}

// The arms run one after the other, so that the memory of one is enough.
static status trace_arm_at(trace *t, size_t index) {
  job *j = t->j;
  const arm_choice *a = &j->cfg->run.arms.arm[index];
  status result;
  t->index = index;
  TRY(job_open_arm(j, a, &t->a));
  TRY_DONE(result, job_agree(j, open_arm(t, a), "opening a trace"));
  arm_reset(t->a);
  TRY_DONE(result, trace_input(t));
  TRY_DONE(result, job_report_arm(j, t->a, &t->r, index, j->n_tokens));
  result = job_check_digest(j, t->a);
done:
  arm_close(t->a);
  t->a = NULL;
  return result;
}

// ---- the whole ----

static status finish(trace *t) {
  TRY(trace_index_write(&t->files, &t->r, &t->all));
  report_print(&t->r, stdout);
  return fflush(stdout) ? FAIL("standard output: the report could not be written: %m") : 0;
}

static void trace_close(trace *t) {
  trace_files_close(&t->files);
  job_report_close(&t->r);
  free(t->layers);
  free((void *)t->all.token);
  free((void *)t->all.sequence);
  free((void *)t->all.position);
}

status trace_run(job *j) {
  trace t = {.j = j};
  bool reports = job_is_reporting(j);
  status result;
  TRY_DONE(result, job_agree(j, choose(&t), "what to trace"));
  TRY_DONE(result, job_agree(j, reports ? open_files(&t) : 0, "opening a trace"));
  TRY_DONE(result, job_report_open(j, &t.r, j->cfg->run.arms.count, 0, 0));
  for (size_t a = 0; a < j->cfg->run.arms.count; a++) TRY_DONE(result, trace_arm_at(&t, a));
  result = job_agree(j, reports ? finish(&t) : 0, "writing the trace");
done:
  trace_close(&t);
  return result;
}
