#include "kernels/product_form.h"

activation_form path_rounded_form(path_kind path) {
  switch (path) {
  case PATH_F64:
  case PATH_F32:
    return ACTIVATION_REAL;
  case PATH_Q8K:
  case PATH_Q8K_SPLIT:
    return ACTIVATION_Q8K;
  }
  __builtin_unreachable();
}

bool product_is_of_bytes(path_kind path, weight_type type) {
  return product_form(path, type) != ACTIVATION_REAL;
}

bool path_splits_outliers(path_kind path) {
  switch (path) {
  case PATH_F64:
  case PATH_F32:
  case PATH_Q8K:
    return false;
  case PATH_Q8K_SPLIT:
    return true;
  }
  return false;
}

path_kind path_before_router(path_kind path) {
  switch (path) {
  case PATH_F64:
  case PATH_F32:
  case PATH_Q8K:
    return path;
  case PATH_Q8K_SPLIT:
    return PATH_F32;
  }
  __builtin_unreachable();
}

activation_form product_form(path_kind path, weight_type type) {
  switch (path) {
  case PATH_F64:
  case PATH_F32:
    return ACTIVATION_REAL; // of any type: its weights are dequantised
  case PATH_Q8K:
  case PATH_Q8K_SPLIT:
    return type_find(type)->on_q8k;
  }
  __builtin_unreachable();
}

bool model_reads(const model_weights *weights, activation_form form) {
  if (type_find(weights->output.type)->on_q8k == form) return true;
  for (int64_t l = 0; l < weights->shape.n_layers; l++) {
    const layer_weights *w = &weights->layers[l];
    const matrix *all[] = {&w->q, &w->k, &w->v, &w->o, &w->router, &w->gate, &w->up, &w->down};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
      if (type_find(all[i]->type)->on_q8k == form) return true;
  }
  return false;
}
