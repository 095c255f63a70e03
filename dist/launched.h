// launched: what a launcher says of the job by the environment that it leaves, while MPI does not tell it,
// for commands that start none, and to see whether MPI agrees.
#pragma once
#include "dist/comm.h"

// Local, without MPI: the rank that mpirun or srun says this process has; -1: no launcher that is known.
int launched_rank(void);

// Local. How many tasks the launcher of this process has started, by what it leaves in the environment, and
// the name of that variable; 0: it says nothing, or mpirun, which MPI knows itself, started the process.
int launched_tasks(const char **variable);
// Local. Refuses a process that is alone for MPI while its launcher started several: each would compute the
// whole job.
status launched_check(const comm *c);
