// routing_room: host arrays of a batch's routing.
#pragma once
#include "kernels/backend.h"
#include <stddef.h>

// slots: n_tokens * top_k. routing_close frees what there is.
status routing_open(routing *out, size_t n_tokens, size_t slots);
void routing_close(routing *r);
