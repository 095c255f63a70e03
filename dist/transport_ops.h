// transport_ops: one way of transferring rows between ranks, as a row of the table in transport.c. What a
// build cannot have (NCCL) is missing from the table.
#pragma once
#include "base/device.h"
#include "dist/comm.h"
#include "dist/transport_kind.h"

typedef struct {
  transport_kind kind;
  bool on_device; // rows may lie in the memory of the rank's device; every rank must have one of its own

  // Collective. device: this rank's; host_bytes: of the largest array of rows in host memory.
  status (*start)(void **state, comm *c, const device_id *device, size_t host_bytes);
  void (*stop)(void *state); // local; takes NULL

  // Collective. As comm_exchange. stream NULL: rows lie in host memory, and all parts have arrived on return.
  // Else they lie on the device, and the parts have arrived for what is enqueued on the stream afterwards; on
  // a stream that is being captured the exchange becomes part of the graph.
  status (*transfer)(void *state, char *rows, void *stream, const comm_part *part, const char *what);
  double (*seconds)(void *state); // in exchanges that have ended, waiting included; not those in a graph
  // Collective; NULL: nothing is sent. Of one all-gather of `bytes` per rank with nothing else to do: from
  // device to device in a graph, or between buffers in host memory.
  status (*measure)(void *state, double *seconds, size_t bytes);

  // Local; NULL where an exchange has ended when `transfer` returns.
  const char *(*broken)(void *state);    // an error that has come up since, or NULL
  const char *(*under_way)(void *state); // `what` of the oldest exchange that has not ended, or NULL
  void (*abandon)(void *state);          // aborts what waits on the device; only the end of the job follows
} transport_ops;
