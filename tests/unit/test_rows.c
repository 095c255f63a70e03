// Every row of the cpu backend that this machine can run gives the bits of the portable one, kernel by
// kernel, over fresh random inputs and odd sizes. (test_products.c takes the
// products alone, and in every layout.)
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "base/memory.h"
#include "kernels/cpu/row.h"
#include "kernels/formats/half.h"
#include "tests/support/packed_product.h"
#include "tests/support/seed.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static uint64_t state;

static uint64_t next_random(void) { // SplitMix64
  uint64_t z = (state += 0x9e3779b97f4a7c15u);
  z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
  z = (z ^ z >> 27) * 0x94d049bb133111ebu;
  return z ^ z >> 31;
}

static int64_t random_below(int64_t n) {
  return (int64_t)(next_random() % (uint64_t)n);
}

// Uniform sign and mantissa, exponents over a few binades: sums whose order shows in the last bits.
static float random_float(void) {
  float magnitude = ldexpf(1.0f + (float)(next_random() >> 41) * 0x1p-23f, (int)random_below(6) - 3);
  return next_random() & 1 ? -magnitude : magnitude;
}

static void *room(size_t bytes) {
  void *p;
  assert_int_equal(memory_take(&p, bytes, 1, "a test"), 0);
  return p;
}

static float *random_floats(int64_t n) {
  float *x = room((size_t)n * sizeof *x);
  for (int64_t i = 0; i < n; i++) x[i] = random_float();
  return x;
}

// The rows under test: all usable ones but the portable, which is the last.
static const cpu_row *portable(void) {
  return cpu_row_find("portable");
}

typedef void row_test(const cpu_row *row);

static const char *only;         // the row that was asked for, NULL: all
static char compared[256] = " "; // names of rows with a blank before and after each

static void for_each_row(row_test *test) {
  for (const cpu_row *const *row = cpu_row_table(); *row; row++) {
    const char *name = (*row)->name;
    char word[64];
    if (!(*row)->usable() || *row == portable() || (only && strcmp(only, name))) continue;
    test(*row);
    snprintf(word, sizeof word, " %s ", name);
    if (!strstr(compared, word)) strncat(compared, word + 1, sizeof compared - strlen(compared) - 1);
  }
}

static void assert_same(const void *found, const void *expected, size_t bytes, const char *row,
                        const char *what) {
  if (!memcmp(found, expected, bytes)) return;
  size_t i = 0;
  while (((const char *)found)[i] == ((const char *)expected)[i]) i++;
  fail_msg("row %s: %s: first other bits at byte %zu of %zu", row, what, i, bytes);
}

// ---- matrices ----

static uint16_t random_half(void) { // finite; sometimes zero, subnormal or great
  switch (random_below(16)) {
  case 0:
    return 0;
  case 1:
    return (uint16_t)(next_random() & 0x83ff);
  case 2:
    return (uint16_t)(next_random() & 0x8000) | 0x7bff;
  default:
    return f32_to_half(random_float() * 0.01f);
  }
}

static void *random_rows(weight_type type, int64_t rows, int64_t cols) {
  const type_info *info = type_find(type);
  size_t blocks = (size_t)(rows * cols) / info->elements, bytes = blocks * info->bytes;
  char *data = room(bytes);
  for (size_t i = 0; i < bytes; i++) data[i] = (char)next_random();
  for (size_t b = 0; b < blocks; b++) {
    char *block = data + b * info->bytes;
    uint16_t d = random_half(), dmin = random_half();
    float f = random_float();
    uint32_t bits = num_bits_f32(f) >> 16;
    if (type == TYPE_F32) memcpy(block, &f, sizeof f);
    if (type == TYPE_BF16) memcpy(block, &bits, 2);
    if (type == TYPE_F16 || type == TYPE_Q8_0 || type == TYPE_Q4_K || type == TYPE_Q5_K ||
        type == TYPE_IQ4_XS)
      memcpy(block, &d, 2);
    if (type == TYPE_Q3_K) memcpy(block + offsetof(block_q3_K, d), &d, 2);
    if (type == TYPE_Q4_K || type == TYPE_Q5_K) memcpy(block + 2, &dmin, 2);
    if (type == TYPE_Q6_K) memcpy(block + offsetof(block_q6_K, d), &d, 2);
  }
  return data;
}

typedef struct { // a product's operands and two outputs
  matrix m;
  int64_t n;
  void *x;
  block_q8_K *q;
  const void **reals;
  const block_q8_K **rounded;
  char *out[2];
  void **to[2];
} product_case;

static void product_open(product_case *c, weight_type type, int64_t rows, int64_t cols, int64_t n,
                         size_t real) {
  *c = (product_case){.m = {random_rows(type, rows, cols), type, rows, cols}, .n = n};
  float *x = random_floats(n * cols);
  c->x = x;
  if (real == sizeof(double)) {
    double *wide = room((size_t)(n * cols) * sizeof *wide);
    for (int64_t i = 0; i < n * cols; i++) wide[i] = (double)x[i] * 1.1;
    c->x = wide;
    free(x);
  }
  int64_t blocks = type_find(type)->on_q8k == ACTIVATION_Q8K ? cols / QK_K : 0;
  c->q = room((size_t)(n * blocks + 1) * sizeof *c->q);
  if (blocks && real == sizeof(float)) portable()->quantize_q8k(c->q, c->x, n * cols);
  c->reals = room((size_t)n * sizeof *c->reals);
  c->rounded = room((size_t)n * sizeof *c->rounded);
  for (int k = 0; k < 2; k++) {
    c->out[k] = room((size_t)(n * rows) * real + 64);
    c->to[k] = room((size_t)n * sizeof *c->to[k]);
    memset(c->out[k], 0x55, (size_t)(n * rows) * real + 64); // so that a write beyond the last row shows
  }
  for (int64_t t = 0; t < n; t++) {
    c->reals[t] = (char *)c->x + (size_t)(t * cols) * real;
    c->rounded[t] = c->q + t * blocks;
    for (int k = 0; k < 2; k++) c->to[k][t] = c->out[k] + (size_t)(t * rows) * real;
  }
}

static void product_compare(const product_case *c, size_t real, const char *row, const char *kernel) {
  char what[96];
  snprintf(what, sizeof what, "%s of %s, %d rows of %d times %d", kernel, type_find(c->m.type)->name,
           (int)c->m.rows, (int)c->m.cols, (int)c->n);
  assert_same(c->out[1], c->out[0], (size_t)(c->n * c->m.rows) * real + 64, row, what);
}

// The product with packed tokens as well, where the row has one.
static void packed_check(const cpu_row *row, product_case *c, const char *kernel) {
  if (!row->packed || !row->packed->takes(c->m.type)) return;
  memset(c->out[1], 0x55, (size_t)(c->n * c->m.rows) * sizeof(float) + 64);
  product_packing(row->packed, (float *const *)c->to[1], &c->m, c->rounded, c->n);
  product_compare(c, sizeof(float), row->name, kernel);
}

static void product_check(product_case *c, size_t real, const char *row, const char *kernel) {
  product_compare(c, real, row, kernel);
  free((void *)c->m.data);
  free(c->x);
  free(c->q);
  free(c->reals);
  free(c->rounded);
  for (int k = 0; k < 2; k++) {
    free(c->out[k]);
    free(c->to[k]);
  }
}

static int64_t random_rows_count(void) {
  return random_below(3) ? ROW_TILE : 1 + random_below(ROW_TILE);
}

static void run_product_q8k(const cpu_row *row, const product_case *c, int to) {
  (type_has_q8k_kernels(c->m.type) ? row->product_q8k : row->product_unpacked)((float *const *)c->to[to],
                                                                               &c->m, c->rounded, c->n);
}

static void check_products_q8k(const cpu_row *row) {
  const weight_type types[] = {TYPE_Q4_K, TYPE_Q5_K, TYPE_Q6_K, TYPE_IQ4_XS, TYPE_Q3_K};
  const int64_t tokens[] = {1, 2, 3, 4, 5, 6, 7, 11, 13, 16, 33, TOKEN_TILE + 3};
  for (size_t i = 0; i < sizeof types / sizeof *types; i++)
    for (size_t k = 0; k < sizeof tokens / sizeof *tokens; k++) {
      product_case c;
      product_open(&c, types[i], 1 + random_below(70), QK_K * (1 + random_below(tokens[k] > 40 ? 3 : 9)),
                   tokens[k], 4);
      run_product_q8k(portable(), &c, 0);
      packed_check(row, &c, "packed product_q8k");
      run_product_q8k(row, &c, 1);
      product_check(&c, 4, row->name, "product_q8k");
    }
}

static void check_vectors_q8k(const cpu_row *row) {
  const weight_type types[] = {TYPE_Q4_K, TYPE_Q5_K, TYPE_Q6_K, TYPE_IQ4_XS};
  for (int i = 0; i < 160 && row->f32->vector_rounded; i++) {
    product_case c;
    int64_t blocks = i % 4 < 2 ? 1 + random_below(9) : i % 4 == 2 ? 8 : 16; // 8 and 16: rows as a stream
    product_open(&c, types[i / 4 % 4], random_rows_count(), QK_K * blocks, 1, 4);
    run_product_q8k(portable(), &c, 0);
    assert_true(row->f32->vector_takes(c.m.type));
    row->f32->vector_rounded(c.to[1][0], &c.m, c.rounded[0], i % 2 ? c.m.data : NULL);
    product_check(&c, 4, row->name, "vector_rounded");
  }
}

// The greatest sums: every quant, scale and activation at its end, so that an integer too small would
// overflow.
static void check_extremes_q8k(const cpu_row *row) {
  const weight_type types[] = {TYPE_Q4_K, TYPE_Q5_K, TYPE_Q6_K};
  for (int i = 0; i < 12; i++)
    for (int64_t n = 1; n < 8; n += 3) {
      product_case c;
      product_open(&c, types[i % 3], ROW_TILE, 2 * QK_K, n, 4);
      const type_info *info = type_find(c.m.type);
      size_t scales = c.m.type == TYPE_Q6_K ? offsetof(block_q6_K, scales) : 4;
      for (size_t b = 0; b < (size_t)ROW_TILE * 2; b++) {
        char *block = (char *)c.m.data + b * info->bytes;
        size_t end = c.m.type == TYPE_Q6_K ? offsetof(block_q6_K, d) : info->bytes;
        memset(block + (c.m.type == TYPE_Q6_K ? 0 : 4), i & 4 ? 0 : 0xff,
               end - (c.m.type == TYPE_Q6_K ? 0 : 4));
        if (c.m.type == TYPE_Q6_K) memset(block + scales, i & 8 ? 0x80 : 0x7f, 16);
      }
      for (int64_t b = 0; b < n * 2; b++) {
        int8_t q = (i + b) & 1 ? 127 : -127;
        memset(c.q[b].qs, q, QK_K);
        for (int s = 0; s < QK_K / 16; s++) c.q[b].bsums[s] = (int16_t)(16 * q);
      }
      portable()->product_q8k((float *const *)c.to[0], &c.m, c.rounded, n);
      packed_check(row, &c, "extreme packed product_q8k");
      if (n == 1 && row->f32->vector_rounded)
        row->f32->vector_rounded(c.to[1][0], &c.m, c.rounded[0], NULL);
      else
        row->product_q8k((float *const *)c.to[1], &c.m, c.rounded, n);
      product_check(&c, 4, row->name, "extreme product_q8k");
    }
}

static void check_product_real(const cpu_row *row, weight_type type, int64_t n, bool wide, bool tile) {
  const real_ops *ops = wide ? row->f64 : row->f32, *expected = wide ? portable()->f64 : portable()->f32;
  int64_t unit = (int64_t)type_find(type)->elements, cols = unit * (1 + random_below(2000 / unit));
  product_case c;
  product_open(&c, type, tile ? random_rows_count() : 1 + random_below(70), cols, n, ops->bytes);
  float *scratch = room((size_t)(tile ? product_scratch_floats(cols) : cols) * sizeof *scratch);
  expected->product(c.to[0], &c.m, c.reals, c.n, scratch);
  (tile ? ops->product_tile : ops->product)(c.to[1], &c.m, c.reals, c.n, scratch);
  free(scratch);
  product_check(&c, ops->bytes, row->name,
                tile   ? "product_tile"
                : wide ? "product in f64"
                       : "product in f32");
}

static void check_products_real(const cpu_row *row, bool wide) {
  const weight_type types[] = {TYPE_F32, TYPE_F16, TYPE_BF16, TYPE_Q8_0, TYPE_Q4_K, TYPE_Q5_K, TYPE_Q6_K};
  const int64_t tokens[] = {1, 2, 3, 4, 5, 6, 7, 13, 40};
  for (size_t i = 0; i < sizeof types / sizeof *types; i++)
    for (size_t k = 0; k < sizeof tokens / sizeof *tokens; k++) {
      check_product_real(row, types[i], tokens[k], wide, false);
      if ((wide ? row->f64 : row->f32)->product_tile)
        check_product_real(row, types[i], tokens[k], wide, true);
    }
}

static void check_products_f32(const cpu_row *row) {
  check_products_real(row, false);
}

static void check_products_f64(const cpu_row *row) {
  check_products_real(row, true);
}

// ---- rounding ----

static void check_rounding(const cpu_row *row) {
  enum { BLOCKS = 64 };
  float *x = random_floats(BLOCKS * QK_K);
  memset(x, 0, QK_K * sizeof *x);                                                // a block of zeros
  for (int i = 0; i < QK_K; i++) x[QK_K + i] = i % 2 ? -3.5f : 3.5f;             // ties of magnitude
  for (int i = 0; i < QK_K; i++) x[2 * QK_K + i] = (float)(i - 128) * 0x1p-149f; // subnormal
  for (int i = 0; i < QK_K; i++) x[3 * QK_K + i] = (float)(i % 126 - 63) + 0.5f; // ties of rounding,
  x[3 * QK_K + (size_t)random_below(QK_K)] = random_below(2) ? 127 : -127;       // for a scale of 1
  for (int i = 0; i < QK_K; i++) x[4 * QK_K + i] = -0.0f;
  x[5 * QK_K + (size_t)random_below(QK_K)] = 146.68f; // one channel far above its block
  x[6 * QK_K + 255] = -1e30f;
  block_q8_K found[BLOCKS], expected[BLOCKS];
  memset(found, 1, sizeof found);
  memset(expected, 2, sizeof expected);
  portable()->quantize_q8k(expected, x, BLOCKS * QK_K);
  row->quantize_q8k(found, x, BLOCKS * QK_K);
  assert_same(found, expected, sizeof found, row->name, "quantize_q8k");
  free(x);
}

// ---- the steps between ----

static const int64_t widths[] = {1, 2, 15, 16, 31, 32, 48, 64, 80, 96, 128, 160, 255, 256, 768, 2048};
enum { N_WIDTHS = sizeof widths / sizeof *widths };

static void check_norm(const cpu_row *row) {
  for (int i = 0; i < N_WIDTHS; i++) {
    int64_t n = widths[i];
    float *x = random_floats(n), *w = random_floats(n), *found = room((size_t)n * 4),
          *expected = room((size_t)n * 4);
    portable()->f32->rms_norm(expected, x, w, n, 1e-6);
    row->f32->rms_norm(found, x, w, n, 1e-6);
    assert_same(found, expected, (size_t)n * 4, row->name, "rms_norm");
    row->f32->rms_norm(x, x, w, n, 1e-6); // in place, as for heads
    assert_same(x, expected, (size_t)n * 4, row->name, "rms_norm in place");
    free(x), free(w), free(found), free(expected);
  }
}

static void check_rope(const cpu_row *row) {
  for (int i = 0; i < N_WIDTHS; i++) {
    int64_t pairs = widths[i];
    float *x = random_floats(2 * pairs), *y = room((size_t)pairs * 8), *table = room((size_t)pairs * 8);
    float *expected_table = room((size_t)pairs * 8);
    memcpy(y, x, (size_t)pairs * 8);
    int64_t position = random_below(40000);
    portable()->f32->rope_table(expected_table, 1e6, position, pairs);
    row->f32->rope_table(table, 1e6, position, pairs);
    assert_same(table, expected_table, (size_t)pairs * 8, row->name, "rope_table");
    portable()->f32->rope(x, table, pairs, 0.0883883476483184);
    row->f32->rope(y, table, pairs, 0.0883883476483184);
    assert_same(y, x, (size_t)pairs * 8, row->name, "rope");
    free(x), free(y), free(table), free(expected_table);
  }
}

// Also exp over its whole range: silu(z) = z / (1 + exp(-z)).
static void check_swiglu(const cpu_row *row) {
  enum { N = 100003 };
  float *gate = random_floats(N), *up = random_floats(N), *expected = room(N * sizeof *expected);
  for (int i = 0; i < N; i += 2) gate[i] = num_from_bits_f32((uint32_t)next_random());
  for (int i = 1; i < N; i += 4) gate[i] = random_float() * 20;
  const float ends[] = {0,          -0.0f,           88.72283f,        88.72284f, 88.72285f, -88.72284f,
                        103.97207f, 103.97208f,      103.97209f,       87.3f,     88.0f,     95.0f,
                        100.0f,     (float)INFINITY, -(float)INFINITY, (float)NAN};
  memcpy(gate, ends, sizeof ends);
  memcpy(expected, gate, N * sizeof *expected);
  portable()->f32->swiglu(expected, up, N);
  row->f32->swiglu(gate, up, N);
  for (int i = 0; i < N; i++)
    if (isnan(expected[i]) && isnan(gate[i])) gate[i] = expected[i]; // payloads are nobody's promise
  assert_same(gate, expected, N * sizeof *gate, row->name, "swiglu");
  free(gate), free(up), free(expected);
}

static void check_sums(const cpu_row *row) {
  for (int i = 0; i < N_WIDTHS; i++) {
    int64_t n = widths[i], k = 1 + random_below(9);
    float *x = random_floats(n), *y = room((size_t)n * 4), *weight = random_floats(k),
          *slots = random_floats(k * n);
    const void *slot[16];
    for (int64_t s = 0; s < k; s++) slot[s] = slots + s * n;
    memcpy(y, x, (size_t)n * 4);
    portable()->f32->combine(x, slot, weight, k, n);
    row->f32->combine(y, slot, weight, k, n);
    assert_same(y, x, (size_t)n * 4, row->name, "combine");
    portable()->f32->add(x, slots, n);
    row->f32->add(y, slots, n);
    assert_same(y, x, (size_t)n * 4, row->name, "add");
    free(x), free(y), free(weight), free(slots);
  }
}

static void check_route(const cpu_row *row) {
  for (int i = 0; i < 40; i++) {
    int64_t n = 1 + random_below(200), k = 1 + random_below(n < 16 ? n : 16);
    float *logits = random_floats(n), *again = room((size_t)n * 4), weight[2][16];
    for (int64_t e = 1; e < n; e++)
      if (!random_below(4)) logits[e] = logits[e - 1]; // ties
    memcpy(again, logits, (size_t)n * 4);
    expert_global expert[2][16];
    double margin[2];
    portable()->f32->route(expert[0], weight[0], &margin[0], logits, n, k);
    row->f32->route(expert[1], weight[1], &margin[1], again, n, k);
    assert_same(expert[1], expert[0], (size_t)k * 4, row->name, "route: experts");
    assert_same(weight[1], weight[0], (size_t)k * 4, row->name, "route: weights");
    assert_same(&margin[1], &margin[0], sizeof *margin, row->name, "route: margin");
    free(logits), free(again);
  }
}

static void check_embed(const cpu_row *row) {
  float found[2 * QK_K], expected[2 * QK_K], scratch[2 * QK_K];
  matrix m = {random_rows(TYPE_Q4_K, 5, 2 * QK_K), TYPE_Q4_K, 5, 2 * QK_K};
  for (int64_t token = 0; token < 5; token++) {
    portable()->f32->embed(expected, &m, token, scratch);
    row->f32->embed(found, &m, token, scratch);
    assert_same(found, expected, sizeof found, row->name, "embed");
  }
  free((void *)m.data);
}

// ---- attention ----

typedef struct {
  int64_t head_dim, heads, n_tokens, positions;
  kv_storage storage;
} attention_case;

static kv_head cache_open(const attention_case *c) {
  size_t rounded = (size_t)((c->positions + ATTENTION_CHUNK - 1) / ATTENTION_CHUNK * ATTENTION_CHUNK);
  size_t bytes = rounded * (size_t)c->head_dim * (c->storage == KV_HALF ? 2 : 4);
  return (kv_head){room(bytes), room(bytes), c->storage};
}

static void check_cache(const cpu_row *row, const attention_case *c, kv_head *found, kv_head *expected) {
  for (int64_t p = 0; p < c->positions; p++) {
    float *k = random_floats(c->head_dim), *v = random_floats(c->head_dim);
    if (p % 7 == 3) k[0] = 1e-6f, v[c->head_dim - 1] = 6e4f, v[0] = 3e-8f; // subnormal and great halves
    portable()->f32->kv_store(expected, p, k, v, c->head_dim);
    row->f32->kv_store(found, p, k, v, c->head_dim);
    free(k), free(v);
  }
  size_t rounded = (size_t)((c->positions + ATTENTION_CHUNK - 1) / ATTENTION_CHUNK * ATTENTION_CHUNK);
  size_t bytes = rounded * (size_t)c->head_dim * (c->storage == KV_HALF ? 2 : 4);
  assert_same(found->keys, expected->keys, bytes, row->name, "kv_store: keys");
  assert_same(found->values, expected->values, bytes, row->name, "kv_store: values");
}

static void check_attention_case(const cpu_row *row, const attention_case *c) {
  kv_head found_kv = cache_open(c), kv = cache_open(c);
  check_cache(row, c, &found_kv, &kv);
  int64_t width = c->heads * c->head_dim, n_keys[ATTEND_TOKENS];
  float *q = random_floats(c->n_tokens * width), *found = random_floats(c->n_tokens * width),
        *expected = random_floats(c->n_tokens * width);
  double *scratch = room((size_t)attention_scratch_reals(c->head_dim) * sizeof *scratch);
  void *out[ATTEND_TOKENS];
  const void *from[ATTEND_TOKENS];
  for (int64_t t = 0; t < c->n_tokens; t++) {
    n_keys[t] = 1 + random_below(c->positions);
    out[t] = found + t * width;
    from[t] = q + t * width;
    for (int64_t h = 0; h < c->heads; h++) {
      int64_t at = t * width + h * c->head_dim;
      portable()->f32->attend(expected + at, q + at, &kv, n_keys[t], c->head_dim, scratch);
      row->f32->attend(found + at, q + at, &kv, n_keys[t], c->head_dim, scratch);
    }
  }
  char what[96];
  snprintf(what, sizeof what, "%d tokens, %d heads of %d over %d positions", (int)c->n_tokens, (int)c->heads,
           (int)c->head_dim, (int)c->positions);
  assert_same(found, expected, (size_t)(c->n_tokens * width) * 4, row->name, what);
  memset(found, 0, (size_t)(c->n_tokens * width) * 4);
  if (row->f32->attend_span) {
    row->f32->attend_span(&(attention_span){out, from, n_keys, c->n_tokens, c->heads, kv}, c->head_dim,
                          scratch);
    assert_same(found, expected, (size_t)(c->n_tokens * width) * 4, row->name, what);
  }
  free(q), free(found), free(expected), free(scratch);
  free(kv.keys), free(kv.values), free(found_kv.keys), free(found_kv.values);
}

static void check_attention(const cpu_row *row) {
  const int64_t dims[] = {2, 16, 24, 48, 64, 80, 96, 128, 192, 256};
  for (int i = 0; i < 60; i++) {
    attention_case c = {dims[(size_t)i % (sizeof dims / sizeof *dims)], 1 + random_below(ATTEND_HEADS),
                        1 + random_below(ATTEND_TOKENS), 1 + random_below(300), i & 1 ? KV_HALF : KV_REAL};
    check_attention_case(row, &c);
  }
}

// ---- attention in integers ----

typedef struct {
  int64_t head_dim, heads, n_tokens, positions;
  float *floats; // factors of queries, keys, values, each a power of two or 1
} exact_case;

static exact_factors factors_of(const exact_case *c) {
  return (exact_factors){c->floats, c->floats + c->head_dim, c->floats + 2 * c->head_dim};
}

static exact_cache check_exact_cache(const cpu_row *row, const exact_case *c) {
  int64_t width = exact_width(c->head_dim), chunks = (c->positions + EXACT_CHUNK - 1) / EXACT_CHUNK;
  size_t bytes = (size_t)chunks * exact_chunk_bytes(width);
  exact_cache found = {room(bytes), width}, expected = {room(bytes), width};
  const exact_factors factors = factors_of(c);
  memset(found.chunks, 0x80, bytes); // a limb of 0: padding may be written or left
  memset(expected.chunks, 0x80, bytes);
  for (int64_t p = 0; p < c->positions; p++) {
    float *k = random_floats(c->head_dim), *v = random_floats(c->head_dim);
    if (p % 11 == 3) k[0] = v[1] = 0x1.fdfcp+6f; // an integer of 32639, or past it
    if (p % 11 == 4) memset(v, 0, (size_t)c->head_dim * sizeof *v);
    portable()->exact->store(&expected, p, k, v, &factors, c->head_dim);
    row->exact->store(&found, p, k, v, &factors, c->head_dim);
    free(k), free(v);
  }
  assert_same(found.chunks, expected.chunks, bytes, row->name, "exact store");
  free(found.chunks);
  return expected;
}

static void check_exact_query(const cpu_row *row, const exact_case *c) {
  int64_t width = exact_width(c->head_dim);
  float *q = random_floats(c->head_dim), unit[2];
  int8_t *limbs = room(4 * (size_t)width);
  int32_t sums[2][2];
  const exact_factors factors = factors_of(c);
  const exact_queries to[2] = {{limbs, limbs + width, &unit[0], &sums[0][0], &sums[0][1]},
                               {limbs + 2 * width, limbs + 3 * width, &unit[1], &sums[1][0], &sums[1][1]}};
  portable()->exact->query(&to[0], q, &factors, c->head_dim, width);
  row->exact->query(&to[1], q, &factors, c->head_dim, width);
  assert_same(limbs + 2 * width, limbs, 2 * (size_t)width, row->name, "exact query: limbs");
  assert_same(&unit[1], &unit[0], sizeof *unit, row->name, "exact query: unit");
  assert_same(sums[1], sums[0], sizeof *sums, row->name, "exact query: sums");
  free(q), free(limbs);
}

static void check_exact_case(const cpu_row *row, const exact_case *c) {
  exact_cache kv = check_exact_cache(row, c);
  check_exact_query(row, c);
  int64_t width = c->heads * c->head_dim, n_keys[ATTEND_TOKENS];
  size_t numbers = (size_t)(c->n_tokens * width);
  float *q = random_floats(c->n_tokens * width), *found = room(numbers * 4), *expected = room(numbers * 4);
  void *out[2][ATTEND_TOKENS], *scratch = room(exact_scratch_bytes(c->head_dim));
  const void *from[ATTEND_TOKENS];
  for (int64_t t = 0; t < c->n_tokens; t++) {
    n_keys[t] = t ? 1 + random_below(c->positions) : c->positions;
    from[t] = q + t * width;
    out[0][t] = expected + t * width;
    out[1][t] = found + t * width;
  }
  for (int64_t i = 0; i < c->n_tokens * width; i++) q[i] *= 0.1f;
  const exact_span spans[2] = {{out[0], from, n_keys, c->n_tokens, c->heads, factors_of(c), kv},
                               {out[1], from, n_keys, c->n_tokens, c->heads, factors_of(c), kv}};
  portable()->exact->attend(portable()->exact, &spans[0], c->head_dim, scratch);
  row->exact->attend(row->exact, &spans[1], c->head_dim, scratch);
  char what[96];
  snprintf(what, sizeof what, "exact attention of %d tokens, %d heads of %d over %d positions",
           (int)c->n_tokens, (int)c->heads, (int)c->head_dim, (int)c->positions);
  assert_same(found, expected, numbers * 4, row->name, what);
  free(kv.chunks), free(q), free(found), free(expected), free(scratch);
}

static void check_exact(const cpu_row *row) {
  const int64_t dims[] = {2, 16, 24, 48, 64, 80, 96, 128, 192, 256, 512, 528};
  for (int i = 0; i < 48; i++) {
    int64_t dim = dims[(size_t)i % (sizeof dims / sizeof *dims)];
    exact_case c = {dim, 1 + random_below(ATTEND_HEADS), 1 + random_below(dim > 192 ? 3 : ATTEND_TOKENS),
                    129 + random_below(i % 12 ? 300 : 4500), room(3 * (size_t)dim * sizeof(float))};
    for (int64_t d = 0; d < 3 * dim; d++)
      c.floats[d] = d < 2 * dim ? ldexpf(1.0f, (int)random_below(5) - 2) : 1.0f;
    check_exact_case(row, &c);
    free(c.floats);
  }
}

#define TEST(name)                                                                                           \
  static void test_##name(void **unused) {                                                                   \
    (void)unused;                                                                                            \
    for_each_row(check_##name);                                                                              \
  }
TEST(products_q8k)
TEST(vectors_q8k)
TEST(extremes_q8k)
TEST(products_f32)
TEST(products_f64)
TEST(rounding)
TEST(norm)
TEST(rope)
TEST(swiglu)
TEST(sums)
TEST(route)
TEST(embed)
TEST(attention)
TEST(exact)

// ---- what ran ----

// The flags of this machine's first processor, with a blank before and after each; "" where there is no such
// file.
static void read_flags(char *flags, size_t size) {
  char line[8192];
  FILE *f = fopen("/proc/cpuinfo", "r");
  flags[0] = 0;
  while (f && !flags[0] && fgets(line, sizeof line, f)) {
    line[strcspn(line, "\n")] = 0;
    if (!strncmp(line, "flags", 5) && strchr(line, ':')) snprintf(flags, size, "%s ", strchr(line, ':') + 1);
  }
  if (f) fclose(f);
}

static bool has_all(const char *flags, const char *wanted) {
  char list[128], word[32], *rest = NULL;
  snprintf(list, sizeof list, "%s", wanted);
  for (char *flag = strtok_r(list, " ", &rest); flag; flag = strtok_r(NULL, " ", &rest)) {
    snprintf(word, sizeof word, " %s ", flag);
    if (!strstr(flags, word)) return false;
  }
  return true;
}

// The words of the line of `moe_run --version` that lists the rows, with a blank before and after each.
static void read_rows_of_program(char *rows, size_t size) {
  char line[512] = "", *list = NULL;
  FILE *f = popen(MOE_BINARY_DIR "/moe_run --version", "r");
  assert_non_null(f);
  while (!list && fgets(line, sizeof line, f))
    if (!strncmp(line, "backend cpu", 11)) list = strchr(line, ':');
  char rest[512];
  while (fgets(rest, sizeof rest, f)) continue; // so that the program can write it all
  pclose(f);
  assert_non_null(list);
  for (char *c = list; *c; c++)
    if (*c == ',' || *c == '\n') *c = ' ';
  snprintf(rows, size, "%s ", list + 1);
}

// A row that is built wrongly, or whose question to the processor is wrong, is not chosen and fails no
// comparison: only the processor's flags, from another source, tell that it is missing. The program must list
// what was compared here.
static void test_no_row_of_this_machine_is_left_out(void **unused) {
  (void)unused;
#ifdef __x86_64__
  static const struct {
    const char *row, *flags;
  } expected[] = {
      {"avx2", "avx2 fma f16c"},
      {"avx512_vnni", "avx512f avx512bw avx512dq avx512vl avx512_vnni fma f16c"},
      {"amx_int8", "avx512f avx512bw avx512dq avx512vl avx512_vnni fma f16c amx_tile amx_int8"},
  };
  enum { ARCH_REQ_XCOMP_PERM = 0x1023, TILE_DATA = 18 }; // the kernel may keep the tiles from this process
  char flags[8192], rows[512], word[64];
  read_flags(flags, sizeof flags);
  read_rows_of_program(rows, sizeof rows);
  for (size_t i = 0; i < sizeof expected / sizeof *expected; i++) {
    bool has = has_all(flags, expected[i].flags);
    if (!strcmp(expected[i].row, "amx_int8"))
      has = has && !syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, TILE_DATA);
    if (!has) continue;
    snprintf(word, sizeof word, " %s ", expected[i].row);
    if (!strstr(compared, word))
      fail_msg("row %s: this machine has %s, yet no comparison ran", expected[i].row, expected[i].flags);
    if (!strstr(rows, word))
      fail_msg("row %s: compared here, but moe_run --version lists%s", expected[i].row, rows);
  }
  print_message("compared:%s\n", compared);
#endif
}

// test_rows [ROW]: this row alone, for the planted ones (../support/planted_rows.c), each of which must fail.
int main(int argc, char **argv) {
  if (argc > 1) only = argv[1];
  state = test_seed_bits();
  if (only && !cpu_row_find(only)) return 2;
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_products_q8k), cmocka_unit_test(test_vectors_q8k),
      cmocka_unit_test(test_extremes_q8k), cmocka_unit_test(test_products_f32),
      cmocka_unit_test(test_products_f64), cmocka_unit_test(test_rounding),
      cmocka_unit_test(test_norm),         cmocka_unit_test(test_rope),
      cmocka_unit_test(test_swiglu),       cmocka_unit_test(test_sums),
      cmocka_unit_test(test_route),        cmocka_unit_test(test_embed),
      cmocka_unit_test(test_attention),    cmocka_unit_test(test_exact),
  };
  const struct CMUnitTest last[] = {cmocka_unit_test(test_no_row_of_this_machine_is_left_out)};
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  return failed || only ? failed : cmocka_run_group_tests(last, NULL, NULL);
}
