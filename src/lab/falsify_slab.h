// falsify_slab: the known case's slab: the first bytes of a tensor, cut again as rows of another length, and
// many draws of activations for it.
#pragma once
#include "src/lab/falsify_methods.h"
#include "src/model/model.h"

enum { SLAB_MOST = 8 }; // operations on a slab

typedef struct {
  const gguf_tensor *tensor;
  matrix weights; // a view into the model's file
  int64_t n;      // draws
  float *x;       // [n][cols], draw 0 of the known seed
  int threads;
  const char *row; // ISA row
} slab;

// The tensor of input.tensor, if it is of the type and large enough; else the first such one of the same name
// in another layer; else the first such one at all. A note says which it is, and how it was cut. slab_close
// releases what there is, after an error too.
status slab_open(slab *s, falsify_lab *lab, experiment_result *out, weight_type type);
void slab_close(slab *s);

// out[n][rows]: all draws.
status slab_compute(double **out, const slab *s, const product_operation *o);

// Figures of a pair of operations, a against b, which is the reference: NAME_rel_l2, _max_rel, _one_minus_cos
// with their bands over draws.
status slab_add_pair(experiment_result *out, const slab *s, const char *name, const double *a,
                     const double *b);

// C of 6 and 7: f32@cuda where this build and host have it; else f32@cpu, and a note says so.
product_operation slab_c(const slab *s, experiment_result *out);
