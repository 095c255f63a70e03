#include "src/layer.h"

status forward_embed(forward_state *f, const token_batch *batch) {
  return f->compute->ops->embed(f->compute, batch);
}

// Completes the slots' rows. A device backend's own rows come to host memory for it, and all rows go back.
static status gather_slots(forward_state *f, int64_t layer, int64_t n_slots) {
  backend *b = f->compute;
  const backend_ops *step = b->ops;
  int64_t first, count;
  exchange_own_rows(f->slots, &first, &count);
  if (step->slots_read) TRY(step->slots_read(b, first, count));
  TRY(exchange_gather(f->slots, step->slot_rows(b), (size_t)f->hidden * f->path->real_bytes, layer));
  return step->slots_write ? step->slots_write(b, n_slots) : 0;
}

status forward_layer(forward_state *f, int64_t layer, const token_batch *batch) {
  backend *b = f->compute;
  const backend_ops *step = b->ops;
  bool alone = exchange_is_alone(f->slots), on_device = step->finish && alone;
  routing *route = on_device && !f->wants_routing ? NULL : &f->route;
  TRY(step->attention(b, layer, batch));    // x += o(attention(norm(x))), the same on every rank
  TRY(step->route(b, layer, batch, route)); // the same on every rank, so all know who computes what
  const int64_t *row_of_slot =
      on_device ? NULL : exchange_plan(f->slots, f->route.expert, batch->n * f->top_k);
  TRY(step->experts(b, layer, batch, route, row_of_slot)); // this rank's own experts only
  if (!alone) TRY(gather_slots(f, layer, batch->n * f->top_k));
  return step->combine(b, layer, batch, row_of_slot); // x += sum of the slots, in slot order
}

status forward_head(forward_state *f, int64_t first, int64_t count, void *logits) {
  return f->compute->ops->head(f->compute, first, count, logits);
}
