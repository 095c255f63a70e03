// synth_layout: the tensors of a synthetic model: their names, types, places in the file, and how they are
// filled.
//
// Owns: the mixes of types, the scales of weights that keep activations sane, the planted channels, the
// header. Refuses to know: blocks' bytes, ranks, the file. Invariant: a tensor's bytes depend on the seed,
// its name, its shape and type alone: a model of fewer layers or experts has the tensors of the larger one's
// head.
#pragma once
#include "src/synth/synth_blocks.h"
#include "src/synth/synth_options.h"

typedef struct {
  char name[64];
  int n_dims;
  int64_t dim[3]; // dim[0] the row
  int64_t rows;   // of all matrices of a stack
  size_t row_bytes;
  uint64_t offset; // in the file
  synth_recipe recipe;
} synth_tensor;

typedef struct {
  synth_tensor *tensors;
  size_t n_tensors;
  int64_t *channels; // planted
  char *header;      // all bytes before the first tensor
  size_t header_bytes;
  uint64_t file_bytes;
} synth_layout;

status synth_layout_open(synth_layout *out, const synth_options *o);
void synth_layout_close(synth_layout *l);                               // takes NULL
void synth_layout_types(char *out, size_t size, const synth_layout *l); // "Q4_K 265, F32 241"
