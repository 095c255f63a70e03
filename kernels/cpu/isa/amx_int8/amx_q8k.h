// amx_q8k: products of rows with many tokens' rounded activations on AMX tiles, 32 rows and 32 tokens at a
// time. The file that includes this one provides the tile instructions, amx_tile.h or a model of them.
//
// Owns: the layout of packed tokens and the order of the work. Tokens are the right operand, four neighbours
// of each of 16 tokens side by side: packed once for all rows that read them. Rows are the left operand
// (amx_weights.h), unpacked once for all tokens. Invariant: the float step is that of docs/paths.md, block
// after block, a lane a token.
#pragma once
#include "kernels/cpu/isa/amx_int8/amx_weights.h"

enum {
  TILE_TOKENS = 16,
  UNIT_TILES = 2,                  // tiles of tokens that share an operand of rows
  PARTS = TILE_ROWS / ROWS_A_PART, // of a step
};
static_assert((int)TILE_TOKENS == (int)PACKED_TOKENS, "a group of packed tokens is a tile");
static_assert((int)ROW_TILE == 2 * (int)TILE_ROWS, "a tile of rows is two operands");

typedef struct { // what ldtilecfg reads
  uint8_t palette, start_row, reserved[14];
  uint16_t row_bytes[16];
  uint8_t rows[16];
} tile_config;
static_assert(sizeof(tile_config) == 64, "a tile configuration is 64 bytes");

typedef struct {
  int32_t sum[16][16];
} __attribute__((aligned(64))) tile_sums;

typedef struct {
  float sum[16][16];
} __attribute__((aligned(64))) tile_reals;

typedef struct {                   // a block of 16 tokens
  tile_bytes q[STEPS];             // [step].byte[four neighbours of a token: 16][token * 4 + 0 .. 3]
  int16_t sums[4][TILE_TOKENS][2]; // of pairs of sub-blocks of 32
  float d[TILE_TOKENS];
} __attribute__((aligned(64))) token_operand;

static inline void configure_tiles(void) {
  tile_config c = {.palette = 1};
  for (int i = 0; i < 8; i++) {
    c.row_bytes[i] = TILE_COLS;
    c.rows[i] = 16;
  }
  tile_configure(&c);
}

// ---- tokens ----

static size_t group_bytes_amx(int64_t cols) {
  return (size_t)(cols / QK_K) * sizeof(token_operand);
}

static inline void pack_sums(token_operand *o, const char *const x[TILE_TOKENS]) {
  min_sums sums[TILE_TOKENS];
  const char *row[TILE_TOKENS];
  __m512i word[4];
  for (int t = 0; t < TILE_TOKENS; t++) {
    min_sums_of(&sums[t], (const block_q8_K *)(const void *)x[t]);
    row[t] = (const char *)&sums[t];
  }
  transpose_words(word, row, 0);
  for (int k = 0; k < 4; k++) _mm512_store_si512(o->sums[k], word[k]);
}

// Block `block` of up to 16 tokens; places without a token repeat the last.
static void pack_amx(void *group, const block_q8_K *const *tokens, int64_t cols, int64_t n, int64_t block) {
  (void)cols;
  token_operand *o = (token_operand *)group + block;
  const char *x[TILE_TOKENS];
  __m512i word[4];
  for (int64_t t = 0; t < TILE_TOKENS; t++) {
    const block_q8_K *from = tokens[t < n ? t : n - 1] + block;
    x[t] = (const char *)from;
    o->d[t] = from->d;
  }
  for (int i = 0; i < QK_K / 16; i++) {
    transpose_words(word, x, offsetof(block_q8_K, qs) + (size_t)(16 * i));
    for (int k = 0; k < 4; k++) _mm512_store_si512(o->q[i / 4].byte[i % 4 * 4 + k], word[k]);
  }
  pack_sums(o, x);
}

// ---- a block of 16 rows and up to two tiles of tokens ----

typedef struct {
  int64_t operand;      // which of the operands of rows, block after block and half after half of the rows
  int64_t half;         // 0, or 1: the second 16 of 32 rows
  int64_t first, tiles; // tiles of tokens first .. first + tiles - 1
  const token_operand *x[UNIT_TILES];
} unit;

typedef struct { // of a unit
  tile_sums low[UNIT_TILES], high[UNIT_TILES];
} unit_sums;

// Part `part` of a step's products; tiles 0 and 1 become the low sums, 2 and 3 the high ones. They run on
// while ordinary instructions follow, of which few fit beside them: so a part at a time.
static inline __attribute__((always_inline)) void multiply(const row_operand *w, const unit *u, int step,
                                                           const int part, const bool with_mins) {
  bool both = u->tiles == UNIT_TILES;
  if (part == 0) {
    tile_load(4, &w->low[step]);
    tile_load(6, &u->x[0]->q[step]);
    tile_dot_unsigned_left(0, 4, 6);
  } else if (part == 1 && both) {
    tile_load(7, &u->x[1]->q[step]);
    tile_dot_unsigned_left(1, 4, 7);
  } else if (part == 2) {
    tile_load(5, &w->high[step]);
    if (with_mins)
      tile_dot_unsigned_left(2, 5, 6);
    else
      tile_dot_signed(2, 5, 6);
  } else if (part == 3 && both) {
    if (with_mins)
      tile_dot_unsigned_left(3, 5, 7);
    else
      tile_dot_signed(3, 5, 7);
  }
}

static inline void zero_sums(void) {
  tile_zero(0);
  tile_zero(1);
  tile_zero(2);
  tile_zero(3);
}

static inline void store_sums(unit_sums *s, const unit *u) {
  tile_store(&s->low[0], 0);
  tile_store(&s->high[0], 2);
  if (u->tiles == 1) return;
  tile_store(&s->low[1], 1);
  tile_store(&s->high[1], 3);
}

// y += the terms of row r of the unit's block.
static inline __attribute__((always_inline)) void add_terms(tile_reals *y, const row_factors *f,
                                                            const unit_sums *s, const unit *u, int r,
                                                            const bool with_mins) {
  const __m512 d = _mm512_set1_ps(f->d[r]);
  for (int64_t tile = 0; tile < u->tiles; tile++) {
    const token_operand *x = u->x[tile];
    __m512i high =
        _mm512_slli_epi32(_mm512_load_si512(s->high[tile].sum[r]), with_mins ? SHIFT_UNSIGNED : SHIFT_SIGNED);
    __m512 isum = _mm512_cvtepi32_ps(_mm512_add_epi32(_mm512_load_si512(s->low[tile].sum[r]), high)), term;
    if (with_mins) {
      __m512i msum = _mm512_setzero_si512();
#pragma GCC unroll 4
      for (int k = 0; k < 4; k++)
        msum = _mm512_dpwssd_epi32(msum, _mm512_load_si512(x->sums[k]), word_of(f->min[r][k]));
      term = _mm512_fmsub_ps(d, isum, _mm512_mul_ps(_mm512_set1_ps(f->dmin[r]), _mm512_cvtepi32_ps(msum)));
    } else {
      term = _mm512_mul_ps(d, isum);
    }
    float *at = y[u->first + tile].sum[r];
    _mm512_store_ps(at, _mm512_fmadd_ps(_mm512_load_ps(x->d), term, _mm512_load_ps(at)));
  }
}

// ---- up to 32 rows ----

enum { TILES = PACKED_CHUNK / TILE_TOKENS }; // of tokens at a time, so that what is used again stays in L1

typedef struct {
  tile_reals y[2][TILES]; // [half][tile of tokens].sum[row][token]
  row_operand rows[2];    // the one that is multiplied and the next
  row_factors factors[3]; // also of the one before, whose terms are still to be added
  row_scales scales;      // of the one that is unpacked
  unit_sums sums[2];
  int64_t halves;
  const char *row[2 * TILE_ROWS]; // where the next block of each row lies
  const char *ahead;              // what is prefetched meanwhile: the rows that follow
} __attribute__((aligned(64))) workplace;

typedef struct { // tokens of a product
  const token_operand *packed;
  int64_t n_blocks, tiles;
} packed_tokens;

static inline unit unit_at(const packed_tokens *p, int64_t block, int64_t first, int64_t half,
                           int64_t halves) {
  const token_operand *x = p->packed + first * p->n_blocks + block;
  int64_t rest = p->tiles - first;
  return (unit){
      block * halves + half, half, first, rest < UNIT_TILES ? rest : UNIT_TILES, {x, x + p->n_blocks}};
}

// The rows whose next block becomes operand `operand`.
static inline const char **rows_of(workplace *p, int64_t operand) {
  return p->row + operand % p->halves * TILE_ROWS;
}

static inline __attribute__((always_inline)) void rows_done(workplace *p, int64_t operand,
                                                            const weight_type type) {
  size_t bytes = type_find(type)->bytes;
  const char **row = rows_of(p, operand);
  for (int r = 0; r < TILE_ROWS; r++) row[r] += bytes;
  for (size_t i = 0; i < TILE_ROWS * bytes; i += 64, p->ahead += 64) _mm_prefetch(p->ahead, _MM_HINT_T1);
}

static inline __attribute__((always_inline)) void unpack_first(workplace *p, const weight_type type) {
  row_heads_of(&p->factors[0], &p->scales, type, p->row);
  for (int step = 0; step < STEPS; step++)
    for (int r = 0; r < TILE_ROWS; r += ROWS_A_PART)
      unpack_rows(&p->rows[0], &p->scales, type, p->row, step, r);
  rows_done(p, 0, type);
}

// The tiles multiply unit `now` while the terms of the one before are added and, with `unpacks`, the operand
// of rows after its own is unpacked.
static inline __attribute__((always_inline)) void run_unit(workplace *p, int64_t index, const unit *now,
                                                           const unit *before, const weight_type type,
                                                           const bool unpacks) {
  const bool with_mins = block_has_minimums(type);
  const row_operand *w = &p->rows[now->operand % 2];
  row_operand *next = &p->rows[(now->operand + 1) % 2];
  const char *const *row = (const char *const *)rows_of(p, now->operand + 1);
  const row_factors *factors = &p->factors[before->operand % 3];
  unit_sums *sums = &p->sums[index % 2], *sums_before = &p->sums[(index + 1) % 2];
  zero_sums();
  if (unpacks) row_heads_of(&p->factors[(now->operand + 1) % 3], &p->scales, type, row);
  for (int step = 0; step < STEPS; step++) {
#pragma GCC unroll 4
    for (int part = 0; part < PARTS; part++) {
      multiply(w, now, step, part, with_mins);
      add_terms(p->y[before->half], factors, sums_before, before, PARTS * step + part, with_mins);
      if (unpacks) unpack_rows(next, &p->scales, type, row, step, part * ROWS_A_PART);
    }
  }
  store_sums(sums, now);
  if (unpacks) rows_done(p, now->operand + 1, type);
}

// Two operands of rows are there at a time: the next one takes the place of one that no later unit
// multiplies.
static inline bool unpacks_next(const workplace *p, const packed_tokens *x, const unit *u) {
  if (u->half + 1 < p->halves) return u->first == 0;
  return u->first + UNIT_TILES >= x->tiles && u->operand + 1 < x->n_blocks * p->halves;
}

static inline __attribute__((always_inline)) void all_units(workplace *p, const packed_tokens *x,
                                                            const weight_type type) {
  unit before = {0};
  int64_t index = 0;
  unpack_first(p, type);
  for (int64_t block = 0; block < x->n_blocks; block++)
    for (int64_t first = 0; first < x->tiles; first += UNIT_TILES)
      for (int64_t half = 0; half < p->halves; half++, index++) {
        unit now = unit_at(x, block, first, half, p->halves);
        if (unpacks_next(p, x, &now))
          run_unit(p, index, &now, &before, type, true);
        else
          run_unit(p, index, &now, &before, type, false);
        before = now;
      }
  for (int r = 0; r < TILE_ROWS; r++)
    add_terms(p->y[before.half], &p->factors[before.operand % 3], &p->sums[(index + 1) % 2], &before, r,
              block_has_minimums(type));
}

#define UNITS_OF(type)                                                                                       \
  static __attribute__((noinline)) void units_##type(workplace *p, const packed_tokens *x) {                 \
    all_units(p, x, TYPE_##type);                                                                            \
  }
UNITS_OF(Q4_K)
UNITS_OF(Q5_K)
UNITS_OF(Q6_K)
UNITS_OF(Q3_K)
UNITS_OF(IQ4_XS)
#undef UNITS_OF

typedef void units_function(workplace *p, const packed_tokens *x);

// NULL: there is no such product of the type.
static units_function *units_of(weight_type type) {
  switch (type) {
  case TYPE_Q4_K:
    return units_Q4_K;
  case TYPE_Q5_K:
    return units_Q5_K;
  case TYPE_Q6_K:
    return units_Q6_K;
  case TYPE_Q3_K:
    return units_Q3_K;
  case TYPE_IQ4_XS:
    return units_IQ4_XS;
    CASES_WITHOUT_TILES
    break;
  }
  return NULL;
}

// out[t][r] of 16 tokens and the first n_rows of 16 rows.
static void write_outputs(float *const *out, int64_t first, int64_t n_rows, const tile_reals *y, int64_t n) {
  const char *row[TILE_ROWS];
  __m512i word[4];
  __mmask16 wanted = (__mmask16)((1u << n_rows) - 1);
  for (int r = 0; r < TILE_ROWS; r++) row[r] = (const char *)y->sum[r];
  for (int64_t t = 0; t < n; t += 4) {
    transpose_words(word, row, (size_t)t * sizeof(float));
    for (int64_t i = 0; i < 4 && t + i < n; i++)
      _mm512_mask_storeu_ps(out[t + i] + first, wanted, _mm512_castsi512_ps(word[i]));
  }
}

// Of n_rows rows, at most 32.
static inline void write_halves(float *const *out, int64_t first, int64_t n_rows,
                                const tile_reals y[2][TILES], int64_t n) {
  for (int64_t at = 0; at < n_rows; at += TILE_ROWS)
    for (int64_t t = 0; t < n; t += TILE_TOKENS) {
      int64_t rows = n_rows - at, tokens = n - t;
      write_outputs(out + t, first + at, rows < TILE_ROWS ? rows : TILE_ROWS,
                    &y[at / TILE_ROWS][t / TILE_TOKENS], tokens < TILE_TOKENS ? tokens : TILE_TOKENS);
    }
}

// row: the matrix's n_rows rows from `first` on, at most 32, of which the last may repeat; *ahead: those that
// follow. Returns the halves: tiles of 16 rows.
static inline int64_t point_at_rows(const char *row[2 * TILE_ROWS], const char **ahead, const matrix *m,
                                    int64_t first, int64_t n_rows) {
  size_t row_bytes = type_row_bytes(type_find(m->type), (size_t)m->cols);
  const char *data = (const char *)m->data + (size_t)first * row_bytes;
  int64_t halves = n_rows > TILE_ROWS ? 2 : 1;
  for (int64_t r = 0; r < halves * TILE_ROWS; r++)
    row[r] = data + (size_t)(r < n_rows ? r : n_rows - 1) * row_bytes;
  *ahead = data + (size_t)n_rows * row_bytes;
  return halves;
}

static void product_rows_amx(float *const *out, int64_t first, int64_t n_rows, const matrix *m,
                             const packed_tokens *x, int64_t n) {
  workplace p;
  p.halves = point_at_rows(p.row, &p.ahead, m, first, n_rows);
  for (int64_t half = 0; half < p.halves; half++) memset(p.y[half], 0, (size_t)x->tiles * sizeof *p.y[half]);
  for (int64_t t = 0; t < n; t++) // what is written in the end
    for (int64_t r = 0; r < n_rows; r += TILE_ROWS) __builtin_prefetch(out[t] + first + r, 1);
  units_of(m->type)(&p, x);
  write_halves(out, first, n_rows, p.y, n);
}

static void product_packed_amx(float *const *out, const matrix *m, const void *packed, int64_t n_tokens) {
  int64_t n_blocks = m->cols / QK_K, groups = (n_tokens + TILE_TOKENS - 1) / TILE_TOKENS;
  configure_tiles();
  for (int64_t g = 0; g < groups; g += TILES) {
    const packed_tokens x = {(const token_operand *)packed + g * n_blocks, n_blocks,
                             groups - g < TILES ? groups - g : TILES};
    int64_t t = g * TILE_TOKENS, n = n_tokens - t < TILES * TILE_TOKENS ? n_tokens - t : TILES * TILE_TOKENS;
    for (int64_t r = 0; r < m->rows; r += ROW_TILE)
      product_rows_amx(out + t, r, m->rows - r < ROW_TILE ? m->rows - r : ROW_TILE, m, &x, n);
  }
  tile_release(); // so that a switch of threads has no tiles to save
}

static bool packs_amx(weight_type type) {
  return units_of(type) != NULL;
}

static const packed_ops packed_ops_amx = {
    .block = QK_K,
    .takes = packs_amx,
    .group_bytes = group_bytes_amx,
    .pack = pack_amx,
    .product = product_packed_amx,
};
