#include "src/layer.h"

status forward_embed(forward_state *f, const token_batch *batch) {
  return f->compute->ops->embed(f->compute, batch);
}

status forward_layer(forward_state *f, int64_t layer, const token_batch *batch) {
  backend *b = f->compute;
  const backend_ops *step = b->ops;
  TRY(step->attention(b, layer, batch));             // x += o(attention(norm(x))), the same on every rank
  TRY(step->route(b, layer, batch, &f->route));      // the same on every rank, so all know who computes what
  const int64_t *row_of_slot = exchange_plan(f->slots, f->route.expert, batch->n * f->top_k);
  TRY(step->experts(b, layer, batch, &f->route, row_of_slot)); // this rank's own experts only
  TRY(exchange_gather(f->slots, step->slot_rows(b), (size_t)f->hidden * f->path->real_bytes, layer));
  return step->combine(b, layer, batch, row_of_slot); // x += sum of the slots, in slot order
}

status forward_head(forward_state *f, int64_t first, int64_t count, void *logits) {
  return f->compute->ops->head(f->compute, first, count, logits);
}
