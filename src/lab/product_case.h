// product_case: the bytes of one product: rows of a tensor, and activations drawn from a seed.
//
// Source of the generator and of the slab: the known case's; "its own" is what the tensor's header says.
#pragma once
#include "src/lab/product_operations.h"
#include "src/model/model.h"

// *state: not 0. Marsaglia's xorshift32: x ^= x << 13, x ^= x >> 17, x ^= x << 5. Returns the new state.
uint32_t xorshift32(uint32_t *state);
// In [-1, 1], computed in floats as the known case does.
float xorshift32_uniform(uint32_t *state);

// The seed of draw i: draw 0 has the seed itself; the others follow from both. Never 0.
uint32_t product_draw_seed(uint32_t seed, int64_t i);
// out[n][cols], row i uniform from product_draw_seed(seed, i).
void product_draw_uniform(float *out, uint32_t seed, int64_t n, int64_t cols);

typedef struct {
  const gguf_tensor *tensor;
  matrix weights; // a view into the model's file
  int64_t layer;  // -1: of no layer
} product_weights;

// Local. name "": the first Q4_K matrix of the file. rows: how many from its start (0: at most 64); cols: 0
// for its own, or the bytes are cut again to rows of so many columns (the known case's slab is 16 x 512). The
// error names the tensor.
status product_weights_find(product_weights *out, const model *m, const char *name, int64_t rows,
                            int64_t cols);
