// transport: what transfers rows between ranks (self, mpi, nccl), and which of them a job's ranks use.
//
// Owns: the choice and its reason, the watch over waits for a device.
// Independent of: what the rows are and which of them are sent.
// Invariant: every rank makes the same choice, because it has the same facts about all ranks.
#pragma once
#include "base/device.h"
#include "dist/comm.h"
#include "dist/transport_kind.h"

typedef struct transport transport;

// Collective. device: this rank's; computes: its rows lie there. TRANSPORT_AUTO is self on one rank, nccl
// where every rank has a device to itself and at least one computes on it, else mpi. A transport that cannot
// be used is an agreed error that names the ranks that prevent it.
status transport_choose(transport **out, comm *c, transport_kind kind, const device_id *device,
                        bool computes);
// Collective: starts on all ranks or on none. host_bytes: of the largest array of rows in host memory.
status transport_start(transport *t, size_t host_bytes);
void transport_close(transport *t); // takes NULL

const char *transport_list(void); // of this build: "self, mpi", "self, mpi, nccl"
const char *transport_name(const transport *t);
const char *transport_reason(const transport *t); // "ranks 0, 1 share a GPU"; "" where none is needed
bool transport_takes_device(const transport *t);  // rows on the device are sent from there
bool transport_all_on_device(const transport *t); // and every rank's rows lie on its device

// Collective. As comm_exchange; stream NULL: rows in host memory; else on the device, ordered by that
// stream.
status transport_transfer(transport *t, void *rows, void *stream, const comm_part *part, const char *what);

// Local. Called from time to time while this rank waits for its device, with the seconds waited so far. Fails
// when an exchange there has failed, or past comm.deadline; the error names the ranks that did not arrive.
status transport_watch(transport *t, double waited);

double transport_seconds(const transport *t); // in exchanges, waiting included; not those in a graph
// Collective. Seconds of one all-gather of `bytes` per rank with nothing else to do, from device to device
// launched in a graph, or over MPI between buffers in host memory; NaN on one rank.
status transport_measure(transport *t, double *seconds, size_t bytes);
