// amx_blocks_32: products of rows in blocks of 32 with many tokens' activations rounded to Q8_0 or Q8_1 on
// AMX tiles, 32 rows and 128 tokens at a time; the sibling of amx_q8k.h.
//
// Owns: the layout of packed tokens and the order of the work. A block is a product of tiles by itself, 32
// columns deep, since each has a scale. Rows are the left operand, as signed bytes; tokens the right one,
// four neighbours of each of 16 tokens side by side. Invariant: the float step is that of docs/paths.md,
// block after block, a lane a token.
#pragma once
#include "kernels/cpu/isa/amx_int8/amx_q8k.h"
#include "kernels/cpu/isa/avx512/avx512_quants_32.h"

enum {
  UNPACKED_32 = 8, // blocks of a row that are unpacked at a time, while a tile of sums stays in registers
  WORDS_32 = QK_32 / 4,
};

typedef struct { // a block of 16 tokens
  int8_t q[WORDS_32][TILE_TOKENS][4];
  float d[TILE_TOKENS], s[TILE_TOKENS];
} __attribute__((aligned(64))) token_operand_32;

typedef struct { // neighbouring blocks of 16 rows
  int8_t q[UNPACKED_32 / 2][TILE_ROWS][2][QK_32];
  float d[UNPACKED_32][TILE_ROWS], m[UNPACKED_32][TILE_ROWS];
} __attribute__((aligned(64))) row_operand_32;

// Tiles 0 and 1 are sums, 2 and 3 rows, 4 and 5 tokens.
static inline void configure_tiles_32(void) {
  tile_config c = {.palette = 1};
  for (int i = 0; i < 6; i++) {
    c.row_bytes[i] = i == 2 || i == 3 ? QK_32 : TILE_COLS;
    c.rows[i] = i < 4 ? 16 : WORDS_32;
  }
  tile_configure(&c);
}

// ---- tokens ----

static size_t group_bytes_32_amx(int64_t cols) {
  return (size_t)(cols / QK_32) * sizeof(token_operand_32);
}

// As pack_amx.
static void pack_32_amx(void *group, const block_q8_K *const *tokens, int64_t cols, int64_t n,
                        int64_t block) {
  token_operand_32 *o = (token_operand_32 *)group + block;
  const char *x[TILE_TOKENS];
  for (int64_t t = 0; t < TILE_TOKENS; t++) {
    const block_q8_32 *from = blocks_32_of(tokens[t < n ? t : n - 1], cols) + block;
    x[t] = (const char *)from->qs;
    o->d[t] = from->d;
    o->s[t] = from->s;
  }
  for (int half = 0; half < 2; half++) {
    __m512i word[4];
    transpose_words(word, x, (size_t)(16 * half));
    for (int k = 0; k < 4; k++) _mm512_store_si512(o->q[4 * half + k], word[k]);
  }
}

// ---- rows ----

// `n` blocks from the ones at `row` on.
static inline __attribute__((always_inline)) void unpack_32(row_operand_32 *o,
                                                            const char *const row[TILE_ROWS], int64_t n,
                                                            const weight_type type, const size_t bytes) {
  const __m512i offset = _mm512_set1_epi8((char)quants_offset(type));
  for (int64_t b = 0; b < n; b++) {
    int32_t word[TILE_ROWS];
    for (int r = 0; r < TILE_ROWS; r++) memcpy(&word[r], row[r] + (size_t)b * bytes, sizeof word[r]);
    const __m512i words = _mm512_loadu_si512(word);
    _mm512_store_ps(o->d[b], scales_of_words(type, words));
    _mm512_store_ps(o->m[b], halves_of_words(_mm512_srli_epi32(words, 16))); // where the type has one
  }
  for (int64_t b = 0; b < n; b += 2)
    for (int r = 0; r < TILE_ROWS; r++) {
      const char *first = row[r] + (size_t)b * bytes, *second = b + 1 < n ? first + bytes : first;
      _mm512_store_si512(o->q[b / 2][r], _mm512_sub_epi8(quants_of_two(type, first, second), offset));
    }
}

// ---- blocks of 16 rows times 16 tokens ----

typedef struct { // a place for each of the two products that run at a time
  tile_sums sums[2];
} sums_32;

// Block `b` of the operands, to place `b` % 2 of the sums.
static inline __attribute__((always_inline)) void multiply_32(sums_32 *to, const row_operand_32 *w,
                                                              const token_operand_32 *x, int64_t b) {
  const tile_bytes *rows = (const tile_bytes *)(const void *)&w->q[b / 2][0][b % 2];
  const tile_bytes *tokens = (const tile_bytes *)(const void *)x[b].q;
  if (b % 2 == 0) {
    tile_zero(0);
    tile_load(2, rows);
    tile_load(4, tokens);
    tile_dot_signed(0, 2, 4);
    tile_store(&to->sums[0], 0);
  } else {
    tile_zero(1);
    tile_load(3, rows);
    tile_load(5, tokens);
    tile_dot_signed(1, 3, 5);
    tile_store(&to->sums[1], 1);
  }
}

// y[r] += the terms of block `b`, whose products are in `sums`.
static inline __attribute__((always_inline)) void add_terms_32(__m512 y[TILE_ROWS], const sums_32 *sums,
                                                               const row_operand_32 *w,
                                                               const token_operand_32 *x, int64_t b,
                                                               const bool with_m) {
  const __m512 dx = _mm512_load_ps(x[b].d), s = _mm512_load_ps(x[b].s);
#pragma GCC unroll 16
  for (int r = 0; r < TILE_ROWS; r++) {
    if (with_m) y[r] = _mm512_fmadd_ps(_mm512_set1_ps(w->m[b][r]), s, y[r]);
    __m512 d = _mm512_mul_ps(_mm512_set1_ps(w->d[b][r]), dx);
    y[r] = _mm512_fmadd_ps(d, _mm512_cvtepi32_ps(_mm512_load_si512(sums->sums[b % 2].sum[r])), y[r]);
  }
}

// y += `n` blocks of them.
static inline __attribute__((always_inline)) void tile_times_32(tile_reals *y, sums_32 *sums,
                                                                const row_operand_32 *w,
                                                                const token_operand_32 *x, int64_t n,
                                                                const bool with_m) {
  __m512 sum[TILE_ROWS];
#pragma GCC unroll 16
  for (int r = 0; r < TILE_ROWS; r++) sum[r] = _mm512_load_ps(y->sum[r]);
  multiply_32(sums, w, x, 0);
#pragma GCC unroll 8
  for (int64_t b = 0; b < n; b++) {
    if (b + 1 < n) multiply_32(sums, w, x, b + 1);
    add_terms_32(sum, sums, w, x, b, with_m);
  }
#pragma GCC unroll 16
  for (int r = 0; r < TILE_ROWS; r++) _mm512_store_ps(y->sum[r], sum[r]);
}

// ---- up to 32 rows ----

typedef struct {
  tile_reals y[2][TILES]; // [half][tile of tokens].sum[row][token]
  row_operand_32 rows[2];
  sums_32 sums;
  const char *row[2 * TILE_ROWS]; // where the next block of each row lies
  const char *ahead;              // what is prefetched meanwhile: the rows that follow
  int64_t halves;
} __attribute__((aligned(64))) workplace_32;

typedef struct { // tokens of a product
  const token_operand_32 *packed;
  int64_t n_blocks, tiles;
} packed_tokens_32;

// `n` blocks from block `at` on: UNPACKED_32, or 1.
static inline __attribute__((always_inline)) void some_blocks_32(workplace_32 *p, const packed_tokens_32 *x,
                                                                 int64_t at, int64_t n,
                                                                 const weight_type type, const bool with_m,
                                                                 const size_t bytes) {
  for (int64_t half = 0; half < p->halves; half++) {
    const char **row = p->row + half * TILE_ROWS;
    unpack_32(&p->rows[half], row, n, type, bytes);
    for (int r = 0; r < TILE_ROWS; r++) row[r] += (size_t)n * bytes;
    for (size_t i = 0; i < TILE_ROWS * (size_t)n * bytes; i += 64, p->ahead += 64)
      _mm_prefetch(p->ahead, _MM_HINT_T1);
  }
  for (int64_t tile = 0; tile < x->tiles; tile++)
    for (int64_t half = 0; half < p->halves; half++)
      tile_times_32(&p->y[half][tile], &p->sums, &p->rows[half], x->packed + tile * x->n_blocks + at, n,
                    with_m);
}

static inline __attribute__((always_inline)) void all_blocks_32(workplace_32 *p, const packed_tokens_32 *x,
                                                                const weight_type type, const bool with_m,
                                                                const size_t bytes) {
  int64_t at = 0;
  for (; at + UNPACKED_32 <= x->n_blocks; at += UNPACKED_32)
    some_blocks_32(p, x, at, UNPACKED_32, type, with_m, bytes);
  for (; at < x->n_blocks; at++) some_blocks_32(p, x, at, 1, type, with_m, bytes);
}

#define BLOCKS_OF(type, b)                                                                                   \
  static __attribute__((noinline)) void blocks_##type(workplace_32 *p, const packed_tokens_32 *x) {          \
    all_blocks_32(p, x, TYPE_##type, type_has_m(TYPE_##type), sizeof(block_##b));                            \
  }
TYPES_WITH_QUANTS_32(BLOCKS_OF)
#undef BLOCKS_OF

static void blocks_of_rows(workplace_32 *p, const packed_tokens_32 *x, weight_type type) {
#define CASE(type, b)                                                                                        \
  case TYPE_##type:                                                                                          \
    blocks_##type(p, x);                                                                                     \
    return;
  switch ((int)type) { TYPES_WITH_QUANTS_32(CASE) }
#undef CASE
  __builtin_trap(); // not one of has_quants_32
}

static void product_rows_32_amx(float *const *out, int64_t first, int64_t n_rows, const matrix *m,
                                const packed_tokens_32 *x, int64_t n) {
  workplace_32 p;
  p.halves = point_at_rows(p.row, &p.ahead, m, first, n_rows);
  for (int64_t half = 0; half < p.halves; half++) memset(p.y[half], 0, (size_t)x->tiles * sizeof *p.y[half]);
  blocks_of_rows(&p, x, m->type);
  write_halves(out, first, n_rows, p.y, n);
}

static void product_packed_32_amx(float *const *out, const matrix *m, const void *packed, int64_t n_tokens) {
  int64_t n_blocks = m->cols / QK_32, groups = (n_tokens + TILE_TOKENS - 1) / TILE_TOKENS;
  configure_tiles_32();
  for (int64_t g = 0; g < groups; g += TILES) {
    const packed_tokens_32 x = {(const token_operand_32 *)packed + g * n_blocks, n_blocks,
                                groups - g < TILES ? groups - g : TILES};
    int64_t t = g * TILE_TOKENS, n = n_tokens - t < TILES * TILE_TOKENS ? n_tokens - t : TILES * TILE_TOKENS;
    for (int64_t r = 0; r < m->rows; r += ROW_TILE)
      product_rows_32_amx(out + t, r, m->rows - r < ROW_TILE ? m->rows - r : ROW_TILE, m, &x, n);
  }
  tile_release(); // as product_packed_amx
}

static const packed_ops packed_ops_32_amx = {
    .block = QK_32,
    .takes = has_quants_32,
    .group_bytes = group_bytes_32_amx,
    .pack = pack_32_amx,
    .product = product_packed_32_amx,
};
