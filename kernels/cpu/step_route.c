// step_route: normed = norm(x), the router's logits, the choice of experts; and the routing's way to the host
// and back.
//
// Owns: the order of the phases. Independent of: arithmetic (ISA rows), other ranks.
#include "kernels/cpu/steps.h"
#include "kernels/product_form.h"
#include <string.h>

route_part route_of(cpu_backend *b, int64_t layer, int64_t first, int64_t count) {
  const layer_weights *w = &b->params.weights->layers[layer];
  route_part p = {.b = b, .w = w, .layer = layer, .first = first, .count = count};
  product_list_add(&p.logits, product_shared(b, b->router_logits.rows, &w->router, &b->normed, first, count));
  return p;
}

// Of rows first + part.first ..
static void choose_rows(cpu_backend *b, int64_t first, team_range part) {
  const model_shape *s = &b->shape;
  for (int64_t t = first + part.first; t < first + part.end; t++)
    b->shared.ops->route(b->chosen + t * s->top_k, row_at(b, b->slot_weights, t, s->top_k), &b->margin[t],
                         b->router_logits.rows[t], s->n_experts, s->top_k);
}

static void choose_alone(cpu_backend *b, void *what) {
  const route_part *p = (const route_part *)what;
  choose_rows(b, p->first, (team_range){0, p->count});
  if (p->then) p->then(b, p->what);
}

void logits_phase(route_part *p) {
  cpu_backend *b = p->b;
  norm_phase(b, PHASE_FFN_NORM, &b->shared, p->w->ffn_norm, p->first, p->count);
  show_phase(b, PROBE_FFN_NORM, p->layer, b->normed.real_rows + p->first, p->first, p->count,
             b->shared.ops->bytes);
  if (product_form(b->shared.path->kind, p->w->router.type) != ACTIVATION_REAL)
    pack_phase(b, PHASE_FFN_NORM, &b->shared, &b->normed, p->first, p->count);
  product_list_run(b, &p->logits);
}

void show_routing(route_part *p) {
  cpu_backend *b = p->b;
  size_t real = b->shared.ops->bytes;
  int64_t first = p->first, count = p->count, k = b->shape.top_k;
  show_rows_phase(b, PROBE_FFN_MOE_TOPK, p->layer, b->chosen + first * k, first, count,
                  (size_t)k * sizeof *b->chosen, sizeof *b->chosen);
  show_rows_phase(b, PROBE_FFN_MOE_WEIGHTS_NORM, p->layer, row_at(b, b->slot_weights, first, k), first, count,
                  (size_t)k * real, real);
}

// The choice overwrites the logits, which a probe shows before.
void choose_phase(route_part *p) {
  cpu_backend *b = p->b;
  if (p->count <= FEW_TOKENS && !needs_points(b, 1u << PROBE_FFN_MOE_LOGITS)) {
    phase_end_then(b, PHASE_ROUTER, PHASE_TOP_K, choose_alone, p);
    return;
  }
  phase_end(b, PHASE_ROUTER);
  show_phase(b, PROBE_FFN_MOE_LOGITS, p->layer, b->router_logits.rows + p->first, p->first, p->count,
             b->shared.ops->bytes);
  choose_rows(b, p->first, team_share(b->team, p->count));
  if (p->then)
    phase_end_then(b, PHASE_TOP_K, PHASE_TOP_K, p->then, p->what);
  else
    phase_end(b, PHASE_TOP_K);
}

static void run_route(void *context) {
  route_part *p = (route_part *)context;
  logits_phase(p);
  choose_phase(p);
  show_routing(p);
  phase_last(p->b);
}

status cpu_route(backend *base, int64_t layer, const token_batch *rows, int64_t first, int64_t count,
                 unsigned parts) {
  cpu_backend *b = (cpu_backend *)base;
  (void)rows, (void)parts;
  step_start(b, count);
  route_part p = route_of(b, layer, first, count);
  norm_alone(b, PHASE_FFN_NORM, &b->shared, p.w->ffn_norm, first, count);
  step_run(b, run_route, &p, PHASE_TOP_K);
  return 0;
}

// ---- the routing to the host and back: it lies there anyway ----

status cpu_routing_fetch(backend *base, int64_t first, int64_t count, unsigned parts) {
  cpu_backend *b = (cpu_backend *)base;
  b->fetch = (routing_range){first, count, parts};
  return 0;
}

status cpu_routing_wait(backend *base, routing *out) {
  cpu_backend *b = (cpu_backend *)base;
  int64_t first = b->fetch.first, k = b->shape.top_k, slot = first * k;
  size_t n = (size_t)b->fetch.count, slots = n * (size_t)k;
  if (b->fetch.parts & ROUTING_EXPERTS)
    memcpy(out->expert + slot, b->chosen + slot, slots * sizeof *out->expert);
  if (b->fetch.parts & ROUTING_MARGINS)
    memcpy(out->margin + first, b->margin + first, n * sizeof *out->margin);
  if (b->fetch.parts & ROUTING_WEIGHTS)
    convert_reals(out->weight + slot, sizeof *out->weight, row_at(b, b->slot_weights, first, k),
                  b->shared.ops->bytes, (int64_t)slots);
  return 0;
}

status cpu_routing_write(backend *base, int64_t first, int64_t count, unsigned parts, const routing *in) {
  cpu_backend *b = (cpu_backend *)base;
  int64_t k = b->shape.top_k, slot = first * k;
  if (parts & ROUTING_EXPERTS)
    memcpy(b->chosen + slot, in->expert + slot, (size_t)(count * k) * sizeof *b->chosen);
  if (parts & ROUTING_WEIGHTS)
    convert_reals(row_at(b, b->slot_weights, first, k), b->shared.ops->bytes, in->weight + slot,
                  sizeof *in->weight, count * k);
  return 0;
}

status cpu_routing_arrived(backend *base, const token_batch *rows) {
  (void)base, (void)rows;
  return 0; // rows_write and routing_write have put all where experts_up reads it
}
