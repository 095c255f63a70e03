// launched: which of a launcher's processes this is, while MPI does not tell it, or for commands that start
// none.
#pragma once

// Local, without MPI: the rank that mpirun or srun says this process has; -1: no launcher that is known.
int launched_rank(void);
