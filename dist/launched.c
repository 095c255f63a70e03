// These variables are what launchers tell their processes, not settings of this program.
#include "dist/launched.h"
#include <stdlib.h>

static const char *const variables[] = {
    "OMPI_COMM_WORLD_RANK", // Open MPI
    "PMIX_RANK",            // its runtime, and others that speak PMIx
    "PMI_RANK",             // MPICH and Intel MPI
    "SLURM_PROCID",         // srun; 0 in a batch script
};

int launched_rank(void) {
  for (size_t i = 0; i < sizeof variables / sizeof *variables; i++) {
    const char *value = getenv(variables[i]);
    if (value) return atoi(value);
  }
  return -1;
}
