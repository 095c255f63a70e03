// What a unit computed against what is expected: local.
#include "src/lab/screen_parts.h"
#include "base/clock.h"
#include <stdio.h>
#include <string.h>

static bool is_same_place(const screen_finding *a, const screen_finding *b) {
  return a->place == b->place && a->from == b->from && !strcmp(a->arm, b->arm) && !strcmp(a->row, b->row) &&
         !strcmp(a->work, b->work) && !strcmp(a->step, b->step);
}

void screen_add(screen *s, const screen_finding *f) {
  screen_rank *mine = &s->mine;
  for (int32_t i = 0; i < mine->n_findings; i++)
    if (is_same_place(&s->found[i], f)) {
      s->found[i].times++;
      return;
    }
  if (mine->n_findings == SCREEN_FINDINGS) {
    mine->lost_findings++;
    return;
  }
  screen_finding *to = &s->found[mine->n_findings++];
  *to = *f;
  to->times = 1;
  to->rank = comm_rank(s->j->c);
  to->seconds = s->start > 0 ? clock_seconds() - s->start : 0;
}

static screen_finding at_unit(const screen_unit *u, const char *work) {
  const backend_ops *ops = u->compute->ops;
  screen_finding f = {.place = backend_is_on_device(ops) ? AT_DEVICE : AT_CORES, .from = -1};
  f.rows = f.values = f.bits = -1;
  snprintf(f.arm, sizeof f.arm, "%s", arm_choice_of(u->path->kind, ops->kind).name);
  snprintf(f.row, sizeof f.row, "%.31s", ops->row(u->compute));
  snprintf(f.work, sizeof f.work, "%s", work);
  return f;
}

static void name_layer(char *out, size_t size, int64_t layer, int64_t n_layers) {
  if (layer < n_layers)
    snprintf(out, size, "l_out-%lld", (long long)layer);
  else
    snprintf(out, size, "result_output");
}

void screen_add_unsettled(screen *s, const screen_unit *u, int64_t entry, const screen_reference *r) {
  screen_finding f = at_unit(u, "start");
  if (entry < r->n_tensors)
    screen_store_name(f.step, sizeof f.step, entry);
  else
    name_layer(f.step, sizeof f.step, entry - r->n_tensors, r->n_layers);
  screen_add(s, &f);
}

void screen_check_probes(screen *s, const screen_unit *u, const char *work) {
  const screen_reference *r = &s->reference[u->path->kind];
  screen_finding f = at_unit(u, work);
  for (int64_t i = 0; i < r->n_tensors; i++) {
    if (r->store.hash[i] == r->expected[i]) continue;
    screen_store_name(f.step, sizeof f.step, i);
    f.undecided = !r->decided[i];
    if (r->has_values) {
      f.rows = r->store.differ[i].rows;
      f.values = r->store.differ[i].values;
      f.bits = r->store.differ[i].bits;
    }
    screen_add(s, &f);
    return;
  }
}

// Of the last batch's residual stream, as reals of the path.
static void count_stream(screen_finding *f, const screen *s, const screen_unit *u, const double *now) {
  const screen_reference *r = &s->reference[u->path->kind];
  int64_t hidden = s->work.m->weights.shape.hidden;
  bool wide = u->path->real_bytes == sizeof(double);
  f->rows = f->values = f->bits = 0;
  for (int64_t t = 0; t < u->last.n; t++) {
    int64_t before = f->values;
    const double *kept = r->stream + u->last.position[t] * hidden;
    for (int64_t i = 0; i < hidden; i++) {
      double a = kept[i], b = now[t * hidden + i];
      float x = (float)a, y = (float)b;
      int64_t bits = wide ? screen_count_bits(&a, &b, sizeof a) : screen_count_bits(&x, &y, sizeof x);
      f->bits += bits;
      f->values += bits > 0;
    }
    f->rows += f->values > before;
  }
  if (!f->bits) f->rows = f->values = f->bits = -1; // it was in a batch before, or in the logits alone
}

// The first layer whose digest is another, of any sequence; n_layers: the logits alone; -1: none.
static int64_t first_layer(const screen_unit *u, const screen_reference *r, int64_t sequences) {
  for (int64_t l = 0; l < r->n_layers; l++)
    for (int64_t q = 0; q < sequences; q++)
      if (u->layers[l * u->sequences + q] != r->expected[r->n_tensors + l]) return l;
  for (int64_t q = 0; q < sequences; q++)
    if (u->logits[q] != r->expected[r->n - 1]) return r->n_layers;
  return -1;
}

status screen_check_run(screen *s, screen_unit *u, screen_cut cut) {
  const screen_reference *r = &s->reference[u->path->kind];
  int64_t sequences = screen_cut_tokens(u, cut) / s->work.n_tokens, layer = first_layer(u, r, sequences);
  if (layer < 0) return 0;
  screen_finding f = at_unit(u, screen_cut_name(cut));
  f.undecided = !r->decided[r->n_tensors + layer];
  name_layer(f.step, sizeof f.step, layer, r->n_layers);
  if (r->has_values) {
    TRY(screen_unit_stream(u, s->stream));
    count_stream(&f, s, u, s->stream);
  }
  screen_add(s, &f);
  return 0;
}
