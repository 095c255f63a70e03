// batch_fit: the largest batch for which every rank's device has memory (run.chunk = 0).
//
// Owns: what the ranks agree on. Independent of: what is allocated (backend_ops.batch_that_fits).
#pragma once
#include "dist/comm.h"
#include "kernels/backend.h"

// Collective. Lowers *max_batch to what fits all ranks; each gives its backend and that backend's parameters,
// in which max_batch is the same. `what` stands in the error.
status batch_fit(int64_t *max_batch, comm *c, const backend_ops *ops, const backend_params *params,
                 const char *what);
