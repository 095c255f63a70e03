#include "src/lab/screen_unit.h"
#include "base/memory.h"
#include <stdlib.h>
#include <string.h>

enum { HEAD_ROWS = 32 }; // logits are computed so many rows at a time

const char *screen_cut_name(screen_cut cut) {
  switch (cut) {
  case CUT_PROBES:
    return "probes";
  case CUT_PROMPT:
    return "prompt";
  case CUT_WIDE:
    return "wide";
  case CUT_PARTS:
    return "parts";
  case CUT_RAGGED:
    return "ragged";
  case CUT_BATCH:
    return "batch";
  case CUT_DECODE:
    return "decode";
  }
  __builtin_unreachable();
}

// ---- open and close ----

static status watch_device(void *context, double waited) {
  const screen_work *w = context;
  return waited < w->deadline ? 0 : FAIL("its GPU has not answered within %g s", w->deadline);
}

status screen_unit_open(screen_unit *u, const screen_work *work, path_kind path, const backend_ops *where,
                        const char *row, int64_t sequences) {
  const model_shape *s = &work->m->weights.shape;
  int64_t most = sequences * work->n_tokens;
  *u = (screen_unit){.work = work, .path = path_for(path, &work->m->weights), .sequences = sequences};
  const backend_params p = {
      .weights = &work->m->weights,
      .shared = path,
      .experts = path,
      .map = placement_map(work->experts),
      .n_sequences = sequences,
      .context = work->n_tokens,
      .max_batch = most,
      .max_logit_rows = HEAD_ROWS,
      .kv_f16 = true,
      .computes_shared = true,
      .threads = work->threads,
      .host_rank = work->host_rank,
      .row = row,
      .n_ranks = 1,
      .watch = watch_device,
      .watch_context = (void *)work,
  };
  TRY(TAKE(&u->token, (size_t)most, "a batch"));
  TRY(TAKE(&u->sequence, (size_t)most, "a batch"));
  TRY(TAKE(&u->position, (size_t)most, "a batch"));
  TRY(TAKE(&u->layers, (size_t)(s->n_layers * sequences), "digests"));
  TRY(TAKE(&u->logits, (size_t)sequences, "digests"));
  return where->open(&u->compute, &p);
}

void screen_unit_close(screen_unit *u) {
  if (u->compute) u->compute->ops->close(u->compute);
  free(u->token);
  free(u->sequence);
  free(u->position);
  free(u->layers);
  free(u->logits);
  *u = (screen_unit){.compute = NULL};
}

// ---- a batch ----

static status digest(screen_unit *u, int64_t layer, const token_batch *rows) {
  return u->compute->ops->digest(u->compute, layer, rows, 0, rows->n, u->layers + layer * u->sequences);
}

static status run_steps(void *context, const token_batch *rows) {
  screen_unit *u = context;
  backend *b = u->compute;
  TRY(b->ops->embed(b, rows));
  for (int64_t layer = 0; layer < u->work->m->weights.shape.n_layers; layer++) {
    TRY(b->ops->attention(b, layer, rows));
    TRY(b->ops->moe(b, layer, rows));
    TRY(digest(u, layer, rows));
  }
  return 0;
}

static status run_parts(screen_unit *u, const token_batch *rows) {
  static const slot_places in_order = {.order = SLOTS_IN_ORDER};
  backend *b = u->compute;
  TRY(b->ops->embed(b, rows));
  for (int64_t layer = 0; layer < u->work->m->weights.shape.n_layers; layer++) {
    TRY(b->ops->project(b, layer, rows, 0, rows->n));
    TRY(b->ops->attend(b, layer, rows, 0, rows->n));
    TRY(b->ops->route(b, layer, rows, 0, rows->n, ROUTING_NOTHING));
    TRY(b->ops->experts_up(b, layer, rows));
    TRY(b->ops->experts_down(b, layer, rows, &in_order));
    TRY(b->ops->combine(b, layer, rows, 0, rows->n, &in_order));
    TRY(digest(u, layer, rows));
  }
  return 0;
}

static status run_heads(screen_unit *u, const token_batch *rows) {
  backend *b = u->compute;
  int64_t row[HEAD_ROWS];
  for (int64_t first = 0, n; first < rows->n; first += n) {
    n = rows->n - first < HEAD_ROWS ? rows->n - first : HEAD_ROWS;
    for (int64_t i = 0; i < n; i++) row[i] = first + i;
    TRY(b->ops->head(b, rows, row, n));
    TRY(b->ops->logits_digest(b, rows, row, n, u->logits));
  }
  return 0;
}

static status run_batch(screen_unit *u, screen_cut cut, const token_batch *rows) {
  backend *b = u->compute;
  u->last = *rows;
  if (cut == CUT_PARTS)
    TRY(run_parts(u, rows));
  else if (backend_is_on_device(b->ops) && cut != CUT_PROBES)
    TRY(b->ops->captured(b, rows, 0, true, run_steps, u));
  else
    TRY(run_steps(u, rows));
  return run_heads(u, rows);
}

// ---- cuts ----

// Tokens of a sequence in its batch number `index`.
static int64_t cut_length(screen_cut cut, int64_t index, int64_t n_tokens) {
  static const int64_t RAGGED[] = {2, 3, 5, 9, 17, 33, 65};
  switch (cut) {
  case CUT_PROBES:
  case CUT_PROMPT:
  case CUT_WIDE:
  case CUT_PARTS:
    return n_tokens;
  case CUT_RAGGED:
    return RAGGED[index % (int64_t)(sizeof RAGGED / sizeof *RAGGED)];
  case CUT_BATCH:
  case CUT_DECODE:
    return 1;
  }
  __builtin_unreachable();
}

static int64_t cut_sequences(const screen_unit *u, screen_cut cut) {
  return cut == CUT_WIDE || cut == CUT_BATCH ? u->sequences : 1;
}

int64_t screen_cut_tokens(const screen_unit *u, screen_cut cut) {
  return cut == CUT_PROBES ? screen_probe_tokens(u->work) : cut_sequences(u, cut) * u->work->n_tokens;
}

// Positions first .. first + n - 1 of each sequence, one sequence after the other.
static token_batch put_together(screen_unit *u, int64_t sequences, int64_t first, int64_t n) {
  int64_t i = 0;
  for (int64_t s = 0; s < sequences; s++)
    for (int64_t p = first; p < first + n; p++, i++) {
      u->token[i] = u->work->tokens[p];
      u->sequence[i] = (int32_t)s;
      u->position[i] = (int32_t)p;
    }
  return (token_batch){i, u->token, u->sequence, u->position};
}

static status run(screen_unit *u, screen_cut cut, int64_t n_tokens) {
  const backend_ops *ops = u->compute->ops;
  memset(u->layers, 0, (size_t)(u->work->m->weights.shape.n_layers * u->sequences) * sizeof *u->layers);
  memset(u->logits, 0, (size_t)u->sequences * sizeof *u->logits);
  for (int64_t first = 0, index = 0, n; first < n_tokens; first += n, index++) {
    n = cut_length(cut, index, n_tokens);
    if (n > n_tokens - first) n = n_tokens - first;
    token_batch rows = put_together(u, cut_sequences(u, cut), first, n);
    TRY(run_batch(u, cut, &rows));
  }
  return ops->finish ? ops->finish(u->compute) : 0;
}

status screen_unit_run(screen_unit *u, screen_cut cut) {
  return run(u, cut, u->work->n_tokens);
}

int64_t screen_probe_tokens(const screen_work *work) {
  return work->n_tokens < SCREEN_PROBE_TOKENS ? work->n_tokens : SCREEN_PROBE_TOKENS;
}

status screen_unit_probe(screen_unit *u, screen_store *store, bool compares) {
  const backend_ops *ops = u->compute->ops;
  const probe_watch all = {.wanted = (1u << PROBE_COUNT) - 1, .show = screen_store_show, .context = store},
                    none = {.wanted = 0};
  screen_store_start(store, compares);
  TRY(ops->probes_watch(u->compute, &all));
  status result = run(u, CUT_PROBES, screen_probe_tokens(u->work));
  status after = ops->probes_watch(u->compute, &none);
  return result ? result : after;
}

status screen_unit_stream(screen_unit *u, double *out) {
  return u->compute->ops->stream_read(u->compute, 0, u->last.n, out);
}
