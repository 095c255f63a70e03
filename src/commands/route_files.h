// route_files: the experts and weights that each arm chose, kept until the end of a run and then written.
//
// Files: routes.<arm>.npy (int32 [n_layers][n_token][top_k], slot order), route_weights.<arm>.npy (float64
// for f64, else float32, of the same shape), and routes.npy, route_weights.npy: the same of the reference
// arm. placement.npy (int32 [n_layers][n_experts][n_ranks]): 1 where the rank holds the expert. Local: only
// the reporting rank has them. Memory: 8 bytes (12 of f64) for each layer, token and slot of each arm.
#pragma once
#include "src/config/config_types.h"
#include "src/run/arm.h"

typedef struct {
  size_t n_arms;
  int64_t n_layers, n_tokens, top_k;
  bool is_wide[CONFIG_MAX_ARMS];
  int32_t *expert[CONFIG_MAX_ARMS]; // [n_layers][n_tokens][top_k]
  void *weight[CONFIG_MAX_ARMS];    // the same, doubles where is_wide, else floats
} route_files;

status route_files_open(route_files *out, arm *const *arms, size_t n_arms, const model_shape *shape,
                        int64_t n_tokens);
void route_files_close(route_files *f);
// After a layer that was watched: of the batch's n tokens, the first of which is `first` of all.
void route_files_keep(route_files *f, arm *const *arms, int64_t layer, int64_t first, int64_t n);
status route_files_write(route_files *f, const config *c, const placement *experts);
