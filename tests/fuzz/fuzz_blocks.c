// fuzz_blocks: any bytes as blocks of weights: what passes as finite gives finite weights; halves survive the
// way through f32 and back.
//
// An input: a byte for the type, then the blocks.
#include "tests/fuzz/fuzz.h"
#include "kernels/formats/types.h"
#include "kernels/formats/half.h"
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_ELEMENTS = 1024 };

static void check_row(const type_info *type, const uint8_t *data, size_t size) {
  size_t blocks = size / type->bytes, most = MOST_ELEMENTS / type->elements, finite = 0;
  if (blocks > most) blocks = most;
  size_t n = blocks * type->elements;
  void *row = malloc(type_row_bytes(type, n) + !n); // exact and aligned
  float *out = malloc(n * sizeof *out + !n);
  if (n) memcpy(row, data, type_row_bytes(type, n));
  int64_t first = row_first_not_finite(type->type, row, n);
  REQUIRE(first >= -1 && first < (int64_t)blocks);
  dequantize_row(out, type->type, row, n);
  while (finite < n && isfinite(out[finite])) finite++;
  REQUIRE(first < 0 ? finite == n : finite >= (size_t)first * type->elements);
  free(row);
  free(out);
}

static void check_half(uint16_t h) {
  float value = half_to_f32(h);
  uint16_t again = f32_to_half(value);
  bool quieted = isnan(value) && again == (h | 0x200);
  REQUIRE(again == h || quieted);
}

static void check_rounding(uint32_t bits) { // the nearest half: neither neighbour is nearer
  float value = num_from_bits_f32(bits);
  if (!(fabsf(value) < 65504.0f)) return;
  uint16_t h = f32_to_half(value);
  double error = fabs((double)half_to_f32(h) - (double)value);
  REQUIRE(error <= fabs((double)half_to_f32((uint16_t)(h + 1)) - (double)value));
  if (h & 0x7fff) REQUIRE(error <= fabs((double)half_to_f32((uint16_t)(h - 1)) - (double)value));
}

FUZZ_TARGET(blocks) {
  fuzz_input in = {data, size};
  const type_info *type = type_find((uint32_t)fuzz_take(&in, 1) % 64);
  if (type) check_row(type, in.at, in.left);
  check_half((uint16_t)fuzz_take(&in, 2));
  check_rounding((uint32_t)fuzz_take(&in, 4));
  return 0;
}
