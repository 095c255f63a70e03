#include "src/commands/route_files.h"
#include "base/memory.h"
#include "src/report/npy.h"
#include "src/run/arms_in_step.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static size_t bytes_of_weight(const route_files *f, size_t a) {
  return f->is_wide[a] ? sizeof(double) : sizeof(float);
}

status route_files_open(route_files *out, arm *const *arms, size_t n_arms, const model_shape *shape,
                        int64_t n_tokens) {
  *out = (route_files){
      .n_arms = n_arms, .n_layers = shape->n_layers, .n_tokens = n_tokens, .top_k = shape->top_k};
  size_t n = (size_t)(shape->n_layers * n_tokens * shape->top_k);
  for (size_t a = 0; a < n_arms; a++) {
    out->is_wide[a] = arm_path(arms[a])->real_bytes == sizeof(double);
    TRY(TAKE(&out->expert[a], n, "routes"));
    TRY(memory_take(&out->weight[a], n, bytes_of_weight(out, a), "routes"));
  }
  return 0;
}

void route_files_close(route_files *f) {
  for (size_t a = 0; a < f->n_arms; a++) {
    free(f->expert[a]);
    free(f->weight[a]);
  }
}

void route_files_keep(route_files *f, arm *const *arms, int64_t layer, int64_t first, int64_t n) {
  for (size_t a = 0; a < f->n_arms; a++)
    for (int64_t t = 0; t < n; t++) {
      size_t at = (size_t)((layer * f->n_tokens + first + t) * f->top_k);
      const double *weights = arm_weights(arms[a], t);
      memcpy(f->expert[a] + at, arm_experts(arms[a], t), (size_t)f->top_k * sizeof(int32_t));
      for (int64_t k = 0; k < f->top_k; k++)
        if (f->is_wide[a])
          ((double *)f->weight[a])[at + (size_t)k] = weights[k];
        else
          ((float *)f->weight[a])[at + (size_t)k] = (float)weights[k];
    }
}

// "HEAD.ARM.npy", or "HEAD.npy" where `of` is NULL.
static status write_array(const route_files *f, const char *dir, const char *head, const char *of,
                          npy_type type, const void *numbers) {
  char name[64];
  npy *file;
  npy_row row = {type, 2, {f->n_tokens, f->top_k}};
  snprintf(name, sizeof name, "%s%s%s.npy", head, of ? "." : "", of ? of : "");
  TRY(npy_open(&file, dir, name, &row));
  status result = npy_append(file, numbers, (size_t)f->n_layers);
  if (!result) return npy_finish(file);
  npy_abandon(file);
  return result;
}

static status write_arm(const route_files *f, const char *dir, size_t a, const char *of) {
  TRY(write_array(f, dir, "routes", of, NPY_I32, f->expert[a]));
  return write_array(f, dir, "route_weights", of, f->is_wide[a] ? NPY_F64 : NPY_F32, f->weight[a]);
}

static status append_layers(npy *file, const placement *p, int64_t n_layers, int32_t *layer) {
  size_t ranks = (size_t)p->n_ranks;
  for (int64_t l = 0; l < n_layers; l++) {
    memset(layer, 0, (size_t)p->n_experts * ranks * sizeof *layer);
    for (int64_t e = 0; e < p->n_experts; e++) {
      int64_t at = placement_index(p, l, e);
      for (int32_t k = p->first[at]; k < p->first[at + 1]; k++)
        layer[(size_t)e * ranks + (size_t)p->holder[k]] = 1;
    }
    TRY(npy_append(file, layer, 1));
  }
  return 0;
}

static status write_placement(const placement *p, const char *dir, int64_t n_layers) {
  int32_t *layer = NULL;
  npy *file;
  npy_row row = {NPY_I32, 2, {p->n_experts, p->n_ranks}};
  TRY(npy_open(&file, dir, "placement.npy", &row));
  status result = TAKE(&layer, (size_t)(p->n_experts * p->n_ranks), "the placement");
  if (!result) result = append_layers(file, p, n_layers, layer);
  free(layer);
  if (!result) return npy_finish(file);
  npy_abandon(file);
  return result;
}

status route_files_write(route_files *f, const config *c, const placement *experts) {
  for (size_t a = 0; a < f->n_arms; a++) TRY(write_arm(f, c->output.dir, a, c->run.arms.arm[a].name));
  TRY(write_placement(experts, c->output.dir, f->n_layers));
  return write_arm(f, c->output.dir, arms_reference(&c->run.arms), NULL);
}
