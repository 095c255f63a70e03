// model_bisection_say: the conclusion from the table of parts.
#include "src/lab/model_bisection.h"
#include <stdio.h>

// A part that takes this share of the KL away explains the difference.
static const double EXPLAINS = 0.9;

enum { NAMED = 3 }; // parts that are named where none explains it alone

// Every step of every layer is the whole, and no part of it, with embedding and head or without.
static bool is_whole(const model_node *n, const model_bisection *m) {
  return (n->part.steps & STEPS_OF_LAYER) == STEPS_OF_LAYER &&
         n->part.end_layer - n->part.first_layer == m->n_layers;
}

// The smallest part that explains it, to the bit or by its share: the first of a size, and so the one with
// the largest share.
static const model_node *find_explaining(const model_bisection *m, bool to_the_bit) {
  const model_node *best = NULL;
  for (size_t i = 0; i < m->n_nodes; i++) {
    const model_node *n = &m->node[i];
    bool explains = to_the_bit ? n->to_b.same_bits : n->gone >= EXPLAINS;
    if (explains && !is_whole(n, m) && (!best || n->size < best->size)) best = n;
  }
  return best;
}

static bool is_step(const model_node *n, const model_bisection *m) {
  bool alone = !(n->part.steps & (n->part.steps - 1));
  return alone && n->part.end_layer - n->part.first_layer == m->n_layers;
}

static bool is_layer(const model_node *n, const model_bisection *m) {
  return n->part.steps == STEPS_OF_LAYER && n->part.end_layer - n->part.first_layer == 1 && !is_whole(n, m);
}

// Those with the largest shares of a kind.
static void say_largest(FILE *f, const model_bisection *m, const char *by,
                        bool (*is_kind)(const model_node *, const model_bisection *)) {
  int n = 0;
  for (size_t i = 0; i < m->n_nodes && n < NAMED; i++) {
    const model_node *x = &m->node[i];
    if (!is_kind(x, m) || !(x->gone > 0)) continue;
    fprintf(f, "%s%s (%.1f %%)", n ? ", " : by, x->name, 100 * x->gone);
    n++;
  }
}

static void say_settings(FILE *f, const model_bisection *m) {
  const model_setting *best = NULL;
  for (size_t i = 0; i < m->n_settings; i++)
    if (!best || m->setting[i].gone > best->gone) best = &m->setting[i];
  if (best && m->n_settings == 1)
    fprintf(f, "; they differ in one setting, the %s", best->name);
  else if (best)
    fprintf(f, "; of the settings the %s takes %.1f %% away", best->name, 100 * best->gone);
}

static void say_parts(FILE *f, const model_bisection *m) {
  const model_node *exact = find_explaining(m, true), *most = find_explaining(m, false);
  if (exact) fprintf(f, "a and b differ by %s: with it as in b, a's logits are b's to the bit", exact->name);
  if (exact && most && most->size < exact->size)
    fprintf(f, "; %s alone takes %.1f %% of the KL away", most->name, 100 * most->gone);
  if (exact && !(exact->part.steps & (exact->part.steps - 1))) return;
  if (!exact && most)
    fprintf(f, "a and b differ by %s: with it as in b, %.1f %% of the KL is gone", most->name,
            100 * most->gone);
  if (!exact && !most) fputs("no part explains the difference of a and b alone", f);
  say_largest(f, m, "; of the steps most goes with ", is_step);
  say_largest(f, m, "; of the layers with ", is_layer);
}

void model_bisection_say(char *text, size_t size, const model_bisection *m) {
  text[0] = 0;
  FILE *f = fmemopen(text, size, "w");
  if (!f) return;
  if (m->a_b.same_bits) {
    fputs("a and b have the same bits: there is nothing to bisect", f);
  } else {
    say_parts(f, m);
    say_settings(f, m);
  }
  fclose(f);
}

// ---- one product of the largest step ----

static const struct {
  model_step step;
  const char *tensor; // of the layer; the first of its products
  probe_point reads;
} PRODUCTS[] = {
    {STEP_QKV, "attn_q", PROBE_ATTN_NORM},
    {STEP_O, "attn_output", PROBE_KQV_OUT},
    {STEP_ROUTER, "ffn_gate_inp", PROBE_FFN_NORM},
    {STEP_GATE_UP, "ffn_gate_exps", PROBE_FFN_NORM},
    {STEP_DOWN, "ffn_down_exps", PROBE_FFN_MOE_SWIGLU},
};

// Of a part that is one such step.
static bool find_product(char tensor[PRODUCT_TENSOR_BYTES], probe_point *reads, const model_part *p) {
  for (size_t k = 0; k < sizeof PRODUCTS / sizeof *PRODUCTS; k++) {
    if (p->steps != 1u << PRODUCTS[k].step) continue;
    snprintf(tensor, PRODUCT_TENSOR_BYTES, "blk.%lld.%s.weight", (long long)p->first_layer,
             PRODUCTS[k].tensor);
    *reads = PRODUCTS[k].reads;
    return true;
  }
  return false;
}

bool model_bisection_product(char tensor[PRODUCT_TENSOR_BYTES], probe_point *reads,
                             const model_bisection *m) {
  for (int any = 0; any < 2; any++) // those of one layer before those of more
    for (size_t i = 0; i < m->n_nodes; i++) {
      const model_part *p = &m->node[i].part;
      bool fits = any || p->end_layer - p->first_layer == 1;
      if (fits && m->node[i].gone > 0 && find_product(tensor, reads, p)) return true;
    }
  return false;
}
