// synth_few_bits: blocks of the types with few bits a weight, for synthetic models.
//
// Owns: the standard deviation of such a block's weights. Independent of: rows and tensors.
// Invariant: a block's bytes depend on its key and standard deviation alone; every one is a valid encoding.
#pragma once
#include "kernels/formats/types.h"

// Fills a block with weights of standard deviation `std` around 0: quants and scales of uniform bits.
void synth_fill_few_bits(void *block, weight_type type, uint64_t key, double std);
// Sets weight i of the block to what its scales make of the nearest quant.
void synth_set_few_bits(void *block, weight_type type, int i, double wanted);
