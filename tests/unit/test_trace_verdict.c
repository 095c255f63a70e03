// Tests of src/measure/trace_verdict.c and probe_steps.c: what explains a probe's error, on figures and rows
// made for it; each bound from both sides.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "src/measure/trace_verdict.h"
#include "tests/support/seed.h"
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { LAYERS = 5, STEPS = 4 };

// ---- figures of a model of products and norms: gain 1 +- 20 %, errors of 1e-3 ----

static const probe_point POINTS[STEPS] = {PROBE_ATTN_NORM, PROBE_VCUR, PROBE_FFN_MOE_UP, PROBE_FFN_MOE_DOWN};

static probe_result *at(probe_result *r, int layer, int step) {
  return &r[layer * STEPS + step];
}

static void make(probe_result r[LAYERS * STEPS]) {
  for (int l = 0; l < LAYERS; l++)
    for (int s = 0; s < STEPS; s++) {
      double gain = 1 + 0.2 * ((l * STEPS + s) % 3 - 1);
      bool norm = POINTS[s] == PROBE_ATTN_NORM;
      *at(r, l, s) = (probe_result){
          .point = POINTS[s],
          .layer = l,
          .numbers = {.rows = 40, .numbers = 10240, .differing = 10000, .rel_l2 = 1e-3, .finite = true},
          .measure = norm ? JUDGED_BY_RESIDUAL : JUDGED_BY_GAIN,
          .residual = {norm ? 5e-8 : (double)NAN, norm ? 5e-8 : (double)NAN},
          .worst_residual = {9e-8, 9e-8},
          .rounding = {1e-5, 1e-5},
          .error_in = norm ? (double)NAN : 1e-3,
          .error_out = norm ? (double)NAN : 1e-3 * gain,
          .gain = norm ? (double)NAN : gain,
          .worst_gain = norm ? (double)NAN : 2 * gain,
          .bias_error = 1e-6,
          .bias_in_error = 1e-6,
          .bias_rows = 40,
      };
    }
}

static void wants(probe_result *r, int layer, int step, const char *says) {
  int64_t first = trace_judge(r, LAYERS * STEPS);
  if (layer < 0) {
    assert_int_equal(first, -1);
    return;
  }
  assert_int_equal(first, layer * STEPS + step);
  if (!strstr(r[first].reason, says)) fail_msg("found \"%s\", expected \"%s\"", r[first].reason, says);
  for (int64_t i = 0; i < LAYERS * STEPS; i++) assert_true(i == first || r[i].verdict == VERDICT_EXPLAINED);
}

static void test_nothing_is_off(void **state) {
  probe_result r[LAYERS * STEPS];
  (void)state;
  make(r);
  wants(r, -1, 0, "");
  r[3].numbers.differing = 0;
  wants(r, -1, 0, "");
  assert_int_equal(r[3].verdict, VERDICT_EQUAL);
  r[3].measure = JUDGED_BY_NOTHING;
  r[3].numbers.differing = 1;
  wants(r, -1, 0, "");
  assert_int_equal(r[3].verdict, VERDICT_UNJUDGED);
}

// An error that grows with that of its input is nothing, a thousandth of it out of nothing is.
static void test_gain(void **state) {
  probe_result r[LAYERS * STEPS];
  (void)state;
  make(r);
  at(r, 2, 1)->error_in = at(r, 2, 1)->error_out = 0.4;
  wants(r, -1, 0, "");
  at(r, 2, 1)->gain = 4.5;
  wants(r, -1, 0, "");
  at(r, 2, 1)->gain = 6;
  wants(r, 2, 1, "6 times what comes in");
  make(r);
  for (int l = 0; l < LAYERS; l++) at(r, l, 1)->gain = 0.25; // a product that damps
  at(r, 3, 1)->gain = 1.2;
  wants(r, -1, 0, "");
  at(r, 3, 1)->gain = 1.4;
  wants(r, 3, 1, "0.25 in the other layers");
  make(r);
  at(r, 4, 3)->worst_gain = 20;
  wants(r, -1, 0, "");
  at(r, 4, 3)->worst_gain = 30;
  wants(r, 4, 3, "one row");
  make(r);
  at(r, 0, 2)->gain = NAN;
  wants(r, 0, 2, "nan");
}

// A fault in every layer has no other layer to be held against, but other products.
static void test_every_layer(void **state) {
  probe_result r[LAYERS * STEPS];
  (void)state;
  make(r);
  for (int l = 0; l < LAYERS; l++) at(r, l, 1)->gain = 40;
  assert_int_equal(trace_judge(r, LAYERS * STEPS), 1);
  assert_non_null(strstr(r[1].reason, "products here have"));
  for (int l = 0; l < LAYERS; l++) assert_int_equal(at(r, l, 1)->verdict, VERDICT_OFF);
}

static void test_bias(void **state) {
  probe_result r[LAYERS * STEPS];
  (void)state;
  make(r);
  at(r, 1, 2)->bias = 1e-5;
  wants(r, -1, 0, "");
  at(r, 1, 2)->bias = 1e-3;
  wants(r, 1, 2, "a scale: A is 1.0010000 times B");
  at(r, 1, 2)->bias_in = 1e-3; // it came in
  wants(r, -1, 0, "");
  make(r);
  at(r, 1, 2)->bias = 1e-3;
  at(r, 1, 2)->bias_rows = 4; // too few rows to tell
  wants(r, -1, 0, "");
}

static void test_residual(void **state) {
  probe_result r[LAYERS * STEPS];
  (void)state;
  make(r);
  at(r, 3, 0)->worst_residual[1] = 2e-5;
  wants(r, 3, 0, "the norm of B is not what its own inputs give");
  make(r);
  at(r, 3, 0)->residual[0] = 5e-6; // within what the type leaves, but a hundred times the other layers
  wants(r, 3, 0, "the norm of A is off its own inputs by 5.00e-06, in the other layers by 5.00e-08");
  make(r);
  at(r, 0, 0)->worst_residual[0] = NAN;
  wants(r, 0, 0, "the norm of A");
  make(r);
  at(r, 0, 0)->numbers.finite = false;
  wants(r, 0, 0, "NaN");
  make(r);
  at(r, 1, 0)->measure = JUDGED_BY_BITS;
  wants(r, 1, 0, "10000 of 10240 numbers have other bits");
}

// ---- steps ----

// Each probe says what it is computed from, and that is before it or of the layer before.
static void test_graph(void **state) {
  (void)state;
  for (int p = 0; p < PROBE_COUNT; p++) {
    const step_info *step = step_of((probe_point)p);
    assert_true((step->kind == STEP_LOOKUP) == (p == PROBE_INP_EMBD));
    assert_true((step->n_inputs > 0) == (p != PROBE_INP_EMBD));
    assert_true(!step->adds_stream || step->input[1] == PROBE_L_OUT);
    for (int i = 0; i < step->n_inputs; i++)
      assert_true((int)step->input[i] < p || step->input[i] == PROBE_L_OUT);
  }
}

static double relative(residual x) {
  return sqrt(x.error2 / x.scale2);
}

static uint64_t bits;

static double drawn(void) {
  bits ^= bits << 13;
  bits ^= bits >> 7;
  bits ^= bits << 17;
  return (double)(bits >> 11) * 0x1p-52 - 1;
}

static void test_router(void **state) {
  double logits[6] = {0.5, 2, -1, 1.5, 0, 1}, weight[3], sum = exp(2) + exp(1.5) + exp(1);
  (void)state;
  assert_true(residual_select((const double[]){1, 3, 5}, logits, 3, 6).error2 == 0);
  assert_true(relative(residual_select((const double[]){1, 3, 0}, logits, 3, 6)) == 0.25); // 5 passed over
  assert_true(relative(residual_select((const double[]){3, 1, 5}, logits, 3, 6)) == 0.25); // order
  assert_true(relative(residual_select((const double[]){1, 1, 3}, logits, 3, 6)) == 1);
  assert_true(relative(residual_select((const double[]){1, 3, 6}, logits, 3, 6)) == 1);
  assert_true(relative(residual_select((const double[]){1, 3, 0.5}, logits, 3, 6)) == 1);
  for (int i = 0; i < 3; i++) weight[i] = exp(2 - 0.5 * i) / sum;
  assert_true(relative(residual_weights(weight, (const double[]){1, 3, 5}, logits, 3, 6)) < 1e-15);
  assert_true(relative(residual_weights((const double[]){1. / 3, 1. / 3, 1. / 3}, (const double[]){1, 3, 5},
                                        logits, 3, 6)) > 0.3);
}

static void test_sums(void **state) {
  double gate[8], up[8], out[8], slots[16];
  (void)state;
  for (int i = 0; i < 8; i++) {
    gate[i] = 4 * drawn();
    up[i] = drawn();
    slots[i] = drawn();
    slots[8 + i] = drawn();
    out[i] = gate[i] / (1 + exp(-gate[i])) * up[i];
  }
  assert_true(relative(residual_swiglu(out, gate, up, 8)) < 1e-14);
  out[3] += 0.01;
  assert_true(relative(residual_swiglu(out, gate, up, 8)) > 1e-4);
  for (int i = 0; i < 8; i++) out[i] = 0.75 * slots[i] + 0.25 * slots[8 + i];
  assert_true(relative(residual_combine(out, (const double[]){0.75, 0.25}, slots, 2, 8)) < 1e-15);
  assert_true(relative(residual_combine(out, (const double[]){0.25, 0.75}, slots, 2, 8)) > 0.1);
  for (int i = 0; i < 8; i++) out[i] = gate[i] + up[i];
  assert_true(residual_add(out, gate, up, 8).error2 == 0);
}

// Two query heads over one of keys; two tokens; the second sees both.
static void test_attention(void **state) {
  const double q[4] = {1, 0, 0, 2}, keys[4] = {1, 0, 0, 1}, values[4] = {4, 8, 2, -2};
  double e = exp(1), f = exp(2), scores[2];
  const double out[4] = {(4 * e + 2) / (e + 1), (8 * e - 2) / (e + 1), (4 + 2 * f) / (1 + f),
                         (8 - 2 * f) / (1 + f)};
  const int64_t key[2] = {0, 1}, swapped[2] = {0, 0};
  const head_shape s = {2, 1, 2};
  (void)state;
  assert_true(relative(residual_attention(out, q, keys, values, key, 2, &s, scores)) < 1e-15);
  assert_true(relative(residual_attention(out, q, keys, values, swapped, 2, &s, scores)) > 0.1);
  assert_true(relative(residual_attention(out, q, keys, values, key, 1, &s, scores)) > 0.1);
}

// Weights and epsilon come out of the rows; another row's fault is a residual.
static void test_norm(void **state) {
  enum { N = 256, ROWS = 12 };
  static double in[ROWS][N], out[ROWS][N];
  const double epsilon = 1e-2;
  double weight[N];
  norm_fit f;
  (void)state;
  for (int i = 0; i < N; i++) weight[i] = 1 + drawn() / 2;
  for (int t = 0; t < ROWS; t++) {
    double square = 0;
    for (int i = 0; i < N; i++) {
      in[t][i] = drawn() * (t + 1) / 4;
      square += in[t][i] * in[t][i] / N;
    }
    for (int i = 0; i < N; i++) out[t][i] = weight[i] * in[t][i] / sqrt(square + epsilon);
  }
  assert_int_equal(norm_fit_open(&f, N), 0);
  for (int round = 0; round < 13; round++) {
    for (int t = 0; t < ROWS; t++) norm_fit_add(&f, out[t], in[t]);
    norm_fit_solve(&f);
    if (round == 12) break;
    for (int t = 0; t < ROWS; t++) norm_fit_scale(&f, out[t], in[t]);
    norm_fit_solve_epsilon(&f);
  }
  assert_true(fabs(f.epsilon / epsilon - 1) < 1e-6);
  for (int t = 0; t < ROWS; t++) assert_true(relative(residual_norm(&f, out[t], in[t])) < 1e-6);
  for (int i = 0; i < N; i++) out[3][i] *= 1.001;
  assert_true(relative(residual_norm(&f, out[3], in[3])) > 9e-4);
  norm_fit_close(&f);
}

static void test_rounding(void **state) {
  double x[512], y[512];
  (void)state;
  for (int i = 0; i < 512; i++) x[i] = (float)drawn();
  x[7] = 8; // of the first block
  memcpy(y, x, sizeof x);
  input_round(y, 512, INPUT_Q8K);
  for (int i = 0; i < 512; i++) {
    double step = i < 256 ? 8.0 / 127 : 1.0 / 127;
    assert_true(fabs(x[i] - y[i]) <= 0.51 * step);
  }
  assert_true(fabs(y[7] - 8) < 1e-6);
  memcpy(y, x, sizeof x);
  input_round(y, 500, INPUT_Q8K); // no whole blocks: no product of K-quants reads it
  assert_memory_equal(x, y, sizeof x);
  input_round(y, 512, INPUT_F16);
  for (int i = 0; i < 512; i++) assert_true(fabs(x[i] - y[i]) <= fabs(x[i]) * 0x1p-11 + 0x1p-25);
  assert_int_equal(input_rounding_of_path(PATH_F32), INPUT_AS_IT_IS);
  assert_int_equal(input_rounding_of_path(PATH_Q8K), INPUT_Q8K);
}

static void test_middle(void **state) {
  double middle, error, odd[5] = {3, 1, 100, 2, 4}, even[4] = {4, 1, 2, 3};
  (void)state;
  assert_int_equal(middle_of_rows(&middle, &error, odd, 5), 0);
  assert_true(middle == 3 && fabs(error - 1.4826 * 1.2533 / sqrt(5)) < 1e-12);
  assert_int_equal(middle_of_rows(&middle, &error, even, 4), 0);
  assert_true(middle == 2.5);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_nothing_is_off), cmocka_unit_test(test_gain),
      cmocka_unit_test(test_every_layer),    cmocka_unit_test(test_bias),
      cmocka_unit_test(test_residual),       cmocka_unit_test(test_graph),
      cmocka_unit_test(test_router),         cmocka_unit_test(test_sums),
      cmocka_unit_test(test_attention),      cmocka_unit_test(test_norm),
      cmocka_unit_test(test_rounding),       cmocka_unit_test(test_middle),
  };
  bits = test_seed_bits();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
