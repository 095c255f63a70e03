#include "src/run/routing_room.h"
#include "base/memory.h"
#include <stdlib.h>

status routing_open(routing *out, size_t n_tokens, size_t slots) {
  TRY(TAKE(&out->expert, slots, "routing"));
  TRY(TAKE(&out->weight, slots, "routing"));
  return TAKE(&out->margin, n_tokens, "routing");
}

void routing_close(routing *r) {
  free(r->expert);
  free(r->weight);
  free(r->margin);
}
