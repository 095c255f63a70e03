#include "src/report/trace_measure.h"
#include "base/memory.h"
#include "src/report/trace_steps.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

// ---- the distance of a probe's numbers ----

static void add_ids(probe_result *out, row_sums *sums, int64_t token, double *const x[SIDES], int64_t k) {
  bool same = true;
  for (int64_t i = 0; i < k; i++) {
    bool found = false;
    for (int64_t j = 0; j < k; j++) found = found || x[0][i] == x[1][j];
    out->flips += !found;
    same = same && x[0][i] == x[1][i];
    sums->result.differing += x[0][i] != x[1][i];
  }
  sums->result.numbers += k;
  if (!sums->result.rows++ || (!same && sums->result.worst_rel_l2 == 0)) sums->result.worst_row = token;
  if (!same) sums->result.worst_rel_l2 = 1;
}

// Experts are ids: how many differ is all that can be said.
static pair_statistics_of_rows ids_result(const row_sums *sums) {
  pair_statistics_of_rows r = sums->result;
  r.finite = true;
  r.rel_l2 = r.one_minus_cos = r.max_abs = r.max_rel = r.worst_rel_l2 = NAN;
  r.of[0] = r.of[1] = (tensor_statistics){NAN, NAN, NAN};
  return r;
}

static void add_slots(row_sums *sums, const trace_pair *p, int64_t token, double *const x[SIDES],
                      int64_t width) {
  int64_t n = width / p->top_k;
  for (int64_t k = 0; k < p->top_k; k++) {
    int64_t other = p->slot_of[token * p->top_k + k];
    if (other >= 0) row_sums_add(sums, token * p->top_k + k, x[0] + k * n, x[1] + other * n, n);
  }
}

// A token's weights of the experts that both sides chose, as one row.
static void add_weights(row_sums *sums, const trace_pair *p, int64_t token, double *const x[SIDES]) {
  double both[SIDES][MAX_TOP_K];
  int64_t n = 0;
  for (int64_t k = 0; k < p->top_k && k < MAX_TOP_K; k++) {
    int64_t other = p->slot_of[token * p->top_k + k];
    if (other < 0) continue;
    both[0][n] = x[0][k];
    both[1][n++] = x[1][other];
  }
  row_sums_add(sums, token, both[0], both[1], n);
}

static status measure_numbers(probe_result *out, trace_pair *p, probe_point point, int64_t layer) {
  both_rows both;
  row_sums sums = {.difference2 = 0};
  const probe_info *info = probe_get(point);
  bool there;
  status result;
  TRY_DONE(result, both_rows_open(&both, p, point, layer));
  for (int64_t t = 0; t < p->n_tokens; t++) {
    TRY_DONE(result, both_rows_read(&both, &there, t));
    if (!there) continue;
    if (info->is_ids)
      add_ids(out, &sums, t, both.x, both.width);
    else if (point == PROBE_FFN_MOE_WEIGHTS_NORM)
      add_weights(&sums, p, t, both.x);
    else if (info->per_slot)
      add_slots(&sums, p, t, both.x, both.width);
    else
      row_sums_add(&sums, t, both.x[0], both.x[1], both.width);
  }
  out->numbers = info->is_ids ? ids_result(&sums) : row_sums_result(&sums);
  result = 0;
done:
  both_rows_close(&both);
  return result;
}

status trace_measure_probe(probe_result *out, const trace_comparison *c, probe_point point, int64_t layer) {
  *out = (probe_result){.point = point, .layer = layer, .measure = JUDGED_BY_NOTHING};
  out->gain = out->worst_gain = out->error_in = out->error_out = out->length_error = NAN;
  for (int side = 0; side < SIDES; side++) out->residual[side] = out->worst_residual[side] = NAN;
  TRY(measure_numbers(out, c->pair, point, layer));
  TRY(trace_measure_step(out, c));
  if (c->by_bits) out->measure = JUDGED_BY_BITS;
  return 0;
}

// ---- the rounding of arms whose path is not known ----

enum { PROBED_LAYERS = 4 };
static const double CLEARLY = 0.9;    // of the best before: else the simpler rounding stays
static const double PLAIN_GAIN = 1.5; // log: gains of e^-1.5 to e^1.5 are what products have

// How badly a rounding explains the first layers' products: with the right one each row's error out is about
// in proportion to its error in, and not far from it. Mean over products of the rows' spread, in powers of e:
// the few whose inputs are equal say most, where errors of other layers would explain any rounding.
static status strangeness(double *out, const trace_comparison *c) {
  double far = 0;
  int n = 0;
  for (int64_t l = 0; l < c->pair->n_layers && l < PROBED_LAYERS; l++) {
    TRY(trace_pair_match_slots(c->pair, l));
    for (int p = 0; p < PROBE_COUNT; p++) {
      probe_result r = {.point = (probe_point)p, .layer = l};
      if (!step_of(r.point)->rounds || probe_get(r.point)->scope != PROBE_OF_LAYER ||
          !pair_has_both(c->pair, r.point, l))
        continue;
      TRY(trace_measure_step(&r, c));
      if (r.measure != JUDGED_BY_GAIN || r.is_composed || !(r.gain > 0)) continue;
      far += r.gain_error * sqrt((double)r.bias_rows) + fmax(fabs(log(r.gain)) - PLAIN_GAIN, 0);
      n++;
    }
  }
  *out = n ? far / n : HUGE_VAL;
  return 0;
}

status trace_find_rounding(trace_comparison *c) {
  input_rounding best[SIDES] = {INPUT_AS_IT_IS, INPUT_AS_IT_IS};
  double least = INFINITY, found;
  bool known[SIDES];
  for (int side = 0; side < SIDES; side++) {
    const recorded_trace_arm *a = c->pair->arm[side];
    known[side] = a->is_plain;
    if (known[side]) best[side] = input_rounding_of_path(a->path);
  }
  for (int a = 0; a < INPUT_ROUNDINGS && !(known[0] && known[1]); a++)
    for (int b = 0; b < INPUT_ROUNDINGS; b++) {
      if ((known[0] && a != (int)best[0]) || (known[1] && b != (int)best[1])) continue;
      trace_comparison with = *c;
      with.rounding[0] = (input_rounding)a;
      with.rounding[1] = (input_rounding)b;
      TRY(strangeness(&found, &with));
      if (!(found < CLEARLY * least)) continue;
      least = found;
      memcpy(c->rounding, with.rounding, sizeof c->rounding);
    }
  if (isinf(least)) memcpy(c->rounding, best, sizeof c->rounding);
  return 0;
}
