// blocks_32: what the path q8k does with weights in blocks of 32, in plain C for each ISA row: it rounds
// activations to Q8_0 and Q8_1, and multiplies such rows with them. One product serves every type: its quants
// are taken out of a block first (few_bits.h), and are integers that are exact in any order. A part of
// generic.h.
//
// Owns: the rounding and the order of the terms. Invariant: docs/paths.md, "Products" and "Q8_0 and Q8_1".

// ---- rounding ----

static inline float largest_of_32(const float *x) {
  enum { AT_ONCE = 8 }; // lanes that the compiler makes vectors of
  float most = 0, lane[AT_ONCE] = {0};
  for (int i = 0; i < QK_32; i += AT_ONCE)
    for (int l = 0; l < AT_ONCE; l++) {
      float m = __builtin_fabsf(x[i + l]);
      lane[l] = m > lane[l] ? m : lane[l];
    }
  for (int l = 0; l < AT_ONCE; l++) most = lane[l] > most ? lane[l] : most;
  return most;
}

static inline void round_32(block_q8_32 *out, const float *x) {
  float most = largest_of_32(x), inverse = num_q8_0_inverse_scale(most), scale = most / 127.0f;
  int32_t q[QK_32], sum = 0;
  for (int i = 0; i < QK_32; i++) q[i] = num_q8_0_round(inverse, x[i]);
  for (int i = 0; i < QK_32; i++) {
    out->qs[i] = (int8_t)q[i];
    sum += q[i];
  }
  out->sum = sum;
  out->d = half_to_f32(f32_to_half(scale));
  out->s = half_to_f32(f32_to_half((float)sum * scale));
}

static inline void round_part(block_q8_32 *out, const float *x, int64_t n) {
  for (int64_t i = 0; i < n; i += QK_32, out++) round_32(out, x + i);
}

static inline void round_q8_0_generic(block_q8_32 *out, row_outliers *outliers, const float *x, int64_t n) {
  if (!outliers) {
    round_part(out, x, n);
    return;
  }
  outliers->count = 0;
  for (int64_t at = 0; at < n; at += QK_K) {
    float rest[QK_K];
    bool splits = has_outliers_generic(x + at);
    if (splits) take_outliers_generic(outliers, rest, x + at, at);
    round_part(out + at / QK_32, splits ? rest : x + at, QK_K);
  }
}

// ---- products ----

typedef struct {
  block_factors f;
  int8_t q[QK_32];
} quants_32;

static inline void quants_of_block(quants_32 *out, weight_type type, const void *block) {
#define QUANTS_REAL(name, b)
#define QUANTS_Q8K(name, b)
#define QUANTS_UNPACKED(name, b)
#define QUANTS_BYTES(name, b)                                                                                \
  case TYPE_##name:                                                                                          \
    out->f = factors_##b((const block_##b *)block);                                                          \
    for (int i = 0; i < QK_32; i++) out->q[i] = (int8_t)quant_##b((const block_##b *)block, i);              \
    return;
#define QUANTS_Q8_0                               QUANTS_BYTES
#define QUANTS_Q8_1                               QUANTS_BYTES
#define QUANTS(name, number, b, elements, on_q8k) QUANTS_##on_q8k(name, b)
  switch ((int)type) { WEIGHT_TYPES(QUANTS) }
#undef QUANTS
#undef QUANTS_Q8_1
#undef QUANTS_Q8_0
#undef QUANTS_BYTES
#undef QUANTS_UNPACKED
#undef QUANTS_Q8K
#undef QUANTS_REAL
  __builtin_trap(); // not a type of this kind
}

// with_m: the type says Q8_1. A block's integer sum is below 2^24, so it becomes a float exactly.
static inline float term_32(float sum, const quants_32 *w, const block_q8_32 *x, bool with_m) {
  int32_t isum = 0;
  for (int i = 0; i < QK_32; i++) isum += (int32_t)w->q[i] * (int16_t)x->qs[i];
  if (with_m) sum = num_fma_f32(w->f.second, x->s, sum);
  return num_fma_f32(w->f.d * x->d, (float)isum, sum);
}

static inline void product_q8_0_generic(float *const *out, const matrix *rows, const block_q8_K *const *x,
                                        int64_t n_tokens) {
  const type_info *type = type_find(rows->type);
  size_t row_bytes = type_row_bytes(type, (size_t)rows->cols);
  bool with_m = type_has_m(rows->type);
  quants_32 w;
  for (int64_t first = 0; first < n_tokens; first += TOKEN_TILE) {
    int64_t n = n_tokens - first < TOKEN_TILE ? n_tokens - first : TOKEN_TILE;
    for (int64_t r = 0; r < rows->rows; r++) {
      const char *row = (const char *)rows->data + (size_t)r * row_bytes;
      float sum[TOKEN_TILE] = {0};
      for (int64_t b = 0; b < rows->cols / QK_32; b++, row += type->bytes) {
        quants_of_block(&w, rows->type, row);
        for (int64_t t = 0; t < n; t++)
          sum[t] = term_32(sum[t], &w, blocks_32_of(x[first + t], rows->cols) + b, with_m);
      }
      for (int64_t t = 0; t < n; t++) out[first + t][r] = sum[t];
    }
  }
}
