// unpacked: products of types whose blocks of 256 weights are first unpacked to integers: weight i of a block
// is d * w[i] - dmin * min[i / 16], with w the product of a sub-block's scale and the quant. One product
// serves every such type, in each ISA row: the integers are exact in any order, and the compiler makes the
// row's instructions of the loops. A type is added by unpack_<block> alone.
//
// Included by generic.h, whose terms it uses. Invariant: the same bits as docs/paths.md has for K-quants.
#pragma once

typedef struct {
  float d, dmin;
  int16_t w[QK_K];        // at most 4,064 in magnitude (IQ4_XS), so that 256 products with int8 fit 32 bits
  int16_t min[QK_K / 16]; // all 0 and dmin 0: the type has no minimums
  bool has_minimums;
} unpacked_block;

typedef int8_t bytes_16 __attribute__((vector_size(16))); // of GNU C: a shuffle where the machine has one

static inline void unpack_q2_K(unpacked_block *out, const block_q2_K *block) {
  out->has_minimums = true;
  out->d = half_to_f32(block->d);
  out->dmin = half_to_f32(block->dmin);
  for (int j = 0; j < QK_K / 16; j++) {
    const uint8_t *q = block->qs + j / 8 * 32 + j % 2 * 16;
    int scale = block->scales[j] & 15, shift = j / 2 % 4 * 2;
    for (int l = 0; l < 16; l++) out->w[j * 16 + l] = (int16_t)(scale * (q[l] >> shift & 3));
    out->min[j] = block->scales[j] >> 4;
  }
}

static inline void unpack_q3_K(unpacked_block *out, const block_q3_K *block) {
  out->has_minimums = false;
  out->d = half_to_f32(block->d);
  for (int j = 0; j < QK_K / 16; j++) {
    const uint8_t *q = block->qs + j / 8 * 32 + j % 2 * 16, *high = block->hmask + j % 2 * 16;
    int scale = q3k_scale(block, j), shift = j / 2 % 4 * 2, bit = j / 2;
    for (int l = 0; l < 16; l++)
      out->w[j * 16 + l] = (int16_t)(scale * ((q[l] >> shift & 3) + ((high[l] >> bit & 1) << 2) - 4));
  }
}

static inline void unpack_iq4_xs(unpacked_block *out, const block_iq4_xs *block) {
  bytes_16 values, packed, quants[2];
  memcpy(&values, iq4_values, sizeof values);
  out->has_minimums = false;
  out->d = half_to_f32(block->d);
  for (int j = 0; j < QK_K / 32; j++) {
    int scale = iq4_xs_scale(block, j);
    memcpy(&packed, block->qs + j * 16, sizeof packed);
    quants[0] = __builtin_shuffle(values, packed & 15);
    quants[1] = __builtin_shuffle(values, packed >> 4 & 15);
    int8_t q[32];
    memcpy(q, quants, sizeof q);
    for (int l = 0; l < 32; l++) out->w[j * 32 + l] = (int16_t)(scale * q[l]);
  }
}

static inline void unpack_block(unpacked_block *out, weight_type type, const void *block) {
#define UNPACK_NONE(name, b)
#define UNPACK_REAL(name, b)
#define UNPACK_Q8K(name, b)
#define UNPACK_UNPACKED(name, b)                                                                             \
  case TYPE_##name:                                                                                          \
    unpack_##b(out, (const block_##b *)block);                                                               \
    return;
#define UNPACK(name, number, b, elements, on_q8k) UNPACK_##on_q8k(name, b)
  switch ((int)type) { WEIGHT_TYPES(UNPACK) }
#undef UNPACK
#undef UNPACK_NONE
#undef UNPACK_REAL
#undef UNPACK_Q8K
#undef UNPACK_UNPACKED
  __builtin_trap(); // not a type of this kind
}

static inline float unpacked_term(float sum, const unpacked_block *w, const block_q8_K *x) {
  int32_t isum = 0, msum = 0;
  for (int i = 0; i < QK_K; i++) isum += (int32_t)w->w[i] * (int16_t)x->qs[i];
  if (!w->has_minimums) return term(sum, w->d, x->d, isum);
  for (int j = 0; j < QK_K / 16; j++) msum += (int32_t)w->min[j] * x->bsums[j];
  return term_min(sum, w->d, w->dmin, x->d, isum, msum);
}

// As product_q8k, of rows of such a type.
static inline void product_unpacked_generic(float *const *out, const matrix *rows, const block_q8_K *const *x,
                                            int64_t n_tokens) {
  const type_info *type = type_find(rows->type);
  size_t row_bytes = type_row_bytes(type, (size_t)rows->cols);
  unpacked_block w = {.has_minimums = false};
  for (int64_t first = 0; first < n_tokens; first += TOKEN_TILE) {
    int64_t n = n_tokens - first < TOKEN_TILE ? n_tokens - first : TOKEN_TILE;
    for (int64_t r = 0; r < rows->rows; r++) {
      const char *row = (const char *)rows->data + (size_t)r * row_bytes;
      float sum[TOKEN_TILE];
      for (int64_t t = 0; t < n; t++) sum[t] = 0;
      for (int64_t b = 0; b < rows->cols / QK_K; b++, row += type->bytes) {
        unpack_block(&w, rows->type, row);
        for (int64_t t = 0; t < n; t++) sum[t] = unpacked_term(sum[t], &w, &x[first + t][b]);
      }
      for (int64_t t = 0; t < n; t++) out[first + t][r] = sum[t];
    }
  }
}
