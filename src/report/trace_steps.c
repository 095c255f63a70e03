#include "src/report/trace_step_files.h"
#include "base/memory.h"
#include <stdlib.h>

// ---- both sides' rows ----

status both_rows_open(both_rows *out, trace_pair *p, probe_point point, int64_t layer) {
  *out = (both_rows){.pair = p, .width = p->width[point]};
  for (int side = 0; side < SIDES; side++) {
    TRY(recorded_rows_open(&out->rows[side], p, side, point, layer));
    TRY(TAKE(&out->x[side], (size_t)out->width, probe_get(point)->name));
  }
  return 0;
}

void both_rows_close(both_rows *b) {
  for (int side = 0; side < SIDES; side++) {
    recorded_rows_close(&b->rows[side]);
    free(b->x[side]);
  }
  *b = (both_rows){.pair = NULL};
}

status both_rows_read(both_rows *b, bool *there, int64_t token) {
  int64_t row[SIDES];
  for (int side = 0; side < SIDES; side++) row[side] = recorded_rows_find(&b->rows[side], b->pair, token);
  *there = row[0] >= 0 && row[1] >= 0;
  for (int side = 0; side < SIDES && *there; side++)
    TRY(recorded_rows_read(&b->rows[side], row[side], b->x[side]));
  return 0;
}

// ---- what a step reads ----

typedef struct {
  probe_point point;
  int64_t layer;
} place_of_probe;

// The stream before a layer, or before the head; *composed: further back than the layer before.
static bool find_stream(place_of_probe *out, bool *composed, const trace_pair *p, int64_t layer) {
  int64_t before = (layer == NO_LAYER ? p->n_layers : layer) - 1;
  for (int64_t l = before; l >= 0; l--)
    if (pair_has_both(p, PROBE_L_OUT, l)) {
      *out = (place_of_probe){PROBE_L_OUT, l};
      *composed = l < before;
      return true;
    }
  *out = (place_of_probe){PROBE_INP_EMBD, NO_LAYER};
  *composed = before >= 0;
  return pair_has_both(p, PROBE_INP_EMBD, NO_LAYER);
}

// A row of the stream's width that the probe follows from, the nearest that both have.
static bool find_ancestor(place_of_probe *out, const trace_pair *p, probe_point point, int64_t layer) {
  static const probe_point NEAREST[] = {PROBE_FFN_NORM, PROBE_FFN_INP, PROBE_ATTN_NORM};
  bool composed;
  for (size_t i = 0; i < sizeof NEAREST / sizeof *NEAREST && layer != NO_LAYER; i++)
    if (NEAREST[i] < point && pair_has_both(p, NEAREST[i], layer)) {
      *out = (place_of_probe){NEAREST[i], layer};
      return true;
    }
  return find_stream(out, &composed, p, layer);
}

// The inputs of the step itself; false: both traces do not have them all.
static bool find_inputs(place_of_probe in[STEP_INPUTS], const trace_pair *p, probe_point point,
                        int64_t layer) {
  const step_info *step = step_of(point);
  bool composed = false, there = true;
  for (int i = 0; i < step->n_inputs; i++) {
    in[i] = (place_of_probe){step->input[i], layer};
    if (step->input[i] == PROBE_L_OUT)
      there = there && find_stream(&in[i], &composed, p, layer) && !composed;
    else
      there = there && pair_has_both(p, in[i].point, in[i].layer);
  }
  return there;
}

static status step_files_open(step_files *f, const place_of_probe *in, int n) {
  TRY(both_rows_open(&f->to, f->p, f->out->point, f->out->layer));
  if (n) f->in_point = in[0].point;
  for (f->n = 0; f->n < n; f->n++) TRY(both_rows_open(&f->in[f->n], f->p, in[f->n].point, in[f->n].layer));
  return 0;
}

static void step_files_close(step_files *f) {
  both_rows_close(&f->to);
  for (int i = 0; i < STEP_INPUTS; i++) both_rows_close(&f->in[i]);
}

status step_files_read(step_files *f, bool *there, int64_t token) {
  TRY(both_rows_read(&f->to, there, token));
  for (int i = 0; i < f->n && *there; i++) TRY(both_rows_read(&f->in[i], there, token));
  return 0;
}

double by_content(npy_content content, double f64, double f32, double f16) {
  switch (content) {
  case NPY_HAS_F16:
    return f16;
  case NPY_HAS_F32:
    return f32;
  case NPY_HAS_F64:
  case NPY_HAS_I32:
  case NPY_HAS_I64:
    return f64;
  }
  __builtin_unreachable();
}

npy_content step_content(const both_rows *b, int side) {
  return b->rows[side].file.header.content;
}

// ---- any step ----

static bool can_be_recomputed(const trace_pair *p, step_kind kind) {
  return kind != STEP_ATTENTION || p->heads.n_heads > 0;
}

static status measure_by_kind(step_files *f, const step_info *step) {
  switch (step->kind) {
  case STEP_LOOKUP:
    return measure_lookup(f);
  case STEP_NORM:
    return measure_norm(f);
  case STEP_PRODUCT:
    return measure_product(f, step, probe_get(step->input[0])->per_slot);
  case STEP_ATTENTION:
    return measure_attention(f);
  case STEP_SELECT:
  case STEP_WEIGHTS:
  case STEP_SWIGLU:
  case STEP_COMBINE:
  case STEP_ADD:
    return measure_rows(f, step->kind);
  }
  __builtin_unreachable();
}

status trace_measure_step(probe_result *out, const trace_comparison *c) {
  const step_info *step = step_of(out->point);
  place_of_probe in[STEP_INPUTS];
  step_files f = {.c = c, .p = c->pair, .out = out};
  int n = step->n_inputs;
  bool direct = find_inputs(in, c->pair, out->point, out->layer) && can_be_recomputed(c->pair, step->kind);
  if (!direct) {
    out->is_composed = true;
    n = 1;
    if (probe_get(out->point)->is_ids || !find_ancestor(&in[0], c->pair, out->point, out->layer)) return 0;
  }
  if (step->kind == STEP_PRODUCT && direct && !step->adds_stream) n = 1;
  status result = step_files_open(&f, in, n);
  if (!result) result = direct ? measure_by_kind(&f, step) : measure_product(&f, step, false);
  step_files_close(&f);
  return result;
}
