#include "src/lab/product_bisection.h"
#include "base/memory.h"
#include "src/measure/metrics.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// Honest reorderings of the same sum: so many random orders, and how far beyond the worst of them two
// operations may lie and still be called equal to rounding. The worst of 8 is near the 90th percentile of one
// order; sums of rounded activations differ in size a little, and two operations may each be off.
enum { ORDERS = 8, BEYOND = 4 };

const double product_quantile[PRODUCT_QUANTILES] = {0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1};

const char *product_distance_name(product_distance d) {
  static const char *const names[PRODUCT_DISTANCES] = {
      [DISTANCE_MAX_REL] = "max_rel",
      [DISTANCE_REL_L2] = "rel_l2",
      [DISTANCE_ONE_MINUS_COS] = "one_minus_cos",
  };
  return names[d];
}

double product_rel_l2(const double *a, const double *b, int64_t n) {
  metrics m;
  metrics_row(&m, a, b, (size_t)n);
  return m.rel_l2;
}

static int64_t outputs(const product_input *in) {
  return in->n * in->weights.rows;
}

// ---- the operations ----

static status compute_all(product_bisection *p, const product_input *in) {
  p->row = product_table(&p->n_rows);
  for (size_t i = 0; i < p->n_rows; i++) {
    p->absent[i] = product_refusal(&p->row[i].operation, in);
    if (p->absent[i]) continue;
    TRY(TAKE(&p->out[i], (size_t)outputs(in), "a product's outputs"));
    TRY(product_compute(p->out[i], in, &p->row[i].operation));
  }
  return 0;
}

// The bound, from random orders of the plain float sum, each against the truth (row 0).
static status measure_bound(product_bisection *p, const product_input *in) {
  product_operation o = product_find("dequantise")->operation;
  double *out;
  status result = 0;
  o.at[AXIS_ORDER] = ORDER_SHUFFLED;
  TRY(TAKE(&out, (size_t)outputs(in), "a product's outputs"));
  for (int i = 0; i < ORDERS && !result; i++) {
    o.shuffle = (uint64_t)i + 1;
    result = product_compute(out, in, &o);
    if (!result) p->reordered = fmax(p->reordered, product_rel_l2(out, p->out[0], outputs(in)));
  }
  p->bound = BEYOND * p->reordered;
  free(out);
  return result;
}

// ---- pairs and classes ----

static int ascending(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

static void distances_of(double out[PRODUCT_DISTANCES], const double *a, const double *b, int64_t rows) {
  metrics m;
  metrics_row(&m, a, b, (size_t)rows);
  out[DISTANCE_MAX_REL] = m.max_rel;
  out[DISTANCE_REL_L2] = m.rel_l2;
  out[DISTANCE_ONE_MINUS_COS] = m.one_minus_cos;
}

// Over the activations; `room` holds PRODUCT_DISTANCES * n numbers.
static void spread_pair(product_pair *pair, const product_bisection *p, const product_input *in,
                        int64_t shown, double *room) {
  int64_t rows = in->weights.rows, n = in->n;
  for (int64_t t = 0; t < n; t++) {
    double d[PRODUCT_DISTANCES];
    distances_of(d, p->out[pair->a] + t * rows, p->out[pair->b] + t * rows, rows);
    for (int k = 0; k < PRODUCT_DISTANCES; k++) room[k * n + t] = d[k];
    if (t == shown) memcpy(pair->shown, d, sizeof d);
  }
  for (int k = 0; k < PRODUCT_DISTANCES; k++) {
    double *sorted = room + k * n, at_most = 0;
    for (int64_t t = 0; t < n; t++) at_most += sorted[t] <= pair->shown[k];
    pair->rank[k] = at_most / (double)n;
    qsort(sorted, (size_t)n, sizeof *sorted, ascending);
    for (int q = 0; q < PRODUCT_QUANTILES; q++)
      pair->quantile[k][q] = sorted[(int64_t)((double)(n - 1) * product_quantile[q] + 0.5)];
  }
}

static status measure_pairs(product_bisection *p, const product_input *in, int64_t shown) {
  double *room;
  TRY(TAKE(&room, (size_t)(PRODUCT_DISTANCES * in->n), "a product's distances"));
  for (size_t b = 0; b < p->n_rows; b++)
    for (size_t a = b + 1; a < p->n_rows; a++) {
      if (p->absent[a] || p->absent[b]) continue;
      product_pair *pair = &p->pair[p->n_pairs++];
      *pair = (product_pair){.a = a, .b = b};
      pair->rel_l2 = product_rel_l2(p->out[a], p->out[b], outputs(in));
      spread_pair(pair, p, in, shown, room);
    }
  free(room);
  return 0;
}

static void join(product_bisection *p, int x, int y) {
  int low = x < y ? x : y, high = x < y ? y : x; // so a class keeps its first operation's index
  for (size_t i = 0; i < p->n_rows; i++)
    if (p->cls[i] == high) p->cls[i] = low;
}

// Operations within the bound of each other, directly or through others, are a class.
static void find_classes(product_bisection *p) {
  int number[PRODUCT_MOST] = {0}, n = 0;
  for (size_t i = 0; i < p->n_rows; i++) p->cls[i] = p->absent[i] ? -1 : (int)i;
  for (size_t i = 0; i < p->n_pairs; i++)
    if (p->pair[i].rel_l2 <= p->bound) join(p, p->cls[p->pair[i].a], p->cls[p->pair[i].b]);
  for (size_t i = 0; i < p->n_rows; i++) {
    if (p->absent[i]) continue;
    if (p->cls[i] == (int)i) number[i] = n++;
    p->cls[i] = number[p->cls[i]];
  }
  p->n_classes = n;
}

// ---- walks ----

typedef struct {
  const product_input *in;
  const product_operation *to;
  product_operation at;
  double *before, *after; // outputs at `at`, and after the next step
  product_walk *walk;
} walker;

static status switch_axis(walker *w, const product_bisection *p, product_axis axis, int value) {
  product_operation next = w->at;
  next.at[axis] = value;
  if (w->at.at[axis] == value || product_refusal(&next, w->in)) return 0;
  TRY(product_compute(w->after, w->in, &next));
  double rel_l2 = product_rel_l2(w->after, w->before, outputs(w->in));
  w->walk->step[w->walk->n_steps++] =
      (product_step){axis, w->at.at[axis], value, rel_l2, !(rel_l2 <= p->bound)};
  w->at = next;
  double *swap = w->before;
  w->before = w->after;
  w->after = swap;
  return 0;
}

// First away from a backend, since plain C computes any combination; integers are left before, and taken
// after, the activations are switched, for they need rounded ones.
static status walk_along(walker *w, const product_bisection *p) {
  const int *to = w->to->at;
  TRY(switch_axis(w, p, AXIS_WHERE, WHERE_HERE));
  if (to[AXIS_INNER] != INNER_INTEGER) TRY(switch_axis(w, p, AXIS_INNER, to[AXIS_INNER]));
  TRY(switch_axis(w, p, AXIS_ORDER, to[AXIS_ORDER]));
  TRY(switch_axis(w, p, AXIS_ACTIVATIONS, to[AXIS_ACTIVATIONS]));
  TRY(switch_axis(w, p, AXIS_WEIGHTS, to[AXIS_WEIGHTS]));
  TRY(switch_axis(w, p, AXIS_INNER, to[AXIS_INNER]));
  return switch_axis(w, p, AXIS_WHERE, to[AXIS_WHERE]);
}

static status take_walk(product_bisection *p, const product_input *in, size_t a, size_t b) {
  size_t n = (size_t)outputs(in);
  product_walk *walk = &p->walk[p->n_walks++];
  walker w = {.in = in, .to = &p->row[b].operation, .at = p->row[a].operation, .walk = walk};
  status result;
  *walk = (product_walk){.a = a, .b = b};
  TRY_DONE(result, TAKE(&w.before, n, "a walk"));
  TRY_DONE(result, TAKE(&w.after, n, "a walk"));
  memcpy(w.before, p->out[a], n * sizeof *w.before);
  result = walk_along(&w, p);
done:
  free(w.before);
  free(w.after);
  return result;
}

// The last operation of the truth's class, which is not the truth itself where floats agree with it.
static size_t truths_neighbour(const product_bisection *p) {
  size_t found = 0;
  for (size_t i = 0; i < p->n_rows; i++)
    if (p->cls[i] == p->cls[0]) found = i;
  return found;
}

static status walk_classes(product_bisection *p, const product_input *in) {
  size_t to = truths_neighbour(p);
  for (int c = 0; c < p->n_classes; c++) {
    size_t first = 0;
    while (p->cls[first] != c) first++;
    if (c != p->cls[0]) TRY(take_walk(p, in, first, to));
  }
  return 0;
}

static const product_pair *pair_of(const product_bisection *p, size_t a, size_t b) {
  for (size_t i = 0; i < p->n_pairs; i++)
    if ((p->pair[i].a == a && p->pair[i].b == b) || (p->pair[i].a == b && p->pair[i].b == a))
      return &p->pair[i];
  return NULL;
}

static const char *separator(int i, int n) {
  return i == 0 ? "" : i + 1 == n ? " and " : ", ";
}

// An axis can be switched twice, as where both ends are on backends: it separates where either does.
static void say_separating(FILE *f, const product_walk *w) {
  int n = 0, said = 0;
  for (int i = 0; i < w->n_steps; i++) n += w->step[i].separates;
  if (!n) fputs("no axis alone", f);
  for (int i = 0; i < w->n_steps; i++) {
    const product_step *s = &w->step[i];
    if (s->separates)
      fprintf(f, "%s%s (%s to %s: %.2e)", separator(said++, n), product_axis_name(s->axis),
              product_axis_value(s->axis, s->from), product_axis_value(s->axis, s->to), s->rel_l2);
  }
}

static void say_rounding(FILE *f, const product_walk *w) {
  bool stays[PRODUCT_AXES] = {false};
  int n = 0, said = 0;
  double most = 0;
  for (int i = 0; i < w->n_steps; i++) {
    if (w->step[i].separates) continue;
    n += !stays[w->step[i].axis];
    stays[w->step[i].axis] = true;
    most = fmax(most, w->step[i].rel_l2);
  }
  for (int a = 0; a < PRODUCT_AXES; a++)
    if (stays[a])
      fprintf(f, "%s%s", said ? separator(said, n) : "; ", product_axis_name((product_axis)a)), said++;
  if (n) fprintf(f, " move%s it by at most %.2e, which is rounding", n == 1 ? "s" : "", most);
}

void product_walk_say(char *text, size_t size, const product_bisection *p, const product_walk *w) {
  const product_pair *pair = pair_of(p, w->a, w->b);
  FILE *f = fmemopen(text, size, "w");
  text[0] = 0;
  if (!f) return;
  fprintf(f, "%s and %s differ (rel_l2 %.2e) by ", p->row[w->a].name, p->row[w->b].name,
          pair ? pair->rel_l2 : (double)NAN);
  say_separating(f, w);
  say_rounding(f, w);
  fclose(f);
}

// ---- the whole ----

status product_bisection_run(product_bisection *out, const product_input *in, int64_t shown) {
  *out = (product_bisection){.n_rows = 0};
  TRY(compute_all(out, in));
  TRY(measure_bound(out, in));
  TRY(measure_pairs(out, in, shown));
  find_classes(out);
  return walk_classes(out, in);
}

void product_bisection_close(product_bisection *p) {
  for (size_t i = 0; i < p->n_rows; i++) free(p->out[i]);
}
