// product_operations: one product of a matrix with activations, on the same bytes, in every way at hand.
//
// An operation is a point on axes: how activations are rounded, as what weights are taken, the inner loop,
// the order of the sum, and where it is computed. Which axis separates two results is found by moving along
// one axis at a time (product_bisection.h), not by an operation's name.
//
// Owns: the axes, the table of operations, and each one's definition in plain C ("here"); on a backend it is
// that backend's own product (product_backend.h).
// Independent of: files, ranks, which of the operations is right.
// Invariant: f32@cpu and q8k@cpu computed here have the bits of their paths (docs/paths.md).
#pragma once
#include "kernels/backend.h"

typedef enum {
  AXIS_ACTIVATIONS, // activation_rounding
  AXIS_WEIGHTS,     // weight_rounding
  AXIS_INNER,       // inner_loop
  AXIS_ORDER,       // sum_order
  AXIS_WHERE,       // computed_where
} product_axis;
enum { PRODUCT_AXES = AXIS_WHERE + 1 };

typedef enum {
  ACTIVATIONS_F32,  // as they are
  ACTIVATIONS_F16,  // each rounded to f16
  ACTIVATIONS_Q8_K, // ggml's: blocks of 256, scale -127 / the element of largest magnitude, ties to even
  ACTIVATIONS_Q8_K_ABSMAX, // the known case's: blocks of 256, d = max|x| / 127, half away from zero
  ACTIVATIONS_Q8_K_SPLIT,  // q8k_split's: its outliers as they are, the rest in Q8_K
  ACTIVATIONS_Q8_1, // ggml CUDA's: blocks of 32, f16 scale, f16 sum of the unrounded numbers for minimums
} activation_rounding;

typedef enum { WEIGHTS_F32, WEIGHTS_F16 } weight_rounding; // dequantised, and rounded to

typedef enum {
  INNER_FLOAT,   // the dequantised weight times the activation, in floats
  INNER_INTEGER, // the weights' quants times those of the activations, exact in a block of 256
  INNER_DOUBLE,
} inner_loop;

typedef enum {     // of the terms: elements of a row, or with INNER_INTEGER blocks of 256
  ORDER_ASCENDING, // one chain
  ORDER_LANES,     // sum32 of docs/paths.md: 32 lanes, each a chain of fmas, then a tree
  ORDER_PAIRWISE,  // halves, and halves of halves
  ORDER_SHUFFLED,  // one chain in a random order that follows from product_operation.shuffle
} sum_order;

typedef enum { WHERE_HERE, WHERE_CPU, WHERE_CUDA } computed_where; // here: plain C of this file

typedef struct {
  int at[PRODUCT_AXES]; // a value of each axis's enum
  uint64_t shuffle;     // seed of ORDER_SHUFFLED
} product_operation;

typedef struct { // views; cols is a multiple of the type's elements
  matrix weights;
  const float *x; // [n][weights.cols]
  int64_t n;
  const char *row; // ISA row of WHERE_CPU: "auto" or a name
  int threads;     // of WHERE_CPU
} product_input;

const char *product_axis_name(product_axis axis);             // "activation rounding"
const char *product_axis_value(product_axis axis, int value); // "Q8_K"

typedef struct {
  const char *name; // "q8k@cpu"
  const char *what; // one line
  product_operation operation;
} product_row;

// The operations that a bisection compares, the truth ("f64") first. *count of them.
const product_row *product_table(size_t *count);
const product_row *product_find(const char *name); // NULL: none

// NULL: it can be computed on this input in this build. Else why not: "integers need rounded activations".
const char *product_refusal(const product_operation *o, const product_input *in);

// Local. out[n][weights.rows]. One that product_refusal names is an error.
status product_compute(double *out, const product_input *in, const product_operation *o);
