// product_q8k_stream: products of experts whose items are so few that reading their weights takes longest.
#pragma once
#include "kernels/cuda/products/product.cuh"

// Whether this set, of types that product_q8k.cu has kernels for, is such.
bool product_q8k_stream_serves(const product_set *set);
status product_q8k_stream_launch(product_set *set, cudaStream_t stream);
