// The gates: a figure of the report for each place that a gate names, against its bound.
#include "src/contract/judging.h"

// What stands before a place in the gate's mode.
static const char *mode_of(const contract_gate *g) {
  static const char *const BEFORE[MODE_COUNT] = {
      [MODE_FREE] = "", [MODE_FORCED] = "forced: ", [MODE_TEACHER] = "teacher: ", [MODE_LOCAL] = "local: "};
  int m = 0; // contract_check has refused other names
  while (g->mode && m < MODE_COUNT - 1 && strcmp(g->mode, parity_mode_name((parity_mode)m))) m++;
  return BEFORE[m];
}

static void add_figure(verdict *v, const contract_gate *g, const char *where, double x) {
  double own = g->metric->from_one ? 1 - x : x;
  if (!isnan(g->at_most))
    verdict_add_bound(v, VERDICT_GATE, g->name, where, g->metric, own, g->at_most, true, &g->falsifiers);
  if (!isnan(g->at_least))
    verdict_add_bound(v, VERDICT_GATE, g->name, where, g->metric, own, g->at_least, false, &g->falsifiers);
}

static status refuse_gate(const contract *c, const contract_gate *g, const recorded_report *r,
                          const char *what) {
  return REFUSE("%s:%d: gates.%s asks for %s, which %s lacks", c->file, g->line, g->name, what, r->file);
}

static status judge_value(verdict *v, const contract *c, const contract_gate *g, const recorded_report *r,
                          const json_t *of, const char *where) {
  if (!json_object_get(of, g->metric->key)) return refuse_gate(c, g, r, g->metric->name);
  double x = figure_of(of, g->metric->key);
  // without a flip there is no margin of one: null says that, not NaN
  if (!strcmp(g->metric->key, "flip_margin") && figure_of(of, "flipped_tokens") == 0) x = 0;
  add_figure(v, g, where, x);
  return 0;
}

static status judge_layers(verdict *v, const contract *c, const contract_gate *g, const recorded_report *r,
                           const json_t *pair) {
  const json_t *layers = json_object_get(pair, "layers");
  char where[JUDGE_WHERE_BYTES];
  size_t n = json_array_size(layers);
  if (g->layer >= (int64_t)n) return refuse_gate(c, g, r, g->at);
  for (size_t l = 0; l < n; l++) {
    if (g->layer >= 0 && g->layer != (int64_t)l) continue;
    snprintf(where, sizeof where, "%s - %s, %sl_out-%zu %s", g->pair.text[0], g->pair.text[1], mode_of(g), l,
             g->metric->name);
    TRY(judge_value(v, c, g, r, json_array_get(layers, l), where));
  }
  return 0;
}

static status judge_probes(verdict *v, const contract *c, const contract_gate *g, const recorded_report *r,
                           const json_t *pair) {
  const json_t *probes = json_object_get(pair, "probes");
  const char *name = probe_get(g->probe)->name;
  char where[JUDGE_WHERE_BYTES];
  size_t n = 0;
  for (size_t i = 0; i < json_array_size(probes); i++) {
    const json_t *probe = json_array_get(probes, i);
    int64_t layer = json_integer_value(json_object_get(probe, "layer"));
    if (strcmp(json_string_value(json_object_get(probe, "probe")), name)) continue;
    if (g->layer >= 0 && g->layer != layer) continue;
    snprintf(where, sizeof where, "%s - %s, %s%s-%" PRId64 " %s", g->pair.text[0], g->pair.text[1],
             mode_of(g), name, layer, g->metric->name);
    TRY(judge_value(v, c, g, r, probe, where));
    n++;
  }
  return n ? 0 : refuse_gate(c, g, r, g->at);
}

static status judge_arm(verdict *v, const contract *c, const contract_gate *g, const recorded_report *r) {
  const json_t *arms = json_object_get(r->tree, "arms");
  char where[JUDGE_WHERE_BYTES];
  for (size_t i = 0; i < r->n_arms; i++)
    if (!strcmp(r->arms[i].name, g->arm)) {
      snprintf(where, sizeof where, "%s, %s", g->arm, g->metric->name);
      return judge_value(v, c, g, r, json_array_get(arms, i), where);
    }
  return refuse_gate(c, g, r, g->arm);
}

// The pair of the gate's mode; NULL: the report has none.
static const json_t *find_pair(const recorded_report *r, const contract_gate *g) {
  const json_t *run = r->tree;
  if (g->mode && strcmp(g->mode, "free")) run = json_object_get(json_object_get(run, "modes"), g->mode);
  const json_t *pairs = json_object_get(run, "pairs");
  for (size_t i = 0; i < json_array_size(pairs); i++) {
    const json_t *pair = json_array_get(pairs, i);
    if (!strcmp(json_string_value(json_object_get(pair, "a")), g->pair.text[0]) &&
        !strcmp(json_string_value(json_object_get(pair, "b")), g->pair.text[1]))
      return pair;
  }
  return NULL;
}

status judge_gate(verdict *v, const contract *c, const contract_gate *g, const recorded_report *r) {
  char where[JUDGE_WHERE_BYTES];
  if (g->place == METRIC_OF_ARM) return judge_arm(v, c, g, r);
  const json_t *pair = find_pair(r, g);
  snprintf(where, sizeof where, "%s - %s%s%s", g->pair.text[0], g->pair.text[1], g->mode ? " in mode " : "",
           g->mode ? g->mode : "");
  if (!pair) return refuse_gate(c, g, r, where);
  switch (g->place) {
  case METRIC_OF_LAYER:
    return judge_layers(v, c, g, r, pair);
  case METRIC_OF_PROBE:
    return judge_probes(v, c, g, r, pair);
  case METRIC_OF_LOGITS:
    snprintf(where, sizeof where, "%s - %s, %slogits %s", g->pair.text[0], g->pair.text[1], mode_of(g),
             g->metric->name);
    return judge_value(v, c, g, r, json_object_get(pair, "logits"), where);
  case METRIC_OF_ARM:
    return judge_arm(v, c, g, r);
  }
  __builtin_unreachable();
}
