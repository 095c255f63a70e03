// amx_q8k: products of K-quant rows with many tokens' rounded activations on AMX tiles, 32 rows and 16 tokens
// at a time. The file that includes this one provides the tile instructions, amx_tile.h or a model of them.
//
// Owns: the operands' layout and the order of the work. A weight's scale times quant is split into two bytes,
// low + 2^shift * high, so a block of 256 is two plain int8 products with no scaling inside: exact, in any
// order. Invariant: the float step is that of docs/paths.md, block after block, a lane a row.
#pragma once
#include "kernels/cpu/isa/avx512/avx512_panel.h"

enum {
  TILE_TOKENS = 16,
  TILE_COLS = 64,           // of a block, a step
  STEPS = QK_K / TILE_COLS, // products of tiles to a block
  AMX_ROWS = 2 * PANEL_ROWS,
  SHIFT_UNSIGNED = 3, // Q4_K, Q5_K: three bits of the scale times a quant of 4 or 5, at most 217
  SHIFT_SIGNED = 7,   // Q6_K: scale * (quant - 32), -4064 .. 4096, as 7 bits and the rest
  SUMS = 4,           // tiles of sums: low, high of the first 16 rows, low, high of the second
};
static_assert((int)AMX_ROWS == (int)ROW_TILE, "a tile of rows is two operands");

typedef struct { // what ldtilecfg reads
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
} tile_config;
static_assert(sizeof(tile_config) == 64, "a tile configuration is 64 bytes");

typedef struct {
  int8_t byte[16][TILE_COLS];
} __attribute__((aligned(64))) tile_bytes;

typedef struct {
  int32_t sum[TILE_TOKENS][PANEL_ROWS];
} __attribute__((aligned(64))) tile_sums;

typedef struct {                      // a block of 16 rows
  tile_bytes low[STEPS], high[STEPS]; // [step].byte[four neighbours of a row: 16][row][4]
  __m512i min[4];                     // as panel.weight
  __m512 d, dmin;
} row_operand;

typedef struct { // a block of up to 16 tokens
  tile_bytes q[STEPS];
  float d[TILE_TOKENS];
  min_sums mins[TILE_TOKENS];
} token_operand;

static inline void configure_tiles(void) {
  tile_config c = {.palette = 1};
  for (int i = 0; i < 8; i++) {
    c.row_bytes[i] = TILE_COLS;
    c.rows[i] = 16;
  }
  tile_configure(&c);
}

// ---- operands ----

// A scale times a byte is a byte, so one product of 16 bits is two of 8.
static inline void split_unsigned(row_operand *o, const panel *p) {
  for (int j = 0; j < 8; j++) {
    __m512i scale = _mm512_load_si512(p->scale[j]);
    scale = _mm512_or_si512(scale, _mm512_slli_epi32(scale, 16));
    __m512i high = _mm512_srli_epi16(scale, SHIFT_UNSIGNED);
    __m512i low = _mm512_and_si512(scale, _mm512_set1_epi16((1 << SHIFT_UNSIGNED) - 1));
    for (int g = 8 * j; g < 8 * j + 8; g++) {
      __m512i q = _mm512_load_si512(p->q[g]);
      _mm512_store_si512(o->low[g / 16].byte[g % 16], _mm512_mullo_epi16(q, low));
      _mm512_store_si512(o->high[g / 16].byte[g % 16], _mm512_mullo_epi16(q, high));
    }
  }
}

static inline void split_signed(row_operand *o, const panel *p) {
  const __m512i even_bytes = _mm512_set1_epi16(0x00ff), seven = _mm512_set1_epi8((1 << SHIFT_SIGNED) - 1);
  for (int j = 0; j < 16; j++) {
    __m512i scale = _mm512_load_si512(p->scale[j]);
    scale = _mm512_mask_blend_epi16(0xaaaaaaaa, scale, _mm512_slli_epi32(scale, 16));
    __m512i of_even = _mm512_and_si512(scale, even_bytes), of_odd = _mm512_slli_epi16(scale, 8);
    __m512i offset = _mm512_slli_epi16(scale, 5); // the quants' is 32
    for (int g = 4 * j; g < 4 * j + 4; g++) {
      __m512i q = _mm512_load_si512(p->q[g]);
      __m512i even = _mm512_sub_epi16(_mm512_maddubs_epi16(q, of_even), offset);
      __m512i odd = _mm512_sub_epi16(_mm512_maddubs_epi16(q, of_odd), offset);
      // 0xca: where the first operand has ones the second, else the third
      __m512i low = _mm512_ternarylogic_epi32(even_bytes, even, _mm512_slli_epi16(odd, 8), 0xca);
      __m512i high = _mm512_ternarylogic_epi32(even_bytes, _mm512_srai_epi16(even, SHIFT_SIGNED),
                                               _mm512_slli_epi16(odd, 8 - SHIFT_SIGNED), 0xca);
      _mm512_store_si512(o->low[g / 16].byte[g % 16], _mm512_and_si512(low, seven));
      _mm512_store_si512(o->high[g / 16].byte[g % 16], high);
    }
  }
}

static inline void row_operand_of(row_operand *o, weight_type type, const char *const row[PANEL_ROWS]) {
  panel p;
  panel_of(&p, type, row);
  o->d = _mm512_load_ps(p.d);
  if (!block_has_minimums(type)) {
    split_signed(o, &p);
    return;
  }
  split_unsigned(o, &p);
  o->dmin = _mm512_load_ps(p.dmin);
  for (int k = 0; k < 4; k++) o->min[k] = _mm512_load_si512(p.weight[k]);
}

static inline void token_operand_of(token_operand *o, const block_q8_K *const *x, int64_t b, int64_t n,
                                    const bool with_mins) {
  for (int64_t t = 0; t < n; t++) {
    const block_q8_K *from = x[t] + b;
    for (int k = 0; k < STEPS; k++)
      _mm512_store_si512(o->q[k].byte[t], _mm512_loadu_si512(from->qs + k * TILE_COLS));
    o->d[t] = from->d;
    if (with_mins) min_sums_of(&o->mins[t], from);
  }
}

// ---- one block of 32 rows and up to 16 tokens ----

// Tiles 0 to 3 become the sums; the products run on while ordinary instructions follow.
#define MULTIPLY(dot)                                                                                        \
  do {                                                                                                       \
    tile_zero(0);                                                                                            \
    tile_zero(1);                                                                                            \
    tile_zero(2);                                                                                            \
    tile_zero(3);                                                                                            \
    for (int k = 0; k < STEPS; k++) {                                                                        \
      tile_load(4, &x->q[k]);                                                                                \
      tile_load(5, &w[0].low[k]);                                                                            \
      dot(0, 4, 5);                                                                                          \
      tile_load(6, &w[0].high[k]);                                                                           \
      dot(1, 4, 6);                                                                                          \
      tile_load(7, &w[1].low[k]);                                                                            \
      dot(2, 4, 7);                                                                                          \
      tile_load(5, &w[1].high[k]);                                                                           \
      dot(3, 4, 5);                                                                                          \
    }                                                                                                        \
  } while (0)

static inline void multiply(const row_operand w[2], const token_operand *x, const bool with_mins) {
  if (with_mins)
    MULTIPLY(tile_dot_unsigned);
  else
    MULTIPLY(tile_dot_signed);
}
#undef MULTIPLY

static inline void store_sums(tile_sums s[SUMS]) {
  tile_store(&s[0], 0);
  tile_store(&s[1], 1);
  tile_store(&s[2], 2);
  tile_store(&s[3], 3);
}

// y += the term of the block: 16 rows; the tokens of y lie AMX_ROWS apart.
static inline __attribute__((always_inline)) void add_terms(float *y, const row_operand *w,
                                                            const token_operand *x, const tile_sums s[2],
                                                            int64_t n, const bool with_mins) {
  const __m512 d = w->d, dmin = w->dmin;
  const __m512i min[4] = {w->min[0], w->min[1], w->min[2], w->min[3]};
  for (int64_t t = 0; t < n; t++, y += AMX_ROWS) {
    __m512i high =
        _mm512_slli_epi32(_mm512_load_si512(s[1].sum[t]), with_mins ? SHIFT_UNSIGNED : SHIFT_SIGNED);
    __m512 isum = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_load_si512(s[0].sum[t]), high)), term;
    if (with_mins) {
      __m512i msum = _mm512_setzero_si512();
      for (int k = 0; k < 4; k++) msum = _mm512_dpwssd_epi32(msum, min[k], word_of(x->mins[t].pair[k]));
      term = _mm512_fmsub_ps(d, isum, _mm512_mul_ps(dmin, _mm512_cvtepi32_ps(msum)));
    } else {
      term = _mm512_mul_ps(d, isum);
    }
    _mm512_store_ps(y, _mm512_fmadd_ps(_mm512_set1_ps(x->d[t]), term, _mm512_load_ps(y)));
  }
}

// ---- 32 rows ----

typedef struct { // a block of the rows times a tile of tokens
  int64_t block, first, n;
} unit;

// What is there twice is that of a unit and of its neighbour, or of a block and the next.
typedef struct {
  float y[TOKEN_TILE][AMX_ROWS];
  row_operand rows[2][2];
  token_operand tokens[2];
  tile_sums sums[2][SUMS];
  const char *row[AMX_ROWS]; // where the next block of each row lies
  const char *ahead;         // what is prefetched meanwhile: the rows that follow
} __attribute__((aligned(64))) workplace;

static inline unit unit_at(int64_t u, int64_t n_tokens) {
  int64_t tiles = (n_tokens + TILE_TOKENS - 1) / TILE_TOKENS, first = u % tiles * TILE_TOKENS;
  return (unit){u / tiles, first, n_tokens - first < TILE_TOKENS ? n_tokens - first : TILE_TOKENS};
}

// The operands of unit u: its tokens', and its rows' with the first of a block.
static inline void prepare(workplace *p, int64_t u, const unit *at, weight_type type,
                           const block_q8_K *const *x, const bool with_mins) {
  if (at->first == 0) {
    row_operand *w = p->rows[at->block % 2];
    size_t bytes = type_find(type)->bytes;
    for (size_t i = 0; i < AMX_ROWS * bytes; i += 64, p->ahead += 64) _mm_prefetch(p->ahead, _MM_HINT_T1);
    row_operand_of(&w[0], type, p->row);
    row_operand_of(&w[1], type, p->row + PANEL_ROWS);
    for (int r = 0; r < AMX_ROWS; r++) p->row[r] += bytes;
  }
  token_operand_of(&p->tokens[u % 2], x + at->first, at->block, at->n, with_mins);
}

static inline void finish(workplace *p, int64_t u, const unit *at, const bool with_mins) {
  for (int half = 0; half < 2; half++)
    add_terms(&p->y[at->first][half * PANEL_ROWS], &p->rows[at->block % 2][half], &p->tokens[u % 2],
              p->sums[u % 2] + 2 * half, at->n, with_mins);
}

// The tiles multiply unit u while the sums of the one before are finished and the next one is prepared.
static inline __attribute__((always_inline)) void all_units(workplace *p, weight_type type, int64_t n_blocks,
                                                            const block_q8_K *const *x, int64_t n,
                                                            const bool with_mins) {
  int64_t units = n_blocks * ((n + TILE_TOKENS - 1) / TILE_TOKENS);
  unit before = {0}, now = unit_at(0, n);
  prepare(p, 0, &now, type, x, with_mins);
  for (int64_t u = 0; u < units; u++) {
    unit next = unit_at(u + 1, n);
    multiply(p->rows[now.block % 2], &p->tokens[u % 2], with_mins);
    if (u) finish(p, u - 1, &before, with_mins);
    if (u + 1 < units) prepare(p, u + 1, &next, type, x, with_mins);
    store_sums(p->sums[u % 2]);
    before = now;
    now = next;
  }
  finish(p, units - 1, &before, with_mins);
}

static void product_rows_amx(float *const *out, int64_t first, int64_t n_rows, const matrix *m,
                             const block_q8_K *const *x, int64_t n) {
  workplace p;
  int64_t n_blocks = m->cols / QK_K;
  size_t row_bytes = type_row_bytes(type_find(m->type), (size_t)m->cols);
  memset(p.y, 0, (size_t)n * sizeof *p.y);
  memset(p.tokens, 0, sizeof p.tokens); // the last tile of tokens may have rows that nothing fills
  for (int64_t r = 0; r < AMX_ROWS; r++)
    p.row[r] = (const char *)m->data + (size_t)(first + (r < n_rows ? r : n_rows - 1)) * row_bytes;
  p.ahead = (const char *)m->data + (size_t)(first + AMX_ROWS) * row_bytes;
  if (block_has_minimums(m->type))
    all_units(&p, m->type, n_blocks, x, n, true);
  else
    all_units(&p, m->type, n_blocks, x, n, false);
  for (int64_t t = 0; t < n; t++) memcpy(out[t] + first, p.y[t], (size_t)n_rows * sizeof(float));
}

static void product_q8k_amx(float *const *out, const matrix *m, const block_q8_K *const *x,
                            int64_t n_tokens) {
  configure_tiles();
  for (int64_t t = 0; t < n_tokens; t += TOKEN_TILE) {
    int64_t n = n_tokens - t < TOKEN_TILE ? n_tokens - t : TOKEN_TILE;
    for (int64_t r = 0; r < m->rows; r += AMX_ROWS)
      product_rows_amx(out + t, r, m->rows - r < AMX_ROWS ? m->rows - r : AMX_ROWS, m, x + t, n);
  }
  tile_release(); // so that a switch of threads has no tiles to save
}
