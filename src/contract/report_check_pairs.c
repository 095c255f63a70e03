// Pairs of arms, of the free run and of the other modes: their metrics, layers and probes.
#include "kernels/backend.h"
#include "src/contract/checking.h"
#include <inttypes.h>
#include <string.h>

// ---- metrics over positions ----

typedef struct {
  const char *key;
  double high; // no figure lies above it
} spread_row;

static const spread_row OF_LAYER[] = {{"rel_l2", INFINITY},
                                      {"one_minus_cos", 2 + 1e-12},
                                      {"max_abs", INFINITY},
                                      {"max_rel", 2 + 1e-12},
                                      {"max_ulp", INFINITY}};
static const spread_row KL = {"kl", INFINITY};
static const spread_row OF_PROBE[] = {
    {"rel_l2", INFINITY}, {"one_minus_cos", 2 + 1e-12}, {"max_abs", INFINITY}};

static void check_spread(checking *c, const json_t *of, const spread_row *row, const char *where) {
  const json_t *s = json_object_get(json_object_get(of, "spread"), row->key);
  const char *key = row->key;
  double own = check_number(c, of, key, where);
  EXPECT(c, json_is_object(s), where, "spread.%s: expected an object", key);
  if (!json_is_object(s)) return;
  double min = check_number(c, s, "min", where), median = check_number(c, s, "median", where),
         max = check_number(c, s, "max", where);
  int64_t worst = check_integer(c, s, "worst", where), n = check_positions(c->r);
  EXPECT(c, same_number(own, max), where, "%s = %.17g, but its spread's max is %.17g", key, own, max);
  EXPECT(c, worst >= 0 && worst < n, where,
         "spread.%s.worst = %" PRId64 ", but the positions are 0 to %" PRId64, key, worst, n - 1);
  EXPECT(c, isnan(min) == isnan(max) && isnan(median) == isnan(max), where,
         "spread.%s: min, median and max are null together or not at all", key);
  if (isnan(min) || isnan(median) || isnan(max)) return;
  EXPECT(c, min <= median && median <= max, where,
         "spread.%s: expected min <= median <= max, found %.9g, %.9g, %.9g", key, min, median, max);
  EXPECT(c, min >= 0 && max <= row->high, where, "spread.%s: %.9g to %.9g lies outside of the metric's range",
         key, min, max);
}

// A vector that is off by r in rel_l2 is at an angle of at most asin(r): a larger angle contradicts it.
static void check_angle(checking *c, const json_t *of, const char *where) {
  if (!json_is_number(json_object_get(of, "rel_l2"))) return; // NaN, which check_finite looks at
  double r = json_number_value(json_object_get(of, "rel_l2"));
  double angle = json_number_value(json_object_get(of, "one_minus_cos"));
  double most = r < 1 ? r * r / (1 + sqrt(1 - r * r)) : 2;
  EXPECT(c, angle <= most * (1 + 1e-6) + 1e-15, where,
         "one_minus_cos = %.9g, but vectors with rel_l2 up to %.9g have at most %.9g", angle, r, most);
}

static void check_vectors(checking *c, const json_t *of, const char *where) {
  for (size_t i = 0; i < sizeof OF_LAYER / sizeof *OF_LAYER; i++) check_spread(c, of, &OF_LAYER[i], where);
  check_angle(c, of, where);
  bool equal = json_number_value(json_object_get(of, "max_abs")) == 0 &&
               json_is_number(json_object_get(of, "max_abs"));
  bool zero =
      json_number_value(json_object_get(of, "rel_l2")) == 0 && json_is_number(json_object_get(of, "rel_l2"));
  EXPECT(c, equal == zero, where, "max_abs and rel_l2: one is 0 and the other is not");
}

// ---- a layer ----

static void check_flips(checking *c, const json_t *layer, const char *where) {
  int64_t n = check_positions(c->r);
  int64_t top_k = json_integer_value(json_object_get(json_object_get(root_of(c->r), "model"), "top_k"));
  int64_t flips = check_integer(c, layer, "router_flips", where),
          tokens = check_integer(c, layer, "flipped_tokens", where);
  double at_flip = check_number(c, layer, "flip_margin", where),
         least = check_number(c, layer, "min_margin", where);
  EXPECT(c, tokens >= 0 && tokens <= n, where, "flipped_tokens = %" PRId64 " of %" PRId64 " positions",
         tokens, n);
  EXPECT(c, flips >= tokens && flips <= tokens * top_k, where,
         "router_flips = %" PRId64 ", but %" PRId64 " flipped tokens have %" PRId64 " to %" PRId64, flips,
         tokens, tokens, tokens * top_k);
  EXPECT(c, isnan(at_flip) == (tokens == 0), where, "flip_margin is %s, but flipped_tokens = %" PRId64,
         isnan(at_flip) ? "null" : "a number", tokens);
  EXPECT(c, isnan(least) || (least >= 0 && least <= 1), where, "min_margin = %.9g lies outside of 0 to 1",
         least);
  EXPECT(c, isnan(at_flip) || isnan(least) || at_flip >= least, where,
         "flip_margin = %.9g is below the smallest margin, %.9g", at_flip, least);
}

static void check_layers(checking *c, const json_t *pair, const char *of) {
  const json_t *list = json_object_get(pair, "layers");
  char where[CHECK_WHERE_BYTES];
  EXPECT(c, (int64_t)json_array_size(list) == c->r->n_layers, of,
         "layers: expected one for each of the model's %" PRId64 ", found %zu", c->r->n_layers,
         json_array_size(list));
  for (size_t i = 0; i < json_array_size(list); i++) {
    const json_t *layer = json_array_get(list, i);
    snprintf(where, sizeof where, "%.60s.layers[%zu]", of, i);
    int64_t number = check_integer(c, layer, "layer", where);
    EXPECT(c, number == (int64_t)i, where, "layer = %" PRId64 ": a layer is missing, or stands elsewhere",
           number);
    check_vectors(c, layer, where);
    check_flips(c, layer, where);
  }
}

// ---- probes inside a layer ----

static void check_probe(checking *c, const json_t *probe, int64_t layer, const char *where) {
  int64_t number = check_integer(c, probe, "layer", where), n = check_integer(c, probe, "positions", where);
  probe_point point;
  const char *name = check_text(c, probe, "probe", where);
  EXPECT(c, probe_find(&point, name), where, "probe = \"%.24s\" is none", name);
  EXPECT(c, number == layer, where,
         "layer = %" PRId64 ", expected %" PRId64 ": a layer is missing, or stands elsewhere", number, layer);
  EXPECT(c, n >= 0 && n <= check_positions(c->r), where, "positions = %" PRId64 " of %" PRId64, n,
         check_positions(c->r));
  for (size_t i = 0; i < sizeof OF_PROBE / sizeof *OF_PROBE; i++) check_spread(c, probe, &OF_PROBE[i], where);
  check_angle(c, probe, where);
}

// As many for each layer, in ascending order of layers.
static void check_probes(checking *c, const json_t *pair, const char *of) {
  const json_t *list = json_object_get(pair, "probes");
  size_t n = json_array_size(list), layers = (size_t)c->r->n_layers;
  char where[CHECK_WHERE_BYTES];
  EXPECT(c, json_is_array(list) && n % layers == 0, of,
         "probes: expected as many for each of %zu layers, found %zu in all", layers, n);
  for (size_t i = 0; i < n && n % layers == 0; i++) {
    snprintf(where, sizeof where, "%.60s.probes[%zu]", of, i);
    check_probe(c, json_array_get(list, i), (int64_t)(i / (n / layers)), where);
  }
}

// ---- a pair ----

// The distribution of KL is over the same positions as its spread.
static void check_distribution(checking *c, const json_t *logits, const char *where) {
  static const char *const ASCENDING[] = {"min", "p0_1", "p1", "p5", "median", "p95", "p99", "p99_9", "max"};
  const json_t *d = json_object_get(json_object_get(logits, "distribution"), "kl"),
               *s = json_object_get(json_object_get(logits, "spread"), "kl");
  double before = -(double)INFINITY, max = check_number(c, s, "max", where);
  int64_t n = check_integer(c, d, "n", where);
  EXPECT(c, n == check_positions(c->r), where,
         "distribution.kl.n = %" PRId64 ", but there are %" PRId64 " positions", n, check_positions(c->r));
  for (size_t i = 0; i < sizeof ASCENDING / sizeof *ASCENDING; i++) {
    double x = check_number(c, d, ASCENDING[i], where);
    EXPECT(c, isnan(x) || x >= before, where,
           "distribution.kl.%s = %.9g is below the percentile before it, %.9g", ASCENDING[i], x, before);
    before = isnan(x) ? before : x;
  }
  EXPECT(c, isnan(max) || before == max, where, "distribution.kl.max = %.17g, but the spread's is %.17g",
         before, max);
}

static const recorded_arm *find_arm(const recorded_report *r, const char *name) {
  for (size_t i = 0; i < r->n_arms; i++)
    if (!strcmp(r->arms[i].name, name)) return &r->arms[i];
  return NULL;
}

static bool has_null_metric(const json_t *of) {
  for (size_t i = 0; i < sizeof OF_LAYER / sizeof *OF_LAYER; i++)
    if (json_is_null(json_object_get(of, OF_LAYER[i].key))) return true;
  return false;
}

// The flag is true where no metric is null.
static void check_finite(checking *c, const json_t *pair, const char *where) {
  const json_t *flag = json_object_get(pair, "finite"), *layers = json_object_get(pair, "layers");
  bool null = has_null_metric(json_object_get(pair, "logits"));
  for (size_t i = 0; i < json_array_size(layers); i++)
    null = null || has_null_metric(json_array_get(layers, i));
  EXPECT(c, json_is_boolean(flag), where, "finite: expected true or false");
  EXPECT(c, json_is_true(flag) == !null, where, "finite is %s, but %s metric is null",
         json_is_true(flag) ? "true" : "false", null ? "a" : "no");
}

static double perplexity_of(const recorded_report *r, const char *name) {
  const json_t *arms = json_object_get(root_of(r), "arms");
  for (size_t i = 0; i < json_array_size(arms); i++) {
    const json_t *arm = json_array_get(arms, i);
    const json_t *x = json_object_get(arm, "perplexity");
    if (!strcmp(json_string_value(json_object_get(arm, "name")), name))
      return json_is_number(x) ? json_number_value(x) : (double)NAN;
  }
  return (double)NAN;
}

static void check_perplexity(checking *c, const json_t *logits, const char *a, const char *b,
                             const char *where) {
  double delta = json_number_value(json_object_get(logits, "perplexity_delta"));
  double pa = perplexity_of(c->r, a), pb = perplexity_of(c->r, b);
  bool known = json_is_number(json_object_get(logits, "perplexity_delta")) && !isnan(pa) && !isnan(pb);
  EXPECT(c, !known || fabs(delta - (pa - pb)) <= 1e-9 * (fabs(pa) + fabs(pb)), where,
         "perplexity_delta = %.9g, but the arms' perplexities differ by %.9g", delta, pa - pb);
}

static void check_logits(checking *c, const json_t *pair, const char *of) {
  const json_t *logits = json_object_get(pair, "logits");
  char where[CHECK_WHERE_BYTES];
  snprintf(where, sizeof where, "%.60s.logits", of);
  check_vectors(c, logits, where);
  check_spread(c, logits, &KL, where);
  check_distribution(c, logits, where);
  double share = check_number(c, logits, "top1_agreement", where), n = (double)check_positions(c->r);
  EXPECT(c, isnan(share) || (share >= 0 && share <= 1), where, "top1_agreement = %.9g lies outside of 0 to 1",
         share);
  EXPECT(c, isnan(share) || fabs(share * n - round(share * n)) < 1e-6, where,
         "top1_agreement = %.9g is no share of %.0f positions", share, n);
  check_number(c, logits, "perplexity_delta", where);
}

// In the free run. Arms of one path have the same numbers, so where their digests are equal nothing can be
// off.
static void check_equal_arms(checking *c, const json_t *pair, const recorded_arm *a, const recorded_arm *b,
                             const char *where) {
  if (a->path_kind != b->path_kind || a->expert_paths != b->expert_paths || a->digest != b->digest) return;
  double off = json_number_value(json_object_get(json_object_get(pair, "logits"), "max_abs"));
  EXPECT(c, off == 0, where, "logits.max_abs = %.9g between arms whose digests are equal", off);
}

// is_free: of the free run, whose digests and perplexities are those of the arms.
static void check_pair(checking *c, const json_t *pair, bool is_free, const char *where) {
  const char *a = check_text(c, pair, "a", where), *b = check_text(c, pair, "b", where);
  const recorded_arm *x = find_arm(c->r, a), *y = find_arm(c->r, b);
  EXPECT(c, x && y && x != y, where, "a = \"%.24s\", b = \"%.24s\": expected two arms of the report", a, b);
  if (!x || !y || x == y) return;
  check_logits(c, pair, where);
  check_layers(c, pair, where);
  check_probes(c, pair, where);
  check_finite(c, pair, where);
  if (!is_free) return;
  check_perplexity(c, json_object_get(pair, "logits"), a, b, where);
  check_equal_arms(c, pair, x, y, where);
}

static bool same_arms(const json_t *p, const json_t *q) {
  const char *a = json_string_value(json_object_get(p, "a")), *b = json_string_value(json_object_get(p, "b"));
  const char *d = json_string_value(json_object_get(q, "a")), *e = json_string_value(json_object_get(q, "b"));
  return a && b && d && e && ((!strcmp(a, d) && !strcmp(b, e)) || (!strcmp(a, e) && !strcmp(b, d)));
}

static void check_pairs(checking *c, const json_t *pairs, const char *mode) {
  size_t n = json_array_size(pairs), expected = c->r->n_arms * (c->r->n_arms - 1) / 2;
  char where[CHECK_WHERE_BYTES];
  snprintf(where, sizeof where, "%spairs", mode);
  EXPECT(c, json_is_array(pairs), where, "expected an array");
  if (c->r->command == COMMAND_PARITY)
    EXPECT(c, n == expected, where, "expected %zu of %zu arms, found %zu", expected, c->r->n_arms, n);
  for (size_t i = 0; i < n; i++) {
    snprintf(where, sizeof where, "%spairs[%zu]", mode, i);
    check_pair(c, json_array_get(pairs, i), !*mode, where);
    for (size_t k = 0; k < i; k++)
      EXPECT(c, !same_arms(json_array_get(pairs, k), json_array_get(pairs, i)), where,
             "the same two arms as pairs[%zu]", k);
  }
}

void check_all_pairs(checking *c) {
  json_t *modes = json_object_get(root_of(c->r), "modes"), *mode;
  const char *name;
  char at[32];
  check_pairs(c, json_object_get(root_of(c->r), "pairs"), "");
  EXPECT(c, json_is_object(modes), "modes", "expected an object");
  json_object_foreach(modes, name, mode) {
    snprintf(at, sizeof at, "modes.%.16s.", name);
    EXPECT(c, json_array_size(json_object_get(mode, "arms")) == c->r->n_arms, at,
           "arms: expected those of the report");
    check_pairs(c, json_object_get(mode, "pairs"), at);
  }
}
