// avx512_f32: products of rows of any type with float activations, 4 rows times up to 6 tokens.
//
// Owns: dequantisation in lanes and the layout of a tile's weights. Invariant: one of the 32 lanes of sum32
// is one lane of a register; the two halves of 16 lanes are two passes, and the tree folds them.
#pragma once
#include "kernels/cpu/isa/avx512/avx512_float.h"

enum { FEW_ROWS = 4, FLOAT_TOKENS = 6, ROW_GROUPS = ROW_TILE / FEW_ROWS };
static_assert(ROW_TILE % FEW_ROWS == 0, "a tile is whole groups of rows");

// Where a row's weights go as they are dequantised, 16 at a time: into the tile, or straight into one token's
// sums. The tile lies [group of 4 rows][half of the lanes][cols / 32][4 rows][16], so that what a pass reads
// is in line.
typedef struct {
  float *tile;    // of the row, at its first weight; NULL: sums
  int64_t steps;  // cols / 32
  const float *x; // the token
  __m512 sum[2];  // its two halves of the lanes
} weight_sink;

// Weights 16 at .. 16 at + 15 of the row. `tiled` is sink->tile != NULL, known where this is inlined.
static inline __attribute__((always_inline)) void take_weights(weight_sink *sink, const bool tiled,
                                                               int64_t at, __m512 w) {
  if (tiled)
    _mm512_store_ps(sink->tile + ((at & 1) * sink->steps + at / 2) * FEW_ROWS * FLOATS, w);
  else
    sink->sum[at & 1] = _mm512_fmadd_ps(w, _mm512_loadu_ps(sink->x + at * FLOATS), sink->sum[at & 1]);
}

static inline __m512i bytes_to_words(const void *bytes) {
  return _mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)bytes));
}

// d * scale and dmin * min of the 8 sub-blocks; both are exact.
static inline void steps_and_bases(float step[8], float base[8], const uint8_t *packed, uint16_t d,
                                   uint16_t dmin) {
  uint32_t word[3];
  memcpy(word, packed, sizeof word);
  scales_and_mins s = block_scales_and_mins(word[0], word[1], word[2]);
  uint64_t scale = s.scale[0] | (uint64_t)s.scale[1] << 32, min = s.min[0] | (uint64_t)s.min[1] << 32;
  __m256 scales = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)scale)));
  __m256 mins = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128((int64_t)min)));
  _mm256_storeu_ps(step, _mm256_mul_ps(scales, _mm256_set1_ps(_cvtsh_ss(d))));
  _mm256_storeu_ps(base, _mm256_mul_ps(mins, _mm256_set1_ps(_cvtsh_ss(dmin))));
}

// The 16 weights of the quants first .. first + 15: step * q - base, of which the product is exact.
static inline __m512 value_table(float step, float base, float first) {
  const __m512 count = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  return _mm512_fmsub_ps(_mm512_set1_ps(step), _mm512_add_ps(count, _mm512_set1_ps(first)),
                         _mm512_set1_ps(base));
}

// at: of the block's first weight, over 16. A lookup takes the low 4 bits of each index.
static inline __attribute__((always_inline)) void weights_q4k(weight_sink *sink, const bool tiled, int64_t at,
                                                              const block_q4_K *w) {
  float step[8], base[8];
  steps_and_bases(step, base, w->scales, w->d, w->dmin);
#pragma GCC unroll 4
  for (int j = 0; j < 8; j += 2) {
    __m512 low = value_table(step[j], base[j], 0), high = value_table(step[j + 1], base[j + 1], 0);
    __m512i q0 = bytes_to_words(w->qs + j * 16), q1 = bytes_to_words(w->qs + j * 16 + 16);
    take_weights(sink, tiled, at + 2 * j, _mm512_permutexvar_ps(q0, low));
    take_weights(sink, tiled, at + 2 * j + 1, _mm512_permutexvar_ps(q1, low));
    take_weights(sink, tiled, at + 2 * j + 2, _mm512_permutexvar_ps(_mm512_srli_epi32(q0, 4), high));
    take_weights(sink, tiled, at + 2 * j + 3, _mm512_permutexvar_ps(_mm512_srli_epi32(q1, 4), high));
  }
}

static inline __attribute__((always_inline)) void weights_q5k(weight_sink *sink, const bool tiled, int64_t at,
                                                              const block_q5_K *w) {
  float step[8], base[8];
  steps_and_bases(step, base, w->scales, w->d, w->dmin);
  __m512i fifth[2] = {bytes_to_words(w->qh), bytes_to_words(w->qh + 16)};
#pragma GCC unroll 8
  for (int j = 0; j < 8; j++) {
    __m512 low = value_table(step[j], base[j], 0), high = value_table(step[j], base[j], 16);
    for (int i = 0; i < 2; i++) {
      __m512i q = bytes_to_words(w->qs + j / 2 * 32 + i * 16);
      if (j & 1) q = _mm512_srli_epi32(q, 4);
      __mmask16 has = _mm512_test_epi32_mask(fifth[i], _mm512_set1_epi32(1 << j));
      __m512 v = _mm512_permutexvar_ps(q, low);
      take_weights(sink, tiled, at + 2 * j + i, _mm512_mask_permutexvar_ps(v, has, q, high));
    }
  }
}

static inline __attribute__((always_inline)) void weights_q6k(weight_sink *sink, const bool tiled, int64_t at,
                                                              const block_q6_K *w) {
  int8_t q[QK_K] __attribute__((aligned(64)));
  float step[QK_K / 16];
  for (int half = 0; half < 2; half++) { // see panel_q6k for the order of the bits
    const __m512i rotate0 = _mm512_inserti64x4(_mm512_set1_epi32(4), _mm256_set1_epi32(2), 1);
    const __m512i rotate1 = _mm512_inserti64x4(_mm512_set1_epi32(0), _mm256_set1_epi32(30), 1);
    const __m512i four = _mm512_set1_epi8(15), two = _mm512_set1_epi8(48), offset = _mm512_set1_epi8(32);
    __m512i low = _mm512_loadu_si512(w->ql + 64 * half);
    __m512i high = _mm512_broadcast_i64x4(_mm256_loadu_si256((const __m256i *)(w->qh + 32 * half)));
    __m512i q0 =
        _mm512_or_si512(_mm512_and_si512(low, four), _mm512_and_si512(_mm512_rolv_epi32(high, rotate0), two));
    __m512i q1 = _mm512_or_si512(_mm512_and_si512(_mm512_srli_epi16(low, 4), four),
                                 _mm512_and_si512(_mm512_rolv_epi32(high, rotate1), two));
    _mm512_store_si512(q + 128 * half, _mm512_sub_epi8(q0, offset));
    _mm512_store_si512(q + 128 * half + 64, _mm512_sub_epi8(q1, offset));
  }
  __m512 scales = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)w->scales)));
  _mm512_storeu_ps(step, _mm512_mul_ps(scales, _mm512_set1_ps(_cvtsh_ss(w->d))));
#pragma GCC unroll 16
  for (int j = 0; j < QK_K / 16; j++) {
    __m512 value = _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_load_si128((const __m128i *)(q + 16 * j))));
    take_weights(sink, tiled, at + j, _mm512_mul_ps(_mm512_set1_ps(step[j]), value));
  }
}

// ---- rows of a type without sub-blocks: weights 16 at .. 16 at + 15 ----

static inline __m512 weights_q8_0(const void *row, int64_t at) {
  const block_q8_0 *w = (const block_q8_0 *)row + at / 2;
  __m512i q = _mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)(w->qs + at % 2 * 16)));
  return _mm512_mul_ps(_mm512_cvtepi32_ps(q), _mm512_set1_ps(_cvtsh_ss(w->d)));
}

static inline __m512 weights_f16(const void *row, int64_t at) {
  return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)row + at));
}

static inline __m512 weights_bf16(const void *row, int64_t at) {
  __m512i word = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)row + at));
  return _mm512_castsi512_ps(_mm512_slli_epi32(word, 16));
}

static inline __m512 weights_f32(const void *row, int64_t at) {
  return _mm512_loadu_ps((const float *)row + at * FLOATS);
}

// ---- rows of any type ----

#define EACH_BLOCK(weights, block)                                                                           \
  for (int64_t b = 0; b < sink->steps / (QK_K / LANES); b++)                                                 \
  weights(sink, tiled, QK_K / FLOATS * b, (const block *)row + b)
// A pair: where a sum goes must be known when this is compiled.
#define EACH_PAIR(weights)                                                                                   \
  for (int64_t i = 0; i < 2 * sink->steps; i += 2) {                                                         \
    take_weights(sink, tiled, i, weights(row, i));                                                           \
    take_weights(sink, tiled, i + 1, weights(row, i + 1));                                                   \
  }

static inline __attribute__((always_inline)) void weights_of_row(weight_sink *sink, const bool tiled,
                                                                 weight_type type, const void *row) {
  switch (type) {
  case TYPE_Q4_K:
    EACH_BLOCK(weights_q4k, block_q4_K);
    break;
  case TYPE_Q5_K:
    EACH_BLOCK(weights_q5k, block_q5_K);
    break;
  case TYPE_Q6_K:
    EACH_BLOCK(weights_q6k, block_q6_K);
    break;
  case TYPE_Q8_0:
    EACH_PAIR(weights_q8_0);
    break;
  case TYPE_F16:
    EACH_PAIR(weights_f16);
    break;
  case TYPE_BF16:
    EACH_PAIR(weights_bf16);
    break;
  case TYPE_F32:
    EACH_PAIR(weights_f32);
    break;
    CASES_OF_FEW_BITS // not in lanes
        break;
  }
}
#undef EACH_BLOCK
#undef EACH_PAIR

// Whether weights_of_row has the matrix's rows; else the plain product of each_row/ computes with them.
static inline bool in_lanes(const matrix *m) {
  const type_info *type = type_find(m->type);
  return m->cols % LANES == 0 && !type->few_bits;
}

static void tile_row(float *tile, weight_type type, const void *row, int64_t cols) {
  weight_sink sink = {.tile = tile, .steps = cols / LANES};
  weights_of_row(&sink, true, type, row);
}

// One token: every weight is used once, so it never sees memory as a float.
static float vector_row(const float *x, weight_type type, const void *row, int64_t cols) {
  weight_sink sink = {.steps = cols / LANES, .x = x, .sum = {_mm512_setzero_ps(), _mm512_setzero_ps()}};
  weights_of_row(&sink, false, type, row);
  return tree_lanes(sink.sum[0], sink.sum[1]);
}

// One pass: 16 of the 32 lanes of 4 rows times n tokens. x[t] starts at the pass's first element.
static inline __attribute__((always_inline)) void few_rows_times(__m512 sum[FLOAT_TOKENS][FEW_ROWS],
                                                                 const float *w, const float *const *x,
                                                                 int64_t steps, const int n) {
  for (int t = 0; t < n; t++)
    for (int r = 0; r < FEW_ROWS; r++) sum[t][r] = _mm512_setzero_ps();
  for (int64_t i = 0; i < steps; i++, w += FEW_ROWS * FLOATS) {
    __m512 row[FEW_ROWS];
    for (int r = 0; r < FEW_ROWS; r++) {
      row[r] = _mm512_load_ps(w + r * FLOATS);
      _mm_prefetch((const char *)(w + (4 * FEW_ROWS + r) * FLOATS), _MM_HINT_T0);
    }
    for (int t = 0; t < n; t++) {
      __m512 a = _mm512_loadu_ps(x[t] + i * LANES);
      for (int r = 0; r < FEW_ROWS; r++) sum[t][r] = _mm512_fmadd_ps(row[r], a, sum[t][r]);
    }
  }
}

// The rest of the tree for four rows at once: 16 lanes each to one.
static inline __m128 tree_four(const __m512 v[FEW_ROWS]) {
  __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(v[0], v[1], 0x44), _mm512_shuffle_f32x4(v[0], v[1], 0xee));
  __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(v[2], v[3], 0x44), _mm512_shuffle_f32x4(v[2], v[3], 0xee));
  __m512 all = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
  all = _mm512_add_ps(all, _mm512_permute_ps(all, 0x4e));
  all = _mm512_add_ps(all, _mm512_permute_ps(all, 0xb1));
  return _mm512_castps512_ps128(_mm512_maskz_compress_ps(0x1111, all));
}

// half 0 leaves its sums in `kept`; half 1 adds them to its sums and folds those into four of
// out[t], from first on.
static inline __attribute__((always_inline)) void pass(float *const *out, int64_t first, int64_t n_rows,
                                                       __m512 (*kept)[FEW_ROWS], int half, const float *w,
                                                       const float *const *x, int64_t steps, const int n) {
  __m512 sum[FLOAT_TOKENS][FEW_ROWS];
  few_rows_times(sum, w, x, steps, n);
  for (int t = 0; t < n; t++) {
    if (!half) {
      for (int r = 0; r < FEW_ROWS; r++) kept[t][r] = sum[t][r];
      continue;
    }
    for (int r = 0; r < FEW_ROWS; r++) sum[t][r] = _mm512_add_ps(kept[t][r], sum[t][r]);
    float four[FEW_ROWS];
    _mm_storeu_ps(four, tree_four(sum[t]));
    memcpy(out[t] + first, four,
           (size_t)(n_rows - first < FEW_ROWS ? n_rows - first : FEW_ROWS) * sizeof(float));
  }
}

#define PASS(n)                                                                                              \
  static __attribute__((noinline)) void pass_##n(float *const *out, int64_t first, int64_t n_rows,           \
                                                 __m512(*kept)[FEW_ROWS], int half, const float *w,          \
                                                 const float *const *x, int64_t steps) {                     \
    pass(out, first, n_rows, kept, half, w, x, steps, n);                                                    \
  }
PASS(1)
PASS(2)
PASS(3)
PASS(4)
PASS(5)
PASS(6)
#undef PASS

typedef void pass_n(float *const *out, int64_t first, int64_t n_rows, __m512 (*kept)[FEW_ROWS], int half,
                    const float *w, const float *const *x, int64_t steps);
static pass_n *const passes[FLOAT_TOKENS + 1] = {NULL, pass_1, pass_2, pass_3, pass_4, pass_5, pass_6};

static void product_f32_avx512(void *const *out, const matrix *m, const void *const *x, int64_t n_tokens,
                               float *scratch) {
  if (!in_lanes(m)) {
    product_f32(out, m, x, n_tokens, scratch);
    return;
  }
  size_t row_bytes = type_row_bytes(type_find(m->type), (size_t)m->cols);
  for (int64_t r = 0; r < m->rows; r++)
    for (int64_t t = 0; t < n_tokens; t++)
      ((float *)out[t])[r] =
          vector_row((const float *)x[t], m->type, (const char *)m->data + (size_t)r * row_bytes, m->cols);
}

// Rows beyond the last repeat it; their sums go nowhere.
static void tile_rows(float *tile, const matrix *m, int64_t n_rows) {
  size_t row_bytes = type_row_bytes(type_find(m->type), (size_t)m->cols);
  for (int64_t r = 0; r < n_rows; r++)
    tile_row(tile + r / FEW_ROWS * FEW_ROWS * m->cols + r % FEW_ROWS * FLOATS, m->type,
             (const char *)m->data + (size_t)(r < m->rows ? r : m->rows - 1) * row_bytes, m->cols);
}

static void product_tile_avx512(void *const *out, const matrix *m, const void *const *x, int64_t n_tokens,
                                float *scratch) {
  if (!in_lanes(m) || n_tokens == 1) {
    product_f32_avx512(out, m, x, n_tokens, scratch);
    return;
  }
  int64_t steps = m->cols / LANES, groups = (m->rows + FEW_ROWS - 1) / FEW_ROWS;
  tile_rows(scratch, m, groups * FEW_ROWS);
  __m512 kept[ROW_GROUPS][FLOAT_TOKENS][FEW_ROWS];
  int64_t tiles = (n_tokens + FLOAT_TOKENS - 1) / FLOAT_TOKENS, t = 0;
  for (int64_t tile = 0; tile < tiles; tile++) { // as even as can be
    int64_t count = (n_tokens - t + tiles - tile - 1) / (tiles - tile);
    for (int half = 0; half < 2; half++) {
      const float *from[FLOAT_TOKENS];
      for (int64_t i = 0; i < count; i++) from[i] = (const float *)x[t + i] + half * FLOATS;
      for (int64_t g = 0; g < groups; g++)
        passes[count]((float *const *)out + t, g * FEW_ROWS, m->rows, kept[g], half,
                      scratch + (g * 2 + half) * FEW_ROWS * steps * FLOATS, from, steps);
    }
    t += count;
  }
}
