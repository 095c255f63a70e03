// Tests of the products of kernels/cpu: each stored type on each path in each row of the backend, against a
// literal reading of docs/paths.md bit for bit, and against sums in long double closely. Random and
// adversarial blocks.
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

enum { FEW = 17, MAX_TOKENS = 134, MAX_ROWS = 67, GUARD = 5 }; // tokens: all counts up to FEW, and MAX_TOKENS
static const unsigned char POISON = 0xa5;

static uint64_t random_state;

static uint32_t random_u32(void) { // xorshift64*, the upper half
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return (uint32_t)((random_state * 0x2545F4914F6CDD1DULL) >> 32);
}

static int random_below(int n) {
  return (int)(random_u32() % (uint32_t)n);
}

static double random_normal(void) { // sum of twelve uniforms: near enough
  double sum = -6;
  for (int i = 0; i < 12; i++) sum += (double)random_u32() * 0x1p-32;
  return sum;
}

static uint16_t
random_scale(void) { // a finite f16 of either sign, mostly of a model's size, now and then subnormal
  int kind = random_below(8);
  double scale = kind ? random_normal() * 1e-3 : random_normal() * 1e-7;
  return f32_to_half((float)scale);
}

// ---- weights as the format defines them, without the program's decoders ----

typedef struct { // of one sub-block's element: w = d * scale * q - dmin * min
  float d, dmin;
  int scale, min, q;
} parts;

static int six_bits(const uint8_t *s, int j, bool minimum) {
  if (j < 4) return s[minimum ? j + 4 : j] & 63;
  int low = minimum ? s[j + 4] >> 4 : s[j + 4] & 15, high = (minimum ? s[j] : s[j - 4]) >> 6;
  return low + 16 * high;
}

static const int iq4[16] = {-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113};

static parts few_bits_parts(weight_type type, const void *block, int i) {
  const block_q2_K *two = block;
  const block_q3_K *three = block;
  const block_iq4_xs *four = block;
  int j = i / 16, half = i / 128, group = i % 128 / 32, l = i % 32;
  if (type == TYPE_Q2_K)
    return (parts){half_to_f32(two->d), half_to_f32(two->dmin), two->scales[j] % 16, two->scales[j] / 16,
                   two->qs[half * 32 + l] >> 2 * group & 3};
  if (type == TYPE_Q3_K) {
    int low = j < 8 ? three->scales[j] % 16 : three->scales[j - 8] / 16;
    int scale = low + 16 * (three->scales[8 + j % 4] >> j / 4 * 2 & 3) - 32;
    int q = (three->qs[half * 32 + l] >> 2 * group & 3) + 4 * (three->hmask[l] >> (half * 4 + group) & 1) - 4;
    return (parts){half_to_f32(three->d), 0, scale, 0, q};
  }
  int sub = i / 32, byte = four->qs[sub * 16 + l % 16];
  int low = four->scales_l[sub / 2] >> sub % 2 * 4 & 15, high = four->scales_h >> 2 * sub & 3;
  return (parts){half_to_f32(four->d), 0, low + 16 * high - 32, 0, iq4[l < 16 ? byte % 16 : byte / 16]};
}

static parts k_quant_parts(weight_type type, const void *block, int i) {
  int j = i / 32, l = i % 32;
  if (type_find(type)->few_bits) return few_bits_parts(type, block, i);
  if (type == TYPE_Q6_K) {
    const block_q6_K *b = block;
    int half = i / 128, group = i / 32 % 4;
    int low = b->ql[half * 64 + group % 2 * 32 + l] >> (group / 2 * 4) & 15;
    int high = b->qh[half * 32 + l] >> (group * 2) & 3;
    return (parts){half_to_f32(b->d), 0, b->scales[i / 16], 0, low + 16 * high - 32};
  }
  const block_q4_K *four = block;
  const block_q5_K *five = block;
  const uint8_t *scales = type == TYPE_Q4_K ? four->scales : five->scales;
  const uint8_t *qs = type == TYPE_Q4_K ? four->qs : five->qs;
  int q = qs[j / 2 * 32 + l] >> (j % 2 * 4) & 15;
  if (type == TYPE_Q5_K) q += 16 * (five->qh[l] >> j & 1);
  return (parts){half_to_f32(four->d), half_to_f32(four->dmin), six_bits(scales, j, false),
                 six_bits(scales, j, true), q};
}

static bool is_k_quant(weight_type type) {
  return type_find(type)->on_q8k == ACTIVATION_Q8K;
}

static bool has_minimums(weight_type type) {
  return type == TYPE_Q4_K || type == TYPE_Q5_K || type == TYPE_Q2_K;
}

// Of the types of 32: low nibbles first, then high ones.
static float weight_of_32(weight_type type, const void *block, int i) {
  static const int fp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  const uint8_t *bytes = block, *qs = bytes + type_find(type)->bytes - 16, *qh = qs - 4;
  int low = i < 16 ? qs[i] % 16 : qs[i - 16] / 16;
  if (type == TYPE_MXFP4) return (float)ldexp((double)fp4[low], bytes[0] - 128);
  float d = half_to_f32(((const block_q4_0 *)block)->d);
  if (type == TYPE_Q4_0) return d * (float)(low - 8);
  if (type == TYPE_IQ4_NL) return d * (float)iq4[low];
  float m = half_to_f32(((const block_q4_1 *)block)->m);
  if (type == TYPE_Q4_1) return d * (float)low + m;
  int five = low + 16 * (qh[i / 8] >> i % 8 & 1);
  return type == TYPE_Q5_0 ? d * (float)(five - 16) : d * (float)five + m;
}

static float weight_at(const matrix *m, int64_t row, int64_t column) {
  const type_info *type = type_find(m->type);
  const char *data = (const char *)m->data + (size_t)row * type_row_bytes(type, (size_t)m->cols);
  data += (size_t)column / type->elements * type->bytes;
  int i = (int)((size_t)column % type->elements);
  if (m->type == TYPE_F32) return *(const float *)(const void *)data;
  if (m->type == TYPE_F16) return half_to_f32(*(const uint16_t *)(const void *)data);
  if (m->type == TYPE_BF16) return bf16_to_f32(*(const uint16_t *)(const void *)data);
  if (m->type == TYPE_Q8_0) {
    const block_q8_0 *block = (const void *)data;
    return half_to_f32(block->d) * (float)block->qs[i];
  }
  if (type->elements == QK_32) return weight_of_32(m->type, data, i);
  parts p = k_quant_parts(m->type, data, i);
  float step = p.d * (float)p.scale, base = p.dmin * (float)p.min;
  return has_minimums(m->type) ? step * (float)p.q - base : step * (float)p.q;
}

// ---- literal paths ----

static float literal_q8k(const matrix *m, int64_t row, const block_q8_K *x, int partial_from) {
  const type_info *type = type_find(m->type);
  const char *block = (const char *)m->data + (size_t)row * type_row_bytes(type, (size_t)m->cols);
  float y = 0;
  for (int64_t b = 0; b < m->cols / QK_K; b++, block += type->bytes, x++) {
    int64_t isum = 0, msum = 0;
    float partial = 0; // the wrong way: an integer rotated into a float before the block is whole
    parts p = {0};
    for (int i = 0; i < QK_K; i++) {
      p = k_quant_parts(m->type, block, i);
      isum += (int64_t)p.scale * p.q * x->qs[i];
      msum += (int64_t)p.min * x->qs[i];
      if (i % partial_from != partial_from - 1) continue;
      partial = partial + (float)isum;
      isum = partial_from < QK_K ? 0 : isum;
    }
    assert_true(llabs(isum) <= INT32_MAX && llabs(msum) <= INT32_MAX);
    float sum = partial_from < QK_K ? partial : (float)isum;
    y = has_minimums(m->type) ? fmaf(x->d, fmaf(p.d, sum, -(p.dmin * (float)msum)), y)
                              : fmaf(x->d, p.d * sum, y);
  }
  return y;
}

static float literal_f32(const matrix *m, int64_t row, const float *x) {
  float lane[32] = {0};
  for (int64_t i = 0; i < m->cols; i++) lane[i % 32] = fmaf(weight_at(m, row, i), x[i], lane[i % 32]);
  for (int half = 16; half; half /= 2)
    for (int l = 0; l < half; l++) lane[l] += lane[l + half];
  return lane[0];
}

static double literal_f64(const matrix *m, int64_t row, const double *x) {
  double lane[32] = {0};
  for (int64_t i = 0; i < m->cols; i++) lane[i % 32] = fma((double)weight_at(m, row, i), x[i], lane[i % 32]);
  for (int half = 16; half; half /= 2)
    for (int l = 0; l < half; l++) lane[l] += lane[l + half];
  return lane[0];
}

static long double exact_q8k(const matrix *m, int64_t row, const block_q8_K *x) {
  const type_info *type = type_find(m->type);
  const char *data = (const char *)m->data + (size_t)row * type_row_bytes(type, (size_t)m->cols);
  long double sum = 0;
  for (int64_t i = 0; i < m->cols; i++) {
    parts p = k_quant_parts(m->type, data + (size_t)(i / QK_K) * type->bytes, (int)(i % QK_K));
    long double w =
        (long double)p.d * (long double)(p.scale * p.q) - (long double)p.dmin * (long double)p.min;
    sum += w * ((long double)x[i / QK_K].d * (long double)x[i / QK_K].qs[i % QK_K]);
  }
  return sum;
}

// ---- a product with guards around its outputs ----

typedef struct {
  matrix m;
  char *data;
  int n_tokens;
  size_t real;                    // bytes of an input and output
  char *x[MAX_TOKENS];            // reals
  block_q8_K *blocks[MAX_TOKENS]; // or blocks: of 256 from here on, of 32 before
  char *rounded[MAX_TOKENS];      // all of them
  unsigned char out[MAX_TOKENS][(MAX_ROWS + 2 * GUARD) * sizeof(double)];
} product;

static void product_open(product *p, weight_type type, int64_t rows, int64_t cols, int n_tokens,
                         size_t real) {
  *p = (product){.n_tokens = n_tokens, .real = real};
  size_t bytes = (size_t)rows * type_row_bytes(type_find(type), (size_t)cols);
  assert_int_equal(TAKE(&p->data, bytes, "weights"), 0);
  for (size_t i = 0; i < bytes; i++) p->data[i] = (char)random_u32();
  p->m = (matrix){p->data, type, rows, cols};
  for (int t = 0; t < n_tokens; t++) {
    assert_int_equal(TAKE(&p->x[t], (size_t)cols * real, "activations"), 0);
    if (type_find(type)->on_q8k == ACTIVATION_REAL) continue;
    size_t before = (size_t)(cols / QK_32) * sizeof(block_q8_32);
    size_t after = is_k_quant(type) ? (size_t)(cols / QK_K) * sizeof(block_q8_K) : 0;
    assert_int_equal(TAKE(&p->rounded[t], before + after, "blocks"), 0);
    p->blocks[t] = (block_q8_K *)(void *)(p->rounded[t] + before);
  }
}

static void product_close(product *p) {
  free(p->data);
  for (int t = 0; t < p->n_tokens; t++) {
    free(p->x[t]);
    free(p->rounded[t]);
  }
}

static void random_weights(product *p) {
  const type_info *type = type_find(p->m.type);
  size_t n = (size_t)p->m.rows * (size_t)p->m.cols / type->elements;
  for (size_t b = 0; b < n; b++) {
    char *block = p->data + b * type->bytes;
    if (p->m.type == TYPE_F32) *(float *)(void *)block = (float)random_normal();
    if (p->m.type == TYPE_F16) *(uint16_t *)(void *)block = f32_to_half((float)random_normal());
    if (p->m.type == TYPE_BF16)
      *(uint16_t *)(void *)block = (uint16_t)(num_bits_f32((float)random_normal()) >> 16);
    if (p->m.type == TYPE_Q8_0) ((block_q8_0 *)(void *)block)->d = random_scale();
    if (p->m.type == TYPE_Q6_K) ((block_q6_K *)(void *)block)->d = random_scale();
    if (p->m.type == TYPE_Q3_K) ((block_q3_K *)(void *)block)->d = random_scale();
    if (p->m.type == TYPE_MXFP4) *block = (char)(100 + random_below(40));
    if (type->elements == QK_32 && p->m.type != TYPE_MXFP4) ((block_q4_0 *)(void *)block)->d = random_scale();
    if (p->m.type == TYPE_Q4_1 || p->m.type == TYPE_Q5_1) ((block_q4_1 *)(void *)block)->m = random_scale();
    if (p->m.type == TYPE_IQ4_XS) ((block_iq4_xs *)(void *)block)->d = random_scale();
    if (p->m.type == TYPE_Q2_K) {
      ((block_q2_K *)(void *)block)->d = random_scale();
      ((block_q2_K *)(void *)block)->dmin = random_scale();
    }
    if (p->m.type == TYPE_Q4_K || p->m.type == TYPE_Q5_K) {
      ((block_q4_K *)(void *)block)->d = random_scale();
      ((block_q4_K *)(void *)block)->dmin = random_scale();
    }
  }
}

static void random_activations(product *p) {
  for (int t = 0; t < p->n_tokens; t++)
    for (int64_t i = 0; i < p->m.cols; i++) {
      double x = random_normal() * (random_below(200) ? 1 : 100); // outliers
      if (p->real == sizeof(double))
        ((double *)(void *)p->x[t])[i] = x;
      else
        ((float *)(void *)p->x[t])[i] = (float)x;
    }
}

static int tokens_after(int n_tokens) { // 0: no more
  return n_tokens < FEW ? n_tokens + 1 : n_tokens == FEW ? MAX_TOKENS : 0;
}

typedef void rounded_product(float *const *out, const matrix *rows, const block_q8_K *const *x, int64_t n);

static rounded_product *product_of(const cpu_row *row, weight_type type) {
  if (type_find(type)->elements == QK_32) return row->product_q8_0;
  return type_find(type)->few_bits ? row->product_unpacked : row->product_q8k;
}

// A token at a time, a tile of rows at a time.
static void run_vectors(product *p, const cpu_row *row, float *const *out) {
  size_t row_bytes = type_row_bytes(type_find(p->m.type), (size_t)p->m.cols);
  for (int t = 0; t < p->n_tokens; t++)
    for (int64_t first = 0; first < p->m.rows; first += ROW_TILE) {
      int64_t n = p->m.rows - first < ROW_TILE ? p->m.rows - first : ROW_TILE;
      const matrix rows = {p->data + (size_t)first * row_bytes, p->m.type, n, p->m.cols};
      row->f32->vector_rounded(out[t] + first, &rows, p->blocks[t], first ? p->data : NULL);
    }
}

static const packed_ops *packed_of(const cpu_row *row, weight_type type) {
  return type_find(type)->elements == QK_32 ? row->packed_32 : row->packed;
}

typedef enum { OF_REALS, OF_ROUNDED, OF_PACKED, OF_VECTORS, KINDS } product_kind;

static void run_product(product *p, const cpu_row *row, product_kind kind) {
  void *out[MAX_TOKENS];
  const void *x[MAX_TOKENS];
  const block_q8_K *blocks[MAX_TOKENS];
  for (int t = 0; t < p->n_tokens; t++) {
    memset(p->out[t], POISON, sizeof p->out[t]);
    out[t] = p->out[t] + GUARD * p->real;
    x[t] = p->x[t];
    blocks[t] = p->blocks[t];
  }
  float *scratch;
  assert_int_equal(TAKE(&scratch, (size_t)p->m.cols, "scratch"), 0);
  if (kind == OF_VECTORS)
    run_vectors(p, row, (float *const *)(void *)out);
  else if (kind == OF_PACKED)
    product_packing(packed_of(row, p->m.type), (float *const *)(void *)out, &p->m, blocks, p->n_tokens);
  else if (kind == OF_ROUNDED)
    product_of(row, p->m.type)((float *const *)(void *)out, &p->m, blocks, p->n_tokens);
  else
    (p->real == sizeof(double) ? row->f64 : row->f32)->product(out, &p->m, x, p->n_tokens, scratch);
  free(scratch);
  for (int t = 0; t < p->n_tokens; t++)
    for (size_t i = 0; i < GUARD * p->real; i++) {
      assert_int_equal(p->out[t][i], POISON);
      assert_int_equal(p->out[t][(GUARD + (size_t)p->m.rows) * p->real + i], POISON);
    }
}

static float out_f32(const product *p, int t, int64_t r) {
  float y;
  memcpy(&y, p->out[t] + (GUARD + (size_t)r) * sizeof y, sizeof y);
  return y;
}

static double out_f64(const product *p, int t, int64_t r) {
  double y;
  memcpy(&y, p->out[t] + (GUARD + (size_t)r) * sizeof y, sizeof y);
  return y;
}

typedef struct {
  long double error, size;
} norm;

static void norm_add(norm *n, long double found, long double true_value) {
  n->error += (found - true_value) * (found - true_value);
  n->size += true_value * true_value;
}

static double norm_of(const norm *n) {
  return n->size > 0 ? (double)sqrtl(n->error / n->size) : n->error > 0 ? (double)INFINITY : 0;
}

static void same_f32(float found, float wanted, const cpu_row *row, const product *p, int t, int64_t r) {
  if (num_bits_f32(found) != num_bits_f32(wanted))
    fail_msg("row %s, %s, %lld x %lld, token %d, row %lld: %a, expected %a", row->name,
             type_find(p->m.type)->name, (long long)p->m.rows, (long long)p->m.cols, t, (long long)r,
             (double)found, (double)wanted);
}

static void same_f64(double found, double wanted, const cpu_row *row, const product *p, int t, int64_t r) {
  if (num_bits_f64(found) != num_bits_f64(wanted))
    fail_msg("row %s, %s, %lld x %lld, token %d, row %lld: %a, expected %a", row->name,
             type_find(p->m.type)->name, (long long)p->m.rows, (long long)p->m.cols, t, (long long)r, found,
             wanted);
}

// ---- q8k ----

static const weight_type k_quants[] = {TYPE_Q4_K, TYPE_Q5_K, TYPE_Q6_K, TYPE_Q2_K, TYPE_Q3_K, TYPE_IQ4_XS};
enum { N_K_QUANTS = sizeof k_quants / sizeof *k_quants };
static const int64_t row_counts[] = {1, 2, 3, 31, 32, 33, 67};
enum { N_ROW_COUNTS = sizeof row_counts / sizeof *row_counts };

// Of the kinds with rounded activations.
static bool has_kind(const product *p, const cpu_row *row, product_kind kind) {
  const packed_ops *packed = packed_of(row, p->m.type);
  if (kind == OF_PACKED) return packed && packed->takes(p->m.type);
  return kind == OF_ROUNDED || (row->f32->vector_rounded && row->f32->vector_takes(p->m.type));
}

static void compare_q8k(const product *p, const cpu_row *row, norm *close) {
  for (int t = 0; t < p->n_tokens; t++)
    for (int64_t r = 0; r < p->m.rows; r++) {
      float y = out_f32(p, t, r);
      same_f32(y, literal_q8k(&p->m, r, p->blocks[t], QK_K), row, p, t, r);
      norm_add(close, (long double)y, exact_q8k(&p->m, r, p->blocks[t]));
    }
}

static void check_q8k(product *p, const cpu_row *row, norm *close) {
  for (product_kind kind = OF_ROUNDED; kind < KINDS; kind++) {
    if (!has_kind(p, row, kind)) continue;
    run_product(p, row, kind);
    compare_q8k(p, row, close);
  }
}

static void q8k_products(void **state) {
  (void)state;
  for (int k = 0; k < N_K_QUANTS; k++)
    for (const cpu_row *const *row = cpu_row_table(); *row; row++) {
      if (!(*row)->usable()) continue;
      norm close = {0};
      for (int n_tokens = 1; n_tokens; n_tokens = tokens_after(n_tokens)) {
        product p;
        int64_t cols = QK_K * (1 + random_below(4));
        product_open(&p, k_quants[k], row_counts[n_tokens % N_ROW_COUNTS], cols, n_tokens, sizeof(float));
        random_weights(&p);
        random_activations(&p);
        for (int t = 0; t < n_tokens; t++)
          (*row)->quantize_q8k(p.blocks[t], (const float *)(void *)p.x[t], cols);
        check_q8k(&p, *row, &close);
        product_close(&p);
      }
      print_message("row %s, q8k, %s: rel_l2 %.1e\n", (*row)->name, type_find(k_quants[k])->name,
                    norm_of(&close));
      assert_true(norm_of(&close) < 1e-6);
    }
}

// Blocks at the ends of what can be: quants, scales and activations all extreme, or of one sign, or none.
static void extreme_activations(block_q8_K *x, int64_t n_blocks, int kind) {
  static const float scales[] = {1.0f, -0.03f, 1e-40f, 3e37f, 0.0f};
  for (int64_t b = 0; b < n_blocks; b++, x++) {
    memset(x, 0, sizeof *x);
    if (kind % 4 == 3 && b % 2) continue; // a zero block between others
    x->d = scales[random_below(kind < 8 ? 2 : 5)];
    for (int i = 0; i < QK_K; i++) {
      int q = kind % 4 == 0 ? 127 : kind % 4 == 1 ? -127 : random_below(2) ? 127 : -127;
      x->qs[i] = (int8_t)(random_below(kind < 4 ? QK_K : 16) ? q : random_below(255) - 127);
      x->bsums[i / 16] = (int16_t)(x->bsums[i / 16] + x->qs[i]);
    }
  }
}

static void extreme_weights(product *p, int kind) {
  const type_info *type = type_find(p->m.type);
  size_t n = (size_t)p->m.rows * (size_t)p->m.cols / QK_K;
  for (size_t b = 0; b < n; b++) {
    char *block = p->data + b * type->bytes;
    int byte = kind & 1 ? 0xff : kind & 2 ? 0x00 : 0x80;
    if (kind < 8) memset(block, byte, type->bytes);
    if (kind < 8 && p->m.type == TYPE_Q6_K)
      memset(((block_q6_K *)(void *)block)->scales, kind & 4 ? 127 : -128, QK_K / 16);
    if (kind < 8)
      for (int i = 0; i < 3; i++)
        block[16 + random_below((int)type->bytes - 40)] ^= (char)(1 << random_below(8));
  }
  random_weights(p);
}

static void q8k_extremes(void **state) {
  (void)state;
  int beyond = 0, caught = 0;
  for (int k = 0; k < N_K_QUANTS; k++)
    for (int kind = 0; kind < 12; kind++)
      for (const cpu_row *const *row = cpu_row_table(); *row; row++) {
        if (!(*row)->usable()) continue;
        product p;
        norm close = {0};
        product_open(&p, k_quants[k], 33, 3 * QK_K, 5, sizeof(float));
        extreme_weights(&p, kind);
        for (int t = 0; t < p.n_tokens; t++) extreme_activations(p.blocks[t], 3, kind);
        check_q8k(&p, *row, &close);
        for (int t = 0; t < p.n_tokens; t++)
          for (int64_t r = 0; r < p.m.rows; r++) {
            caught += num_bits_f32(literal_q8k(&p.m, r, p.blocks[t], 32)) != num_bits_f32(out_f32(&p, t, r));
            beyond++;
          }
        product_close(&p);
      }
  print_message("a conversion for each sub-block would change %d of %d extreme products\n", caught, beyond);
  assert_true(caught > beyond / 200);
}

// ---- blocks of 32 ----

static const weight_type types_of_32[] = {TYPE_Q8_0, TYPE_IQ4_NL, TYPE_Q4_0, TYPE_Q4_1,
                                          TYPE_Q5_0, TYPE_Q5_1,   TYPE_MXFP4};
enum { N_OF_32 = sizeof types_of_32 / sizeof *types_of_32 };

typedef struct { // w = d * q + m
  float d, m;
  int q;
} quant_parts;

static bool has_m(weight_type type) {
  return type == TYPE_Q4_1 || type == TYPE_Q5_1;
}

static quant_parts parts_of_32(weight_type type, const void *block, int i) {
  static const int fp4[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
  const uint8_t *bytes = block, *qs = bytes + type_find(type)->bytes - 16, *qh = qs - 4;
  int low = i < 16 ? qs[i] % 16 : qs[i - 16] / 16, five = low;
  if (type == TYPE_Q5_0 || type == TYPE_Q5_1) five += 16 * (qh[i / 8] >> i % 8 & 1);
  if (type == TYPE_MXFP4) return (quant_parts){(float)ldexp(1, bytes[0] - 128), 0, fp4[low]};
  float d = half_to_f32(((const block_q4_0 *)block)->d);
  if (type == TYPE_Q8_0) return (quant_parts){d, 0, ((const block_q8_0 *)block)->qs[i]};
  if (type == TYPE_Q4_0) return (quant_parts){d, 0, low - 8};
  if (type == TYPE_IQ4_NL) return (quant_parts){d, 0, iq4[low]};
  if (type == TYPE_Q5_0) return (quant_parts){d, 0, five - 16};
  return (quant_parts){d, half_to_f32(((const block_q4_1 *)block)->m), type == TYPE_Q4_1 ? low : five};
}

static void compare_of_32(const product *p, const cpu_row *row, norm *close) {
  const type_info *type = type_find(p->m.type);
  for (int t = 0; t < p->n_tokens; t++)
    for (int64_t r = 0; r < p->m.rows; r++) {
      const char *block = (const char *)p->m.data + (size_t)r * type_row_bytes(type, (size_t)p->m.cols);
      const block_q8_32 *x = (const block_q8_32 *)(const void *)p->rounded[t];
      float y = 0;
      long double sum = 0;
      for (int64_t b = 0; b < p->m.cols / QK_32; b++, block += type->bytes, x++) {
        int isum = 0;
        quant_parts q = {0};
        for (int i = 0; i < QK_32; i++) {
          q = parts_of_32(p->m.type, block, i);
          isum += q.q * x->qs[i];
          sum += (long double)q.d * q.q * ((long double)x->d * x->qs[i]);
        }
        if (has_m(p->m.type)) y = fmaf(q.m, x->s, y);
        if (has_m(p->m.type)) sum += (long double)q.m * (long double)x->s;
        y = fmaf(q.d * x->d, (float)isum, y);
      }
      same_f32(out_f32(p, t, r), y, row, p, t, r);
      norm_add(close, (long double)out_f32(p, t, r), sum);
    }
}

static void check_of_32(product *p, const cpu_row *row, norm *close) {
  for (product_kind kind = OF_ROUNDED; kind < KINDS; kind++) {
    if (!has_kind(p, row, kind)) continue;
    run_product(p, row, kind);
    compare_of_32(p, row, close);
  }
}

static void products_of_32(void **state) {
  (void)state;
  for (int k = 0; k < N_OF_32; k++)
    for (const cpu_row *const *row = cpu_row_table(); *row; row++) {
      if (!(*row)->usable()) continue;
      norm close = {0};
      for (int n_tokens = 1; n_tokens; n_tokens = tokens_after(n_tokens)) {
        product p;
        int64_t cols = QK_32 * (1 + random_below(40));
        product_open(&p, types_of_32[k], row_counts[n_tokens % N_ROW_COUNTS], cols, n_tokens, sizeof(float));
        random_weights(&p);
        random_activations(&p);
        for (int t = 0; t < n_tokens; t++)
          (*row)->round_q8_0((block_q8_32 *)(void *)p.rounded[t], NULL, (const float *)(void *)p.x[t], cols);
        check_of_32(&p, *row, &close);
        product_close(&p);
      }
      print_message("row %s, q8k, %s: rel_l2 %.1e\n", (*row)->name, type_find(types_of_32[k])->name,
                    norm_of(&close));
      assert_true(norm_of(&close) < 1e-6);
    }
}

// Quants and activations at their ends, of one sign and of mixed ones: what an instruction that saturates, or
// a sum that is too narrow, would show.
static void extremes_of_32(void **state) {
  (void)state;
  static const uint8_t bytes[] = {0x00, 0xff, 0x80, 0x7f, 0x81, 0x08};
  for (int k = 0; k < N_OF_32 * (int)sizeof bytes; k++)
    for (const cpu_row *const *row = cpu_row_table(); *row; row++) {
      if (!(*row)->usable()) continue;
      product p;
      norm close = {0};
      product_open(&p, types_of_32[k % N_OF_32], 33, 3 * QK_32, 5, sizeof(float));
      memset(p.data, bytes[k / N_OF_32],
             (size_t)p.m.rows * type_row_bytes(type_find(p.m.type), (size_t)p.m.cols));
      random_weights(&p);
      for (int t = 0; t < p.n_tokens; t++)
        for (int b = 0; b < 3; b++) {
          block_q8_32 *x = (block_q8_32 *)(void *)p.rounded[t] + b;
          *x = (block_q8_32){.d = 0.03f, .s = -2.5f};
          for (int i = 0; i < QK_32; i++) {
            x->qs[i] = (int8_t)(t == 0   ? 127
                                : t == 1 ? -127
                                : t == 2 ? (i % 2 ? 127 : -127)
                                         : random_below(255) - 127);
            x->sum += x->qs[i];
          }
        }
      check_of_32(&p, *row, &close);
      product_close(&p);
    }
}

// ---- floats ----

static const weight_type all_types[] = {TYPE_F32,  TYPE_F16,  TYPE_BF16, TYPE_Q8_0,   TYPE_Q4_K,   TYPE_Q5_K,
                                        TYPE_Q6_K, TYPE_Q2_K, TYPE_Q3_K, TYPE_IQ4_XS, TYPE_IQ4_NL, TYPE_Q4_0,
                                        TYPE_Q4_1, TYPE_Q5_0, TYPE_Q5_1, TYPE_MXFP4};
enum { N_TYPES = sizeof all_types / sizeof *all_types };

static int64_t random_columns(weight_type type) {
  int64_t block = (int64_t)type_find(type)->elements;
  return block == 1 ? 1 + random_below(300) : block * (1 + random_below(block == 32 ? 20 : 3));
}

static void check_reals(product *p, const cpu_row *row, norm *close) {
  bool wide = p->real == sizeof(double);
  run_product(p, row, OF_REALS);
  for (int t = 0; t < p->n_tokens; t++)
    for (int64_t r = 0; r < p->m.rows; r++) {
      const double *x64 = (const double *)(void *)p->x[t];
      const float *x32 = (const float *)(void *)p->x[t];
      long double sum = 0;
      for (int64_t i = 0; i < p->m.cols; i++)
        sum += (long double)weight_at(&p->m, r, i) * (wide ? (long double)x64[i] : (long double)x32[i]);
      if (wide)
        same_f64(out_f64(p, t, r), literal_f64(&p->m, r, x64), row, p, t, r);
      else
        same_f32(out_f32(p, t, r), literal_f32(&p->m, r, x32), row, p, t, r);
      norm_add(close, wide ? (long double)out_f64(p, t, r) : (long double)out_f32(p, t, r), sum);
    }
}

static void real_products(size_t real, double bound) {
  for (int k = 0; k < N_TYPES; k++)
    for (const cpu_row *const *row = cpu_row_table(); *row; row++) {
      if (!(*row)->usable()) continue;
      norm close = {0};
      for (int n_tokens = 1; n_tokens <= FEW; n_tokens += 1 + random_below(3)) {
        product p;
        product_open(&p, all_types[k], row_counts[n_tokens % N_ROW_COUNTS], random_columns(all_types[k]),
                     n_tokens, real);
        random_weights(&p);
        random_activations(&p);
        check_reals(&p, *row, &close);
        product_close(&p);
      }
      print_message("row %s, f%zu, %s: rel_l2 %.1e\n", (*row)->name, 8 * real, type_find(all_types[k])->name,
                    norm_of(&close));
      assert_true(norm_of(&close) < bound);
    }
}

static void f32_products(void **state) {
  (void)state;
  real_products(sizeof(float), 1e-6);
}

static void f64_products(void **state) {
  (void)state;
  real_products(sizeof(double), 1e-15);
}

// ---- rounding to Q8_K ----

static void literal_quantize(block_q8_K *out, const float *x) {
  float m = 0;
  for (int i = 0; i < QK_K; i++)
    if (fabsf(x[i]) > fabsf(m)) m = x[i];
  memset(out, 0, sizeof *out);
  if (m == 0) return;
  float s = -127.0f / m;
  for (int i = 0; i < QK_K; i++) {
    float product_rounded = s * x[i];
    float q = fminf(127.0f, rintf(product_rounded));
    out->qs[i] = (int8_t)q;
    out->bsums[i / 16] = (int16_t)(out->bsums[i / 16] + out->qs[i]);
  }
  out->d = 1.0f / s;
}

static void hard_floats(float *x, int kind) {
  float size = exp2f((float)random_below(200) - 100), m = kind % 2 ? 127.0f : -127.0f;
  for (int i = 0; i < QK_K; i++) {
    x[i] = (float)random_normal() * size;
    if (kind % 5 == 1) x[i] = (float)(random_below(253) - 126) + 0.5f;      // ties to the even integer
    if (kind % 5 == 2) x[i] = random_below(2) ? 3.0f * size : -3.0f * size; // all of largest magnitude
    if (kind % 5 == 3)
      x[i] = nextafterf((float)(random_below(252) - 126) + 0.5f, random_below(2) ? 1e3f : -1e3f);
    if (kind % 5 == 4) x[i] = random_below(50) ? 0.0f : x[i];
  }
  if (kind % 5 == 1 || kind % 5 == 3) x[random_below(QK_K)] = m;
}

static void rounding_to_q8k(void **state) {
  (void)state;
  float x[3 * QK_K];
  block_q8_K found[3], wanted;
  for (int round = 0; round < 2000; round++) {
    for (int b = 0; b < 3; b++) hard_floats(x + b * QK_K, round + b);
    for (const cpu_row *const *row = cpu_row_table(); *row; row++) {
      if (!(*row)->usable()) continue;
      memset(found, POISON, sizeof found);
      (*row)->quantize_q8k(found, x, 3 * QK_K);
      for (int b = 0; b < 3; b++) {
        literal_quantize(&wanted, x + b * QK_K);
        assert_memory_equal(&found[b], &wanted, sizeof wanted);
      }
    }
  }
}

// ---- rounding to Q8_0 and Q8_1 ----

static void literal_round_32(block_q8_32 *out, const float *x) {
  float most = 0;
  for (int i = 0; i < QK_32; i++) most = fmaxf(most, fabsf(x[i]));
  float d = most / 127.0f, id = d != 0 ? 1.0f / d : 0.0f;
  out->sum = 0;
  for (int i = 0; i < QK_32; i++) {
    out->qs[i] = (int8_t)roundf(fmaxf(-127.0f, fminf(127.0f, x[i] * id)));
    out->sum += out->qs[i];
  }
  out->d = half_to_f32(f32_to_half(d));
  out->s = half_to_f32(f32_to_half((float)out->sum * d));
}

static void rounding_to_q8_0(void **state) {
  (void)state;
  enum { BLOCKS = QK_K / QK_32 };
  float x[QK_K];
  block_q8_32 found[BLOCKS], wanted;
  for (int round = 0; round < 2000; round++) {
    hard_floats(x, round);
    if (round % 5 == 1 || round % 5 == 3)
      for (int b = 0; b < BLOCKS; b++) x[b * QK_32 + random_below(QK_32)] = 127; // ties, for a scale of 1
    if (round % 7 == 0)
      for (int i = 0; i < QK_K; i++)
        x[i] *= 0x1p-60f * (i % 64 < 32 ? 0x1p-60f : 1); // down to subnormal scales
    for (const cpu_row *const *row = cpu_row_table(); *row; row++) {
      if (!(*row)->usable()) continue;
      memset(found, POISON, sizeof found);
      (*row)->round_q8_0(found, NULL, x, QK_K);
      for (int b = 0; b < BLOCKS; b++) {
        literal_round_32(&wanted, x + b * QK_32);
        assert_memory_equal(&found[b], &wanted, sizeof wanted);
      }
    }
  }
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(q8k_products),   cmocka_unit_test(q8k_extremes),     cmocka_unit_test(f32_products),
      cmocka_unit_test(f64_products),   cmocka_unit_test(rounding_to_q8k),  cmocka_unit_test(products_of_32),
      cmocka_unit_test(extremes_of_32), cmocka_unit_test(rounding_to_q8_0),
  };
  random_state = test_seed_bits();
  return cmocka_run_group_tests(tests, NULL, NULL);
}
