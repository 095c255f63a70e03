// amx_exact: a chunk of attention in integers (docs/paths.md) on AMX tiles, 16 rows of queries at a time. The
// file that includes this one provides the tile instructions, amx_tile.h or a model of them.
//
// Owns: the order of the work. The cache's planes are operands as they lie: 16 keys times 64 channels, or 16
// channels times 64 keys, are 1,024 bytes in a row. Invariant: sums of integers are exact; the float steps
// are those of avx512_exact.h.
#pragma once
#include "kernels/cpu/isa/amx_int8/amx_q8k.h"
#include "kernels/cpu/isa/avx512/avx512_exact.h"

enum {
  EXACT_AMX_ROWS = 3, // fewer are for VNNI: a tile of rows costs the same however full
  EXACT_STEPS = EXACT_WIDE_HEAD / TILE_COLS,
};
static_assert((int)EXACT_TILE == 16 && (int)EXACT_CHUNK == 2 * TILE_COLS,
              "rows and keys of a chunk are tiles");

typedef struct { // 16 rows of queries over a chunk
  tile_bytes query_high[EXACT_STEPS], query_low[EXACT_STEPS];
  tile_bytes high[2], low[2]; // limbs of the weights, of half of the keys each
  tile_sums sum[3];
  float score[EXACT_TILE][EXACT_CHUNK];
  exact_row_weights weights[EXACT_TILE];
} exact_work_amx;

// Rows beyond n are 0.
static inline void query_tiles(exact_work_amx *w, const exact_queries *q, int64_t n, int64_t width) {
  for (int64_t step = 0; step < width / TILE_COLS; step++)
    for (int64_t r = 0; r < EXACT_TILE; r++) {
      int64_t at = r * width + step * TILE_COLS;
      __m512i high = _mm512_setzero_si512(), low = high;
      if (r < n) high = _mm512_loadu_si512(q->high + at), low = _mm512_loadu_si512(q->low + at);
      _mm512_store_si512(w->query_high[step].byte[r], high);
      _mm512_store_si512(w->query_low[step].byte[r], low);
    }
}

// The integers of the scores of 16 keys, as floats.
static inline void score_block_amx(exact_work_amx *w, const exact_queries *q, const exact_chunk *c, int block,
                                   int64_t n, int64_t width) {
  const tile_bytes *high = (const tile_bytes *)(const void *)(c->key_high + block * 16 * width);
  const tile_bytes *low = (const tile_bytes *)(const void *)(c->key_low + block * 16 * width);
  tile_zero(0);
  tile_zero(1);
  for (int64_t step = 0; step < width / TILE_COLS; step++) {
    tile_load(3, &w->query_high[step]);
    tile_load(4, &high[step]);
    tile_dot_unsigned(0, 3, 4);
    tile_load(5, &w->query_low[step]);
    tile_dot_unsigned(1, 5, 4);
    tile_load(6, &low[step]);
    tile_dot_unsigned(1, 3, 6);
  }
  tile_store(&w->sum[0], 0);
  tile_store(&w->sum[1], 1);
  for (int64_t r = 0; r < n; r++) {
    __m512i bias = _mm512_set1_epi32(257 * q->high_sum[r] + q->low_sum[r]);
    __m512i sum = _mm512_slli_epi32(_mm512_load_si512(w->sum[0].sum[r]), 8);
    sum = _mm512_sub_epi32(_mm512_add_epi32(sum, _mm512_load_si512(w->sum[1].sum[r])), bias);
    _mm512_storeu_ps(w->score[r] + block * FLOATS, _mm512_cvtepi32_ps(sum));
  }
}

// out[r][16 channels from d on] over `halves` halves of the keys; a row without keys is left alone.
static inline void output_block_amx(float *out, exact_work_amx *w, const exact_chunk *c,
                                    const int32_t *n_keys, int halves, int64_t d, int64_t n, int64_t width) {
  const tile_bytes *high = (const tile_bytes *)(const void *)(c->value_high + d * EXACT_CHUNK);
  const tile_bytes *low = (const tile_bytes *)(const void *)(c->value_low + d * EXACT_CHUNK);
  tile_zero(0);
  tile_zero(1);
  tile_zero(2);
  for (int half = 0; half < halves; half++) {
    tile_load(3, &w->high[half]);
    tile_load(4, &high[half]);
    tile_dot_unsigned(0, 3, 4);
    tile_load(5, &w->low[half]);
    tile_dot_unsigned(1, 5, 4);
    tile_load(6, &low[half]);
    tile_dot_unsigned(2, 5, 6);
    tile_dot_unsigned(1, 3, 6);
  }
  tile_store(&w->sum[0], 0);
  tile_store(&w->sum[1], 1);
  tile_store(&w->sum[2], 2);
  for (int64_t r = 0; r < n; r++) {
    if (!n_keys[r]) continue;
    const exact_row_weights *k = &w->weights[r];
    __m512i sum = _mm512_slli_epi32(_mm512_load_si512(w->sum[0].sum[r]), 8);
    __m512i bias = _mm512_set1_epi32(257 * k->high_sum + k->low_sum);
    sum = _mm512_sub_epi32(_mm512_add_epi32(sum, _mm512_load_si512(w->sum[1].sum[r])), bias);
    __m512i rest = _mm512_add_epi32(_mm512_load_si512(w->sum[2].sum[r]), _mm512_set1_epi32(128 - k->low_sum));
    __m512 real = _mm512_cvtepi32_ps(_mm512_add_epi32(sum, _mm512_srai_epi32(rest, 8)));
    _mm512_storeu_ps(out + r * width + d, _mm512_mul_ps(real, _mm512_set1_ps(256.0f * k->unit_of_weights)));
  }
}

static inline void weight_tiles(exact_work_amx *w, const exact_rows *to, const exact_queries *q,
                                const exact_chunk *c, const int32_t *n_keys, int64_t n) {
  memset(w->high, 0, sizeof w->high);
  memset(w->low, 0, sizeof w->low);
  for (int64_t r = 0; r < n; r++) {
    exact_row_weights *k = &w->weights[r];
    *k = (exact_row_weights){
        {w->high[0].byte[r], w->high[1].byte[r]}, {w->low[0].byte[r], w->low[1].byte[r]}, 0, 0, 0};
    if (n_keys[r]) exact_weights_avx512(k, w->score[r], &to->max[r], &to->sum[r], q->unit[r], c, n_keys[r]);
  }
}

static void exact_chunk_amx(const exact_rows *to, const exact_queries *q, const exact_chunk *c,
                            const int32_t *n_keys, int64_t n, int64_t width) {
  if (n < EXACT_AMX_ROWS || width % TILE_COLS || width > EXACT_WIDE_HEAD) {
    exact_chunk_avx512(to, q, c, n_keys, n, width);
    return;
  }
  exact_work_amx w;
  int32_t most = 0;
  for (int64_t r = 0; r < n; r++) most = n_keys[r] > most ? n_keys[r] : most;
  if (!most) return;
  configure_tiles();
  query_tiles(&w, q, n, width);
  for (int block = 0; block * FLOATS < most; block++) score_block_amx(&w, q, c, block, n, width);
  weight_tiles(&w, to, q, c, n_keys, n);
  for (int64_t d = 0; d < width; d += FLOATS)
    output_block_amx(to->out, &w, c, n_keys, most > TILE_COLS ? 2 : 1, d, n, width);
  tile_release();
}

static const exact_ops exact_ops_amx = {
    .store = exact_store_avx512,
    .query = exact_query_avx512,
    .chunk = exact_chunk_amx,
    .fold = exact_fold_avx512,
    .finish = exact_finish_generic,
    .attend = exact_attend,
};
