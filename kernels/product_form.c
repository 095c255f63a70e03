#include "kernels/product_form.h"
#include <stddef.h>
#include <stdio.h>

activation_form path_rounded_form(path_kind path) {
  switch (path) {
  case PATH_F64:
  case PATH_F32:
    return ACTIVATION_REAL;
  case PATH_Q8K:
  case PATH_Q8K_SPLIT:
    return ACTIVATION_Q8K;
  }
  return ACTIVATION_NONE;
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

bool path_keeps_remainder(path_kind path) {
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

activation_form product_form(path_kind path, weight_type type) {
  switch (path) {
  case PATH_F64:
  case PATH_F32:
    return ACTIVATION_REAL; // of any type: its weights are dequantised
  case PATH_Q8K:
  case PATH_Q8K_SPLIT:
    return type_find(type)->on_q8k;
  }
  return ACTIVATION_NONE;
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

typedef struct {
  const backend_params *params;
  const char *backend;
  bool (*computes)(weight_type type);
} product_check;

static bool has_type(const product_check *c, weight_type type) {
  return !c->computes || c->computes(type);
}

static status refuse(const product_check *c, const char *tensor, const matrix *m, path_kind path) {
  return FAIL("tensor \"%s\": the backend %s has no product of the type %s on the path %s", tensor,
              c->backend, type_find(m->type)->name, path_get(path)->name);
}

static status check_matrix(const product_check *c, const char *tensor, const matrix *m, path_kind path) {
  bool has_product = product_form(path, m->type) != ACTIVATION_NONE && has_type(c, m->type);
  return has_product ? 0 : refuse(c, tensor, m, path);
}

typedef enum { OF_SHARED, OF_EXPERTS } matrix_part;

static status check_layer(const product_check *c, int64_t layer, matrix_part part) {
  static const struct {
    matrix_part part;
    const char *name; // the GGUF's
    size_t at;
  } matrices[] = {
      {OF_SHARED, "attn_q", offsetof(layer_weights, q)},
      {OF_SHARED, "attn_k", offsetof(layer_weights, k)},
      {OF_SHARED, "attn_v", offsetof(layer_weights, v)},
      {OF_SHARED, "attn_output", offsetof(layer_weights, o)},
      {OF_SHARED, "ffn_gate_inp", offsetof(layer_weights, router)},
      {OF_EXPERTS, "ffn_gate_exps", offsetof(layer_weights, gate)},
      {OF_EXPERTS, "ffn_up_exps", offsetof(layer_weights, up)},
      {OF_EXPERTS, "ffn_down_exps", offsetof(layer_weights, down)},
  };
  const char *weights = (const char *)&c->params->weights->layers[layer];
  for (size_t i = 0; i < sizeof matrices / sizeof *matrices; i++) {
    if (matrices[i].part != part) continue;
    char tensor[64];
    snprintf(tensor, sizeof tensor, "blk.%lld.%s.weight", (long long)layer, matrices[i].name);
    TRY(check_matrix(c, tensor, (const matrix *)(const void *)(weights + matrices[i].at),
                     part == OF_SHARED ? c->params->shared : c->params->experts));
  }
  return 0;
}

status product_forms_check(const backend_params *p, const char *name, bool (*computes)(weight_type type)) {
  const product_check c = {p, name, computes};
  const model_weights *w = p->weights;
  bool tied = w->output.data == w->embedding.data;
  if (p->computes_shared) {
    if (!has_type(&c, w->embedding.type)) // on every path its rows are dequantised, and not multiplied with
      return refuse(&c, "token_embd.weight", &w->embedding, p->shared);
    TRY(check_matrix(&c, tied ? "token_embd.weight" : "output.weight", &w->output, p->shared));
  }
  for (int64_t l = 0; l < w->shape.n_layers; l++) {
    if (p->computes_shared) TRY(check_layer(&c, l, OF_SHARED));
    TRY(check_layer(&c, l, OF_EXPERTS));
  }
  return 0;
}

status path_check_products(const model_weights *weights, path_kind path, backend_kind where) {
  const backend_params all = {.weights = weights, .shared = path, .experts = path, .computes_shared = true};
  return product_forms_check(&all, backend_name(where), NULL);
}
