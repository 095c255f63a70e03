// network: the interfaces of this host that MPI may use, and what a launcher says of the job.
//
// Independent of: MPI.
#pragma once
#include "dist/comm.h"

// Local. "eth0 10.77.0.1, docker0 172.17.0.1" of the interfaces with an IPv4 address that are up, without
// loopback; cut at an interface where `size` is too small. "": none, or they cannot be read.
void network_interfaces(char *out, size_t size);

// Local. How many tasks the launcher of this process has started, by what it leaves in the environment, and
// the name of that variable; 0: it says nothing, or mpirun, which MPI knows itself, started the process.
int network_launcher_tasks(const char **variable);
// Local. Refuses a process that is alone for MPI while its launcher started several: each would compute the
// whole job.
status network_check_launcher(const comm *c);
