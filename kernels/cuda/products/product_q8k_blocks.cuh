// product_q8k_blocks: a product of a shared matrix for more items than are taken one by one and too few to
// keep a tensor core's large tiles busy.
#pragma once
#include "kernels/cuda/products/product.cuh"

bool product_q8k_blocks_serves(const product_set *set); // of types that product_q8k.cu has kernels for
status product_q8k_blocks_launch(product_set *set, cudaStream_t stream);
