#include "src/measure/row_statistics.h"
#include "kernels/formats/blocks.h"
#include <math.h>
#include <string.h>

static double larger(double x, double y) {
  return y > x ? y : x;
}

static void add_blocks(tensor_statistics *s, const double *x, int64_t n) {
  for (int64_t at = 0; at + QK_K <= n; at += QK_K) {
    double first = 0, second = 0;
    for (int i = 0; i < QK_K; i++) {
      double m = fabs(x[at + i]);
      second = larger(second, m < first ? m : first);
      first = larger(first, m);
    }
    if (second > 0) s->max_over_second = larger(s->max_over_second, first / second);
  }
}

static void add_side(row_sums *s, int side, const double *x, int64_t n) {
  tensor_statistics *of = &s->result.of[side];
  for (int64_t i = 0; i < n; i++) {
    of->amax = larger(of->amax, fabs(x[i]));
    s->square[side] += x[i] * x[i];
  }
  add_blocks(of, x, n);
}

void row_sums_add(row_sums *s, int64_t row, const double *a, const double *b, int64_t n) {
  pair_statistics_of_rows *r = &s->result;
  metrics m;
  if (!r->rows) r->finite = true;
  metrics_row(&m, a, b, (size_t)n);
  for (int64_t i = 0; i < n; i++) {
    r->differing += memcmp(&a[i], &b[i], sizeof *a) != 0;
    s->difference2 += (a[i] - b[i]) * (a[i] - b[i]);
  }
  add_side(s, 0, a, n);
  add_side(s, 1, b, n);
  if (r->finite && (!m.finite || m.rel_l2 > r->worst_rel_l2 || !r->rows)) {
    r->worst_rel_l2 = m.rel_l2;
    r->worst_row = row;
  }
  r->finite = r->finite && m.finite;
  r->max_abs = larger(r->max_abs, m.max_abs);
  r->max_rel = larger(r->max_rel, m.max_rel);
  r->rows++;
  r->numbers += n;
}

pair_statistics_of_rows row_sums_result(const row_sums *s) {
  pair_statistics_of_rows r = s->result;
  double a = sqrt(s->square[0]), b = sqrt(s->square[1]);
  for (int side = 0; side < 2; side++)
    r.of[side].rms = r.numbers ? sqrt(s->square[side] / (double)r.numbers) : 0;
  r.rel_l2 = sqrt(s->difference2) / larger(b, 1e-300);
  // |a/|a| - b/|b||^2 / 2, from |a - b|^2 - (|a| - |b|)^2, which does not cancel where they are near
  r.one_minus_cos = a > 0 && b > 0 ? larger(s->difference2 - (a - b) * (a - b), 0) / (2 * a * b) : a != b;
  if (r.finite) return r;
  r.rel_l2 = r.one_minus_cos = r.max_abs = r.max_rel = r.worst_rel_l2 = NAN;
  return r;
}
