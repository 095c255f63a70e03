// product_f32: the kernels that product_f32.cu chooses from. All take the sums of docs/paths.md.
#pragma once
#include "kernels/cuda/device.cuh"

// Rows of whole blocks of 256: what the kernels below take.
static inline bool has_blocks(const product *p) {
  return p->w.cols % QK_K == 0;
}

static inline int ceil_of(int a, int b) {
  return (a + b - 1) / b;
}

// product_f32_one.cu: an item alone with its rows, K-quants
bool product_f32_one_fits(const product *p);
status product_f32_one_launch(const product *p, cudaStream_t stream);
// product_f32_tiles.cu: tiles of 32 rows and 32 items, any type
bool product_f32_tiles_fits(const product *p);
status product_f32_tiles_launch(const product *p, cudaStream_t stream);
