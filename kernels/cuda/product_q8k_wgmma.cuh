// product_q8k_wgmma: products of K-quant weights with many Q8_K activations on Hopper's tensor cores.
#pragma once
#include "kernels/cuda/device.cuh"

// Whether this device, this build and this set's shape are such that product_q8k_wgmma_launch should take the
// set, whose weights are of one type. Elsewhere product_q8k.cu has the same bits.
bool product_q8k_wgmma_serves(const product_set *set);
status product_q8k_wgmma_launch(product_set *set, cudaStream_t stream);
