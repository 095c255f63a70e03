// network: the interfaces of this host that MPI may use.
//
// Independent of: MPI.
#pragma once
#include <stddef.h>

// Local. "eth0 10.77.0.1, docker0 172.17.0.1" of the interfaces with an IPv4 address that are up, without
// loopback; cut at an interface where `size` is too small. "": none, or they cannot be read.
void network_interfaces(char *out, size_t size);
