// types: names and sizes of stored types and of forms of activations, and dequantisation for any caller.
//
// Owns: the tables. Independent of: files, instruction sets.
#pragma once
#include "kernels/formats/blocks.h"
#include <stdbool.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct { // a line of WEIGHT_TYPES
  weight_type type;
  const char *name;
  size_t elements, bytes; // `elements` weights to a block of `bytes`
  activation_form on_q8k; // what its products on the path q8k read
  bool few_bits;          // it has no kernels of its own, but those of few_bits.h
} type_info;

const type_info *type_find(uint32_t ggml_type); // NULL: not one that the program computes with
// A name also for types that are refused; "type 77" style for unknown ones.
const char *type_name_any(uint32_t ggml_type);

// Whether it has, on every ISA row and on CUDA, kernels of its own for its products with Q8_K.
bool type_has_q8k_kernels(weight_type type);

// Bytes of a row of n elements; n is a multiple of type->elements.
static inline size_t type_row_bytes(const type_info *type, size_t n) {
  return n / type->elements * type->bytes;
}

// out[n] = the row's weights as floats, bit for bit as ggml's dequantize_row_* without contraction.
void dequantize_row(float *out, weight_type type, const void *row, size_t n);

// Returns the index of the first block of the row whose scale (or F32/F16/BF16 value) is not finite, or -1.
int64_t row_first_not_finite(weight_type type, const void *row, size_t n);

#ifdef __cplusplus
}
#endif
