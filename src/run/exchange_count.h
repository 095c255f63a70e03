// exchange_count: the bytes that a layer's exchange transfers, of every rank, from the batch and its routing:
// also where kernels transfer them, or a captured graph, and no host could count.
//
// Independent of: time, and what a transport adds (flags, headers).
// Invariant: where the transport counts, exchange_bytes_sent grows by the same number.
#pragma once
#include "src/run/forward.h"

// Local, on a shared rank, after a layer that was watched: the routing of all rows is on the host. Adds the
// bytes of the way in which the batch runs when it is not watched. sent, received: [ranks].
void exchange_count_layer(forward_state *f, int64_t layer, uint64_t *sent, uint64_t *received);
