// expert_counts: how often a text chose each expert of each layer, from a file.
//
// Owns: the check of such a file. Independent of: who wrote it. Two forms, both NumPy's: counts, as
// `moe_run route` writes them (int32 or int64 [n_layers][n_experts]); or the choices, as output.routes does
// (routes.h), which are counted.
#pragma once
#include "kernels/backend.h"

typedef struct {
  int64_t *count;   // [n_layers][n_experts]
  int64_t n_tokens; // that were counted: a layer's counts are top_k for each
  uint64_t hash;    // of all counts
} expert_counts;

// Local. The error names the file and what is wrong in it. expert_counts_close releases what there is, after
// an error too.
status expert_counts_open(expert_counts *out, const char *path, const model_shape *shape);
void expert_counts_close(expert_counts *c);
