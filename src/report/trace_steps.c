#include "src/report/trace_steps.h"
#include "base/memory.h"
#include "kernels/formats/half.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

// What one step of arithmetic in a type leaves, relative to its result: a few times the measured worst of
// honest traces (docs/trace.md).
static const double STEP_F64 = 1e-12, STEP_F32 = 1e-5, STEP_F16 = 5e-3;
// Attention on integers or halves of 16 bits, as version 2 of q8k and other programs have it.
static const double ATTENTION_16_BITS = 1e-2;
// What a product's own sum leaves: floats of a thousand terms, doubles.
static const double SUM_F64 = 1e-14, SUM_F32 = 4e-7, SUM_F16 = 1e-3;
static const double EPSILON_F32 = 6e-8, EPSILON_F64 = 1.2e-16;
enum { ATTENTION_QUERIES = 64 }; // of a layer are recomputed, spread evenly

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
  const trace_comparison *c;
  trace_pair *p;
  probe_result *out;
  int n;                         // of in
  both_rows to, in[STEP_INPUTS]; // in the order of step_info
} step_files;

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
  bool composed = false, there = step->n_inputs > 0;
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
  for (f->n = 0; f->n < n; f->n++) TRY(both_rows_open(&f->in[f->n], f->p, in[f->n].point, in[f->n].layer));
  return 0;
}

static void step_files_close(step_files *f) {
  both_rows_close(&f->to);
  for (int i = 0; i < STEP_INPUTS; i++) both_rows_close(&f->in[i]);
}

// *there: every file of the step has this token on both sides.
static status step_files_read(step_files *f, bool *there, int64_t token) {
  TRY(both_rows_read(&f->to, there, token));
  for (int i = 0; i < f->n && *there; i++) TRY(both_rows_read(&f->in[i], there, token));
  return 0;
}

static double by_content(npy_content content, double f64, double f32, double f16) {
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

static npy_content content_of(const both_rows *b, int side) {
  return b->rows[side].file.header.content;
}

// ---- steps that are recomputed on each side from its own numbers ----

typedef struct {
  double error2, scale2, worst;
  int64_t worst_row;
} residual_sums;

static void add_residual(residual_sums *s, residual r, int64_t row) {
  double relative = r.scale2 > 0 ? sqrt(r.error2 / r.scale2) : r.error2 > 0 ? HUGE_VAL : 0;
  s->error2 += r.error2;
  s->scale2 += r.scale2;
  if (relative <= s->worst) return; // but not a NaN
  s->worst = relative;
  s->worst_row = row;
}

static void keep_residual(probe_result *out, int side, const residual_sums *s, double rounding) {
  out->measure = JUDGED_BY_RESIDUAL;
  out->residual[side] = s->scale2 > 0 ? sqrt(s->error2 / s->scale2) : 0;
  out->worst_residual[side] = s->worst;
  out->rounding[side] = rounding;
  if (side == 0 || s->worst > out->worst_residual[0]) out->worst_row = s->worst_row;
}

// The largest of a file's rounding and its inputs': ids round nothing.
static double step_rounding(const step_files *f, int side) {
  double most = f->out->point == PROBE_FFN_MOE_TOPK
                    ? 0
                    : by_content(content_of(&f->to, side), STEP_F64, STEP_F32, STEP_F16);
  for (int i = 0; i < f->n; i++)
    most = fmax(most, by_content(content_of(&f->in[i], side), STEP_F64, STEP_F32, STEP_F16));
  return most;
}

static residual residual_of_row(const step_files *f, int side, step_kind kind) {
  const both_rows *in = f->in;
  const double *to = f->to.x[side];
  int64_t n = f->to.width;
  switch (kind) {
  case STEP_SWIGLU:
    return residual_swiglu(to, in[0].x[side], in[1].x[side], n);
  case STEP_COMBINE:
    return residual_combine(to, in[0].x[side], in[1].x[side], in[0].width, n);
  case STEP_ADD:
    return residual_add(to, in[0].x[side], in[1].x[side], n);
  case STEP_WEIGHTS:
    return residual_weights(to, in[1].x[side], in[0].x[side], n, in[0].width);
  case STEP_SELECT:
    return residual_select(to, in[0].x[side], n, in[0].width);
  case STEP_LOOKUP:
  case STEP_NORM:
  case STEP_PRODUCT:
  case STEP_ATTENTION:
    break;
  }
  return (residual){NAN, 1}; // other kinds are measured elsewhere
}

static status measure_rows(step_files *f, step_kind kind) {
  residual_sums sums[SIDES] = {{.worst = 0}, {.worst = 0}};
  bool there;
  for (int64_t t = 0; t < f->p->n_tokens; t++) {
    TRY(step_files_read(f, &there, t));
    for (int side = 0; side < SIDES && there; side++)
      add_residual(&sums[side], residual_of_row(f, side, kind), t);
  }
  for (int side = 0; side < SIDES; side++) keep_residual(f->out, side, &sums[side], step_rounding(f, side));
  return 0;
}

// The weights follow from A's rows, and both sides are held against them.
static status measure_norm(step_files *f) {
  residual_sums sums[SIDES] = {{.worst = 0}, {.worst = 0}};
  norm_fit fit;
  bool there;
  status result;
  TRY_DONE(result, norm_fit_open(&fit, f->to.width));
  for (int64_t t = 0; t < f->p->n_tokens; t++) {
    TRY_DONE(result, step_files_read(f, &there, t));
    if (there) norm_fit_add(&fit, f->to.x[0], f->in[0].x[0]);
  }
  norm_fit_solve(&fit);
  for (int64_t t = 0; t < f->p->n_tokens; t++) {
    TRY_DONE(result, step_files_read(f, &there, t));
    for (int side = 0; side < SIDES && there; side++)
      add_residual(&sums[side], residual_norm(&fit, f->to.x[side], f->in[0].x[side]), t);
  }
  for (int side = 0; side < SIDES; side++)
    keep_residual(f->out, side, &sums[side], fmax(step_rounding(f, 0), step_rounding(f, 1)));
  result = 0;
done:
  norm_fit_close(&fit);
  return result;
}

// ---- attention ----

typedef enum { CACHE_AS_IT_IS, CACHE_F16, CACHE_AND_QUERIES_F16 } cache_kind;
enum { CACHE_KINDS = 3 };

typedef struct {
  double *keys, *values; // [n_tokens][kv width]
  double *q, *scores;
  int64_t *key; // rows of a query's keys
} attention_room;

static void to_f16(double *x, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] = (double)half_to_f32(f32_to_half((float)x[i]));
}

static status read_cache(attention_room *r, step_files *f, int side, cache_kind kind) {
  for (int64_t t = 0; t < f->p->n_tokens; t++) {
    int64_t width = f->in[1].width;
    TRY(recorded_rows_read(&f->in[1].rows[side], t, r->keys + t * width));
    TRY(recorded_rows_read(&f->in[2].rows[side], t, r->values + t * width));
    if (kind == CACHE_AS_IT_IS) continue;
    to_f16(r->keys + t * width, width);
    to_f16(r->values + t * width, width);
  }
  return 0;
}

static int64_t find_keys(int64_t *key, const trace_pair *p, int64_t token) {
  int64_t n = 0;
  for (int64_t t = 0; t <= token; t++)
    if (!p->sequence || p->sequence[t] == p->sequence[token]) key[n++] = t;
  return n;
}

static status attend_side(residual_sums *out, step_files *f, attention_room *r, int side, cache_kind kind) {
  int64_t n = f->p->n_tokens, step = (n + ATTENTION_QUERIES - 1) / ATTENTION_QUERIES;
  double scale = sqrt((double)f->p->heads.head_dim);
  bool there;
  *out = (residual_sums){.worst = 0};
  TRY(read_cache(r, f, side, kind));
  for (int64_t t = (n - 1) % step; t < n; t += step) {
    TRY(step_files_read(f, &there, t));
    if (!there) continue;
    memcpy(r->q, f->in[0].x[side], (size_t)f->in[0].width * sizeof *r->q);
    for (int64_t i = 0; i < f->in[0].width && kind == CACHE_AND_QUERIES_F16; i++)
      r->q[i] = (double)half_to_f32(f32_to_half((float)(r->q[i] * scale))) / scale;
    int64_t n_keys = find_keys(r->key, f->p, t);
    add_residual(
        out,
        residual_attention(f->to.x[side], r->q, r->keys, r->values, r->key, n_keys, &f->p->heads, r->scores),
        t);
  }
  return 0;
}

// What the cache of this side holds; of another program the kind that explains its attention best is taken.
static bool may_have_cache(const trace_pair *p, int side, cache_kind kind) {
  const recorded_trace *t = p->trace[side];
  const recorded_trace_arm *a = p->arm[side];
  if (!t->tree) return true;
  bool is_f16 = !strcmp(t->kv, "f16"), is_f64 = a->is_plain && a->path == PATH_F64;
  return kind == (is_f16 && !is_f64 ? CACHE_F16 : CACHE_AS_IT_IS) || (!a->is_plain && kind == CACHE_AS_IT_IS);
}

static double attention_rounding(const step_files *f, int side) {
  const recorded_trace_arm *a = f->p->arm[side];
  bool floats = a->is_plain && rounding_of_path(a->path) == ROUNDING_NONE;
  return floats ? step_rounding(f, side) : ATTENTION_16_BITS;
}

static status attend_sides(step_files *f, attention_room *r) {
  residual_sums best = {.worst = 0}, found;
  for (int side = 0; side < SIDES; side++) {
    bool has = false;
    for (int kind = 0; kind < CACHE_KINDS; kind++) {
      if (!may_have_cache(f->p, side, (cache_kind)kind)) continue;
      TRY(attend_side(&found, f, r, side, (cache_kind)kind));
      if (!has || found.error2 < best.error2) best = found;
      has = true;
    }
    keep_residual(f->out, side, &best, attention_rounding(f, side));
  }
  return 0;
}

static status measure_attention(step_files *f) {
  attention_room r = {.keys = NULL};
  size_t n = (size_t)f->p->n_tokens, width = (size_t)f->in[1].width;
  status result;
  for (int side = 0; side < SIDES; side++)
    if (f->in[1].rows[side].only_last || f->in[2].rows[side].only_last) return 0; // not all keys are there
  TRY_DONE(result, TAKE(&r.keys, n * width, "keys"));
  TRY_DONE(result, TAKE(&r.values, n * width, "values"));
  TRY_DONE(result, TAKE(&r.q, (size_t)f->in[0].width, "queries"));
  TRY_DONE(result, TAKE(&r.scores, n, "scores"));
  TRY_DONE(result, TAKE(&r.key, n, "keys"));
  result = attend_sides(f, &r);
done:
  free(r.keys);
  free(r.values);
  free(r.q);
  free(r.scores);
  free(r.key);
  return result;
}

// ---- products: the error out over the error in ----

typedef struct {
  double in2, in_scale2, out2, out_scale2, bias, worst;
  int64_t worst_row;
  double own2; // the least error out that this side's sums leave, relative and squared
} gain_sums;

static double distance2(const double *a, const double *b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return sum;
}

static double norm2(const double *x, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; i++) sum += x[i] * x[i];
  return sum;
}

// One row: in[n] and out[m] of each side; extra2: what else the row may be off by, relative and squared.
static void add_gain(gain_sums *s, double *const in[SIDES], int64_t n, double *const out[SIDES], int64_t m,
                     double extra2, int64_t row) {
  double in2 = distance2(in[0], in[1], n), in_scale2 = norm2(in[1], n);
  double out2 = distance2(out[0], out[1], m), out_scale2 = norm2(out[1], m);
  double relative_in = in_scale2 > 0 ? in2 / in_scale2 : 0;
  double gain = out_scale2 > 0 ? sqrt(out2 / out_scale2 / (relative_in + s->own2 + extra2)) : 0;
  for (int64_t i = 0; i < n; i++) s->bias += (in[0][i] - in[1][i]) * in[1][i];
  s->in2 += in2;
  s->in_scale2 += in_scale2;
  s->out2 += out2 - extra2 * out_scale2 > 0 ? out2 : 0;
  s->out_scale2 += out_scale2;
  if (gain <= s->worst) return;
  s->worst = gain;
  s->worst_row = row;
}

static void keep_gain(probe_result *out, const gain_sums *s) {
  out->measure = JUDGED_BY_GAIN;
  out->error_in = s->in_scale2 > 0 ? sqrt(s->in2 / s->in_scale2) : 0;
  out->error_out = s->out_scale2 > 0 ? sqrt(s->out2 / s->out_scale2) : 0;
  out->gain = out->error_out / sqrt(out->error_in * out->error_in + s->own2);
  out->worst_gain = s->worst;
  out->worst_row = s->worst_row;
  out->bias_in = s->in_scale2 > 0 ? s->bias / s->in_scale2 : 0;
}

static double own2_of(const step_files *f) {
  double own2 = 0;
  for (int side = 0; side < SIDES; side++) {
    double own = by_content(content_of(&f->to, side), SUM_F64, SUM_F32, SUM_F16);
    own2 += own * own;
  }
  return own2;
}

// Rounds the inputs as each side's products read them.
static void round_inputs(step_files *f, both_rows *in, int64_t block) {
  for (int side = 0; side < SIDES; side++)
    for (int64_t at = 0; at < in->width; at += block)
      round_activations(in->x[side] + at, block, f->c->rounding[side]);
}

// Takes the stream from a probe that holds stream + product; returns what its rounding leaves there.
static double take_stream(step_files *f) {
  double extra2 = 0, rest2 = 0;
  for (int side = 0; side < SIDES; side++) {
    double epsilon = by_content(content_of(&f->to, side), EPSILON_F64, EPSILON_F32, SUM_F16);
    extra2 += epsilon * epsilon * norm2(f->to.x[side], f->to.width);
    for (int64_t i = 0; i < f->to.width; i++) f->to.x[side][i] -= f->in[1].x[side][i];
    rest2 = norm2(f->to.x[side], f->to.width);
  }
  return rest2 > 0 ? extra2 / rest2 : 0;
}

static void add_slot_gains(gain_sums *s, step_files *f, int64_t token, bool in_per_slot) {
  const trace_pair *p = f->p;
  both_rows *in = &f->in[0];
  int64_t m = f->to.width / p->top_k, n = in_per_slot ? in->width / p->top_k : in->width;
  for (int64_t k = 0; k < p->top_k; k++) {
    int64_t slot[SIDES] = {k, p->slot_of[token * p->top_k + k]};
    double *from[SIDES], *to[SIDES];
    if (slot[1] < 0) continue;
    for (int side = 0; side < SIDES; side++) {
      from[side] = in->x[side] + (in_per_slot ? slot[side] * n : 0);
      to[side] = f->to.x[side] + slot[side] * m;
    }
    add_gain(s, from, n, to, m, 0, token * p->top_k + k);
  }
}

static status measure_product(step_files *f, const step_info *step, bool in_per_slot) {
  gain_sums sums = {.own2 = own2_of(f)};
  bool there, per_slot = probe_get(f->out->point)->per_slot;
  int64_t block = in_per_slot ? f->in[0].width / f->p->top_k : f->in[0].width;
  for (int64_t t = 0; t < f->p->n_tokens; t++) {
    TRY(step_files_read(f, &there, t));
    if (!there) continue;
    double extra2 = step->adds_stream && f->n > 1 ? take_stream(f) : 0;
    if (step->rounds || f->out->is_composed) round_inputs(f, &f->in[0], block);
    if (per_slot)
      add_slot_gains(&sums, f, t, in_per_slot);
    else
      add_gain(&sums, f->in[0].x, f->in[0].width, f->to.x, f->to.width, extra2, t);
  }
  keep_gain(f->out, &sums);
  return 0;
}

// ---- any step ----

static bool can_be_recomputed(const trace_pair *p, step_kind kind) {
  return kind != STEP_ATTENTION || p->heads.n_heads > 0;
}

static status measure_by_kind(step_files *f, const step_info *step) {
  switch (step->kind) {
  case STEP_LOOKUP:
    return 0;
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
  if (step->kind == STEP_LOOKUP) return 0;
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
