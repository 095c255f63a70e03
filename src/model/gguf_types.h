// gguf_types: a text and a tensor of a GGUF, as its readers return them.
#pragma once
#include "kernels/formats/types.h"

enum { GGUF_MAX_DIMS = 4 };

typedef struct {
  const char *name;      // NUL-terminated, unique in the model
  const type_info *type; // NULL, where the file was opened to be shown: none that is computed with
  uint32_t type_number;  // of ggml
  int n_dims;
  int64_t dim[GGUF_MAX_DIMS]; // dim[0] is the row length (fastest); unused ones are 1
  const void *data;           // mapped, not touched yet; at least `bytes` long; NULL: not in the file
  size_t bytes;
  const char *file; // path of the file that holds it
  uint64_t offset;  // of data in that file
} gguf_tensor;

typedef struct { // not NUL-terminated: points into the map
  const char *text;
  size_t length;
} gguf_string;
