// peer_links: links the devices of a job's ranks, so that they store into each other's memory.
//
// Owns: the exchange of handles, and that all ranks are linked or none. Independent of: what is stored (the
// backend), when (forward.c).
#pragma once
#include "dist/comm.h"
#include "kernels/backend.h"

// Whether ranks can be: as many as a backend takes, all on one host. Local, the same on every rank.
bool peer_links_apply(const comm *c, const backend_ops *ops);

// Collective. *linked: every rank's device reaches all others' and a trial has arrived; why[size] says what
// prevents it otherwise, which is no error. A rank that does not answer is one.
status peer_links_open(bool *linked, char *why, size_t size, comm *c, backend *b);
