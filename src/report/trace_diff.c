#include "src/report/trace_diff.h"
#include "base/memory.h"
#include "src/report/trace_diff_report.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

// ---- which arms ----

// The law asks for the same bits. run.kv is part of every path but f64.
static bool same_path(const recorded_trace *t, const recorded_trace_arm *a, const recorded_trace *u,
                      const recorded_trace_arm *b) {
  if (!t->tree || !u->tree || t->fingerprint != u->fingerprint) return false;
  bool same_cache = (a->is_plain && a->path == PATH_F64) || !strcmp(t->kv, u->kv);
  return same_cache && a->is_plain == b->is_plain && (!a->is_plain || a->path == b->path) &&
         a->path_version == b->path_version && a->expert_paths == b->expert_paths;
}

static bool same_name(const recorded_trace_arm *a, const recorded_trace_arm *b) {
  return !strcmp(a->name, b->name);
}

typedef bool (*arms_match)(const recorded_trace *t, const recorded_trace_arm *a, const recorded_trace *u,
                           const recorded_trace_arm *b);

// Of another file of the same model's shape, arms of one name are the pairs to look at.
static bool named_alike(const recorded_trace *t, const recorded_trace_arm *a, const recorded_trace *u,
                        const recorded_trace_arm *b) {
  return t->tree && u->tree && same_name(a, b);
}

static bool the_only_ones(const recorded_trace *t, const recorded_trace_arm *a, const recorded_trace *u,
                          const recorded_trace_arm *b) {
  (void)a, (void)b;
  return t->n_arms == 1 && u->n_arms == 1;
}

static size_t add_pairs(trace_report *r, const recorded_trace_arm *a, arms_match match) {
  size_t before = r->n_pairs;
  for (size_t k = 0; k < r->b->n_arms; k++) {
    const recorded_trace_arm *b = &r->b->arms[k];
    if (match(r->a, a, r->b, b))
      r->pairs[r->n_pairs++] = (arm_pair){.a = a, .b = b, .by_bits = same_path(r->a, a, r->b, b)};
  }
  return r->n_pairs - before;
}

// For each arm those of its path; else that of its name (another version, cache or model file); else, of a
// folder or of an arm that was named, the one there is.
static status choose_pairs(trace_report *r) {
  static const arms_match RULES[] = {same_path, named_alike, the_only_ones};
  const recorded_trace *t = r->a, *u = r->b;
  TRY(TAKE(&r->pairs, t->n_arms * u->n_arms, "pairs of arms"));
  for (size_t i = 0; i < t->n_arms; i++)
    for (size_t rule = 0; rule < sizeof RULES / sizeof *RULES; rule++)
      if (add_pairs(r, &t->arms[i], RULES[rule])) break;
  if (r->n_pairs) return 0;
  return REFUSE(
      "%s and %s cannot be compared: no arm of one path or name in both, and more than one arm; name "
      "one as FOLDER/ARM",
      t->given, u->given);
}

// ---- the probes of a pair, in the order of computation ----

static status measure_at(arm_pair *p, const trace_comparison *c, probe_point point, int64_t layer) {
  trace_pair *m = &p->match;
  bool a = pair_has(m, 0, point, layer), b = pair_has(m, 1, point, layer);
  if (a != b) p->only_in[b]++;
  if (!a || !b) return 0;
  return trace_measure_probe(&p->probes[p->n_probes++], c, point, layer);
}

static status measure_scope(arm_pair *p, const trace_comparison *c, probe_scope scope, int64_t layer) {
  for (int point = 0; point < PROBE_COUNT; point++)
    if (probe_get((probe_point)point)->scope == scope) TRY(measure_at(p, c, (probe_point)point, layer));
  return 0;
}

static status measure_all(arm_pair *p, const trace_comparison *c) {
  TRY(measure_scope(p, c, PROBE_OF_BATCH, NO_LAYER));
  for (int64_t l = 0; l < p->match.n_layers; l++) {
    TRY(trace_pair_match_slots(&p->match, l));
    TRY(measure_scope(p, c, PROBE_OF_LAYER, l));
  }
  return measure_scope(p, c, PROBE_OF_HEAD, NO_LAYER);
}

static status compare_pair(trace_report *r, arm_pair *p) {
  TRY(trace_pair_open(&p->match, r->a, p->a, r->b, p->b));
  trace_comparison c = {.pair = &p->match, .by_bits = p->by_bits};
  TRY(TAKE(&p->probes, (size_t)((p->match.n_layers + 2) * PROBE_COUNT), "a trace's probes"));
  TRY(trace_find_rounding(&c));
  memcpy(p->rounding, c.rounding, sizeof p->rounding);
  TRY(measure_all(p, &c));
  if (!p->n_probes)
    return REFUSE("%s and %s cannot be compared: they have no probe of one name and layer", r->a->given,
                  r->b->given);
  p->first = trace_judge(p->probes, p->n_probes);
  return 0;
}

static void close_report(trace_report *r) {
  for (size_t i = 0; i < r->n_pairs; i++) {
    trace_pair_close(&r->pairs[i].match);
    free(r->pairs[i].probes);
  }
  free(r->pairs);
}

status trace_diff(bool *same, FILE *out, const recorded_trace *a, const recorded_trace *b, const char *dir) {
  trace_report r = {.a = a, .b = b};
  status result;
  TRY_DONE(result, choose_pairs(&r));
  for (size_t i = 0; i < r.n_pairs; i++) TRY_DONE(result, compare_pair(&r, &r.pairs[i]));
  *same = !trace_report_first(&r);
  if (dir) TRY_DONE(result, trace_report_write(&r, dir));
  trace_report_print(&r, out);
  result = 0;
done:
  close_report(&r);
  return result;
}
