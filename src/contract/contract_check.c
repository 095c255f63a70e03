// What a contract must be as a whole: it gates something, and no two of its statements exclude each other.
#include "src/config/arm_choice.h"
#include "src/config/command_kind.h"
#include "src/config/parity_mode.h"
#include "src/contract/contract.h"
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const STATES[] = {
    [CONTRACT_DRAFT] = "draft",
    [CONTRACT_ACTIVE] = "active",
    [CONTRACT_DIVERGES] = "active_with_documented_divergence",
    [CONTRACT_RETIRED] = "retired",
};
enum { N_STATES = sizeof STATES / sizeof *STATES };

const char *contract_state_name(contract_state state) {
  return STATES[state];
}

// ---- texts ----

static bool is_digest(const char *text) {
  return strspn(text, "0123456789abcdef") == 16 && !text[16];
}

static status check_digest(const contract *c, const char *key, const char *text) {
  if (!text || is_digest(text)) return 0;
  return REFUSE("%s: %s: expected 16 hexadecimal digits, found \"%.40s\"", c->file, key, text);
}

static status check_arm(const contract *c, const char *where, const char *name) {
  arm_choice arm;
  if (arm_choice_parse(&arm, name, strlen(name)) == ARM_NAME_GOOD && arm.kind != ARM_AUTO) return 0;
  return REFUSE("%s: %s: expected path@backend or \"ranks\", found \"%.40s\"", c->file, where, name);
}

static bool has_text(const text_list *list, const char *text) {
  for (size_t i = 0; i < list->n; i++)
    if (!strcmp(list->text[i], text)) return true;
  return false;
}

// YYYY-MM-DD
static bool is_date(const char *text) {
  static const char FORM[] = "dddd-dd-dd";
  if (strlen(text) != sizeof FORM - 1) return false;
  for (size_t i = 0; i < sizeof FORM - 1; i++)
    if (FORM[i] == 'd' ? text[i] < '0' || text[i] > '9' : text[i] != FORM[i]) return false;
  int month = atoi(text + 5), day = atoi(text + 8);
  return month >= 1 && month <= 12 && day >= 1 && day <= 31;
}

// ---- head and scope ----

static status check_head(contract *c) {
  if (!c->name) return REFUSE("%s: name: expected a contract's name, found no such key", c->file);
  if (!c->version) return REFUSE("%s: version: expected an integer from 1, found no such key", c->file);
  if (!c->run)
    return REFUSE("%s: run: expected the command line that the contract is meant for, found no such key",
                  c->file);
  for (int s = 0; s < N_STATES && c->state_name; s++)
    if (!strcmp(STATES[s], c->state_name)) {
      c->state = (contract_state)s;
      return 0;
    }
  return REFUSE(
      "%s: status: expected draft, active, active_with_documented_divergence or retired, found %.60s",
      c->file, c->state_name ? c->state_name : "no such key");
}

static status check_state(const contract *c) {
  if (c->state == CONTRACT_DIVERGES && !c->n_divergences)
    return REFUSE("%s: status = \"%s\": expected a table [divergences.NAME], found none", c->file,
                  STATES[c->state]);
  if (c->state == CONTRACT_ACTIVE && c->n_divergences)
    return REFUSE("%s contradicts itself: status = \"active\", but [divergences.%s] documents a divergence",
                  c->file, c->divergences[0].name);
  if (c->state == CONTRACT_RETIRED && !c->refuted_by.n)
    return REFUSE("%s: status = \"retired\": expected refuted_by, the falsifiers that refuted it", c->file);
  if (c->state != CONTRACT_RETIRED && c->refuted_by.n)
    return REFUSE("%s contradicts itself: refuted_by is set, but status = \"%s\"", c->file, STATES[c->state]);
  return 0;
}

static status check_divergence(const contract *c, const contract_divergence *d) {
  if (!d->reason) return REFUSE("%s:%d: divergences.%s: expected a reason", c->file, d->line, d->name);
  if (!d->date || !is_date(d->date))
    return REFUSE("%s:%d: divergences.%s.date: expected YYYY-MM-DD, found %.40s", c->file, d->line, d->name,
                  d->date ? d->date : "no such key");
  return 0;
}

static status check_mode(const contract *c, const char *key, const char *name) {
  for (int m = 0; m < MODE_COUNT; m++)
    if (!strcmp(parity_mode_name((parity_mode)m), name)) return 0;
  return REFUSE("%s: %s: expected free, forced, teacher or local, found \"%.40s\"", c->file, key, name);
}

static status check_scope(const contract *c) {
  command_kind command;
  if (c->scope.command && !command_find(&command, c->scope.command))
    return REFUSE("%s: scope.command: \"%.40s\" is no command", c->file, c->scope.command);
  if (c->scope.kv && strcmp(c->scope.kv, "f16") && strcmp(c->scope.kv, "f32"))
    return REFUSE("%s: scope.kv: expected \"f16\" or \"f32\", found \"%.40s\"", c->file, c->scope.kv);
  if (c->scope.most_ranks < c->scope.least_ranks)
    return REFUSE("%s contradicts itself: scope.ranks = [%lld, %lld]: no number of ranks is in it", c->file,
                  (long long)c->scope.least_ranks, (long long)c->scope.most_ranks);
  for (size_t i = 0; i < c->scope.arms.n; i++) TRY(check_arm(c, "scope.arms", c->scope.arms.text[i]));
  for (size_t i = 0; i < c->scope.modes.n; i++) TRY(check_mode(c, "scope.modes", c->scope.modes.text[i]));
  TRY(check_digest(c, "scope.model", c->scope.model));
  TRY(check_digest(c, "scope.reference", c->scope.reference));
  return check_digest(c, "scope.input", c->scope.input);
}

// ---- gates ----

static status refuse_gate(const contract *c, const contract_gate *g, const char *key, const char *why) {
  return REFUSE("%s:%d: gates.%s.%s: %s", c->file, g->line, g->name, key, why);
}

static status find_metric(const contract *c, contract_gate *g) {
  if (!g->metric_name) return refuse_gate(c, g, "metric", "expected a metric, found no such key");
  g->metric = metric_find(g->metric_name);
  if (g->metric) return 0;
  if (!strcmp(g->metric_name, "max_rel"))
    return refuse_gate(c, g, "metric", "max_rel is an extreme value, which no bound rests on");
  return REFUSE("%s:%d: gates.%s.metric: unknown metric \"%.40s\": did you mean \"%s\"?", c->file, g->line,
                g->name, g->metric_name, metric_nearest(g->metric_name));
}

// at = "logits", "PROBE" in every layer, or "PROBE-LAYER"; l_out is a layer's residual stream.
static status find_place(const contract *c, contract_gate *g) {
  char name[64];
  g->layer = -1;
  g->place = METRIC_OF_LOGITS;
  if (!strcmp(g->at, "logits")) return 0;
  snprintf(name, sizeof name, "%s", g->at);
  char *dash = strrchr(name, '-'), *end = dash;
  if (dash) {
    g->layer = strtoll(dash + 1, &end, 10);
    if (end == dash + 1 || *end || g->layer < 0)
      return refuse_gate(c, g, "at", "expected PROBE-LAYER with a layer from 0");
    *dash = 0;
  }
  if (!probe_find(&g->probe, name) || probe_get(g->probe)->scope != PROBE_OF_LAYER)
    return REFUSE("%s:%d: gates.%s.at: expected \"logits\", a layer's probe (\"l_out\") or \"PROBE-LAYER\", "
                  "found \"%.40s\"",
                  c->file, g->line, g->name, g->at);
  g->place = strcmp(name, "l_out") ? METRIC_OF_PROBE : METRIC_OF_LAYER;
  return 0;
}

static status check_whose(const contract *c, contract_gate *g) {
  if (!g->pair.n == !g->arm)
    return refuse_gate(c, g, "pair", "expected a pair of arms, or an arm of a metric of one");
  if (g->arm) {
    if (g->at || g->mode) return refuse_gate(c, g, "at", "a metric of one arm has no place and no mode");
    g->place = METRIC_OF_ARM;
    return check_arm(c, "gates.arm", g->arm);
  }
  if (g->pair.n != 2 || !strcmp(g->pair.text[0], g->pair.text[1]))
    return refuse_gate(c, g, "pair", "expected two arms: a, and b that it is measured against");
  for (int i = 0; i < 2; i++) {
    TRY(check_arm(c, "gates.pair", g->pair.text[i]));
    if (c->scope.arms.n && !has_text(&c->scope.arms, g->pair.text[i]))
      return REFUSE("%s:%d contradicts itself: gates.%s.pair has %s, which scope.arms has not", c->file,
                    g->line, g->name, g->pair.text[i]);
  }
  if (!g->at) return refuse_gate(c, g, "at", "expected a place, \"l_out\" or \"logits\", found no such key");
  if (g->mode) TRY(check_mode(c, "gates.mode", g->mode));
  if (g->mode && c->scope.modes.n && !has_text(&c->scope.modes, g->mode))
    return REFUSE("%s:%d contradicts itself: gates.%s.mode is %.40s, which scope.modes has not", c->file,
                  g->line, g->name, g->mode);
  return find_place(c, g);
}

// A bound that every figure meets gates nothing; one that none can meet contradicts the metric.
static status check_bounds(const contract *c, const contract_gate *g) {
  const metric_info *m = g->metric;
  bool above = !isnan(g->at_most), below = !isnan(g->at_least);
  if (!above && !below) return refuse_gate(c, g, "at_most", "gates nothing: no at_most and no at_least");
  if (above && below && g->at_least > g->at_most)
    return REFUSE("%s:%d contradicts itself: gates.%s: at_least = %g is above at_most = %g", c->file, g->line,
                  g->name, g->at_least, g->at_most);
  if ((above && g->at_most < m->low) || (below && g->at_least > m->high))
    return REFUSE("%s:%d: gates.%s: no %s can meet the bound: it lies between %g and %g", c->file, g->line,
                  g->name, m->name, m->low, m->high);
  if ((above && isfinite(m->high) && g->at_most >= m->high) || (below && g->at_least <= m->low))
    return REFUSE("%s:%d: gates.%s gates nothing: every %s meets the bound: it lies between %g and %g",
                  c->file, g->line, g->name, m->name, m->low, m->high);
  return 0;
}

static status check_gate(const contract *c, contract_gate *g) {
  TRY(find_metric(c, g));
  TRY(check_whose(c, g));
  if (!(g->metric->places >> g->place & 1))
    return REFUSE("%s:%d: gates.%s: %s is no metric of %s", c->file, g->line, g->name, g->metric->name,
                  metric_place_name(g->place));
  return check_bounds(c, g);
}

// ---- two gates ----

static bool same_text(const char *a, const char *b) {
  return a && b ? !strcmp(a, b) : a == b;
}

static bool same_place(const contract_gate *x, const contract_gate *y) {
  if (strcmp(x->metric->key, y->metric->key) || x->place != y->place) return false;
  if (x->place == METRIC_OF_ARM) return !strcmp(x->arm, y->arm);
  if (strcmp(x->pair.text[0], y->pair.text[0]) || strcmp(x->pair.text[1], y->pair.text[1])) return false;
  const char *mode = x->mode ? x->mode : "free", *mode_too = y->mode ? y->mode : "free";
  if (!same_text(mode, mode_too)) return false;
  if (x->place == METRIC_OF_LOGITS) return true;
  return x->probe == y->probe && (x->layer == y->layer || x->layer < 0 || y->layer < 0);
}

// In terms of the report's key.
static double least_of(const contract_gate *g) {
  double bound = g->metric->from_one ? 1 - g->at_most : g->at_least;
  return isnan(bound) ? -(double)INFINITY : bound;
}

static double most_of(const contract_gate *g) {
  double bound = g->metric->from_one ? 1 - g->at_least : g->at_most;
  return isnan(bound) ? (double)INFINITY : bound;
}

static status check_two(const contract *c, const contract_gate *x, const contract_gate *y) {
  if (!same_place(x, y) || (least_of(x) <= most_of(y) && least_of(y) <= most_of(x))) return 0;
  return REFUSE("%s:%d contradicts itself: no figure meets both gates.%s and gates.%s", c->file, y->line,
                x->name, y->name);
}

// ---- recorded bits ----

static status check_exact(const contract *c, path_kind p, bool *any) {
  const contract_digest *d = &c->exact[p];
  const char *name = path_get(p)->name;
  if (!d->version && !d->digest && !d->layers.n) return 0;
  if (!d->version || !d->digest)
    return REFUSE("%s: exact.%s: expected both the path's version and the digest", c->file, name);
  if (!c->scope.model || !c->scope.input || !c->scope.kv)
    return REFUSE("%s: exact.%s.digest: a digest is of one model, input and cache: expected scope.model, "
                  "scope.input and scope.kv",
                  c->file, name);
  TRY(check_digest(c, "exact.digest", d->digest));
  for (size_t i = 0; i < d->layers.n; i++) TRY(check_digest(c, "exact.layers", d->layers.text[i]));
  *any = true;
  return 0;
}

status contract_check(contract *c) {
  bool any = c->same_path || c->n_gates || c->invariants.finite || c->invariants.ids_in_range ||
             c->invariants.no_zero_layer || !isnan(c->invariants.weights_sum_to_1) || c->files;
  TRY(check_head(c));
  TRY(check_state(c));
  TRY(check_scope(c));
  for (size_t i = 0; i < c->n_divergences; i++) TRY(check_divergence(c, &c->divergences[i]));
  for (size_t i = 0; i < c->n_gates; i++) {
    TRY(check_gate(c, &c->gates[i]));
    for (size_t k = 0; k < i; k++) TRY(check_two(c, &c->gates[k], &c->gates[i]));
  }
  for (int p = 0; p < PATH_COUNT; p++) TRY(check_exact(c, (path_kind)p, &any));
  return any ? 0 : REFUSE("%s gates nothing: no gate, no invariant, no digest", c->file);
}
