#include "src/lab/model_bisection.h"
#include "base/memory.h"
#include "base/progress.h"
#include "src/lab/model_part.h"
#include "src/measure/metrics.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

// A part whose share of the KL is below this is not split: its own parts would be fainter still.
static const double WORTH_SPLITTING = 0.01;

struct model_reference {
  job *j;
  const model_shape *s;
  int64_t n;                 // positions
  double *logits[2];         // [n][vocabulary] of a and of b
  expert_global *experts[2]; // [n_layers][n][top_k]
  // of the pass at hand
  int fills;           // the reference that it becomes; -1: none
  pass_distance to[2]; // sums so far
  pass_distance a_b;   // while b's pass is run: of a to it
};

// ---- what a pass shows ----

static void add_distance(pass_distance *d, const double *a, const double *b, size_t n) {
  logit_metrics m;
  metrics_logits(&m, a, b, n, -1);
  d->kl += m.kl;
  d->rel_l2 += m.row.rel_l2;
  d->top1 += m.top1_agrees;
  d->same_bits = d->same_bits && !memcmp(a, b, n * sizeof *a);
}

static void add_logits(void *context, int64_t position, const double *logits) {
  model_reference *r = context;
  size_t n = (size_t)r->s->vocabulary, at = (size_t)position * n;
  if (r->fills >= 0) memcpy(r->logits[r->fills] + at, logits, n * sizeof *logits);
  if (r->fills == 1) add_distance(&r->a_b, r->logits[0] + at, logits, n);
  for (int i = 0; i < 2; i++)
    if (r->fills < 0 || i <= r->fills) add_distance(&r->to[i], logits, r->logits[i] + at, n);
}

static void add_experts(void *context, int64_t layer, int64_t position, const expert_global *experts) {
  model_reference *r = context;
  size_t k = (size_t)r->s->top_k, at = (size_t)(layer * r->n + position) * k;
  if (r->fills >= 0) memcpy(r->experts[r->fills] + at, experts, k * sizeof *experts);
  for (int i = 0; i < 2; i++)
    if (r->fills < 0 || i <= r->fills)
      r->to[i].flips += metrics_router_flips(&experts->id, &r->experts[i][at].id, (int)k);
}

// Collective. Every rank gets the reporting rank's distances, for the search must be the same on all.
static status agree_distances(model_reference *r) {
  comm *c = r->j->c;
  pass_distance(*all)[2];
  TRY(TAKE(&all, (size_t)comm_size(c), "a pass's distances"));
  status result = comm_allgather(c, all, r->to, sizeof r->to, "a pass's distances");
  if (!result) memcpy(r->to, all[r->j->roles.reporting], sizeof r->to);
  free(all);
  return result;
}

static void take_means(pass_distance *d, int64_t n) {
  d->kl /= (double)n;
  d->rel_l2 /= (double)n;
  d->top1 /= (double)n;
}

static status run_pass(model_reference *r, hybrid *h, const model_part *part, int fills) {
  const hybrid_show show = {add_logits, add_experts, r};
  r->fills = fills;
  r->to[0] = r->to[1] = r->a_b = (pass_distance){.same_bits = true};
  TRY(hybrid_pass(h, part, &show));
  if (fills == 1) { // what b's pass is to itself says nothing; a to it does
    r->a_b.flips = r->to[0].flips;
    r->to[1] = r->a_b;
  }
  for (int i = 0; i < 2; i++) take_means(&r->to[i], r->n);
  return agree_distances(r);
}

static double share_of(double part, double whole) {
  return part == 0 ? 0 : part / whole;
}

// ---- the passes of a and b ----

static model_part whole_model(const model_shape *s, unsigned steps) {
  return (model_part){steps, 0, s->n_layers, 0, s->n_experts};
}

static status open_reference(model_reference *r) {
  size_t logits = (size_t)(r->n * r->s->vocabulary), experts = (size_t)(r->s->n_layers * r->n * r->s->top_k);
  for (int i = 0; i < 2 && job_is_reporting(r->j); i++) TRY(TAKE(&r->logits[i], logits, "two arms' logits"));
  for (int i = 0; i < 2; i++) TRY(TAKE(&r->experts[i], experts, "two arms' routing"));
  return 0;
}

static status pass_of(model_bisection *m, model_reference *r, hybrid *h, arm *a, int which,
                      uint64_t *digest) {
  model_part part = whole_model(r->s, which ? STEPS_ALL : 0);
  arm_reset(a);
  TRY(run_pass(r, h, &part, which));
  m->passes++;
  TRY(job_check_digest(r->j, a));
  *digest = arm_digest(a);
  return arm_broadcast(a, digest, sizeof *digest, "a digest");
}

// Every rank knows where a's tokens went, so that no pass is run for experts that none of them reached.
static status share_routing(model_reference *r) {
  comm *c = r->j->c;
  int size = comm_size(c), from = r->j->roles.reporting;
  size_t bytes = (size_t)(r->s->n_layers * r->n * r->s->top_k) * sizeof *r->experts[0];
  comm_part *part;
  TRY(TAKE(&part, (size_t)size * (size_t)size, "a routing"));
  for (int i = 0; i < size * size; i++)
    part[i] = (comm_part){0, i / size == from && i % size != from ? bytes : 0};
  status result = comm_exchange(c, (char *)r->experts[0], part, "a routing");
  free(part);
  return result;
}

status model_bisection_start(model_bisection *out, model_reference **kept, hybrid *h, job *j, arm *a, arm *b,
                             int64_t budget) {
  model_reference *r;
  *out = (model_bisection){.n_layers = j->m->weights.shape.n_layers, .budget = budget};
  *kept = NULL;
  TRY(memory_take((void **)&r, 1, sizeof *r, "two arms' logits"));
  *r = (model_reference){.j = j, .s = &j->m->weights.shape, .n = j->n_tokens};
  *kept = r;
  TRY(job_agree(j, open_reference(r), "the logits of two arms"));
  TRY(pass_of(out, r, h, a, 0, &out->digest_a));
  TRY(pass_of(out, r, h, b, 1, &out->digest_b));
  out->b_a = r->to[0];
  out->a_b = r->to[1];
  return share_routing(r);
}

// Of a pass that was just run. Where logits are not finite there is no KL, but their bits still tell which
// part brings that in.
static void shares(const model_bisection *m, const model_reference *r, double *gone, double *appears) {
  *gone = 1 - share_of(r->to[1].kl, m->a_b.kl);
  *appears = share_of(r->to[0].kl, m->b_a.kl);
  if (!isfinite(*gone)) *gone = r->to[1].same_bits;
  if (!isfinite(*appears)) *appears = !r->to[0].same_bits;
}

status model_bisection_setting(model_bisection *m, model_reference *kept, const char *name, job *j,
                               arm *like_a) {
  hybrid *h;
  model_part nothing = whole_model(kept->s, 0);
  model_setting *s = &m->setting[m->n_settings];
  if (m->n_settings == MODEL_SETTINGS_MOST) return FAIL("bisect: more settings than there is room for");
  TRY(hybrid_open(&h, j, like_a, like_a));
  status result = run_pass(kept, h, &nothing, -1);
  hybrid_close(h);
  if (result) return result;
  m->passes++;
  *s = (model_setting){.name = name, .to_a = kept->to[0], .to_b = kept->to[1]};
  shares(m, kept, &s->gone, &s->appears);
  m->n_settings++;
  return 0;
}

void model_bisection_only_setting(model_bisection *m, const char *name) {
  pass_distance same = {.top1 = 1, .same_bits = true};
  m->setting[m->n_settings++] =
      (model_setting){.name = name, .to_a = m->b_a, .to_b = same, .gone = 1, .appears = 1};
}

// ---- the search ----

typedef struct {
  model_bisection *m;
  model_reference *r;
  hybrid *h;
  size_t capacity;
  progress shown;
} search;

static bool is_known(const model_bisection *m, const model_part *part) {
  for (size_t i = 0; i < m->n_nodes; i++)
    if (model_part_equal(&m->node[i].part, part)) return true;
  return false;
}

static bool is_hit(const model_reference *r, const model_part *p) {
  if (p->first_expert == 0 && p->end_expert == r->s->n_experts) return true;
  int64_t slots = r->n * r->s->top_k;
  for (int64_t i = p->first_layer * slots; i < p->end_layer * slots; i++) {
    int32_t e = r->experts[0][i].id;
    if (e >= p->first_expert && e < p->end_expert) return true;
  }
  return false;
}

static status add_node(search *s, const model_part *part) {
  model_bisection *m = s->m;
  if (is_known(m, part)) return 0;
  bool hit = is_hit(s->r, part);
  if (hit && m->passes >= m->budget) {
    m->budget_spent = true;
    return 0;
  }
  TRY(memory_grow((void **)&m->node, &s->capacity, m->n_nodes, sizeof *m->node, "parts"));
  model_node *n = &m->node[m->n_nodes];
  *n = (model_node){.part = *part, .size = model_part_size(part, s->r->s)};
  model_part_name(n->name, part, s->r->s);
  if (hit) {
    TRY(run_pass(s->r, s->h, part, -1));
    progress_at(&s->shown, ++m->passes);
    n->to_a = s->r->to[0];
    n->to_b = s->r->to[1];
    shares(m, s->r, &n->gone, &n->appears);
  } else { // no token reached these experts: the pass is a's
    n->to_a = (pass_distance){.top1 = 1, .same_bits = true};
    n->to_b = m->a_b;
  }
  m->n_nodes++;
  return 0;
}

static status split(search *s, size_t index) {
  model_part parts[PARTS_MOST], of = s->m->node[index].part;
  int n = model_part_split(parts, &of, s->r->s);
  s->m->node[index].is_split = true;
  for (int i = 0; i < n; i++) TRY(add_node(s, &parts[i]));
  return 0;
}

// Of two parts the one to split first: with the larger share, or else the smaller, which is nearer to its
// end.
static bool comes_first(const model_node *x, const model_node *y) {
  return x->gone > y->gone || (x->gone == y->gone && x->size < y->size);
}

// The part to split next; n_nodes: none is worth it.
static size_t next_to_split(const search *s) {
  const model_bisection *m = s->m;
  size_t best = m->n_nodes;
  model_part parts[PARTS_MOST];
  for (size_t i = 0; i < m->n_nodes; i++) {
    const model_node *n = &m->node[i];
    if (n->is_split || !(n->gone >= WORTH_SPLITTING) || !model_part_split(parts, &n->part, s->r->s)) continue;
    if (best == m->n_nodes || comes_first(n, &m->node[best])) best = i;
  }
  return best;
}

static int by_share(const void *a, const void *b) {
  const model_node *x = a, *y = b;
  if (x->gone != y->gone) return x->gone < y->gone ? 1 : -1;
  return strcmp(x->name, y->name);
}

// The steps that change any bit of a, as one part: the others have nothing to do with the difference.
static status add_changing_steps(search *s) {
  unsigned steps = 0;
  for (size_t i = 0; i < s->m->n_nodes; i++) {
    const model_node *n = &s->m->node[i];
    bool is_step = !(n->part.steps & (n->part.steps - 1));
    if (is_step && !n->to_a.same_bits) steps |= n->part.steps;
  }
  model_part changing = whole_model(s->r->s, steps);
  return steps ? add_node(s, &changing) : 0;
}

// The steps, all layers and all experts; what is halved from then on follows from them.
static status search_first(search *s) {
  model_part parts[PARTS_MOST], all = whole_model(s->r->s, STEPS_ALL),
                                layers = whole_model(s->r->s, STEPS_OF_LAYER),
                                experts = whole_model(s->r->s, STEPS_OF_EXPERTS);
  int n = model_part_split(parts, &all, s->r->s);
  for (int i = 0; i < n; i++) TRY(add_node(s, &parts[i]));
  if (!s->m->budget_spent) TRY(add_changing_steps(s));
  TRY(add_node(s, &layers));
  return add_node(s, &experts);
}

static status search_all(search *s) {
  model_bisection *m = s->m;
  TRY(search_first(s));
  size_t next = next_to_split(s);
  for (; next < m->n_nodes && m->passes < m->budget; next = next_to_split(s)) TRY(split(s, next));
  m->budget_spent = m->budget_spent || next < m->n_nodes;
  return 0;
}

status model_bisection_search(model_bisection *m, model_reference *kept, hybrid *h) {
  search s = {.m = m, .r = kept, .h = h};
  if (m->a_b.same_bits) return 0;
  s.shown = progress_start(job_is_reporting(kept->j), "bisect", "passes", m->budget);
  status result = search_all(&s);
  progress_end(&s.shown);
  if (m->n_nodes) qsort(m->node, m->n_nodes, sizeof *m->node, by_share);
  return result;
}

void model_bisection_close(model_bisection *m, model_reference *kept) {
  free(m->node);
  for (int i = 0; i < 2 && kept; i++) {
    free(kept->logits[i]);
    free(kept->experts[i]);
  }
  free(kept);
}
