// Tests of kernels/formats/numerics.h: errors of exp, log, cos, sin and the RoPE angles in units in the last
// place against long double, special values, the summation tree against its formula, and the digest's mix.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include "kernels/backend.h"
#include "kernels/formats/numerics.h"
#include "tests/support/seed.h"
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static uint64_t random_state;

static uint64_t random_u64(void) {
  random_state += 0x9e3779b97f4a7c15u; // SplitMix64
  return num_mix64(random_state);
}

static double uniform(double low, double high) {
  return low + (high - low) * (double)(random_u64() >> 11) * 0x1p-53;
}

// |found - exact| in units in the last place of a format with `digits` bits whose smallest number is 2^least.
static double ulps(long double found, long double exact, int digits, int least) {
  int exponent;
  frexpl(exact, &exponent);
  int unit = exponent - digits > least ? exponent - digits : least;
  return (double)ldexpl(fabsl(found - exact), -unit);
}

static double ulps_f32(float found, long double exact) {
  return ulps((long double)found, exact, 24, -149);
}

static double ulps_f64(double found, long double exact) {
  return ulps((long double)found, exact, 53, -1074);
}

// ---- exp ----

// Every 251st float of either sign: all exponents, 2^24 inputs.
static void exp_f32_over_all_exponents(void **state) {
  (void)state;
  double worst_normal = 0, worst_subnormal = 0;
  float where = 0;
  for (uint64_t bits = random_u64() % 251; bits < UINT64_C(1) << 32; bits += 251) {
    float x = num_from_bits_f32((uint32_t)bits), y = num_exp_f32(x);
    if (isnan(x)) {
      assert_true(isnan(y));
      continue;
    }
    if (fabsf(x) > 110 || fabsf(x) < 1e-12f) {
      assert_true(x > 110 ? isinf(y) && y > 0 : x < -110 ? y == 0 && !signbit(y) : y == 1.0f);
      continue;
    }
    long double exact = expl((long double)x);
    if (exact > (long double)3.4028235677973366e38) { // half a unit beyond the largest float
      assert_true(isinf(y));
      continue;
    }
    double error = ulps_f32(y, exact);
    bool normal = exact >= (long double)1.17549435e-38;
    if (normal && error > worst_normal) where = x;
    if (normal)
      worst_normal = fmax(worst_normal, error);
    else
      worst_subnormal = fmax(worst_subnormal, error);
  }
  print_message("exp, float: %.4f ulp at %a; %.4f where the result is subnormal\n", worst_normal,
                (double)where, worst_subnormal);
  assert_true(worst_normal < 1.1);     // 1.0955 over all floats; it passes 1 for one in 100,000
  assert_true(worst_subnormal < 1.51); // rounded twice
}

static void exp_f32_special_values(void **state) {
  (void)state;
  assert_true(num_exp_f32(0.0f) == 1.0f && num_exp_f32(-0.0f) == 1.0f);
  assert_true(isinf(num_exp_f32(INFINITY)) && num_exp_f32(-INFINITY) == 0);
  assert_true(isnan(num_exp_f32(NAN)));
  for (int step = -40; step <= 40; step++) { // around both ends, float by float
    float high = 88.72284f, low = -103.97208f;
    for (int i = 0; i < abs(step); i++) {
      high = nextafterf(high, step < 0 ? 0 : 1e9f);
      low = nextafterf(low, step < 0 ? 0 : -1e9f);
    }
    long double exact = expl((long double)high);
    assert_true(isinf(num_exp_f32(high)) == (exact > (long double)3.4028235677973366e38));
    assert_true(num_exp_f32(low) == (expl((long double)low) > ldexpl(1, -150) ? ldexpf(1, -149) : 0));
  }
}

static void exp_f64_is_close(void **state) {
  (void)state;
  double worst = 0, worst_subnormal = 0;
  for (int i = 0; i < 1000000; i++) {
    double x = i % 4 == 0   ? uniform(-745.1, 709.7)
               : i % 4 == 1 ? uniform(-1, 1)
               : i % 4 == 2 ? uniform(-40, 0)
                            : 0;
    if (i % 4 == 3) x = uniform(1, 2) * exp2(floor(uniform(-80, 9))) * (i % 8 == 3 ? 1 : -1);
    if (x > 709.7 || x < -745.1) continue;
    long double exact = expl((long double)x);
    double error = ulps_f64(num_exp_f64(x), exact);
    if (exact >= (long double)2.2250738585072014e-308)
      worst = fmax(worst, error);
    else
      worst_subnormal = fmax(worst_subnormal, error);
  }
  print_message("exp, double: %.4f ulp; %.4f where the result is subnormal\n", worst, worst_subnormal);
  assert_true(worst < 1.0);
  assert_true(worst_subnormal < 1.51);
  assert_true(num_exp_f64(0.0) == 1.0 && isinf(num_exp_f64((double)INFINITY)));
  assert_true(num_exp_f64((double)-INFINITY) == 0 && isnan(num_exp_f64((double)NAN)));
  assert_true(isinf(num_exp_f64(709.79)) && !isinf(num_exp_f64(709.78)) && num_exp_f64(-745.14) == 0);
}

static void silu_is_close(void **state) {
  (void)state;
  double worst = 0, worst_wide = 0;
  for (int i = 0; i < 1000000; i++) {
    double x = uniform(-80, 80) * (i % 2 ? 1 : 0.05);
    float narrow = (float)x;
    long double exact = (long double)narrow / (1 + expl(-(long double)narrow));
    worst = fmax(worst, ulps_f32(num_silu_f32(narrow), exact));
    worst_wide = fmax(worst_wide, ulps_f64(num_silu_f64(x), (long double)x / (1 + expl(-(long double)x))));
  }
  print_message("silu: float %.4f ulp, double %.4f ulp\n", worst, worst_wide);
  assert_true(worst < 3 && worst_wide < 3);
  assert_true(num_silu_f32(0.0f) == 0 && num_silu_f32(-200.0f) == 0 && num_silu_f32(200.0f) == 200.0f);
}

// ---- log, cos and sin, the angles ----

static void log_is_close(void **state) {
  (void)state;
  double worst = 0;
  for (int i = 0; i < 1000000; i++) {
    double x = uniform(1, 2) * exp2(floor(i % 3 ? uniform(-60, 60) : uniform(-1000, 1000)));
    worst = fmax(worst, ulps_f64(num_log_f64(x), logl((long double)x)));
  }
  for (int i = 0; i < 1000000; i++) { // near 1, where the logarithm is small
    double x = 1 + uniform(-1, 1) * exp2(uniform(-50, -2));
    worst = fmax(worst, x == 1 ? 0 : ulps_f64(num_log_f64(x), logl((long double)x)));
  }
  print_message("log, double: %.4f ulp\n", worst);
  assert_true(worst < 2.5);
  assert_true(num_log_f64(1.0) == 0);
}

// cos and sin near their zeros lose digits that a rotation does not need: their error counts against 1.
static void cos_and_sin_are_close(void **state) {
  (void)state;
  double worst = 0;
  for (int i = 0; i < 1000000; i++) {
    double a = i % 3 == 0 ? uniform(0, 8) : i % 3 == 1 ? uniform(0, 0x1p20) : floor(uniform(0, 0x1p31));
    double c, s;
    num_cos_sin_f64(&c, &s, a);
    worst = fmax(worst, (double)fabsl((long double)c - cosl((long double)a)));
    worst = fmax(worst, (double)fabsl((long double)s - sinl((long double)a)));
    num_cos_sin_f64(&c, &s, -a);
    worst = fmax(worst, (double)fabsl((long double)s + sinl((long double)a)));
  }
  print_message("cos and sin, double: within %.3f * 2^-53\n", worst * 0x1p53);
  assert_true(worst < 0x1.8p-53);
  double c, s;
  num_cos_sin_f64(&c, &s, 0.0);
  assert_true(c == 1 && s == 0);
}

static void rope_frequencies_are_close(void **state) {
  (void)state;
  static const double bases[] = {10000, 500000, 1e6, 1e7};
  double worst = 0;
  for (size_t b = 0; b < sizeof bases / sizeof *bases; b++)
    for (int64_t pairs = 1; pairs <= 128; pairs *= 2)
      for (int64_t i = 0; i < pairs; i++) {
        long double exact = powl((long double)bases[b], -(long double)i / (long double)pairs);
        worst = fmax(worst, (double)fabsl((long double)num_rope_frequency(bases[b], i, pairs) / exact - 1));
      }
  print_message("RoPE frequencies: relative %.2f * 2^-53\n", worst * 0x1p53);
  assert_true(worst < 64 * 0x1p-53); // the rounded exponent, up to 16, is multiplied into the result
  assert_true(num_rope_frequency(1e6, 0, 64) == 1.0);
}

// ---- the tree ----

static void tree_is_its_formula(void **state) {
  (void)state;
  for (int round = 0; round < 1000; round++) {
    float narrow[LANES];
    double wide[LANES];
    for (int l = 0; l < LANES; l++) narrow[l] = (float)(wide[l] = uniform(-1, 1) * exp2(uniform(-20, 20)));
    float f[LANES];
    double d[LANES];
    memcpy(f, narrow, sizeof f);
    memcpy(d, wide, sizeof d);
#define AT(x, l)  (((x[l] + x[l + 16]) + (x[l + 8] + x[l + 24])))
#define AT4(x, l) (AT(x, l) + AT(x, l + 4))
#define SUM(x)    ((AT4(x, 0) + AT4(x, 2)) + (AT4(x, 1) + AT4(x, 3)))
    assert_int_equal(num_bits_f32(num_tree_f32(f)), num_bits_f32(SUM(narrow)));
    assert_int_equal(num_bits_f64(num_tree_f64(d)), num_bits_f64(SUM(wide)));
  }
}

// ---- the digest ----

enum { ROWS = 6, WIDTH = 37 };

static uint64_t digest_of(float x[ROWS][WIDTH], const path_info *path, int64_t layer, int64_t first_token) {
  uint64_t sum = 0;
  for (int r = 0; r < ROWS; r++) digest_row(&sum, path, layer, first_token + r, x[r], WIDTH);
  return sum;
}

static void fill(float x[ROWS][WIDTH]) {
  for (int r = 0; r < ROWS; r++)
    for (int i = 0; i < WIDTH; i++) x[r][i] = (float)uniform(-2, 2);
}

static void digest_does_not_depend_on_order(void **state) {
  (void)state;
  float x[ROWS][WIDTH];
  fill(x);
  const path_info *path = path_get(PATH_F32);
  uint64_t forth = digest_of(x, path, 3, 10), back = 0, parts = 0;
  for (int r = ROWS - 1; r >= 0; r--) digest_row(&back, path, 3, 10 + r, x[r], WIDTH);
  for (int i = WIDTH - 1; i >= 0; i--) // element by element
    for (int r = 0; r < ROWS; r++)
      parts += num_digest_element(num_digest_row(path->tag, 3, 10 + r), i, num_bits_f32(x[r][i]));
  assert_true(forth == back && forth == parts && forth != 0);
}

static void digest_sees_every_bit(void **state) {
  (void)state;
  float x[ROWS][WIDTH];
  fill(x);
  const path_info *path = path_get(PATH_Q8K);
  uint64_t whole = digest_of(x, path, 0, 0);
  for (int r = 0; r < ROWS; r++)
    for (int i = 0; i < WIDTH; i++)
      for (int bit = 0; bit < 32; bit++) {
        float kept = x[r][i];
        x[r][i] = num_from_bits_f32(num_bits_f32(kept) ^ 1u << bit);
        assert_true(digest_of(x, path, 0, 0) != whole);
        x[r][i] = kept;
      }
  x[2][5] = 0.0f;
  whole = digest_of(x, path, 0, 0);
  x[2][5] = -0.0f;
  assert_true(digest_of(x, path, 0, 0) != whole);
}

static void digest_sees_places_and_paths(void **state) {
  (void)state;
  float x[ROWS][WIDTH], swapped[ROWS][WIDTH];
  fill(x);
  uint64_t whole = digest_of(x, path_get(PATH_F32), 1, 0);
  for (int i = 0; i < ROWS * WIDTH; i++)
    for (int k = 0; k < i; k++) { // any two elements swapped, of one row or of two
      memcpy(swapped, x, sizeof x);
      float *flat = &swapped[0][0], kept = flat[i];
      flat[i] = flat[k];
      flat[k] = kept;
      assert_true(digest_of(swapped, path_get(PATH_F32), 1, 0) != whole);
    }
  assert_true(digest_of(x, path_get(PATH_F32), 2, 0) != whole);
  assert_true(digest_of(x, path_get(PATH_F32), -1, 0) != whole);
  assert_true(digest_of(x, path_get(PATH_F32), 1, 1) != whole);
  assert_true(digest_of(x, path_get(PATH_Q8K), 1, 0) != whole);
  path_info next = *path_get(PATH_F32);
  next.tag++; // the next version of the path
  assert_true(digest_of(x, &next, 1, 0) != whole);
}

static void digest_of_doubles_sees_the_last_bit(void **state) {
  (void)state;
  double x[WIDTH];
  for (int i = 0; i < WIDTH; i++) x[i] = uniform(-1, 1);
  uint64_t whole = 0;
  digest_row(&whole, path_get(PATH_F64), 0, 0, x, WIDTH);
  for (int i = 0; i < WIDTH; i++) {
    uint64_t other = 0;
    double kept = x[i];
    x[i] = nextafter(kept, 2);
    digest_row(&other, path_get(PATH_F64), 0, 0, x, WIDTH);
    x[i] = kept;
    assert_true(other != whole);
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(exp_f32_over_all_exponents),
      cmocka_unit_test(exp_f32_special_values),
      cmocka_unit_test(exp_f64_is_close),
      cmocka_unit_test(silu_is_close),
      cmocka_unit_test(log_is_close),
      cmocka_unit_test(cos_and_sin_are_close),
      cmocka_unit_test(rope_frequencies_are_close),
      cmocka_unit_test(tree_is_its_formula),
      cmocka_unit_test(digest_does_not_depend_on_order),
      cmocka_unit_test(digest_sees_every_bit),
      cmocka_unit_test(digest_sees_places_and_paths),
      cmocka_unit_test(digest_of_doubles_sees_the_last_bit),
  };
  random_state = test_seed();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
