// unpacked: products of types whose blocks of 256 weights are first unpacked to integers (few_bits.h): weight
// i of a block is d * w[i] - dmin * min[i / 16], with w the product of a sub-block's scale and the quant. One
// product serves every such type: the integers are exact in any order. It is the reference of the ISA rows
// that do better, and the product of those that do not.
//
// A part of generic.h, whose terms it uses. Invariant: the same bits as docs/paths.md has for K-quants.
#pragma once

typedef struct {
  block_factors f;
  int16_t w[QK_K];        // at most 4,064 in magnitude (IQ4_XS), so that 256 products with int8 fit 32 bits
  int16_t min[QK_K / 16]; // 0 and dmin 0: the type has no minimums
} unpacked_block;

static inline void unpack_block(unpacked_block *out, weight_type type, const void *block) {
#define UNPACK_REAL(name, b)
#define UNPACK_Q8K(name, b)
#define UNPACK_BYTES(name, b)
#define UNPACK_Q8_0(name, b)
#define UNPACK_Q8_1(name, b)
#define UNPACK_UNPACKED(name, b)                                                                             \
  case TYPE_##name:                                                                                          \
    out->f = factors_##b((const block_##b *)block);                                                          \
    for (int i = 0; i < QK_K; i++) {                                                                         \
      weight_parts p = parts_##b((const block_##b *)block, i);                                               \
      out->w[i] = (int16_t)(p.scale * p.q);                                                                  \
      out->min[i / 16] = (int16_t)p.min;                                                                     \
    }                                                                                                        \
    return;
#define UNPACK(name, number, b, elements, on_q8k) UNPACK_##on_q8k(name, b)
  switch ((int)type) { WEIGHT_TYPES(UNPACK) }
#undef UNPACK
#undef UNPACK_UNPACKED
#undef UNPACK_Q8_1
#undef UNPACK_Q8_0
#undef UNPACK_BYTES
#undef UNPACK_Q8K
#undef UNPACK_REAL
  __builtin_trap(); // not a type of this kind
}

// With dmin = 0 the fma adds a negative zero: it is d * isum to the bit.
static inline float unpacked_term(float sum, const unpacked_block *w, const block_q8_K *x) {
  int32_t isum = 0, msum = 0;
  for (int i = 0; i < QK_K; i++) isum += (int32_t)w->w[i] * (int16_t)x->qs[i];
  for (int j = 0; j < QK_K / 16; j++) msum += (int32_t)w->min[j] * x->bsums[j];
  return term_min(sum, w->f.d, w->f.second, x->d, isum, msum);
}

// As product_q8k, of rows of such a type.
static inline void product_unpacked_generic(float *const *out, const matrix *rows, const block_q8_K *const *x,
                                            int64_t n_tokens) {
  const type_info *type = type_find(rows->type);
  size_t row_bytes = type_row_bytes(type, (size_t)rows->cols);
  unpacked_block w;
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
