// limbs: how keys, values and queries of exact attention lie in device memory: 16-bit integers as two planes
// of bytes, x = 256 * high + low, laid out as the tensor cores take them.
//
// Invariant: the order of bytes is the only freedom here; which integers they are docs/paths.md says.
//
// A block of the cache is a chunk of keys of one head. `dims` is head_dim rounded up to 128; limbs beyond
// head_dim are 0. Every row is 128 bytes whose 16-byte pieces are permuted, piece p of row r at p ^ (r % 8)
// (wgmma_descriptor's order, and free of bank conflicts elsewhere):
//
//   keys    [limb][dims / 128][key] rows of 128 dimensions
//   values  [key / 64][dimension] rows of 64 keys' high limbs, then their low ones
//   units   float [key], of keys; float [key], of values: a number is its integer times its vector's unit
#pragma once
#include "kernels/cuda/device.cuh"
#include "kernels/formats/attention_exact.h"

static constexpr int ROW = 128; // bytes
static constexpr int SPAN = 64; // keys of a row of values
static constexpr int GROUP_CHUNKS = EXACT_GROUP / EXACT_CHUNK;
static_assert(EXACT_CHUNK % SPAN == 0 && EXACT_GROUP % EXACT_CHUNK == 0);

struct limb_cache {
  uint8_t *blocks;   // [layers][sequences][kv_heads][chunks]
  size_t head_bytes; // of one (layer, sequence, head)
  int n_sequences, n_kv_heads, head_dim;
};

__host__ __device__ constexpr int padded_dims(int head_dim) {
  return (head_dim + ROW - 1) / ROW * ROW;
}

__host__ __device__ constexpr int values_offset(int dims) {
  return 2 * EXACT_CHUNK * dims;
}

__host__ __device__ constexpr int units_offset(int dims) {
  return 4 * EXACT_CHUNK * dims;
}

__host__ __device__ constexpr int block_bytes(int dims) {
  return units_offset(dims) + 2 * EXACT_CHUNK * (int)sizeof(float);
}

__device__ __forceinline__ int piece_at(int row, int piece) { // of a row, from its start
  return (piece ^ (row & 7)) * 16;
}

__device__ __forceinline__ int key_at(int dims, int limb, int key, int d) {
  return (limb * (dims / ROW) + d / ROW) * EXACT_CHUNK * ROW + key * ROW + piece_at(key, d % ROW / 16) +
         d % 16;
}

// A key's place among 16 in a row of values: a lane of the tensor cores has the scores of keys 2 c, 2 c + 1,
// 2 c + 8, 2 c + 9 of 16 (c = lane % 4) and multiplies four neighbours of the row.
__host__ __device__ constexpr int place_of_key(int key) {
  return key % 8 / 2 * 4 + key / 8 * 2 + key % 2;
}

__device__ __forceinline__ int value_row(int dims, int key, int d) {
  return values_offset(dims) + (key / SPAN * dims + d) * ROW;
}

__device__ __forceinline__ int value_at(int dims, int limb, int key, int d) {
  return value_row(dims, key, d) + piece_at(d, limb * (SPAN / 16) + key % SPAN / 16) + place_of_key(key % 16);
}

__device__ __forceinline__ uint8_t *block_of(const limb_cache &c, int layer, int sequence, int kv_head,
                                             int chunk) {
  size_t head = ((size_t)layer * c.n_sequences + sequence) * c.n_kv_heads + kv_head;
  return c.blocks + head * c.head_bytes + (size_t)chunk * block_bytes(padded_dims(c.head_dim));
}

__device__ __forceinline__ float *units_of(uint8_t *block, int dims) { // of keys, then of values
  return (float *)(block + units_offset(dims));
}

// ---- queries: tiles of rows, a row a (token, head of one key/value head) ----
//
// As wgmma_k32 takes its rows from registers: a lane holds of rows l / 4 and l / 4 + 8 of its warp's 16 the
// four bytes from 4 (l % 4) on and the four from 16 on, of every 32. Words [tile][kv head][64 rows][limb]
// [dims / 32][128 threads][4].

struct query_limbs {
  uint32_t *words;
  float *unit; // [tokens][n_heads]
  int n_heads, n_kv_heads, dims;
};

static constexpr int TILE_ROWS = 128, GROUP_ROWS = 64; // of a tile; of a warpgroup

__host__ __device__ constexpr int tile_rows(int group) { // groups beyond a tile have a larger one
  return (group + TILE_ROWS - 1) / TILE_ROWS * TILE_ROWS;
}

__host__ __device__ constexpr int tokens_per_tile(int group) {
  return tile_rows(group) / group;
}

__host__ __device__ constexpr size_t group_words(int dims) { // of 64 rows and one limb
  return (size_t)dims / 32 * 128 * 4;
}

// The first word of row `row` of a tile, and how much further on the one is that holds dimensions d .. d + 3
// of a limb, d a multiple of 4.
__device__ __forceinline__ size_t query_row(const query_limbs &q, int tile, int kv_head, int row) {
  int groups = tile_rows(q.n_heads / q.n_kv_heads) / GROUP_ROWS;
  size_t of_rows = (((size_t)tile * q.n_kv_heads + kv_head) * groups + row / GROUP_ROWS) * 2;
  int thread = row % GROUP_ROWS / 16 * WARP + row % 8 * 4;
  return of_rows * group_words(q.dims) + (size_t)thread * 4 + row % 16 / 8;
}

__device__ __forceinline__ size_t query_word(int dims, int limb, int d) {
  return limb * group_words(dims) + (size_t)(d / 32 * 128 + d % 16 / 4) * 4 + d % 32 / 16 * 2;
}

// ---- limbs ----

// What the cache keeps as the unit of a value: a key that is not finite makes it NaN.
__device__ __forceinline__ float exact_value_unit(float of_key, float of_value) {
  return of_key == of_key ? of_value : of_key;
}

__device__ __forceinline__ uint8_t low_limb(int x) {
  return (uint8_t)exact_low(x);
}

__device__ __forceinline__ uint8_t high_limb(int x) {
  return (uint8_t)exact_high(x);
}
