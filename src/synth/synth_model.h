// synth_model: the description of a synthetic model, the known mixes of types, and a tensor.
#pragma once
#include "src/model/architecture.h"
#include "src/synth/synth_blocks.h"

typedef struct {
  const char *name;
  uint32_t file_type;       // llama.cpp's number of the mix (general.file_type)
  weight_type most, better; // of most matrices, and of those that llama.cpp gives more bits
  weight_type output;       // of the output matrix
  weight_type attention;    // of q, k, v and o; F32: as the others
} synth_mix;

const synth_mix *synth_mix_at(int i); // NULL: there are no more
const synth_mix *synth_mix_find(const char *name);

typedef struct {
  char name[128];          // general.name
  char made_with[1024];    // what all bytes depend on, as text for the file's reader
  model_settings settings; // shape, context length
  const synth_mix *mix;
  bool tied; // the embedding is the output matrix too
  int64_t seed, outliers;
} synth_model;

typedef struct {
  char name[TENSOR_NAME_BYTES];
  int n_dims;
  int64_t dim[TENSOR_DIMS]; // dim[0] the row
  int64_t rows;             // of all matrices of a stack
  size_t row_bytes;
  uint64_t offset; // from the end of the header
  synth_recipe recipe;
} synth_tensor;

// The weight type of a tensor. Norms and router are floats in every mix. A row that is not a whole number of
// blocks takes a type of smaller blocks.
weight_type synth_type(const synth_model *m, const tensor_row *row, int64_t layer);
