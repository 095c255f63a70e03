// clock_skew: how far the clocks of other ranks' hosts are from this one's, measured by messages.
//
// Owns: the method. A message goes from rank `root` to a rank and comes back with the time there; half way
// between sending and receiving is root's time of the same moment, wrong by at most half the round trip. Of
// many round trips the shortest counts.
// Invariant: on one host, whose ranks have one clock, the skew is below its bound.
#pragma once
#include "dist/comm.h"

typedef struct {
  double seconds; // the rank's clock_seconds() minus root's
  double bound;   // of the error: half the shortest round trip
  double at;      // root's clock_seconds() then
} clock_skew;

// Collective. out[size] of every rank, root's own zero.
status clock_skew_measure(clock_skew *out, comm *c, int root);
