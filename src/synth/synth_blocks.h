// synth_blocks: rows of synthetic weights, written as blocks at the speed of memory.
//
// Owns: the random numbers, their distribution, and how each block type holds it.
// Independent of: which tensor the rows belong to, files, ranks.
// Invariant: a block is a function of the recipe's key and the block's number alone, in integers and in
// doubles that are only added, multiplied and divided (or go through numerics.h): the same bytes on every
// machine.
#pragma once
#include "kernels/formats/types.h"

typedef enum {
  COLUMNS_PLAIN,
  COLUMNS_LOUD,  // planted columns stand at an end of the weights' range, with one sign for all rows
  COLUMNS_QUIET, // planted columns are close to 0: these rows read a loud activation there
} synth_columns;

typedef struct {
  uint64_t key; // of seed and tensor
  weight_type type;
  int64_t rows, cols;      // of one matrix; row r of a stack is row r % rows of a matrix
  double mean, std;        // of a weight; a mean only where the type is F32
  double row_spread;       // sigma of the log-normal factor of a row
  const int64_t *channels; // planted; views
  int64_t n_channels;
  synth_columns columns;
  double loud_rows; // factor of the planted rows; 1: none are
  double loud_norm; // factor of the planted elements of a norm vector; 1: none are
} synth_recipe;

// Rows first .. first + count - 1, row after row.
void synth_fill_rows(void *out, const synth_recipe *r, int64_t first, int64_t count);

// The mean standing of a loud column in units of its row's standard deviation.
extern const double synth_loud_level;

// Number `counter` of the random stream `key`, for other choices that the seed decides.
uint64_t synth_random(uint64_t key, uint64_t counter);
