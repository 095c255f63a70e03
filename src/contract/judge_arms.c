// What each arm keeps of its own: invariants, and the bits of its path.
#include "src/contract/judging.h"

// ---- invariants: what each arm of the report says of its own tensors ----

static status refuse_lack(const contract *c, const recorded_report *r, const char *what) {
  return REFUSE("%s asks for %s, which %s lacks", c->file, what, r->file);
}

static status judge_weights(verdict *v, const contract *c, const recorded_report *r, const json_t *own,
                            const char *arm) {
  static const metric_info METRIC = {"weight_sum_error", "weight_sum_error", 0, 0, INFINITY, false};
  if (isnan(c->invariants.weights_sum_to_1)) return 0;
  if (!json_object_get(own, METRIC.key)) return refuse_lack(c, r, METRIC.key);
  verdict_add_bound(v, VERDICT_INVARIANT, "weights_sum_to_1", arm, &METRIC, figure_of(own, METRIC.key),
                    c->invariants.weights_sum_to_1, true, NULL);
  return 0;
}

static status judge_ids(verdict *v, const contract *c, const recorded_report *r, const json_t *own,
                        const char *arm) {
  int64_t n = json_integer_value(json_object_get(json_object_get(r->tree, "model"), "n_experts"));
  double least = figure_of(own, "least_expert"), most = figure_of(own, "most_expert");
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
    char where[JUDGE_WHERE_BYTES];
    bool finite = json_is_true(json_object_get(pair, "finite"));
    snprintf(where, sizeof where, "%s - %s", json_string_value(json_object_get(pair, "a")),
             json_string_value(json_object_get(pair, "b")));
    verdict_add(v, VERDICT_INVARIANT, "finite", where, finite, "%s",
                finite ? "every metric" : "a metric is null: NaN or infinite");
  }
}

status judge_invariants(verdict *v, const contract *c, const recorded_report *r) {
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
  char own[17], where[JUDGE_WHERE_BYTES];
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
  char where[JUDGE_WHERE_BYTES];
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

status judge_exact(verdict *v, const contract *c, const recorded_report *r) {
  size_t before = v->n;
  if (c->same_path) judge_same_path(v, r);
  for (int p = 0; p < PATH_COUNT; p++) TRY(judge_recorded(v, c, r, (path_kind)p));
  if (!c->same_path || v->n > before) return 0;
  return REFUSE("%s: exact.same_path gates nothing here: %s has no two arms of one path", c->file, r->file);
}
