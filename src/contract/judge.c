#include "src/contract/judge.h"
#include "base/memory.h"
#include "src/contract/report_check.h"
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { WHERE_BYTES = 112 };

// ---- scope ----

static status refuse_scope(const contract *c, const recorded_report *r, const char *key, const char *wanted,
                           const char *found) {
  return REFUSE("%s: scope.%s is %.60s, but %s has %.60s: this contract is not for this report", c->file, key,
                wanted, r->file, found);
}

static status check_text(const contract *c, const recorded_report *r, const char *key, const char *wanted,
                         const char *found) {
  return !wanted || !strcmp(wanted, found) ? 0 : refuse_scope(c, r, key, wanted, found);
}

static status check_digest(const contract *c, const recorded_report *r, const char *key, const char *wanted,
                           uint64_t found) {
  char text[17];
  snprintf(text, sizeof text, "%016" PRIx64, found);
  return check_text(c, r, key, wanted, text);
}

static status check_count(const contract *c, const recorded_report *r, const char *key, int64_t wanted) {
  char one[24], other[24];
  int64_t found = json_integer_value(json_object_get(json_object_get(r->tree, "model"), key));
  if (!wanted || wanted == found) return 0;
  snprintf(one, sizeof one, "%" PRId64, wanted);
  snprintf(other, sizeof other, "%" PRId64, found);
  return refuse_scope(c, r, key, one, other);
}

static const recorded_arm *find_arm(const recorded_report *r, const char *name) {
  for (size_t i = 0; i < r->n_arms; i++)
    if (!strcmp(r->arms[i].name, name)) return &r->arms[i];
  return NULL;
}

// The fingerprint of the model that others are measured against: parity.reference, or else the report's own.
static const char *reference_of(const recorded_report *r, char own[17]) {
  const json_t *reference = json_object_get(json_object_get(r->tree, "run"), "reference");
  const char *text = json_string_value(json_object_get(reference, "fingerprint"));
  snprintf(own, 17, "%016" PRIx64, r->fingerprint);
  return text ? text : own;
}

static status check_scope(const contract *c, const recorded_report *r) {
  char own[17];
  const char *architecture =
      json_string_value(json_object_get(json_object_get(r->tree, "model"), "architecture"));
  TRY(check_text(c, r, "command", c->scope.command, command_name(r->command)));
  TRY(check_digest(c, r, "model", c->scope.model, r->fingerprint));
  TRY(check_text(c, r, "reference", c->scope.reference, reference_of(r, own)));
  TRY(check_digest(c, r, "input", c->scope.input, r->input));
  TRY(check_text(c, r, "kv", c->scope.kv, r->kv));
  TRY(check_text(c, r, "architecture", c->scope.architecture, architecture ? architecture : "none"));
  TRY(check_count(c, r, "n_layers", c->scope.n_layers));
  TRY(check_count(c, r, "hidden", c->scope.hidden));
  TRY(check_count(c, r, "n_experts", c->scope.n_experts));
  TRY(check_count(c, r, "top_k", c->scope.top_k));
  TRY(check_count(c, r, "vocabulary", c->scope.vocabulary));
  for (size_t i = 0; i < c->scope.arms.n; i++)
    if (!find_arm(r, c->scope.arms.text[i]))
      return refuse_scope(c, r, "arms", c->scope.arms.text[i], "no such arm");
  for (size_t i = 0; i < c->scope.modes.n; i++) {
    const char *mode = c->scope.modes.text[i];
    if (strcmp(mode, "free") && !json_object_get(json_object_get(r->tree, "modes"), mode))
      return refuse_scope(c, r, "modes", mode, "no such mode");
  }
  int64_t n = (int64_t)r->n_ranks;
  if (c->scope.most_ranks && (n < c->scope.least_ranks || n > c->scope.most_ranks))
    return REFUSE("%s: scope.ranks is %" PRId64 " to %" PRId64
                  ", but %s ran on %zu: this contract is not for this report",
                  c->file, c->scope.least_ranks, c->scope.most_ranks, r->file, r->n_ranks);
  return 0;
}

// ---- invariants: what each arm of the report says of its own tensors ----

static status refuse_lack(const contract *c, const recorded_report *r, const char *what) {
  return REFUSE("%s asks for %s, which %s lacks", c->file, what, r->file);
}

static double figure(const json_t *object, const char *key) {
  const json_t *x = json_object_get(object, key);
  return json_is_number(x) ? json_number_value(x) : (double)NAN;
}

static status judge_weights(verdict *v, const contract *c, const recorded_report *r, const json_t *own,
                            const char *arm) {
  static const metric_info METRIC = {"weight_sum_error", "weight_sum_error", 0, 0, INFINITY, false};
  if (isnan(c->invariants.weights_sum_to_1)) return 0;
  if (!json_object_get(own, METRIC.key)) return refuse_lack(c, r, METRIC.key);
  verdict_add_bound(v, VERDICT_INVARIANT, "weights_sum_to_1", arm, &METRIC, figure(own, METRIC.key),
                    c->invariants.weights_sum_to_1, true, NULL);
  return 0;
}

static status judge_ids(verdict *v, const contract *c, const recorded_report *r, const json_t *own,
                        const char *arm) {
  int64_t n = json_integer_value(json_object_get(json_object_get(r->tree, "model"), "n_experts"));
  double least = figure(own, "least_expert"), most = figure(own, "most_expert");
  const json_t *distinct = json_object_get(own, "distinct_experts");
  if (!c->invariants.ids_in_range) return 0;
  if (!json_object_get(own, "least_expert") || !distinct) return refuse_lack(c, r, "least_expert");
  bool holds = least >= 0 && least <= most && most < (double)n && json_is_true(distinct);
  verdict_add(v, VERDICT_INVARIANT, "ids_in_range", arm, holds,
              "experts %.0f to %.0f of 0 to %" PRId64 ", a token's %s", least, most, n - 1,
              json_is_true(distinct) ? "all distinct" : "NOT all distinct");
  return 0;
}

static status judge_zero(verdict *v, const contract *c, const recorded_report *r, const json_t *own,
                         const char *arm) {
  const json_t *updates = json_object_get(own, "layer_update"), *streams = json_object_get(own, "layer_rms");
  if (!c->invariants.no_zero_layer) return 0;
  if (!json_is_array(updates) || !json_is_array(streams)) return refuse_lack(c, r, "layer_update");
  bool whole =
      (int64_t)json_array_size(updates) == r->n_layers && (int64_t)json_array_size(streams) == r->n_layers;
  if (!whole) verdict_add(v, VERDICT_INVARIANT, "no_zero_layer", arm, false, "not one number for each layer");
  for (size_t l = 0; l < json_array_size(updates) && whole; l++) {
    double update = json_number_value(json_array_get(updates, l)),
           stream = json_number_value(json_array_get(streams, l));
    whole = update > 0 && stream > 0;
    if (!whole)
      verdict_add(
          v, VERDICT_INVARIANT, "no_zero_layer", arm, false,
          "layer %zu: at some position the smallest rms of the stream is %.3g, of what the layer adds %.3g",
          l, stream, update);
  }
  if (whole)
    verdict_add(v, VERDICT_INVARIANT, "no_zero_layer", arm, true,
                "%" PRId64 " layers, each adds something at every position", r->n_layers);
  return 0;
}

static status judge_finite(verdict *v, const contract *c, const recorded_report *r, const json_t *own,
                           const char *arm) {
  const json_t *finite = json_object_get(own, "finite");
  if (!c->invariants.finite) return 0;
  if (!finite) return refuse_lack(c, r, "finite of an arm");
  verdict_add(v, VERDICT_INVARIANT, "finite", arm, json_is_true(finite), "%s",
              json_is_true(finite) ? "stream, weights and logits"
                                   : "a NaN or infinity in stream, weights or logits");
  return 0;
}

static void judge_finite_pairs(verdict *v, const contract *c, const recorded_report *r) {
  const json_t *pairs = json_object_get(r->tree, "pairs");
  for (size_t i = 0; i < json_array_size(pairs) && c->invariants.finite; i++) {
    const json_t *pair = json_array_get(pairs, i);
    char where[WHERE_BYTES];
    bool finite = json_is_true(json_object_get(pair, "finite"));
    snprintf(where, sizeof where, "%s - %s", json_string_value(json_object_get(pair, "a")),
             json_string_value(json_object_get(pair, "b")));
    verdict_add(v, VERDICT_INVARIANT, "finite", where, finite, "%s",
                finite ? "every metric" : "a metric is null: NaN or infinite");
  }
}

static status judge_invariants(verdict *v, const contract *c, const recorded_report *r) {
  const json_t *arms = json_object_get(r->tree, "arms");
  for (size_t i = 0; i < r->n_arms; i++) {
    const json_t *own = json_object_get(json_array_get(arms, i), "invariants");
    const char *name = r->arms[i].name;
    TRY(judge_finite(v, c, r, own, name));
    TRY(judge_weights(v, c, r, own, name));
    TRY(judge_ids(v, c, r, own, name));
    TRY(judge_zero(v, c, r, own, name));
  }
  judge_finite_pairs(v, c, r);
  return 0;
}

// ---- bits ----

static void judge_arm_digest(verdict *v, const contract_digest *d, const recorded_report *r,
                             const recorded_arm *a) {
  char own[17], where[WHERE_BYTES];
  snprintf(own, sizeof own, "%016" PRIx64, a->digest);
  snprintf(where, sizeof where, "%s, logits", a->name);
  bool same = !strcmp(own, d->digest);
  verdict_add(v, VERDICT_EXACT, "recorded digest", where, same, "%s%s%s", own, same ? "" : ", recorded is ",
              same ? "" : d->digest);
  int64_t n = d->layers.n ? (int64_t)d->layers.n : 0, l = 0;
  if (!n) return;
  for (; l < n && l < r->n_layers; l++) {
    snprintf(own, sizeof own, "%016" PRIx64, a->layer_digests[l]);
    if (strcmp(own, d->layers.text[l])) break;
  }
  snprintf(where, sizeof where, "%s, layers", a->name);
  if (l == n && n == r->n_layers)
    verdict_add(v, VERDICT_EXACT, "recorded digest", where, true, "all %" PRId64, n);
  else
    verdict_add(v, VERDICT_EXACT, "recorded digest", where, false, "differ from layer %" PRId64 " on", l);
}

static status judge_recorded(verdict *v, const contract *c, const recorded_report *r, path_kind p) {
  const contract_digest *d = &c->exact[p];
  size_t n = 0;
  if (!d->digest) return 0;
  for (size_t i = 0; i < r->n_arms; i++) {
    const recorded_arm *a = &r->arms[i];
    if (a->path_kind != p || !strcmp(a->name, "ranks"))
      continue; // a mixed arm's experts may be on other paths
    if (a->path_version != d->version)
      return REFUSE("%s: exact.%s.version is %" PRId64 ", but %s of %s has version %" PRId64
                    ": digests compare within one version only",
                    c->file, path_get(p)->name, d->version, a->name, r->file, a->path_version);
    judge_arm_digest(v, d, r, a);
    n++;
  }
  return n ? 0 : REFUSE("%s: exact.%s: %s has no arm of this path", c->file, path_get(p)->name, r->file);
}

static bool same_bits(const recorded_report *r, const recorded_arm *x, const recorded_arm *y) {
  bool same = x->digest == y->digest;
  for (int64_t l = 0; l < r->n_layers; l++) same = same && x->layer_digests[l] == y->layer_digests[l];
  for (size_t s = 0; s < x->n_sequences; s++) same = same && x->sequences[s].digest == y->sequences[s].digest;
  return same;
}

static size_t judge_same_path(verdict *v, const recorded_report *r) {
  char where[WHERE_BYTES];
  size_t n = 0;
  for (size_t i = 0; i < r->n_arms; i++)
    for (size_t k = i + 1; k < r->n_arms; k++) {
      const recorded_arm *x = &r->arms[i], *y = &r->arms[k];
      if (x->path_kind != y->path_kind || x->path_version != y->path_version ||
          x->expert_paths != y->expert_paths)
        continue;
      bool same = same_bits(r, x, y);
      snprintf(where, sizeof where, "%s, %s", x->name, y->name);
      verdict_add(v, VERDICT_EXACT, "same path, same bits", where, same, "%s",
                  same ? "all layers and the logits" : "digests of one path differ");
      n++;
    }
  return n;
}

static status judge_exact(verdict *v, const contract *c, const recorded_report *r) {
  size_t before = v->n;
  if (c->same_path) judge_same_path(v, r);
  for (int p = 0; p < PATH_COUNT; p++) TRY(judge_recorded(v, c, r, (path_kind)p));
  if (!c->same_path || v->n > before) return 0;
  return REFUSE("%s: exact.same_path gates nothing here: %s has no two arms of one path", c->file, r->file);
}

// ---- gates ----

// "teacher: " before a place in that mode.
static const char *mode_of(const contract_gate *g) {
  if (!g->mode || !strcmp(g->mode, "free")) return "";
  return !strcmp(g->mode, "teacher") ? "teacher: " : "forced: ";
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
  double x = figure(of, g->metric->key);
  // without a flip there is no margin of one: null says that, not NaN
  if (!strcmp(g->metric->key, "flip_margin") && figure(of, "flipped_tokens") == 0) x = 0;
  add_figure(v, g, where, x);
  return 0;
}

static status judge_layers(verdict *v, const contract *c, const contract_gate *g, const recorded_report *r,
                           const json_t *pair) {
  const json_t *layers = json_object_get(pair, "layers");
  char where[WHERE_BYTES];
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
  char where[WHERE_BYTES];
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
  char where[WHERE_BYTES];
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

static status judge_gate(verdict *v, const contract *c, const contract_gate *g, const recorded_report *r) {
  char where[WHERE_BYTES];
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

// ---- the whole ----

static status refuse_retired(const contract *c) {
  char ids[64] = "";
  for (size_t i = 0; i < c->refuted_by.n; i++)
    snprintf(ids + strlen(ids), sizeof ids - strlen(ids), "%s%03d", i ? ", " : "", c->refuted_by.id[i]);
  return REFUSE("%s: %s is retired, refuted by %s: it gates nothing", c->file, c->name, ids);
}

status judge_report(verdict *out, const contract *c, const recorded_report *r, const char *dir) {
  verdict *v = out;
  *v = (verdict){.line = NULL};
  if (c->state == CONTRACT_RETIRED) return refuse_retired(c);
  TRY(check_scope(c, r));
  if (c->files && !dir) return REFUSE("%s: structure.files: expected a report in a folder (--out)", c->file);
  report_check(v, r);
  if (c->files && !v->failed) report_check_files(v, r, dir);
  if (v->failed || v->out_of_memory) return v->out_of_memory;
  TRY(judge_invariants(v, c, r));
  TRY(judge_exact(v, c, r));
  for (size_t i = 0; i < c->n_gates; i++) TRY(judge_gate(v, c, &c->gates[i], r));
  return v->out_of_memory;
}

// ---- files ----

static status finish(const verdict *v, const contract *c, const verdict_report *r, const char *out) {
  verdict_print(stdout, v, c, r);
  if (fflush(stdout)) return FAIL("standard output: the verdict could not be written: %m");
  if (out) TRY(verdict_write(v, c, r, out));
  return v->failed ? STATUS_DIFFERS : 0;
}

static status judge_recorded_report(const contract *c, const recorded_report *r, const char *dir,
                                    const char *out) {
  verdict v;
  const verdict_report head = {r->file, command_name(r->command), r->fingerprint, r->input, r->n_ranks};
  status result = judge_report(&v, c, r, dir);
  if (!result) result = finish(&v, c, &head, out);
  verdict_close(&v);
  return result;
}

// It is JSON and has our schema's number: so it is a report, and what is wrong with it was done to it.
static bool is_a_report(const char *path) {
  json_t *tree = json_load_file(path, 0, NULL);
  bool is = json_integer_value(json_object_get(tree, "schema")) == REPORT_SCHEMA;
  json_decref(tree);
  return is;
}

// What the reader refuses in a report is a finding like the others, in its own words.
static status judge_unreadable(const contract *c, const char *path, const char *out) {
  verdict v = {.line = NULL};
  const verdict_report head = {.path = path, .command = "no complete report"};
  if (c->state == CONTRACT_RETIRED) return STATUS_REFUSED;
  verdict_add(&v, VERDICT_STRUCTURE, "structure", "report.json", false, "%s", status_text());
  status_reset();
  status result = v.out_of_memory ? v.out_of_memory : finish(&v, c, &head, out);
  verdict_close(&v);
  return result;
}

status judge_files(const char *contract_path, const char *path, const char *out) {
  contract c;
  recorded_report r;
  char file[4096], dir[4096];
  struct stat s;
  bool is_dir = !stat(path, &s) && S_ISDIR(s.st_mode);
  snprintf(file, sizeof file, "%s%s", path, is_dir ? "/report.json" : "");
  snprintf(dir, sizeof dir, "%s", file);
  char *slash = strrchr(dir, '/');
  if (slash)
    *slash = 0;
  else
    strcpy(dir, ".");
  TRY(contract_read(&c, contract_path));
  status result = report_read(&r, path);
  if (!result) {
    result = judge_recorded_report(&c, &r, dir, out);
    report_read_close(&r);
  } else if (result == STATUS_REFUSED && is_a_report(file))
    result = judge_unreadable(&c, file, out);
  contract_close(&c);
  return result;
}

status judge_text(const char *contract_path, const char *text, size_t length, const char *dir,
                  const char *out) {
  contract c;
  recorded_report r;
  TRY(contract_read(&c, contract_path));
  status result = report_read_text(&r, "the report of this run", text, length);
  if (!result) {
    result = judge_recorded_report(&c, &r, *dir ? dir : NULL, out);
    report_read_close(&r);
  }
  contract_close(&c);
  return result;
}
