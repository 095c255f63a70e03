// Tests of src/measure: distributions against closed forms, statistics of probes and experts, and the account
// against sums written out.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "base/memory.h"
#include "src/measure/account.h"
#include "src/measure/pair_statistics.h"
#include "tests/support/seed.h"
#include <math.h>
#include <stdlib.h>

static double uniform(void) {
  return (rand() + 0.5) / ((double)RAND_MAX + 1) * 2 - 1;
}

static void close_to(double found, double expected, double tolerance) {
  if (!(fabs(found - expected) <= tolerance * fmax(fabs(expected), 1e-12)))
    fail_msg("expected %.17g within %g, found %.17g", expected, tolerance, found);
}

// ---- distributions ----

static void test_percentiles(void **state) {
  (void)state;
  enum { N = 1001 };
  double x[N];
  distribution d;
  for (int i = 0; i < N; i++) x[i] = (i * 10) % N; // 0 to 1000 in another order
  assert_int_equal(distribution_of(&d, x, N), 0);
  static const double EXPECTED[N_PERCENTILES] = {1, 10, 50, 500, 950, 990, 999};
  for (int p = 0; p < N_PERCENTILES; p++) close_to(d.percentile[p], EXPECTED[p], 1e-12);
  assert_true(d.n == N && d.min == 0 && d.max == 1000);
  close_to(d.mean, 500, 1e-15);
  close_to(d.standard_error, sqrt((N * (double)N - 1) / 12 / (N - 1)), 1e-12);
  close_to(d.rms, sqrt(1000.0 * 2001 / 6), 1e-12);
  assert_int_equal(distribution_of(&d, (double[]){1, 2}, 2), 0); // between two values
  close_to(d.percentile[1], 1.01, 1e-14);
  close_to(d.percentile[3], 1.5, 1e-14);
}

static void test_moments(void **state) {
  (void)state;
  distribution d;
  assert_int_equal(distribution_of(&d, (double[]){-1, 1, -1, 1}, 4), 0);
  assert_true(d.mean == 0 && d.rms == 1 && d.rms_error == 0);
  close_to(d.standard_error, sqrt(1 / 3.0), 1e-15);
  assert_int_equal(distribution_of(&d, (double[]){1, 3}, 2), 0); // squares 1 and 9: mean 5, error 4
  close_to(d.rms_error, 4 / (2 * sqrt(5)), 1e-15);
  assert_int_equal(distribution_of(&d, (double[]){7, 7, 7}, 3), 0);
  assert_true(d.standard_error == 0 && d.percentile[0] == 7 && d.percentile[6] == 7);
  assert_int_equal(distribution_of(&d, (double[]){7}, 1), 0);
  assert_true(d.mean == 7 && isnan(d.standard_error) && d.percentile[3] == 7);
  assert_int_equal(distribution_of(&d, (double[]){0, 0}, 2), 0);
  assert_true(d.rms == 0 && d.rms_error == 0);
}

static void test_nothing_and_nan(void **state) {
  (void)state;
  distribution d;
  assert_int_equal(distribution_of(&d, NULL, 0), 0);
  assert_true(d.n == 0 && isnan(d.mean) && isnan(d.min) && isnan(d.percentile[3]));
  assert_int_equal(distribution_of(&d, (double[]){1, NAN, 2}, 3), 0);
  assert_true(d.n == 3 && isnan(d.mean) && isnan(d.max) && isnan(d.rms) && isnan(d.percentile[6]));
  estimate e = estimate_of(NULL, 0);
  assert_true(isnan(e.mean) && isnan(e.standard_error));
}

// ---- logits ----

static void test_delta_p(void **state) {
  (void)state;
  pair_samples s;
  layer_statistics layers[1];
  pair_statistics out = {.layers = layers};
  assert_int_equal(pair_samples_open(&s, 1, 3), 0);
  const double even[] = {0, 0}, odds[] = {log(3), 0}; // probabilities 1/2, 1/2 and 3/4, 1/4
  for (int t = 0; t < 3; t++) {
    pair_samples_layer(&s, 0, t, even, even, 2, (expert_global[]){{1}}, (expert_global[]){{t == 1 ? 2 : 1}},
                       1, 0.5);
    pair_samples_logits(&s, t, odds, even, 2, t < 2 ? t : -1);
  }
  assert_int_equal(pair_samples_reduce(&s, &out), 0);
  assert_int_equal(out.delta_p.n, 2);
  close_to(out.delta_p.max, 0.25, 1e-14); // of token 0, then of token 1
  close_to(out.delta_p.min, -0.25, 1e-14);
  close_to(out.delta_p.rms, 0.25, 1e-14);
  close_to(out.nll_delta.mean, -log(1.5) / 2 + log(2) / 2, 1e-13);
  close_to(exp(out.nll_delta.mean) * exp(log(2)) - 2, out.perplexity_delta, 1e-12);
  assert_int_equal(out.kl_spread.n, 3);
  assert_true(out.kl_spread.max == out.kl.max && out.top1_error == 0);
  assert_int_equal(layers[0].same_experts, 2);
  assert_true(layers[0].same_rel_l2 == 0 && layers[0].router_flips == 1);
  pair_samples_close(&s);
}

static void test_same_experts(void **state) {
  (void)state;
  pair_samples s;
  layer_statistics layers[1];
  pair_statistics out = {.layers = layers};
  assert_int_equal(pair_samples_open(&s, 1, 4), 0);
  for (int t = 0; t < 4; t++) { // the worst, position 3, has a flip
    const double a[] = {1, 0.1 * (t + 1)}, b[] = {1, 0};
    pair_samples_layer(&s, 0, t, a, b, 2, (expert_global[]){{1}}, (expert_global[]){{t == 3 ? 2 : 1}}, 1,
                       0.5);
    pair_samples_logits(&s, t, b, b, 2, -1);
  }
  assert_int_equal(pair_samples_reduce(&s, &out), 0);
  close_to(layers[0].rel_l2.max, 0.4, 1e-14);
  close_to(layers[0].same_rel_l2, 0.3, 1e-14);
  close_to(layers[0].same_one_minus_cos, 1 - 1 / sqrt(1.09), 1e-12);
  const double bad[] = {NAN, 0};
  pair_samples_layer(&s, 0, 1, bad, bad, 2, (expert_global[]){{1}}, (expert_global[]){{1}}, 1, 0.5);
  assert_int_equal(pair_samples_reduce(&s, &out), 0);
  assert_true(isnan(layers[0].same_rel_l2) && isnan(layers[0].same_one_minus_cos));
  pair_samples_close(&s);
}

// ---- probes and experts ----

static void test_slots_are_matched_by_expert(void **state) {
  (void)state;
  enum { K = 2, WIDTH = 2 };
  expert_samples e;
  probe_samples p;
  probe_statistics out = {.point = PROBE_FFN_MOE_DOWN};
  const double a[] = {3, 4, 10, 0}, b[] = {10, 1, 3, 5}; // a's experts 5, 7; b's 7, 5
  const expert_global ea[] = {{5}, {7}}, eb[] = {{7}, {5}}, other[] = {{1}, {2}};
  assert_int_equal(expert_samples_open(&e, 2, 8, K, WIDTH), 0);
  assert_int_equal(probe_samples_open(&p, 2, 3), 0);
  expert_samples_add(&e, 1, a, b, WIDTH, ea, eb, K);
  expert_samples_add(&e, 1, a, b, WIDTH, other, eb, K);
  probe_slots_add(&p, &e, 1, 0, a, b, WIDTH, ea, eb, K);
  probe_slots_add(&p, &e, 1, 2, a, b, WIDTH, other, eb, K);
  const expert_sample *of = e.at + 8;
  assert_true(of[5].hits_a == 1 && of[5].hits_b == 2 && of[5].matched == 1 && of[1].hits_a == 1);
  assert_true(of[7].difference == 1 && of[7].norm == 101 && of[5].difference == 1 && of[5].norm == 34);
  close_to(expert_rel_l2(&of[5]), 1 / sqrt(34), 1e-15);
  close_to(of[7].worst_rel_l2, 1 / sqrt(101), 1e-14);
  assert_true(expert_rel_l2(&of[1]) == 0 && !e.at[5].hits_b);
  assert_int_equal(probe_samples_reduce(&p, 1, &out), 0);
  assert_int_equal(out.n, 1); // nothing matched at position 2, position 1 never came
  close_to(out.rel_l2.max, sqrt(2) / sqrt(135), 1e-14);
  assert_int_equal(out.rel_l2.worst, 0);
  assert_int_equal(probe_samples_reduce(&p, 0, &out), 0);
  assert_true(out.n == 0 && isnan(out.rel_l2.max));
  probe_samples_close(&p);
  expert_samples_close(&e);
}

static void test_positions_that_lack_a_probe(void **state) {
  (void)state;
  probe_samples p;
  probe_statistics out = {.layer = 0};
  assert_int_equal(probe_samples_open(&p, 1, 5), 0);
  probe_samples_add(&p, 0, 1, (double[]){1.5}, (double[]){1}, 1);
  probe_samples_add(&p, 0, 3, (double[]){3}, (double[]){1}, 1);
  assert_int_equal(probe_samples_reduce(&p, 0, &out), 0);
  assert_true(out.n == 2 && out.rel_l2.min == 0.5 && out.rel_l2.max == 2 && out.rel_l2.worst == 3);
  probe_samples_add(&p, 0, 2, (double[]){NAN}, (double[]){1}, 1);
  assert_int_equal(probe_samples_reduce(&p, 0, &out), 0);
  assert_true(out.n == 3 && isnan(out.rel_l2.max) && out.rel_l2.worst == 2);
  probe_samples_close(&p);
}

static void test_a_slot_that_is_not_finite(void **state) {
  (void)state;
  expert_samples e;
  assert_int_equal(expert_samples_open(&e, 1, 2, 1, 1), 0);
  expert_samples_add(&e, 0, (double[]){INFINITY}, (double[]){1}, 1, (expert_global[]){{0}},
                     (expert_global[]){{0}}, 1);
  expert_samples_add(&e, 0, (double[]){1}, (double[]){1}, 1, (expert_global[]){{0}}, (expert_global[]){{0}},
                     1);
  assert_true(isnan(expert_rel_l2(&e.at[0])) && expert_rel_l2(&e.at[1]) == 0);
  expert_samples_close(&e);
}

// ---- the account ----

enum { LAYERS = 3, POSITIONS = 10, WIDTH = 5 };

typedef struct {
  double free[POSITIONS][WIDTH], forced[POSITIONS][WIDTH], truth[POSITIONS][WIDTH];
  double error[LAYERS + 1][POSITIONS][WIDTH];
  bool flips[LAYERS + 1][POSITIONS];
} made;

static void make(made *m, double size) {
  for (int t = 0; t < POSITIONS; t++)
    for (int i = 0; i < WIDTH; i++) {
      m->truth[t][i] = uniform();
      m->free[t][i] = m->truth[t][i] + size * uniform();
      m->forced[t][i] = m->truth[t][i] + size * uniform();
      for (int l = 0; l <= LAYERS; l++) m->error[l][t][i] = size * uniform();
    }
  for (int t = 0; t < POSITIONS; t++)
    for (int l = 0; l <= LAYERS; l++) m->flips[l][t] = l && rand() % 4 == 0;
}

// In batches of `batch` positions, the runs in any order.
static void give(account_samples *s, const made *m, int batch) {
  static const double zero[WIDTH];
  for (int first = 0; first < POSITIONS; first += batch)
    for (int l = 0; l <= LAYERS; l++)
      for (int t = first; t < first + batch && t < POSITIONS; t++)
        account_samples_local(s, l, t, t - first, m->error[l][t], zero, m->flips[l][t]);
  for (int t = 0; t < POSITIONS; t++) {
    account_samples_run(s, ACCOUNT_FORCED, t, m->forced[t], m->truth[t], m->truth[t]);
    account_samples_run(s, ACCOUNT_FREE, t, m->free[t], m->truth[t], m->truth[t]);
  }
}

static double square(const double *x, const double *y) {
  double sum = 0;
  for (int i = 0; i < WIDTH; i++) sum += (x[i] - (y ? y[i] : 0)) * (x[i] - (y ? y[i] : 0));
  return sum;
}

static account reduce(const made *m, int batch, account_layer *layers) {
  account_samples s;
  account out = {.layers = layers};
  assert_int_equal(account_samples_open(&s, LAYERS, POSITIONS, batch, WIDTH), 0);
  give(&s, m, batch);
  assert_int_equal(account_samples_reduce(&s, &out), 0);
  account_samples_close(&s);
  return out;
}

static void test_account_as_defined(void **state) {
  (void)state;
  made m;
  account_layer layers[LAYERS], again[LAYERS];
  make(&m, 0.1);
  account a = reduce(&m, 4, layers), b = reduce(&m, POSITIONS, again);
  double total = 0, forced = 0, local = 0, carried = 0, flipped = 0, of_layer[LAYERS + 1] = {0};
  int64_t points = 0;
  for (int t = 0; t < POSITIONS; t++) {
    double norm = square(m.truth[t], NULL), sum[WIDTH] = {0};
    total += square(m.free[t], m.truth[t]) / norm / POSITIONS;
    forced += square(m.forced[t], m.truth[t]) / norm / POSITIONS;
    for (int l = 0; l <= LAYERS; l++) {
      double energy = square(m.error[l][t], NULL) / norm / POSITIONS;
      *(m.flips[l][t] ? &flipped : &local) += energy;
      of_layer[l] += m.flips[l][t] ? 0 : energy;
      points += m.flips[l][t];
      for (int i = 0; i < WIDTH && !m.flips[l][t]; i++) sum[i] += m.error[l][t][i];
    }
    carried += square(sum, NULL) / norm / POSITIONS;
  }
  close_to(a.total.mean, total, 1e-12);
  close_to(a.forced.mean, forced, 1e-12);
  close_to(a.local.mean, local, 1e-12);
  close_to(a.interference.mean, carried - local, 1e-11);
  close_to(a.compounding.mean, forced - carried, 1e-11);
  close_to(a.flips.mean, total - forced, 1e-11);
  close_to(a.local_flips.mean, flipped, 1e-12);
  assert_int_equal(a.flipped_points, points);
  close_to(a.embedding.mean, of_layer[0], 1e-12);
  double grown = a.embedding.mean;
  for (int l = 0; l < LAYERS; l++) {
    close_to(layers[l].local.mean, of_layer[l + 1], 1e-12);
    assert_true(layers[l].local.mean == again[l].local.mean && layers[l].increment == again[l].increment);
    grown += layers[l].increment;
  }
  close_to(grown, carried, 1e-11);
  close_to(a.local.mean + a.interference.mean + a.compounding.mean + a.flips.mean, a.total.mean, 1e-12);
  assert_true(a.total.mean == b.total.mean && a.compounding.mean == b.compounding.mean); // over cuts
}

static void test_verdicts(void **state) {
  (void)state;
  made m;
  account_layer layers[LAYERS];
  make(&m, 0);
  assert_int_equal(reduce(&m, 4, layers).verdict, ACCOUNT_NOTHING);
  for (int t = 0; t < POSITIONS;
       t++) { // one layer's error, carried, doubled by compounding, doubled by flips
    for (int l = 0; l <= LAYERS; l++) m.flips[l][t] = false;
    m.error[1][t][0] = 1;
    m.forced[t][0] = m.truth[t][0] + 2;
    m.free[t][0] = m.truth[t][0] + 4;
  }
  account a = reduce(&m, 3, layers);
  assert_int_equal(a.verdict, ACCOUNT_ADDS_UP);
  close_to(a.compounding.mean / a.total.mean, 3.0 / 16, 1e-12);
  close_to(a.flips.mean / a.total.mean, 12.0 / 16, 1e-12);
  for (int t = 0; t < POSITIONS; t++) m.free[t][0] = m.truth[t][0] + 1; // nearer with its own experts
  assert_int_equal(reduce(&m, 3, layers).verdict, ACCOUNT_NEGATIVE);
  m.forced[2][1] = NAN;
  assert_int_equal(reduce(&m, 3, layers).verdict, ACCOUNT_NOT_FINITE);
}

static int seed(void **state) {
  (void)state;
  srand((unsigned)test_seed());
  return 0;
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_percentiles),
      cmocka_unit_test(test_moments),
      cmocka_unit_test(test_nothing_and_nan),
      cmocka_unit_test(test_delta_p),
      cmocka_unit_test(test_same_experts),
      cmocka_unit_test(test_slots_are_matched_by_expert),
      cmocka_unit_test(test_positions_that_lack_a_probe),
      cmocka_unit_test(test_a_slot_that_is_not_finite),
      cmocka_unit_test(test_account_as_defined),
      cmocka_unit_test(test_verdicts),
  };
  return cmocka_run_group_tests(tests, seed, NULL);
}
