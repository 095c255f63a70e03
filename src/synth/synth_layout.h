// synth_layout: the tensors of a synthetic model: their places in the file, and how they are filled.
//
// Owns: the scales of weights that keep activations sane, the planted channels.
// Independent of: blocks' bytes, ranks, the file.
// Invariant: a tensor's bytes depend on the seed, its name, its shape and type alone: a model of fewer layers
// or experts has the tensors of the larger one's head.
#pragma once
#include "src/synth/synth_model.h"

typedef struct {
  synth_tensor *tensors; // in the order of the architecture's table
  size_t n_tensors;
  int64_t *channels; // planted
  char *header;      // all bytes before the first tensor
  size_t header_bytes;
  uint64_t file_bytes;
} synth_layout;

status synth_layout_open(synth_layout *out, const synth_model *m);
void synth_layout_close(synth_layout *l);                               // a zeroed or closed one is fine
void synth_layout_types(char *out, size_t size, const synth_layout *l); // "Q4_K 265, F32 241"
