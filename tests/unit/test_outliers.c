// Tests of what the path q8k_split does beyond q8k, in each row of the cpu backend: a literal reading of
// docs/paths.md, bit for bit; and, with outliers planted, how much nearer to the truth it comes than q8k.
//
//   test_outliers [ROW]      this row alone, for the planted ones (../support/planted_rows.c)
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include "base/memory.h"
#include "kernels/cpu/row.h"
#include "kernels/formats/half.h"
#include "kernels/formats/numerics.h"
#include "tests/support/seed.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_TOKENS = 9, MAX_ROWS = 67, MAX_COLS = 4 * QK_K };

static uint64_t random_state;
static const char *only; // the row that was asked for, NULL: all

static uint64_t random_next(void) { // SplitMix64
  return num_mix64(random_state += 0x9e3779b97f4a7c15u);
}

static int random_below(int n) {
  return (int)(random_next() % (uint64_t)n);
}

static double random_normal(void) { // sum of twelve uniforms: near enough
  double sum = -6;
  for (int i = 0; i < 12; i++) sum += (double)(random_next() >> 32) * 0x1p-32;
  return sum;
}

// ---- a literal reading ----

typedef struct {
  int n, at[MAX_COLS];
  float x[MAX_COLS];
} literal_outliers;

static int descending(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return (x < y) - (x > y);
}

// The outliers of x[n], in order, and the rest.
static void literal_split(literal_outliers *out, float *rest, const float *x, int n) {
  out->n = 0;
  for (int b = 0; b < n; b += QK_K) {
    float m[QK_K];
    for (int i = 0; i < QK_K; i++) m[i] = fabsf(x[b + i]);
    qsort(m, QK_K, sizeof *m, descending);
    for (int i = 0; i < QK_K; i++) {
      bool is_out = fabsf(x[b + i]) > 4 * m[8];
      rest[b + i] = is_out ? 0 : x[b + i];
      if (!is_out) continue;
      out->at[out->n] = b + i;
      out->x[out->n++] = x[b + i];
    }
  }
}

typedef enum { AS_WRITTEN, DESCENDING, LAST_LEFT_OUT } reading;

static float literal_sum(const float *w, const literal_outliers *o, reading how) {
  float z = 0;
  for (int k = 0; k < o->n - (how == LAST_LEFT_OUT); k++) {
    int term = how == DESCENDING ? o->n - 1 - k : k;
    z = fmaf(w[o->at[term]], o->x[term], z);
  }
  return z;
}

// ---- activations ----

enum { KINDS = 10 };

static void plant(float *x, int count, float size) {
  for (int k = 0; k < count; k++) x[random_below(QK_K)] = random_below(2) ? size : -size;
}

// A block of any kind that the criterion has to tell from another.
static void random_block(float *x, int kind) {
  float size = exp2f((float)random_below(60) - 30);
  for (int i = 0; i < QK_K; i++) x[i] = (float)random_normal() * size;
  if (kind == 1) plant(x, 1 + random_below(4), 150 * size);
  if (kind == 2) plant(x, 1 + random_below(12), 150 * size); // up to more than may be taken out
  if (kind == 3)
    for (int i = 0; i < QK_K; i++)
      x[i] = (float)(random_normal() * random_normal() * random_normal()); // heavy tails
  if (kind == 4) { // just at the limit, above it and below it, either sign
    for (int i = 0; i < QK_K; i++) x[i] = (random_below(2) ? size : -size) * (random_below(3) ? 1 : 0.5f);
    plant(x, 2, 4 * size);
    plant(x, 2, nextafterf(4 * size, 0));
    plant(x, 2, nextafterf(4 * size, INFINITY));
  }
  if (kind == 5) // a few elements and zeros of either sign
    for (int i = 0; i < QK_K; i++) x[i] = random_below(40) ? (random_below(2) ? 0.0f : -0.0f) : x[i];
  if (kind == 6) memset(x, 0, QK_K * sizeof *x);
  if (kind == 7) // subnormal
    for (int i = 0; i < QK_K; i++)
      x[i] = (float)(random_below(9) - 4) * 0x1p-149f * (random_below(90) ? 1 : 100);
  if (kind == 8) // four times an element is beyond floats
    for (int i = 0; i < QK_K; i++) x[i] = (float)random_normal() * (random_below(60) ? 1e30f : 4e37f);
  if (kind == 9) { // a chain, each well above the next
    for (int i = 0; i < QK_K; i++) x[i] = size;
    for (int k = 0; k < 7; k++) x[random_below(QK_K)] = size * exp2f((float)(1 + 2 * random_below(8)));
  }
}

// ---- matrices ----

static const weight_type types[] = {TYPE_Q4_K, TYPE_Q5_K, TYPE_Q6_K};
enum { N_TYPES = sizeof types / sizeof *types };

static void *room(size_t bytes) {
  void *p;
  assert_int_equal(memory_take(&p, bytes, 1, "a test"), 0);
  return p;
}

static matrix random_matrix(weight_type type, int64_t rows, int64_t cols) {
  const type_info *info = type_find(type);
  size_t n = (size_t)(rows * cols) / QK_K;
  char *data = room(n * info->bytes);
  for (size_t i = 0; i < n * info->bytes; i++) data[i] = (char)random_next();
  for (size_t b = 0; b < n; b++) {
    char *block = data + b * info->bytes;
    uint16_t d = f32_to_half((float)random_normal() * 1e-3f),
             dmin = f32_to_half((float)random_normal() * 1e-3f);
    memcpy(block + (type == TYPE_Q6_K ? offsetof(block_q6_K, d) : 0), &d, 2);
    if (type != TYPE_Q6_K) memcpy(block + 2, &dmin, 2);
  }
  return (matrix){data, type, rows, cols};
}

static void weights_of(float *w, const matrix *m, int64_t row) {
  size_t bytes = type_row_bytes(type_find(m->type), (size_t)m->cols);
  dequantize_row(w, m->type, (const char *)m->data + (size_t)row * bytes, (size_t)m->cols);
}

// ---- rows ----

typedef void row_test(const cpu_row *row);

static void for_each_row(row_test *test) {
  for (const cpu_row *const *row = cpu_row_table(); *row; row++)
    if ((*row)->usable() && (!only || !strcmp(only, (*row)->name))) test(*row);
}

static void check_split(const cpu_row *row) {
  int taken = 0, with = 0, blocks = 0;
  for (int round = 0; round < 1500; round++) {
    float x[3 * QK_K], rest[3 * QK_K];
    block_q8_K wanted[3];
    static literal_outliers o;
    char *found = room(split_row_bytes(3));
    memset(found, 0x55, split_row_bytes(3));
    for (int b = 0; b < 3; b++) random_block(x + b * QK_K, (round + b * 3) % KINDS);
    literal_split(&o, rest, x, 3 * QK_K);
    cpu_row_find("portable")->quantize_q8k(wanted, rest, 3 * QK_K);
    row->split_q8k((block_q8_K *)(void *)found, x, 3 * QK_K);
    const row_outliers *got = outliers_of((const block_q8_K *)(const void *)found, 3);
    if (got->count != o.n)
      fail_msg("row %s: split_q8k: %d outliers, expected %d", row->name, (int)got->count, o.n);
    for (int k = 0; k < o.n; k++)
      if (got->of[k].at != o.at[k] || num_bits_f32(got->of[k].x) != num_bits_f32(o.x[k]))
        fail_msg("row %s: split_q8k: outlier %d is %a at %d, expected %a at %d", row->name, k,
                 (double)got->of[k].x, (int)got->of[k].at, (double)o.x[k], o.at[k]);
    if (memcmp(found, wanted, sizeof wanted)) fail_msg("row %s: split_q8k: other blocks", row->name);
    taken += o.n;
    with += o.n > 0;
    blocks += 3;
    free(found);
  }
  print_message("row %s: %d outliers in %d blocks\n", row->name, taken, blocks);
  assert_true(with > 300 && taken > with);
}

typedef struct {
  matrix m;
  int n;
  float *x[MAX_TOKENS], *out[MAX_TOKENS], *plain[MAX_TOKENS];
  const block_q8_K *rounded[MAX_TOKENS];
} product_case;

// The row's product of a split x, and that of q8k of the same blocks.
static void product_open(product_case *c, const cpu_row *row, weight_type type, int64_t rows, int64_t cols,
                         int n) {
  *c = (product_case){.m = random_matrix(type, rows, cols), .n = n};
  int kind = random_below(4); // tokens that share their outlier channels, and others
  for (int t = 0; t < n; t++) {
    c->x[t] = room((size_t)cols * sizeof(float));
    c->out[t] = room((size_t)(rows + 1) * sizeof(float));
    c->plain[t] = room((size_t)rows * sizeof(float));
    c->out[t][rows] = 12345;
    for (int64_t i = 0; i < cols; i++) c->x[t][i] = (float)random_normal();
    for (int64_t b = 0; b < cols && kind; b += QK_K) {
      if (kind > 1) plant(c->x[t] + b, random_below(4), 60);
      if (kind < 3) c->x[t][b + 17] = 146.68f, c->x[t][b + 200] = (float)(t % 3 * -40);
    }
    char *to = room(split_row_bytes(cols / QK_K));
    row->split_q8k((block_q8_K *)(void *)to, c->x[t], cols);
    c->rounded[t] = (const block_q8_K *)(const void *)to;
  }
  row->product_q8k(c->out, &c->m, c->rounded, n);
  for (int t = 0; t < n; t++) memcpy(c->plain[t], c->out[t], (size_t)rows * sizeof(float));
  row->add_outliers(c->out, &c->m, c->rounded, n);
}

static void product_close(product_case *c) {
  for (int t = 0; t < c->n; t++) {
    assert_true(c->out[t][c->m.rows] == 12345);
    free(c->x[t]), free(c->out[t]), free(c->plain[t]), free((void *)(uintptr_t)c->rounded[t]);
  }
  free((void *)(uintptr_t)c->m.data);
}

static void check_terms(const cpu_row *row) {
  static const int64_t row_counts[] = {1, 2, 31, 32, 33, 67};
  int other[3] = {0}, elements = 0;
  for (int round = 0; round < 90; round++) {
    product_case c;
    product_open(&c, row, types[round % N_TYPES], row_counts[random_below(6)], QK_K * (1 + random_below(4)),
                 1 + random_below(MAX_TOKENS));
    for (int64_t r = 0; r < c.m.rows; r++)
      for (int t = 0; t < c.n; t++) {
        float w[MAX_COLS], rest[MAX_COLS], wanted[3];
        static literal_outliers o;
        weights_of(w, &c.m, r);
        literal_split(&o, rest, c.x[t], (int)c.m.cols);
        for (int how = 0; how < 3; how++)
          wanted[how] = o.n ? c.plain[t][r] + literal_sum(w, &o, (reading)how) : c.plain[t][r];
        if (num_bits_f32(c.out[t][r]) != num_bits_f32(wanted[AS_WRITTEN]))
          fail_msg("row %s: add_outliers of %s, %d rows of %d, token %d of %d, row %d: %a, expected %a",
                   row->name, type_find(c.m.type)->name, (int)c.m.rows, (int)c.m.cols, t, c.n, (int)r,
                   (double)c.out[t][r], (double)wanted[AS_WRITTEN]);
        for (int how = 1; how < 3; how++)
          other[how] += num_bits_f32(wanted[how]) != num_bits_f32(c.out[t][r]);
        elements++;
      }
    product_close(&c);
  }
  print_message("row %s: of %d numbers %d would differ in descending order, %d without the last term\n",
                row->name, elements, other[DESCENDING], other[LAST_LEFT_OUT]);
  assert_true(other[DESCENDING] > elements / 50 && other[LAST_LEFT_OUT] > elements / 4);
}

// ---- what it is for ----

typedef struct {
  double error, size;
} norm;

static double norm_of(const norm *n) {
  return sqrt(n->error / n->size);
}

enum { ON_Q8K, SPLIT, WAYS };

// Errors of q8k and of q8k_split of normal activations with `planted` outliers in each block, against
// doubles; the weights that read an outlier channel are small, as in trained models.
static void errors_of(double error[WAYS], const cpu_row *row, weight_type type, int planted) {
  enum { ROWS = 64, COLS = 4 * QK_K };
  norm n[WAYS] = {{0, 0}, {0, 0}};
  matrix m = random_matrix(type, ROWS, COLS);
  float *x = room(COLS * sizeof *x), out[WAYS][ROWS], *to[WAYS] = {out[0], out[1]};
  char *plain = room(split_row_bytes(4)), *rounded = room(split_row_bytes(4));
  for (int round = 0; round < 20; round++) {
    for (int i = 0; i < COLS; i++) x[i] = (float)random_normal();
    for (int b = 0; b < COLS; b += QK_K) plant(x + b, planted, 146.68f);
    const block_q8_K *in[WAYS] = {(block_q8_K *)(void *)plain, (block_q8_K *)(void *)rounded};
    row->quantize_q8k((block_q8_K *)(void *)plain, x, COLS);
    row->split_q8k((block_q8_K *)(void *)rounded, x, COLS);
    for (int k = 0; k < WAYS; k++) row->product_q8k(&to[k], &m, &in[k], 1);
    row->add_outliers(&to[SPLIT], &m, &in[SPLIT], 1);
    for (int64_t r = 0; r < ROWS; r++) {
      float w[COLS];
      double truth = 0, bulk = 0;
      weights_of(w, &m, r);
      for (int i = 0; i < COLS; i++) {
        truth += (double)w[i] * (double)x[i];
        bulk += fabsf(x[i]) < 100 ? (double)w[i] * (double)x[i] : 0;
      }
      for (int k = 0; k < WAYS; k++) {
        n[k].error += ((double)out[k][r] - truth) * ((double)out[k][r] - truth);
        n[k].size += bulk * bulk;
      }
    }
  }
  for (int k = 0; k < WAYS; k++) error[k] = norm_of(&n[k]);
  free((void *)(uintptr_t)m.data), free(x), free(plain), free(rounded);
}

static void check_gain(const cpu_row *row) {
  for (int k = 0; k < N_TYPES; k++) {
    double quiet[WAYS];
    errors_of(quiet, row, types[k], 0);
    assert_true(quiet[ON_Q8K] == quiet[SPLIT]); // without outliers the same bits
    for (int planted = 1; planted <= MOST_OUTLIERS; planted *= 2) {
      double off[WAYS];
      errors_of(off, row, types[k], planted);
      print_message("row %s, %s, %d outliers a block: off by %.1e of the rest's product on q8k, %.1e on "
                    "q8k_split; %.1e "
                    "without any\n",
                    row->name, type_find(types[k])->name, planted, off[ON_Q8K], off[SPLIT], quiet[ON_Q8K]);
      assert_true(off[ON_Q8K] > 20 * off[SPLIT] && off[SPLIT] < 2 * quiet[ON_Q8K]);
    }
  }
}

#define TEST(name)                                                                                           \
  static void test_##name(void **unused) {                                                                   \
    (void)unused;                                                                                            \
    for_each_row(check_##name);                                                                              \
  }
TEST(split)
TEST(terms)
TEST(gain)

int main(int argc, char **argv) {
  if (argc > 1) only = argv[1];
  random_state = test_seed_bits();
  if (only && !cpu_row_find(only)) return 2;
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_split), cmocka_unit_test(test_terms),
                                     cmocka_unit_test(test_gain)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
