// launched: which of a launcher's processes this is, for commands that start no MPI.
#pragma once

// Local, without MPI: the rank that mpirun or srun says this process has; 0 where it was started alone.
int launched_rank(void);
