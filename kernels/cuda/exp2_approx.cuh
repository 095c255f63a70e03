// exp2_approx: the GPU's approximate power of two, on its own. No path uses it: paths have num_exp_f32.
#pragma once
#include "kernels/cuda/device.cuh"

// backend_ops.exp2_approx
status cuda_exp2_approx(float *out, const float *x, int64_t n);
