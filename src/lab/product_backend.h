// product_backend: a product by a backend's own kernels, whatever the backend.
//
// A backend has no call for one product, and needs none: the step experts_up of a rank that computes only
// experts multiplies given rows (ROWS_NORMED) with an expert's gate matrix and shows the result as the probe
// ffn_moe_gate. So the matrix becomes the one expert of a model of one layer.
#pragma once
#include "src/lab/product_operations.h"

// NULL: this build and this host can compute on it. Else why not: "not built in", "no device on this host".
const char *product_backend_absence(backend_kind where);

// Local. out[n][weights.rows], in reals of the path, widened. The error is the backend's.
status product_backend_compute(double *out, const product_input *in, path_kind path, backend_kind where);
