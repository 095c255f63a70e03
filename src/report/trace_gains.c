// trace_gains: products, whose matrix no trace holds: the error out over the error in.
#include "base/memory.h"
#include "src/report/trace_step_files.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

// What a product's own sum leaves: of floats of a thousand terms, of doubles.
static const double SUM_F64 = 1e-14, SUM_F32 = 4e-7, SUM_F16 = 1e-3;
// What attention leaves where a cache or its sums hold 16 bits, to probes that follow from before it.
static const double ATTENTION_F16 = 1e-3;
// What a float leaves of an angle for each position, as other programs compute RoPE; here it is in double.
static const double ROPE_F32 = 1.2e-7;
static const double LEAST_GAIN = 1e-3; // a row with less is as one with this
static const double EPSILON_F32 = 6e-8, EPSILON_F64 = 1.2e-16;

typedef struct {
  double in2, in_scale2, out2, out_scale2, extra2, worst;
  int64_t worst_row;
  double own2;                // the least error out that the sides' sums leave, relative and squared
  double *bias_in, *bias_out; // of each row: how much larger A is along B
  double *log_gain;           // of each row
  double length2;             // of the difference of the pairs' lengths, where RoPE turned them
  int64_t rows, rows_a_token;
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

static double bias_along(const double *a, const double *b, int64_t n) {
  double sum = 0, square = norm2(b, n);
  for (int64_t i = 0; i < n; i++) sum += (a[i] - b[i]) * b[i];
  return square > 0 ? sum / square : 0;
}

// One row: in[n] and out[m] of each side; extra2: what else the row may be off by, relative and squared.
static void add_gain(gain_sums *s, double *const in[SIDES], int64_t n, double *const out[SIDES], int64_t m,
                     double extra2, int64_t row) {
  double in2 = distance2(in[0], in[1], n), in_scale2 = norm2(in[1], n);
  double out2 = distance2(out[0], out[1], m), out_scale2 = norm2(out[1], m);
  double relative_in = in_scale2 > 0 ? in2 / in_scale2 : 0;
  double gain = out_scale2 > 0 ? sqrt(out2 / out_scale2 / (relative_in + s->own2 + extra2)) : 0;
  s->bias_in[s->rows] = bias_along(in[0], in[1], n);
  s->bias_out[s->rows] = bias_along(out[0], out[1], m);
  s->log_gain[s->rows++] = log(fmax(gain, LEAST_GAIN));
  s->in2 += in2;
  s->in_scale2 += in_scale2;
  s->out2 += out2;
  s->extra2 += extra2 * out_scale2;
  s->out_scale2 += out_scale2;
  if (isnan(s->worst) || gain <= s->worst) return; // a NaN is the worst
  s->worst = gain;
  s->worst_row = row;
}

static bool is_rotated(probe_point point) {
  return point == PROBE_QCUR || point == PROBE_KCUR;
}

static status keep_gain(probe_result *out, const gain_sums *s) {
  out->measure = JUDGED_BY_GAIN;
  out->error_in = s->in_scale2 > 0 ? sqrt(s->in2 / s->in_scale2) : 0;
  out->error_out = s->out_scale2 > 0 ? sqrt(s->out2 / s->out_scale2) : 0;
  double extra2 = s->out_scale2 > 0 ? s->extra2 / s->out_scale2 : 0;
  out->gain = out->error_out / sqrt(out->error_in * out->error_in + s->own2 + extra2);
  out->worst_gain = s->worst;
  out->own_error = sqrt(s->own2);
  if (is_rotated(out->point) && s->out_scale2 > 0) out->length_error = sqrt(s->length2 / s->out_scale2);
  out->worst_row = s->worst_row;
  out->bias_rows = s->rows;
  double middle;
  TRY(middle_of_rows(&middle, &out->gain_error, s->log_gain, s->rows));
  TRY(middle_of_rows(&out->bias, &out->bias_error, s->bias_out, s->rows));
  TRY(middle_of_rows(&out->bias_in, &out->bias_in_error, s->bias_in, s->rows));
  out->bias_error *= sqrt((double)s->rows_a_token); // a token's slots share its error
  out->bias_in_error *= sqrt((double)s->rows_a_token);
  return 0;
}

static double own2_of(const step_files *f) {
  double own2 = 0;
  for (int side = 0; side < SIDES; side++) {
    double own = by_content(step_content(&f->to, side), SUM_F64, SUM_F32, SUM_F16);
    own2 += own * own;
  }
  return own2;
}

// What products and attention between the ancestor and the probe may leave, relative and squared: the
// rounding of either side, which is another one each time, and a cache's.
static double between2(step_files *f) {
  const both_rows *in = &f->in[0];
  double most = 0, lost2 = 0, square;
  probe_point from = f->in_point;
  for (int side = 0; side < SIDES; side++) {
    memcpy(f->room, in->x[side], (size_t)in->width * sizeof *f->room);
    input_round(f->room, in->width, f->c->rounding[side]);
    square = norm2(in->x[side], in->width);
    lost2 += square > 0 ? distance2(f->room, in->x[side], in->width) / square : 0;
    most = fmax(most, by_content(step_content(&f->to, side), 0, ATTENTION_F16, ATTENTION_F16));
  }
  bool passes_attention = from == PROBE_L_OUT || from == PROBE_INP_EMBD || from == PROBE_ATTN_NORM;
  return lost2 + (passes_attention ? most * most : 0);
}

// Of the products before the router a path may have another than of the experts'.
static input_rounding rounding_of(const step_files *f, int side) {
  const recorded_trace_arm *a = f->p->arm[side];
  probe_point out = f->out->point;
  bool before = out == PROBE_QCUR || out == PROBE_KCUR || out == PROBE_VCUR || out == PROBE_FFN_INP;
  return a->is_plain && before ? input_rounding_of_path(path_before_router(a->path)) : f->c->rounding[side];
}

// Rounds the inputs as each side's products read them.
static void round_inputs(step_files *f, both_rows *in, int64_t block) {
  for (int side = 0; side < SIDES; side++)
    for (int64_t at = 0; at < in->width; at += block)
      input_round(in->x[side] + at, block, rounding_of(f, side));
}

// Takes the stream from a probe that holds stream + product; returns what its rounding leaves there.
static double take_stream(step_files *f) {
  double extra2 = 0, rest2 = 0;
  for (int side = 0; side < SIDES; side++) {
    double epsilon = by_content(step_content(&f->to, side), EPSILON_F64, EPSILON_F32, SUM_F16);
    extra2 += epsilon * epsilon * norm2(f->to.x[side], f->to.width);
    for (int64_t i = 0; i < f->to.width; i++) f->to.x[side][i] -= f->in[1].x[side][i];
    rest2 = norm2(f->to.x[side], f->to.width);
  }
  return rest2 > 0 ? extra2 / rest2 : 0;
}

static void add_slot_gains(gain_sums *s, step_files *f, int64_t token, bool in_per_slot, double extra2) {
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
    add_gain(s, from, n, to, m, extra2, token * p->top_k + k);
  }
}

// The angle that RoPE in floats may be off by at this token; 0 where both sides are of this program.
static double angle2(const trace_pair *p, probe_point point, int64_t token) {
  int64_t first = token;
  if (!is_rotated(point) || (p->trace[0]->tree && p->trace[1]->tree)) return 0;
  while (first > 0 && (!p->sequence || p->sequence[first - 1] == p->sequence[token])) first--;
  double angle = ROPE_F32 * (double)(token - first);
  return angle * angle;
}

// RoPE turns elements i and i + head_dim / 2 as a pair and keeps its length, so a difference of lengths is
// none of angles.
static void add_lengths(gain_sums *s, const step_files *f) {
  int64_t d = f->p->heads.head_dim, half = d / 2;
  if (!is_rotated(f->out->point) || !d) return;
  for (int64_t head = 0; head + d <= f->to.width; head += d)
    for (int64_t i = head; i < head + half; i++) {
      double a = hypot(f->to.x[0][i], f->to.x[0][i + half]), b = hypot(f->to.x[1][i], f->to.x[1][i + half]);
      s->length2 += (a - b) * (a - b);
    }
}

static status add_rows(gain_sums *s, step_files *f, const step_info *step, bool in_per_slot) {
  bool there, per_slot = probe_get(f->out->point)->per_slot;
  int64_t block = in_per_slot ? f->in[0].width / f->p->top_k : f->in[0].width;
  for (int64_t t = 0; t < f->p->n_tokens; t++) {
    TRY(step_files_read(f, &there, t));
    if (!there) continue;
    double extra2 = step->adds_stream && f->n > 1 ? take_stream(f) : angle2(f->p, f->out->point, t);
    add_lengths(s, f);
    if (f->out->is_composed) extra2 = between2(f);
    if (step->rounds && !f->out->is_composed) round_inputs(f, &f->in[0], block);
    if (per_slot)
      add_slot_gains(s, f, t, in_per_slot, extra2);
    else
      add_gain(s, f->in[0].x, f->in[0].width, f->to.x, f->to.width, extra2, t);
  }
  return 0;
}

status measure_product(step_files *f, const step_info *step, bool in_per_slot) {
  gain_sums sums = {.own2 = own2_of(f), .rows_a_token = probe_get(f->out->point)->per_slot ? f->p->top_k : 1};
  size_t most = (size_t)(f->p->n_tokens * (f->p->top_k > 1 ? f->p->top_k : 1));
  status result;
  TRY_DONE(result, TAKE(&f->room, (size_t)f->in[0].width, "a row"));
  TRY_DONE(result, TAKE(&sums.bias_in, most, "rows of a product"));
  TRY_DONE(result, TAKE(&sums.bias_out, most, "rows of a product"));
  TRY_DONE(result, TAKE(&sums.log_gain, most, "rows of a product"));
  TRY_DONE(result, add_rows(&sums, f, step, in_per_slot));
  result = keep_gain(f->out, &sums);
done:
  free(f->room);
  free(sums.bias_in);
  free(sums.bias_out);
  free(sums.log_gain);
  return result;
}
