#include "src/commands/stolen_runs.h"
#include "base/memory.h"
#include <stdlib.h>

status stolen_runs_gather(comm *c, double *seconds, size_t n) {
  const size_t ranks = (size_t)comm_size(c);
  double *all = NULL;
  for (size_t i = 0; i < n && comm_host_rank(c); i++) seconds[i] = 0; // one rank speaks for its host
  status result = comm_agree(c, TAKE(&all, ranks * n, "times"), "the gathering of stolen time");
  if (!result) result = comm_allgather(c, all, seconds, n * sizeof *seconds, "the gathering of stolen time");
  for (size_t i = 0; i < n && !result; i++) {
    seconds[i] = 0;
    for (size_t r = 0; r < ranks; r++) seconds[i] += all[r * n + i];
  }
  free(all);
  return result;
}
