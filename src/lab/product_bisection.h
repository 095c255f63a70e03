// product_bisection: every operation on the same bytes, the pairs, the classes that agree to rounding, and
// which axis separates them.
//
// Owns: the bound of "to rounding", the classes, the walks from one operation to another along one axis at a
// time. Independent of: files, ranks, printing.
// Invariant: a separating axis is found by computing with that axis alone switched, never by a name.
#pragma once
#include "src/lab/product_operations.h"

enum { PRODUCT_MOST = 16, PRODUCT_QUANTILES = 9 };

extern const double product_quantile[PRODUCT_QUANTILES]; // 0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1

typedef enum { DISTANCE_MAX_REL, DISTANCE_REL_L2, DISTANCE_ONE_MINUS_COS } product_distance;
enum { PRODUCT_DISTANCES = DISTANCE_ONE_MINUS_COS + 1 };

const char *product_distance_name(product_distance d); // "max_rel"

typedef struct { // a against b, which is the reference; indices into the table of operations
  size_t a, b;
  double shown[PRODUCT_DISTANCES];                       // of the shown activations
  double quantile[PRODUCT_DISTANCES][PRODUCT_QUANTILES]; // over all activations
  double rank[PRODUCT_DISTANCES]; // share of the activations whose distance is at most the shown one
  double rel_l2;                  // of all outputs as one vector: what the classes are made from
} product_pair;

typedef struct { // one axis switched
  product_axis axis;
  int from, to;
  double rel_l2;  // of all outputs after to those before
  bool separates; // above the bound
} product_step;

typedef struct { // from operation a to operation b, one axis at a time
  size_t a, b;
  int n_steps;
  product_step step[2 * PRODUCT_AXES];
} product_walk;

typedef struct {
  size_t n_rows;                    // of the table of operations
  const product_row *row;           // [n_rows]
  const char *absent[PRODUCT_MOST]; // why it was not computed; NULL: it was
  double *out[PRODUCT_MOST];        // [n][rows]
  int cls[PRODUCT_MOST];            // class, from 0 in order of first appearance; -1: not computed
  int n_classes;
  double bound;     // rel_l2 up to which two operations agree to rounding
  double reordered; // the largest rel_l2 that a random order of the same float sum has from the truth
  product_pair pair[PRODUCT_MOST * PRODUCT_MOST / 2];
  size_t n_pairs;
  product_walk walk[PRODUCT_MOST]; // from each class but the truth's to the truth's
  size_t n_walks;
} product_bisection;

// Local. shown: which of the n activations the matrix of pairs is of. In a row of a walk that this build
// cannot compute, nothing is said of its axis: the step is left out. product_bisection_close releases what
// there is, after an error too.
status product_bisection_run(product_bisection *out, const product_input *in, int64_t shown);
void product_bisection_close(product_bisection *p);

// The sentence on a walk, into text[size]: which axes separate, and by how much the others move.
void product_walk_say(char *text, size_t size, const product_bisection *p, const product_walk *w);

// rel_l2 of a to the reference b, over all n numbers.
double product_rel_l2(const double *a, const double *b, int64_t n);
