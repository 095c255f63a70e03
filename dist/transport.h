// transport: what carries rows between ranks (self, mpi, nccl), and which of them a job's ranks use.
//
// Owns: the choice and its reason, the watch over waits for a device.
// Refuses to know: what rows are, which of them travel.
// Invariant: every rank chooses the same, because it has heard the same of all ranks.
#pragma once
#include "base/device.h"
#include "dist/comm.h"
#include "dist/transport_kind.h"

typedef struct transport transport;

// Collective. device: what this rank takes, and `computes`: its rows lie there. TRANSPORT_AUTO is self on one
// rank, nccl where every rank has a device of its own and one computes on it, else mpi. One that cannot serve
// is an agreed error that says which ranks stand in the way.
status transport_choose(transport **out, comm *c, transport_kind kind, const device_id *device,
                        bool computes);
// Collective, and so is its outcome. host_bytes: of the largest array of rows in host memory.
status transport_start(transport *t, size_t host_bytes);
void transport_close(transport *t); // takes NULL

const char *transport_list(void); // of this build: "self, mpi", "self, mpi, nccl"
const char *transport_name(const transport *t);
const char *transport_reason(const transport *t); // "ranks 0, 1 share a GPU"; "" where none need be given
bool transport_takes_device(const transport *t);  // rows on the device travel from there
bool transport_all_on_device(const transport *t); // and every rank's rows lie there

// Collective. As comm_exchange; stream NULL: rows in host memory; else on the device, ordered by that
// stream.
status transport_carry(transport *t, void *rows, void *stream, const comm_part *part, const char *what);

// Local, asked now and then by one who has waited so many seconds for the device: a fault when what is under
// way there broke, or at comm.deadline; it names the ranks that did not come.
status transport_watch(transport *t, double waited);

double transport_seconds(const transport *t); // in exchanges, waiting included, recorded ones not
// Collective. Of one all-gather of `bytes` of each rank's device, replayed from a recording with nothing else
// to do; NaN where rows do not travel from devices.
status transport_measure(transport *t, double *seconds, size_t bytes);
