#include "src/run/batch_fit.h"
#include "base/memory.h"
#include <stdlib.h>

static status fits_here(int64_t *out, const backend_ops *ops, const backend_params *params) {
  *out = params->max_batch;
  return ops->batch_that_fits ? ops->batch_that_fits(out, params) : 0;
}

status batch_fit(int64_t *max_batch, comm *c, const backend_ops *ops, const backend_params *params,
                 const char *what) {
  int64_t mine = 0, *all;
  TRY(comm_agree(c, fits_here(&mine, ops, params), what));
  TRY(comm_agree(c, TAKE(&all, (size_t)comm_size(c), "batches"), what));
  status result = comm_allgather(c, all, &mine, sizeof mine, "the batch that fits every rank");
  for (int r = 0; r < comm_size(c) && !result; r++)
    if (all[r] < *max_batch) *max_batch = all[r];
  free(all);
  return result;
}
