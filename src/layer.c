#include "src/layer.h"

// A fault in a step says which one it was.
static status in_step(status result, int64_t layer, const char *step) {
  if (result) status_within("layer %lld, %s", (long long)layer, step);
  return result;
}

status forward_embed(forward_state *f, const token_batch *batch) {
  status result = f->compute->ops->embed(f->compute, batch);
  if (result) status_within("embedding");
  return result;
}

bool forward_is_on_device(const forward_state *f, const token_batch *batch) {
  return f->compute->ops->finish && !f->wants_routing &&
         (exchange_is_alone(f->slots) || exchange_is_fixed(f->slots, batch->n));
}

// Completes the slots' rows: on the device, where the transport takes them from there; else own rows come to
// host memory for it, and all rows go back.
static status gather_slots(forward_state *f, int64_t layer, int64_t n_slots, bool fixed) {
  backend *b = f->compute;
  const backend_ops *step = b->ops;
  size_t row_bytes = (size_t)f->hidden * f->path->real_bytes;
  int64_t first, count;
  if (fixed)
    return exchange_gather_fixed(f->slots, step->slots_device(b), step->stream(b), n_slots, row_bytes, layer);
  if (step->slots_device && f->takes_device)
    return exchange_gather(f->slots, step->slots_device(b), step->stream(b), row_bytes, layer);
  exchange_own_rows(f->slots, &first, &count);
  if (step->slots_read) TRY(in_step(step->slots_read(b, first, count), layer, "experts"));
  TRY(exchange_gather(f->slots, step->slot_rows(b), NULL, row_bytes, layer));
  return step->slots_write ? in_step(step->slots_write(b, n_slots), layer, "combine") : 0;
}

status forward_layer(forward_state *f, int64_t layer, const token_batch *batch) {
  backend *b = f->compute;
  const backend_ops *step = b->ops;
  bool alone = exchange_is_alone(f->slots), on_device = forward_is_on_device(f, batch);
  bool knows = !on_device && !(alone && step->finish); // the host has the routing and places the rows
  routing *route = on_device ? NULL : &f->route;
  // x += o(attention(norm(x))), the same on every rank
  TRY(in_step(step->attention(b, layer, batch), layer, "attention"));
  // the same on every rank, so all know who computes what
  TRY(in_step(step->route(b, layer, batch, route), layer, "route"));
  const int64_t *row_of_slot = knows ? exchange_plan(f->slots, f->route.expert, batch->n * f->top_k) : NULL;
  // this rank's own experts only
  TRY(in_step(step->experts(b, layer, batch, route, row_of_slot), layer, "experts"));
  if (!alone) TRY(gather_slots(f, layer, batch->n * f->top_k, on_device));
  // x += sum of the slots, in slot order
  return in_step(step->combine(b, layer, batch, row_of_slot), layer, "combine");
}

status forward_head(forward_state *f, int64_t first, int64_t count, void *logits) {
  status result = f->compute->ops->head(f->compute, first, count, logits);
  if (result) status_within("head");
  return result;
}
