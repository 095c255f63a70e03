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

int launched_tasks(const char **variable) {
  static const char *const NAMES[] = {"SLURM_STEP_NUM_TASKS", "PMI_SIZE"};
  *variable = "";
  if (getenv("OMPI_COMM_WORLD_SIZE")) return 0; // mpirun's own; Slurm's then counts mpirun's daemons
  for (size_t i = 0; i < sizeof NAMES / sizeof *NAMES; i++) {
    const char *text = getenv(NAMES[i]);
    if (!text || atoi(text) < 1) continue;
    *variable = NAMES[i];
    return atoi(text);
  }
  return 0;
}

status launched_check(const comm *c) {
  const char *variable;
  int tasks = launched_tasks(&variable);
  if (comm_size(c) > 1 || tasks <= 1) return 0;
  return REFUSE(
      "%s = %d, but MPI knows one rank: the tasks have not found each other, and each would run the "
      "whole job; start them with srun --mpi=pmix, or with mpirun (launch/run)",
      variable, tasks);
}
