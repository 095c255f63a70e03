// topology: the cores of this host, which of them this rank uses, and the core of each of its threads.
//
// Owns: hwloc. Independent of: how a device is used.
// Invariant: ranks of a host never share a core unless they are unbound (more ranks than cores, more threads
// than a rank's share of cores, or by request); a binding that the launcher made is kept.
#pragma once
#include "base/device.h"
#include "dist/comm.h"

typedef struct topology topology;

// Collective. threads 0: as many as the rank has cores. With more ranks than cores, one thread each, unbound.
// bind: topology_bind_threads has an effect. device (NULL: none): this rank's. Where the launcher gave ranks
// the same cores and all of them have a device whose socket is known, each gets cores of that socket.
status topology_open(topology **out, comm *c, int64_t threads, bool bind, const device_id *device);
void topology_close(topology *t); // takes NULL

int topology_threads(const topology *t);
const char *topology_cores(const topology *t);  // "0-3": where this rank's threads sit; "any of 0-1": unbound
const char *topology_cpu(const topology *t);    // the processor's name
int topology_host_cores(const topology *t);     // physical cores of this host
int topology_device_node(const topology *t);    // NUMA node of this rank's device; -1: unknown, or none
const char *topology_nodes(const topology *t);  // "0-1": NUMA nodes of the cores that this rank may use
bool topology_device_is_far(const topology *t); // its device's node is known, and none of those
int topology_hosts(const topology *t);          // hosts of the job

// Binds each OpenMP thread of a team of topology_threads to its core, when binding is on.
void topology_bind_threads(const topology *t);
