// product_capture: the activations of a product, as a real pass of an arm has them at a probe.
#pragma once
#include "src/run/job.h"

// Collective. *x on the reporting rank: the probe of every position of the input (of a probe per slot, of
// every slot), [*n][width], as floats; the caller frees. NULL on the other ranks. layer: of the probe; -1: a
// probe of the head. The error names a probe that has another width, or whose scope is not that of the layer.
status product_capture(float **x, int64_t *n, job *j, const arm_choice *choice, probe_point point,
                       int64_t layer, int64_t width);
