// trace_residuals: steps that are recomputed on each side from its own numbers.
#include "base/memory.h"
#include "kernels/formats/half.h"
#include "src/report/trace_step_files.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

// What one step of arithmetic in a type leaves, relative to its result: some 20 times the worst of honest
// traces (docs/trace.md).
static const double STEP_F64 = 1e-12, STEP_F32 = 1e-5, STEP_F16 = 5e-3;
// Attention on integers or halves of 16 bits, as version 2 of q8k and other programs have it.
static const double ATTENTION_16_BITS = 4e-3;
static const double NORM_LEAST = 1e-9; // of doubles: weights and epsilon are fitted
enum { EPSILON_ROUNDS = 12 };
enum { ATTENTION_QUERIES = 64 }; // of a layer are recomputed, spread evenly

// ---- steps that are recomputed on each side from its own numbers ----

typedef struct {
  double error2, scale2, worst;
  int64_t worst_row;
} residual_sums;

static void add_residual(residual_sums *s, residual r, int64_t row) {
  double relative = r.scale2 > 0 ? sqrt(r.error2 / r.scale2) : r.error2 > 0 ? HUGE_VAL : 0;
  s->error2 += r.error2;
  s->scale2 += r.scale2;
  if (isnan(s->worst) || relative <= s->worst) return; // a NaN is the worst
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
                    : by_content(step_content(&f->to, side), STEP_F64, STEP_F32, STEP_F16);
  for (int i = 0; i < f->n; i++)
    most = fmax(most, by_content(step_content(&f->in[i], side), STEP_F64, STEP_F32, STEP_F16));
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

status measure_rows(step_files *f, step_kind kind) {
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

status measure_lookup(step_files *f) {
  residual_sums sums = {.worst = 0};
  bool there;
  for (int64_t t = 0; t < f->p->n_tokens; t++) {
    residual r = {0, 0};
    TRY(step_files_read(f, &there, t));
    for (int64_t i = 0; i < f->to.width && there; i++) {
      double a = f->to.x[0][i], b = f->to.x[1][i];
      r.error2 += (a - b) * (a - b);
      r.scale2 += b * b;
    }
    add_residual(&sums, r, t);
  }
  for (int side = 0; side < SIDES; side++)
    keep_residual(f->out, side, &sums, fmax(step_rounding(f, 0), step_rounding(f, 1)));
  return 0;
}

typedef void (*norm_rows)(norm_fit *fit, const double *out, const double *in);

// Shows A's rows to `add`.
static status each_norm(step_files *f, norm_fit *fit, norm_rows add) {
  bool there;
  for (int64_t t = 0; t < f->p->n_tokens; t++) {
    TRY(step_files_read(f, &there, t));
    if (there) add(fit, f->to.x[0], f->in[0].x[0]);
  }
  return 0;
}

static status fit_weights(step_files *f, norm_fit *fit) {
  TRY(each_norm(f, fit, norm_fit_add));
  norm_fit_solve(fit);
  return 0;
}

// Each gives the other; about a tenth of the error is left after a round.
static status fit_epsilon(step_files *f, norm_fit *fit) {
  double before = -1;
  for (int round = 0; round < EPSILON_ROUNDS && fabs(fit->epsilon - before) > 1e-10 * before; round++) {
    before = fit->epsilon;
    TRY(each_norm(f, fit, norm_fit_scale));
    norm_fit_solve_epsilon(fit);
    TRY(fit_weights(f, fit));
  }
  return 0;
}

// *off: some row is further from the weights than rounding leaves.
static status hold_norm(step_files *f, const norm_fit *fit, bool *off) {
  residual_sums sums[SIDES] = {{.worst = 0}, {.worst = 0}};
  double bound = fmax(fmax(step_rounding(f, 0), step_rounding(f, 1)), NORM_LEAST);
  bool there;
  for (int64_t t = 0; t < f->p->n_tokens; t++) {
    TRY(step_files_read(f, &there, t));
    for (int side = 0; side < SIDES && there; side++)
      add_residual(&sums[side], residual_norm(fit, f->to.x[side], f->in[0].x[side]), t);
  }
  for (int side = 0; side < SIDES; side++) keep_residual(f->out, side, &sums[side], bound);
  *off = !(sums[0].worst <= bound && sums[1].worst <= bound);
  return 0;
}

// The weights follow from A's rows, and both sides are held against them. Where that fails, epsilon may be
// another than Qwen3's; A's rows tell it too.
status measure_norm(step_files *f) {
  norm_fit fit;
  bool off;
  status result;
  TRY_DONE(result, norm_fit_open(&fit, f->to.width));
  TRY_DONE(result, fit_weights(f, &fit));
  TRY_DONE(result, hold_norm(f, &fit, &off));
  if (!off) goto done;
  TRY_DONE(result, fit_epsilon(f, &fit));
  result = hold_norm(f, &fit, &off);
done:
  norm_fit_close(&fit);
  return result;
}

// ---- attention ----

typedef struct {
  double *keys, *values; // [n_tokens][kv width]
  double *q, *scores;
  int64_t *key; // rows of a query's keys
} attention_room;

static void to_f16(double *x, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] = (double)half_to_f32(f32_to_half((float)x[i]));
}

static status read_cache(attention_room *r, step_files *f, int side, trace_cache kind) {
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

static status attend_side(residual_sums *out, step_files *f, attention_room *r, int side, trace_cache kind) {
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
static bool may_have_cache(const trace_pair *p, int side, trace_cache kind) {
  const recorded_trace *t = p->trace[side];
  const recorded_trace_arm *a = p->arm[side];
  if (!t->tree) return true;
  bool is_f16 = !strcmp(t->kv, "f16") && (!a->is_plain || path_reads_kv(path_get(a->path)));
  return kind == (is_f16 ? CACHE_F16 : CACHE_AS_IT_IS) || (!a->is_plain && kind == CACHE_AS_IT_IS);
}

static double attention_rounding(const step_files *f, int side) {
  const recorded_trace_arm *a = f->p->arm[side];
  bool floats = a->is_plain && path_get(a->path)->attention != ATTENTION_EXACT;
  return floats ? step_rounding(f, side) : ATTENTION_16_BITS;
}

static status attend_sides(step_files *f, attention_room *r) {
  residual_sums best = {.worst = 0}, found;
  for (int side = 0; side < SIDES; side++) {
    int n = 0;
    for (int kind = 0; kind < CACHE_KINDS; kind++) {
      if (!may_have_cache(f->p, side, (trace_cache)kind)) continue;
      TRY(attend_side(&found, f, r, side, (trace_cache)kind));
      if (n && found.error2 >= best.error2) continue;
      best = found;
      f->out->cache[side] = (trace_cache)kind;
      n++;
    }
    keep_residual(f->out, side, &best, attention_rounding(f, side));
  }
  return 0;
}

status measure_attention(step_files *f) {
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
