// model_bisection_say: the conclusion from the table of parts.
#include "src/lab/model_bisection.h"
#include <stdio.h>

// A part that takes this share of the KL away explains the difference.
static const double EXPLAINS = 0.9;

enum { NAMED = 3 }; // parts that are named where none explains it alone

// The smallest part that explains it: the first of a size, and so the one with the largest share.
static const model_node *find_explaining(const model_bisection *m) {
  const model_node *best = NULL;
  for (size_t i = 0; i < m->n_nodes; i++)
    if (m->node[i].gone >= EXPLAINS && (!best || m->node[i].size < best->size)) best = &m->node[i];
  return best;
}

static bool overlaps(const model_node *x, const model_node *y) {
  const model_part *p = &x->part, *q = &y->part;
  return p->steps & q->steps && p->first_layer < q->end_layer && q->first_layer < p->end_layer &&
         p->first_expert < q->end_expert && q->first_expert < p->end_expert;
}

// The largest that do not overlap, of those that were not split: what they are made of says more.
static void say_largest(FILE *f, const model_bisection *m) {
  const model_node *said[NAMED];
  int n = 0;
  for (size_t i = 0; i < m->n_nodes && n < NAMED; i++) {
    const model_node *x = &m->node[i];
    bool taken = x->is_split || !(x->gone > 0);
    for (int k = 0; k < n; k++) taken = taken || overlaps(x, said[k]);
    if (taken) continue;
    fprintf(f, "%s%s (%.1f %%)", n ? ", " : "", x->name, 100 * x->gone);
    said[n++] = x;
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

void model_bisection_say(char *text, size_t size, const model_bisection *m) {
  const model_node *best = find_explaining(m);
  text[0] = 0;
  FILE *f = fmemopen(text, size, "w");
  if (!f) return;
  if (m->a_b.same_bits)
    fputs("a and b have the same bits: there is nothing to bisect", f);
  else if (best && best->to_b.same_bits)
    fprintf(f, "a and b differ by %s: with it as in b, a's logits are b's to the bit", best->name);
  else if (best)
    fprintf(f, "a and b differ by %s: with it as in b, %.1f %% of the KL is gone", best->name,
            100 * best->gone);
  else {
    fputs("a and b differ by no part alone; the largest are ", f);
    say_largest(f, m);
  }
  if (!m->a_b.same_bits) say_settings(f, m);
  fclose(f);
}
