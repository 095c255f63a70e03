// Tests of kernels/formats/half.h and kernels/formats/types.c: conversions against an independent rounding
// in double, dequantisation against blocks that the test packs itself and against fixed values of a foreign
// decoder.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include "kernels/formats/types.h"
#include "kernels/formats/half.h"
#include "tests/support/seed.h"
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

static uint64_t random_state;

static uint32_t random_u32(void) { // xorshift64*, the upper half
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return (uint32_t)((random_state * 0x2545F4914F6CDD1DULL) >> 32);
}

static uint16_t random_finite_half(void) {
  uint16_t h;
  do h = (uint16_t)random_u32();
  while ((h & 0x7c00) == 0x7c00);
  return h;
}

// What IEEE 754 says a finite half is worth; 2^16 for infinity, so that it can be a neighbour in rounding.
static double half_value(uint16_t h) {
  int exponent = (h >> 10) & 31, mantissa = h & 1023;
  double magnitude = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
  return h & 0x8000 ? -magnitude : magnitude;
}

static void half_to_f32_is_exact_for_all(void **state) {
  (void)state;
  for (uint32_t h = 0; h <= 0xffff; h++) {
    float f = half_to_f32((uint16_t)h);
    assert_int_equal(num_bits_f32(f) >> 31, h >> 15);
    if ((h & 0x7c00) != 0x7c00) {
      assert_true((double)f == half_value((uint16_t)h));
    } else if (h & 0x3ff) {
      assert_true(isnan(f));
      assert_int_equal(num_bits_f32(f) & 0x7fffff, 0x400000 | (h & 0x3ff) << 13);
    } else {
      assert_true(isinf(f));
    }
  }
}

static void half_round_trip_is_the_identity(void **state) {
  (void)state;
  for (uint32_t h = 0; h <= 0xffff; h++) {
    bool is_nan = (h & 0x7c00) == 0x7c00 && (h & 0x3ff);
    assert_int_equal(f32_to_half(half_to_f32((uint16_t)h)), is_nan ? h | 0x200 : h);
  }
}

// Nearest, ties to even, by bisection over the values of all halves: no bit of the float is looked at.
static uint16_t rounded_by_search(float f) {
  double x = fabs((double)f);
  uint16_t sign = signbit(f) ? 0x8000 : 0, low = 0, high = 0x7c00;
  if (x >= half_value(0x7c00)) return sign | 0x7c00;
  while (high - low > 1) {
    uint16_t middle = (uint16_t)((low + high) / 2);
    if (half_value(middle) <= x)
      low = middle;
    else
      high = middle;
  }
  double below = x - half_value(low), above = half_value(high) - x; // exact: 24 bits and 12 bits that overlap
  if (below == above) return sign | (low % 2 ? high : low);
  return sign | (below < above ? low : high);
}

static void check_rounding(float f) {
  assert_int_equal(f32_to_half(f), rounded_by_search(f));
  assert_int_equal(f32_to_half(-f), rounded_by_search(-f));
}

static void f32_to_half_rounds_halfway_cases(void **state) {
  (void)state;
  for (uint16_t h = 0; h < 0x7c00; h++) { // the last one is the way to infinity, 65520
    float middle = (float)((half_value(h) + half_value((uint16_t)(h + 1))) / 2);
    check_rounding(middle);
    check_rounding(nextafterf(middle, 0));
    check_rounding(nextafterf(middle, INFINITY));
  }
}

static void f32_to_half_rounds_random_floats(void **state) {
  (void)state;
  for (int i = 0; i < 1000000; i++) {
    float f = num_from_bits_f32(random_u32());
    if (isnan(f)) {
      uint32_t bits = num_bits_f32(f);
      assert_int_equal(f32_to_half(f), (bits >> 16 & 0x8000) | 0x7e00 | (bits >> 13 & 0x3ff));
    } else {
      check_rounding(f);
    }
    uint32_t exponent = 100 + random_u32() % 45; // where halves live
    check_rounding(num_from_bits_f32(exponent << 23 | (random_u32() & 0x7fffff)));
  }
  check_rounding(INFINITY);
  check_rounding(0);
}

static void bf16_is_the_upper_half(void **state) {
  (void)state;
  for (uint32_t h = 0; h <= 0xffff; h++) assert_int_equal(num_bits_f32(bf16_to_f32((uint16_t)h)), h << 16);
}

// A block's content before it is packed. The products of the format have at most 24 bits and every difference
// is a multiple of 2^-24 below 2^28, so the formula in double is exact and the cast rounds once, as ggml
// does.
typedef struct {
  uint16_t d, dmin;
  int scale[16], min[8], q[QK_K];
} content;

static void content_fill(content *c, int scale_least, int scale_count, int q_least, int q_count) {
  c->d = random_finite_half();
  c->dmin = random_finite_half();
  for (int i = 0; i < 16; i++) c->scale[i] = scale_least + (int)(random_u32() % (unsigned)scale_count);
  for (int i = 0; i < 8; i++) c->min[i] = (int)(random_u32() % 64);
  for (int i = 0; i < QK_K; i++) c->q[i] = q_least + (int)(random_u32() % (unsigned)q_count);
}

static void check_weights(const float *found, const content *c, int n, int sub_block, bool has_min) {
  for (int i = 0; i < n; i++) {
    double wanted = half_value(c->d) * c->scale[i / sub_block] * c->q[i];
    if (has_min) wanted -= half_value(c->dmin) * c->min[i / sub_block];
    assert_true((double)found[i] == (double)(float)wanted);
  }
}

static void pack_scales(uint8_t *out, const content *c) {
  for (int j = 0; j < 4; j++) {
    out[j] = (uint8_t)(c->scale[j] | (c->scale[j + 4] >> 4) << 6);
    out[j + 4] = (uint8_t)(c->min[j] | (c->min[j + 4] >> 4) << 6);
    out[j + 8] = (uint8_t)((c->scale[j + 4] & 15) | (c->min[j + 4] & 15) << 4);
  }
}

enum { BLOCKS = 5, ROUNDS = 2000 };

static void dequantises_q8_0(void **state) {
  (void)state;
  for (int round = 0; round < ROUNDS; round++) {
    content c[BLOCKS];
    block_q8_0 block[BLOCKS];
    float out[BLOCKS * QK8_0];
    for (int b = 0; b < BLOCKS; b++) {
      content_fill(&c[b], 1, 1, -128, 256);
      block[b].d = c[b].d;
      for (int i = 0; i < QK8_0; i++) block[b].qs[i] = (int8_t)c[b].q[i];
    }
    dequantize_row(out, TYPE_Q8_0, block, BLOCKS * QK8_0);
    for (int b = 0; b < BLOCKS; b++) check_weights(out + b * QK8_0, &c[b], QK8_0, QK8_0, false);
  }
}

static void dequantises_q4_K(void **state) {
  (void)state;
  for (int round = 0; round < ROUNDS; round++) {
    content c[BLOCKS];
    block_q4_K block[BLOCKS];
    float out[BLOCKS * QK_K];
    for (int b = 0; b < BLOCKS; b++) {
      content_fill(&c[b], 0, 64, 0, 16);
      block[b].d = c[b].d;
      block[b].dmin = c[b].dmin;
      pack_scales(block[b].scales, &c[b]);
      for (int i = 0; i < QK_K / 2; i++)
        block[b].qs[i] = (uint8_t)(c[b].q[i / 32 * 64 + i % 32] | c[b].q[i / 32 * 64 + 32 + i % 32] << 4);
    }
    dequantize_row(out, TYPE_Q4_K, block, BLOCKS * QK_K);
    for (int b = 0; b < BLOCKS; b++) check_weights(out + b * QK_K, &c[b], QK_K, 32, true);
  }
}

static void dequantises_q5_K(void **state) {
  (void)state;
  for (int round = 0; round < ROUNDS; round++) {
    content c[BLOCKS];
    block_q5_K block[BLOCKS];
    float out[BLOCKS * QK_K];
    for (int b = 0; b < BLOCKS; b++) {
      block_q5_K *k = &block[b];
      content_fill(&c[b], 0, 64, 0, 32);
      *k = (block_q5_K){.d = c[b].d, .dmin = c[b].dmin};
      pack_scales(k->scales, &c[b]);
      for (int e = 0; e < QK_K; e++) {
        k->qs[e / 64 * 32 + e % 32] |= (uint8_t)((c[b].q[e] & 15) << (e / 32 % 2 * 4));
        k->qh[e % 32] |= (uint8_t)((c[b].q[e] >> 4) << (e / 32));
      }
    }
    dequantize_row(out, TYPE_Q5_K, block, BLOCKS * QK_K);
    for (int b = 0; b < BLOCKS; b++) check_weights(out + b * QK_K, &c[b], QK_K, 32, true);
  }
}

static void dequantises_q6_K(void **state) {
  (void)state;
  for (int round = 0; round < ROUNDS; round++) {
    content c[BLOCKS];
    block_q6_K block[BLOCKS];
    float out[BLOCKS * QK_K];
    for (int b = 0; b < BLOCKS; b++) {
      block_q6_K *k = &block[b];
      content_fill(&c[b], -128, 256, -32, 64);
      *k = (block_q6_K){.d = c[b].d};
      for (int i = 0; i < 16; i++) k->scales[i] = (int8_t)c[b].scale[i];
      for (int e = 0; e < QK_K; e++) {
        int u = c[b].q[e] + 32, half = e / 128, in_half = e % 128;
        k->ql[half * 64 + in_half % 64] |= (uint8_t)((u & 15) << (in_half / 64 * 4));
        k->qh[half * 32 + e % 32] |= (uint8_t)((u >> 4) << (in_half / 32 * 2));
      }
    }
    dequantize_row(out, TYPE_Q6_K, block, BLOCKS * QK_K);
    for (int b = 0; b < BLOCKS; b++) check_weights(out + b * QK_K, &c[b], QK_K, 16, false);
  }
}

static void dequantises_plain_floats(void **state) {
  (void)state;
  enum { N = 1000 };
  uint32_t raw[N];
  float out[N];
  for (int i = 0; i < N; i++) raw[i] = random_u32();
  dequantize_row(out, TYPE_F32, raw, N);
  assert_memory_equal(out, raw, sizeof out);
  const uint16_t *halves = (const uint16_t *)(const void *)raw;
  dequantize_row(out, TYPE_F16, halves, N);
  for (int i = 0; i < N; i++) assert_int_equal(num_bits_f32(out[i]), num_bits_f32(half_to_f32(halves[i])));
  dequantize_row(out, TYPE_BF16, halves, N);
  for (int i = 0; i < N; i++) assert_int_equal(num_bits_f32(out[i]), (uint32_t)halves[i] << 16);
}

static const struct {
  weight_type type;
  const char *name;
  size_t elements, bytes;
  activation_form on_q8k;
  uint64_t golden;
  size_t scale_at[2]; // bytes of a block where its finite numbers lie
  int scales;
} formats[] = {
    {TYPE_F32, "F32", 1, 4, ACTIVATION_REAL, 0, {0, 0}, 1},
    {TYPE_F16, "F16", 1, 2, ACTIVATION_REAL, 0, {0, 0}, 1},
    {TYPE_BF16, "BF16", 1, 2, ACTIVATION_REAL, 0, {0, 0}, 1},
    {TYPE_Q8_0, "Q8_0", 32, 34, ACTIVATION_Q8_0, 0x119525a3b32f8ea5, {0, 0}, 1},
    {TYPE_Q4_K, "Q4_K", 256, 144, ACTIVATION_Q8K, 0xe6b7d5414dcbe4ef, {0, 2}, 2},
    {TYPE_Q5_K, "Q5_K", 256, 176, ACTIVATION_Q8K, 0x19ebe9dd09a4b135, {0, 2}, 2},
    {TYPE_Q6_K, "Q6_K", 256, 210, ACTIVATION_Q8K, 0x09f84032d5ec40cd, {208, 208}, 1},
    {TYPE_Q2_K, "Q2_K", 256, 84, ACTIVATION_Q8K, 0x4d0fdff630168167, {80, 82}, 2},
    {TYPE_Q3_K, "Q3_K", 256, 110, ACTIVATION_Q8K, 0xd1a3b1c1136e98eb, {108, 108}, 1},
    {TYPE_IQ4_XS, "IQ4_XS", 256, 136, ACTIVATION_Q8K, 0xc471423df1437367, {0, 0}, 1},
    {TYPE_IQ4_NL, "IQ4_NL", 32, 18, ACTIVATION_Q8_0, 0xb6a79a0b51ccd1d5, {0, 0}, 1},
    {TYPE_Q4_0, "Q4_0", 32, 18, ACTIVATION_Q8_0, 0x74ee0dc1b8a5e813, {0, 0}, 1},
    {TYPE_Q4_1, "Q4_1", 32, 20, ACTIVATION_Q8_0, 0x3009fb56ed10a6c6, {0, 2}, 2},
    {TYPE_Q5_0, "Q5_0", 32, 22, ACTIVATION_Q8_0, 0xd12e15f6e1d612a7, {0, 0}, 1},
    {TYPE_Q5_1, "Q5_1", 32, 24, ACTIVATION_Q8_0, 0xfa1fdb76689e324, {0, 2}, 2},
    {TYPE_MXFP4, "MXFP4", 32, 17, ACTIVATION_Q8_0, 0xfc9d80073b8be446, {0, 0}, 0},
};
enum { FORMATS = sizeof formats / sizeof *formats, GOLDEN_BLOCKS = 64 };

// 64 blocks of bytes from a linear congruence (seed: the type's number; state >> 24 is a byte), the top
// exponent bit of every f16 scale cleared; FNV-1a over the float bits. The golden values were computed from
// the same bytes by the public gguf Python package (0.19), whose decoder shares nothing with this one.
static void dequantises_as_a_foreign_decoder(void **state) {
  (void)state;
  static _Alignas(4) uint8_t raw[GOLDEN_BLOCKS * 256];
  static float out[GOLDEN_BLOCKS * QK_K];
  for (int f = 0; f < FORMATS; f++) {
    if (formats[f].elements == 1) continue;
    uint32_t lcg = formats[f].type;
    for (size_t i = 0; i < GOLDEN_BLOCKS * formats[f].bytes; i++) {
      lcg = lcg * 1664525u + 1013904223u;
      raw[i] = (uint8_t)(lcg >> 24);
    }
    for (size_t b = 0; b < GOLDEN_BLOCKS; b++)
      for (int s = 0; s < formats[f].scales; s++)
        raw[b * formats[f].bytes + formats[f].scale_at[s] + 1] &= 0xbf;
    size_t n = GOLDEN_BLOCKS * formats[f].elements;
    dequantize_row(out, formats[f].type, raw, n);
    uint64_t hash = 0xcbf29ce484222325u;
    for (size_t i = 0; i < n * sizeof *out; i++) hash = (hash ^ ((const uint8_t *)out)[i]) * 0x100000001b3u;
    if (hash != formats[f].golden)
      fail_msg("%s: expected %016llx, found %016llx", formats[f].name, (unsigned long long)formats[f].golden,
               (unsigned long long)hash);
  }
}

static void finds_the_first_block_that_is_not_finite(void **state) {
  (void)state;
  enum { ROW = 9 };
  for (int f = 0; f < FORMATS; f++) {
    size_t bytes = formats[f].bytes, n = ROW * formats[f].elements;
    weight_type type = formats[f].type;
    size_t high = formats[f].elements == 1 ? bytes - 1 : 1; // byte of the exponent's top bits within a number
    _Alignas(4) uint8_t raw[ROW * 256], kept[ROW * 256];
    for (size_t i = 0; i < ROW * bytes; i++) raw[i] = (uint8_t)random_u32();
    for (int b = 0; b < ROW; b++)
      for (int s = 0; s < formats[f].scales; s++) raw[b * bytes + formats[f].scale_at[s] + high] &= 0xbf;
    for (int b = 0; b < ROW && type == TYPE_MXFP4; b++) raw[b * bytes] = (uint8_t)(raw[b * bytes] % 253);
    assert_int_equal(row_first_not_finite(type, raw, n), -1);
    if (type == TYPE_MXFP4) {
      raw[7 * bytes] = (uint8_t)(253 + random_u32() % 3);
      assert_int_equal(row_first_not_finite(type, raw, n), 7);
    }
    for (int b = 0; b < ROW; b++)
      for (int s = 0; s < formats[f].scales; s++) {
        memcpy(kept, raw, sizeof raw);
        uint8_t *number = raw + b * bytes + formats[f].scale_at[s] + high - 1;
        if (type == TYPE_F32 || type == TYPE_BF16) number[0] |= 0x80;
        number[1] |= type == TYPE_F32 || type == TYPE_BF16 ? 0x7f : 0x7c; // infinity or a NaN, either sign
        assert_int_equal(row_first_not_finite(type, raw, n), b);
        memcpy(raw, kept, sizeof raw);
      }
  }
}

static void knows_its_types_and_names_all(void **state) {
  (void)state;
  int known = 0;
  for (uint32_t i = 0; i < 200; i++) known += type_find(i) != NULL;
  assert_int_equal(known, FORMATS);
  for (int f = 0; f < FORMATS; f++) {
    const type_info *info = type_find(formats[f].type);
    assert_non_null(info);
    assert_int_equal(info->type, formats[f].type);
    assert_string_equal(info->name, formats[f].name);
    assert_string_equal(type_name_any(formats[f].type), formats[f].name);
    assert_int_equal(info->elements, formats[f].elements);
    assert_int_equal(info->bytes, formats[f].bytes);
    assert_int_equal(info->on_q8k, formats[f].on_q8k);
    assert_int_equal(type_row_bytes(info, 768), 768 / formats[f].elements * formats[f].bytes);
  }
  assert_string_equal(type_name_any(10), "Q2_K");
  assert_string_equal(type_name_any(39), "MXFP4");
  assert_string_equal(type_name_any(77), "type 77");
  assert_string_equal(type_name_any(UINT32_MAX), "type 4294967295");
}

int main(void) {
  random_state = test_seed_bits();
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(half_to_f32_is_exact_for_all),
      cmocka_unit_test(half_round_trip_is_the_identity),
      cmocka_unit_test(f32_to_half_rounds_halfway_cases),
      cmocka_unit_test(f32_to_half_rounds_random_floats),
      cmocka_unit_test(bf16_is_the_upper_half),
      cmocka_unit_test(dequantises_q8_0),
      cmocka_unit_test(dequantises_q4_K),
      cmocka_unit_test(dequantises_q5_K),
      cmocka_unit_test(dequantises_q6_K),
      cmocka_unit_test(dequantises_plain_floats),
      cmocka_unit_test(dequantises_as_a_foreign_decoder),
      cmocka_unit_test(finds_the_first_block_that_is_not_finite),
      cmocka_unit_test(knows_its_types_and_names_all),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
