// amx_model: the tile instructions of kernels/cpu/isa/amx_int8/amx_tile.h in portable C, after Intel's manual
// (volume 2: LDTILECFG, TILELOADD, TILESTORED, TILEZERO, TDPBSSD, TDPBSUD, TDPBUSD), so that the kernel runs
// where there are no tiles.
//
// Invariant: what a processor refuses, or does not promise, ends the program.
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MODEL_TILES = 8, MODEL_ROWS = 16, MODEL_BYTES = 64 };

typedef struct {
  int configured;
  int rows[MODEL_TILES], row_bytes[MODEL_TILES];
  int defined[MODEL_TILES]; // written since the configuration
  uint8_t byte[MODEL_TILES][MODEL_ROWS][MODEL_BYTES];
} model_state;

static _Thread_local model_state model;

static inline void model_require(int condition, const char *what) {
  if (condition) return;
  fprintf(stderr, "amx_model: %s\n", what);
  abort();
}

static inline void tile_configure(const void *config) {
  const uint8_t *c = (const uint8_t *)config;
  memset(&model, 0, sizeof model);
  model.configured = 1;
  model_require(c[0] == 1, "palette 1 is the only one");
  for (int i = 1; i < 16; i++) model_require(c[i] == 0, "reserved bytes and the start row are zero");
  for (int i = 0; i < 16; i++) {
    uint16_t row_bytes;
    memcpy(&row_bytes, c + 16 + 2 * i, sizeof row_bytes);
    model_require(i < MODEL_TILES || (!row_bytes && !c[48 + i]), "palette 1 has eight tiles");
    model_require(row_bytes <= MODEL_BYTES && c[48 + i] <= MODEL_ROWS,
                  "a tile is 16 rows of 64 bytes at most");
    model_require(!row_bytes == !c[48 + i], "rows and their bytes are both zero or neither");
    if (i >= MODEL_TILES) continue;
    model.row_bytes[i] = row_bytes;
    model.rows[i] = c[48 + i];
  }
}

static inline void tile_release(void) {
  memset(&model, 0, sizeof model);
}

static inline void model_check(int tile) {
  model_require(model.configured, "tiles are not configured");
  model_require(tile >= 0 && tile < MODEL_TILES && model.rows[tile], "the configuration has no such tile");
}

static inline void tile_zero(int tile) {
  model_check(tile);
  memset(model.byte[tile], 0, sizeof model.byte[tile]);
  model.defined[tile] = 1;
}

static inline void tile_load(int tile, const void *from) {
  model_check(tile);
  memset(model.byte[tile], 0, sizeof model.byte[tile]);
  for (int r = 0; r < model.rows[tile]; r++)
    memcpy(model.byte[tile][r], (const char *)from + r * MODEL_BYTES, (size_t)model.row_bytes[tile]);
  model.defined[tile] = 1;
}

static inline void tile_store(void *to, int tile) {
  model_check(tile);
  model_require(model.defined[tile], "a tile is stored that nothing was written to");
  for (int r = 0; r < model.rows[tile]; r++)
    memcpy((char *)to + r * MODEL_BYTES, model.byte[tile][r], (size_t)model.row_bytes[tile]);
}

static inline void model_dot(int sum, int a, int b, int a_is_signed, int b_is_signed) {
  model_check(sum), model_check(a), model_check(b);
  model_require(sum != a && sum != b && a != b, "the tiles of a product are three");
  model_require(model.defined[sum] && model.defined[a] && model.defined[b], "an operand was never written");
  model_require(model.rows[sum] == model.rows[a] && model.row_bytes[sum] == model.row_bytes[b] &&
                    model.row_bytes[a] == 4 * model.rows[b] && model.row_bytes[sum] % 4 == 0,
                "the shapes of a product's tiles do not fit");
  for (int m = 0; m < model.rows[sum]; m++)
    for (int k = 0; k < model.rows[b]; k++)
      for (int n = 0; n < model.row_bytes[sum] / 4; n++) {
        uint32_t total; // wraps around, as the instruction does
        memcpy(&total, &model.byte[sum][m][4 * n], sizeof total);
        for (int i = 0; i < 4; i++) {
          uint8_t left = model.byte[a][m][4 * k + i], right = model.byte[b][k][4 * n + i];
          total += (uint32_t)((a_is_signed ? (int8_t)left : left) * (b_is_signed ? (int8_t)right : right));
        }
        memcpy(&model.byte[sum][m][4 * n], &total, sizeof total);
      }
}

static inline void tile_dot_signed(int sum, int a, int b) {
  model_dot(sum, a, b, 1, 1);
}

static inline void tile_dot_unsigned(int sum, int a, int b) {
  model_dot(sum, a, b, 1, 0);
}

static inline void tile_dot_unsigned_left(int sum, int a, int b) {
  model_dot(sum, a, b, 0, 1);
}
