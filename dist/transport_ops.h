// transport_ops: one way of carrying rows between ranks, as a row of the table in transport.c. What a build
// cannot have (NCCL) is a row that is missing.
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

  // Collective. As comm_exchange. stream NULL: rows lie in host memory, and all parts are there on return.
  // Else they lie on the device, and the parts are there for what is enqueued on the stream after it; a
  // stream that is being recorded is recorded.
  status (*carry)(void *state, char *rows, void *stream, const comm_part *part, const char *what);
  double (*seconds)(void *state); // in exchanges that have ended and were not recorded, waiting included
  // Collective; NULL: not there. Of one recorded all-gather of `bytes` of each rank, with nothing else to do.
  status (*measure)(void *state, double *seconds, size_t bytes);

  // Local; NULL where exchanges end before they return.
  const char *(*broken)(void *state);    // an error that came up since, or NULL
  const char *(*under_way)(void *state); // `what` of the oldest exchange that has not ended, or NULL
  void (*abandon)(void *state);          // ends what waits on the device; only an end of the job follows
} transport_ops;
