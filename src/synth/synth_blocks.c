#include "src/synth/synth_blocks.h"
#include "kernels/formats/half.h"
#include "kernels/formats/numerics.h"
#include "src/synth/synth_few_bits.h"
#include <stdbool.h>
#include <string.h>

// Sums of two uniform integers and a coin are close to a normal number cut at 2.3 standard deviations, which
// is what the quantisation of normal weights leaves in a sub-block, and sixteen of them are three additions
// of 64-bit words. The constants below are the root mean squares of block elements over the block's scale:
// sqrt(E[scale^2] var(q) + base^2 var(min - scale)), with uniform 0..n-1 of variance (n^2 - 1)/12.
#define RMS_Q4_K 158.72455 // sqrt(2330.5 * 10.75 + 7.5^2 * 2.5)
#define RMS_Q5_K 316.58988 // sqrt(2330.5 * 42.75 + 15.5^2 * 2.5)
#define RMS_Q6_K 1247.7664 // sqrt(9131.5 * 170.5)
#define RMS_Q8_0 52.254187 // sqrt(2730.5)

#define BYTES(b)   (0x0101010101010101u * (b))
#define NIBBLES(n) (0x1111111111111111u * (n))

const double synth_loud_level =
    2.29; // 7.5 of 3.28 levels, as the end of a Q4_K range; the other types use it too

static const double quiet_level =
    1.0 / 16; // of the row's standard deviation; what 4 bits make of it is coarser

uint64_t synth_random(uint64_t key, uint64_t counter) {
  return num_mix64(key + (counter + 1) * 0x9e3779b97f4a7c15u);
}

// Close to a standard normal number: four uniform 16-bit integers, whose sum has mean 131070 and variance
// 2^32 / 3.
static double normal(uint64_t random) {
  uint64_t sum = (random & 0xffff) + (random >> 16 & 0xffff) + (random >> 32 & 0xffff) + (random >> 48);
  return ((double)sum - 131070.0) * (1.0 / 37837.22747);
}

// A block's scale differs from its row's by up to an eighth.
static double jitter(uint64_t random) {
  return 1.0 + ((double)(random & 0xff) - 127.5) * (1.0 / 1024);
}

static uint16_t half_of(double x) {
  return f32_to_half((float)x);
}

// ---- K-quants with minimums ----

// scale: 37..59, mean 48, variance 26.5; minimum: scale - 3 .. scale + 3, so that a sub-block's mean is near
// 0 but is not 0: its base is dmin * minimum, the middle of its range d * scale * q.
static void fill_scales(uint8_t packed[Q4K_SCALE_BYTES], uint64_t key) {
  uint64_t a = synth_random(key, 0), b = synth_random(key, 1);
  uint8_t scale[8], minimum[8];
  for (int j = 0; j < 8; j++, a >>= 8, b >>= 8) {
    scale[j] = (uint8_t)(37 + (a & 15) + (a >> 4 & 7));
    minimum[j] = (uint8_t)(scale[j] + (b & 3) - (b >> 2 & 3));
  }
  for (int j = 0; j < 4; j++) {
    packed[j] = (uint8_t)(scale[j] | (scale[j + 4] >> 4) << 6);
    packed[j + 4] = (uint8_t)(minimum[j] | (minimum[j + 4] >> 4) << 6);
    packed[j + 8] = (uint8_t)((scale[j + 4] & 15) | (minimum[j + 4] & 15) << 4);
  }
}

static void fill_q4_k(block_q4_K *b, uint64_t key, double std) {
  double d = std * (1 / RMS_Q4_K) * jitter(synth_random(key, 2));
  b->d = half_of(d);
  b->dmin = half_of(7.5 * d);
  fill_scales(b->scales, key);
  for (uint64_t i = 0; i < 16; i++) { // 0..7 + 0..7 + 0..1 in every nibble: mean 7.5, variance 10.75
    uint64_t x = synth_random(key, 3 + 2 * i), y = synth_random(key, 4 + 2 * i);
    uint64_t q = (x & NIBBLES(7)) + (y & NIBBLES(7)) + (x >> 3 & NIBBLES(1));
    memcpy(b->qs + 8 * i, &q, sizeof q);
  }
}

static void fill_q5_k(block_q5_K *b, uint64_t key, double std) {
  double d = std * (1 / RMS_Q5_K) * jitter(synth_random(key, 2));
  b->d = half_of(d);
  b->dmin = half_of(15.5 * d);
  fill_scales(b->scales, key);
  uint64_t high[4] = {0};
  for (int i = 0; i < 16; i++) { // 0..15 + 0..15 + 0..1 in every byte: mean 15.5, variance 42.75
    int pair = i / 4, part = i % 4;
    uint64_t x = synth_random(key, 8 + 2 * (uint64_t)i), y = synth_random(key, 9 + 2 * (uint64_t)i);
    uint64_t coins = synth_random(key, 3 + (uint64_t)pair) >> 2 * part;
    x = (x & BYTES(15)) + (x >> 4 & BYTES(15)) + (coins & BYTES(1));
    y = (y & BYTES(15)) + (y >> 4 & BYTES(15)) + (coins >> 1 & BYTES(1));
    uint64_t low = (x & BYTES(15)) | (y & BYTES(15)) << 4;
    high[part] |= (x >> 4 & BYTES(1)) << 2 * pair | (y >> 4 & BYTES(1)) << (2 * pair + 1);
    memcpy(b->qs + 32 * pair + 8 * part, &low, sizeof low);
  }
  memcpy(b->qh, high, sizeof high);
}

// ---- the symmetric ones ----

// Eight quants of Q6_K, a byte each: 1 + 0..31 + 0..31: mean 32, variance 170.5.
static uint64_t quants_of_q6_k(uint64_t key, uint64_t i) {
  return BYTES(1) + (synth_random(key, 8 + 2 * i) & BYTES(31)) + (synth_random(key, 9 + 2 * i) & BYTES(31));
}

static void fill_q6_k(block_q6_K *b, uint64_t key, double std) {
  for (int j = 0; j < 16; j++) { // of either sign; magnitude 72..118, mean 95, variance 106.5
    uint64_t x = synth_random(key, (uint64_t)(j / 4)) >> 16 * (j % 4);
    int size = (int)(72 + (x & 31) + (x >> 5 & 15));
    b->scales[j] = (int8_t)(x >> 9 & 1 ? -size : size);
  }
  b->d = half_of(std * (1 / RMS_Q6_K) * jitter(synth_random(key, 4)));
  for (int i = 0; i < 8; i++) {
    int half = i / 4, part = i % 4;
    uint64_t q[4];
    for (int g = 0; g < 4; g++) q[g] = quants_of_q6_k(key, (uint64_t)(4 * i + g));
    uint64_t first = (q[0] & BYTES(15)) | (q[2] & BYTES(15)) << 4;
    uint64_t second = (q[1] & BYTES(15)) | (q[3] & BYTES(15)) << 4;
    uint64_t high = 0;
    for (int g = 0; g < 4; g++) high |= (q[g] >> 4 & BYTES(3)) << 2 * g;
    memcpy(b->ql + 64 * half + 8 * part, &first, sizeof first);
    memcpy(b->ql + 64 * half + 32 + 8 * part, &second, sizeof second);
    memcpy(b->qh + 32 * half + 8 * part, &high, sizeof high);
  }
}

static void fill_q8_0(block_q8_0 *b, uint64_t key, double std) {
  b->d = half_of(std * (1 / RMS_Q8_0) * jitter(synth_random(key, 0)));
  for (uint64_t i = 0; i < 4; i++) { // 1 + 0..127 + 0..127, and 128 off: -127..127
    uint64_t x = synth_random(key, 1 + 2 * i), y = synth_random(key, 2 + 2 * i);
    uint64_t q = (BYTES(1) + (x & BYTES(127)) + (y & BYTES(127))) ^ BYTES(128);
    memcpy(b->qs + 8 * i, &q, sizeof q);
  }
}

// ---- one element, set afterwards ----

// The integer nearest to x, no less than low and no more than high.
static int nearest(double x, int low, int high) {
  if (!(x > low)) return low;
  if (x >= high) return high;
  return (int)(x - low + 0.5) + low;
}

static void set_q4_k_or_q5_k(void *block, int i, double wanted, bool five) {
  block_q4_K *b = block; // d, dmin and scales lie the same in both
  block_q5_K *c = block;
  int j = i / 32, shift = j % 2 ? 4 : 0;
  int scale, minimum;
  block_scale_min(&scale, &minimum, b->scales, j);
  double step = (double)half_to_f32(b->d) * scale, base = (double)half_to_f32(b->dmin) * minimum;
  int q = step > 0 ? nearest((wanted + base) / step, 0, five ? 31 : 15) : 0;
  uint8_t *low = (five ? c->qs : b->qs) + 32 * (j / 2) + i % 32;
  *low = (uint8_t)((*low & (shift ? 0x0f : 0xf0)) | (q & 15) << shift);
  if (five) c->qh[i % 32] = (uint8_t)((c->qh[i % 32] & ~(1 << j)) | (q >> 4) << j);
}

static void set_q6_k(block_q6_K *b, int i, double wanted) {
  int half = i / 128, group = i % 128 / 32, l = i % 32;
  double step = (double)half_to_f32(b->d) * b->scales[i / 16];
  int q = step != 0 ? nearest(wanted / step, -32, 31) + 32 : 32;
  uint8_t *low = b->ql + 64 * half + 32 * (group % 2) + l, *high = b->qh + 32 * half + l;
  *low = (uint8_t)(group < 2 ? (*low & 0xf0) | (q & 15) : (*low & 0x0f) | (q & 15) << 4);
  *high = (uint8_t)((*high & ~(3 << 2 * group)) | (q >> 4) << 2 * group);
}

static void set_q8_0(block_q8_0 *b, int i, double wanted) {
  double d = (double)half_to_f32(b->d);
  b->qs[i] = (int8_t)(d > 0 ? nearest(wanted / d, -127, 127) : 0);
}

static void set_element(void *row, weight_type type, int64_t i, double wanted) {
  const type_info *t = type_find((uint32_t)type);
  int64_t elements = (int64_t)t->elements;
  void *block = (uint8_t *)row + (size_t)(i / elements) * t->bytes;
  int at = (int)(i % elements);
  float f = (float)wanted;
  uint32_t bits = num_bits_f32(f);
  uint16_t half = f32_to_half(f), top = (uint16_t)(bits >> 16);
  switch (type) {
  case TYPE_F32:
    memcpy(block, &f, sizeof f);
    return;
  case TYPE_F16:
    memcpy(block, &half, sizeof half);
    return;
  case TYPE_BF16:
    memcpy(block, &top, sizeof top);
    return;
  case TYPE_Q8_0:
    set_q8_0(block, at, wanted);
    return;
  case TYPE_Q4_K:
    set_q4_k_or_q5_k(block, at, wanted, false);
    return;
  case TYPE_Q5_K:
    set_q4_k_or_q5_k(block, at, wanted, true);
    return;
  case TYPE_Q6_K:
    set_q6_k(block, at, wanted);
    return;
    CASES_OF_FEW_BITS
    synth_set_few_bits(block, type, at, wanted);
    return;
  }
}

// ---- rows ----

static void fill_floats(void *out, const synth_recipe *r, uint64_t key, double std) {
  for (int64_t i = 0; i < r->cols; i++)
    set_element(out, r->type, i, r->mean + std * normal(synth_random(key, (uint64_t)i)));
}

static void fill_block(void *block, weight_type type, uint64_t key, double std) {
  switch (type) {
  case TYPE_Q4_K:
    fill_q4_k(block, key, std);
    return;
  case TYPE_Q5_K:
    fill_q5_k(block, key, std);
    return;
  case TYPE_Q6_K:
    fill_q6_k(block, key, std);
    return;
  case TYPE_Q8_0:
    fill_q8_0(block, key, std);
    return;
  case TYPE_F32: // of one element: fill_floats has filled the row
  case TYPE_F16:
  case TYPE_BF16:
    return;
    CASES_OF_FEW_BITS
    synth_fill_few_bits(block, type, key, std);
    return;
  }
}

static void fill_blocks(uint8_t *out, const synth_recipe *r, uint64_t key, double std) {
  const type_info *t = type_find((uint32_t)r->type);
  int64_t n = r->cols / (int64_t)t->elements;
  for (int64_t b = 0; b < n; b++, out += t->bytes)
    fill_block(out, r->type, synth_random(key, (uint64_t)b), std);
}

static bool is_planted(const synth_recipe *r, int64_t row) {
  for (int64_t i = 0; i < r->n_channels; i++)
    if (r->channels[i] == row % r->rows) return true;
  return false;
}

static void set_planted(void *out, const synth_recipe *r, uint64_t key, double std) {
  for (int64_t i = 0; i < r->n_channels; i++) {
    double random = normal(synth_random(~key, (uint64_t)i)), level = r->mean + std * random;
    if (r->columns == COLUMNS_LOUD) level = (i % 2 ? 1 : -1) * synth_loud_level * std;
    if (r->columns == COLUMNS_QUIET) level = quiet_level * std * random;
    set_element(out, r->type, r->channels[i], level * r->loud_norm);
  }
}

static void fill_row(uint8_t *out, const synth_recipe *r, int64_t row) {
  uint64_t key = synth_random(r->key, (uint64_t)row);
  // e^(s z - s^2): the rows' mean square stays 1
  double factor = num_exp_f64(r->row_spread * normal(num_mix64(key)) - r->row_spread * r->row_spread);
  double std = r->std * factor;
  if (r->loud_rows != 1 && is_planted(r, row)) std = std * r->loud_rows;
  if (type_find((uint32_t)r->type)->elements == 1)
    fill_floats(out, r, key, std);
  else
    fill_blocks(out, r, key, std);
  if (r->columns != COLUMNS_PLAIN || r->loud_norm != 1) set_planted(out, r, key, std);
}

void synth_fill_rows(void *out, const synth_recipe *r, int64_t first, int64_t count) {
  size_t bytes = type_row_bytes(type_find((uint32_t)r->type), (size_t)r->cols);
  for (int64_t i = 0; i < count; i++) fill_row((uint8_t *)out + (size_t)i * bytes, r, first + i);
}
