// The parts of report.json that compare arms: pairs, modes, accounts.
#include "src/report/report_json.h"
#include <stdlib.h>

typedef struct {
  const char *key;
  const spread *value;
} named_spread;

// A metric's own key is the worst over positions; "spread" has min, median and max.
static void put_spreads(branch to, const named_spread *metric, size_t n) {
  for (size_t i = 0; i < n; i++) put_real(to, metric[i].key, metric[i].value->max);
  branch all = put_object(to, "spread");
  for (size_t i = 0; i < n; i++) {
    branch s = put_object(all, metric[i].key);
    put_real(s, "min", metric[i].value->min);
    put_real(s, "median", metric[i].value->median);
    put_real(s, "max", metric[i].value->max);
    put_integer(s, "worst", metric[i].value->worst);
  }
}

static void put_layer(branch list, const layer_statistics *l) {
  branch o = put_object(list, NULL);
  put_integer(o, "layer", l->layer);
  put_integer(o, "router_flips", l->router_flips);
  put_integer(o, "flipped_tokens", l->flipped_tokens);
  put_real(o, "flip_margin", l->flip_margin);
  put_real(o, "min_margin", l->min_margin);
  const named_spread spreads[] = {{"rel_l2", &l->rel_l2},
                                  {"one_minus_cos", &l->one_minus_cos},
                                  {"max_abs", &l->max_abs},
                                  {"max_rel", &l->max_rel},
                                  {"max_ulp", &l->max_ulp}};
  put_spreads(o, spreads, sizeof spreads / sizeof *spreads);
  branch same = put_object(o, "same_experts");
  put_integer(same, "positions", l->same_experts);
  put_real(same, "rel_l2", l->same_rel_l2);
  put_real(same, "one_minus_cos", l->same_one_minus_cos);
}

static void put_probe(branch list, const probe_statistics *p) {
  branch o = put_object(list, NULL);
  put_integer(o, "layer", p->layer);
  put_text(o, "probe", probe_get(p->point)->name);
  put_integer(o, "positions", p->n);
  const named_spread spreads[] = {
      {"rel_l2", &p->rel_l2}, {"one_minus_cos", &p->one_minus_cos}, {"max_abs", &p->max_abs}};
  put_spreads(o, spreads, sizeof spreads / sizeof *spreads);
}

// The map itself is experts.csv: here each layer's worst expert.
static void put_experts(branch list, const expert_sample *e, int64_t n_experts, int64_t layer) {
  int64_t used = 0, hits = 0, matched = 0, worst = -1;
  for (int64_t i = 0; i < n_experts; i++) {
    used += e[i].hits_b > 0;
    hits += e[i].hits_b;
    matched += e[i].matched;
    double x = expert_rel_l2(&e[i]);
    if (e[i].matched && (worst < 0 || x > expert_rel_l2(&e[worst]) || (!isfinite(x) && e[worst].finite)))
      worst = i;
  }
  branch o = put_object(list, NULL);
  put_integer(o, "layer", layer);
  put_integer(o, "used", used);
  put_integer(o, "hits", hits);
  put_integer(o, "matched", matched);
  if (worst < 0)
    put(o, "worst", json_null());
  else
    put_integer(o, "worst", worst);
  put_integer(o, "worst_matched", worst < 0 ? 0 : e[worst].matched);
  put_real(o, "rel_l2", worst < 0 ? (double)NAN : expert_rel_l2(&e[worst]));
}

static void put_distribution(branch to, const char *key, const distribution *d) {
  static const char *const NAMES[N_PERCENTILES] = {"p0_1", "p1", "p5", "median", "p95", "p99", "p99_9"};
  branch o = put_object(to, key);
  put_integer(o, "n", d->n);
  put_real(o, "mean", d->mean);
  put_real(o, "standard_error", d->standard_error);
  put_real(o, "rms", d->rms);
  put_real(o, "rms_error", d->rms_error);
  put_real(o, "min", d->min);
  for (int p = 0; p < N_PERCENTILES; p++) put_real(o, NAMES[p], d->percentile[p]);
  put_real(o, "max", d->max);
}

static void put_logits(branch to, const pair_statistics *p) {
  branch o = put_object(to, "logits");
  const named_spread spreads[] = {{"rel_l2", &p->rel_l2},   {"one_minus_cos", &p->one_minus_cos},
                                  {"max_abs", &p->max_abs}, {"max_rel", &p->max_rel},
                                  {"max_ulp", &p->max_ulp}, {"kl", &p->kl}};
  put_real(o, "top1_agreement", p->top1_agreement);
  put_real(o, "top1_error", p->top1_error);
  put_real(o, "perplexity_delta", p->perplexity_delta);
  put_spreads(o, spreads, sizeof spreads / sizeof *spreads);
  branch all = put_object(o, "distribution");
  put_distribution(all, "kl", &p->kl_spread);
  put_distribution(all, "delta_p", &p->delta_p);
  put_distribution(all, "nll_delta", &p->nll_delta);
}

static void put_first(branch to, const first_above *f) {
  if (!f->found) {
    put(to, "first", json_null());
    return;
  }
  branch o = put_object(to, "first");
  put_integer(o, "layer", f->layer);
  put_text(o, "probe", probe_get(f->point)->name);
  put_real(o, "rel_l2", f->rel_l2);
  put_real(o, "bound", f->bound);
  put_integer(o, "position", f->position);
}

static void put_pair(branch list, const report *r, const pair_statistics *p) {
  branch o = put_object(list, NULL);
  put_text(o, "a", r->arms[p->a].name);
  put_text(o, "b", r->arms[p->b].name);
  put_bool(o, "finite", p->finite);
  put_logits(o, p);
  put_first(o, &p->first);
  branch layers = put_array(o, "layers"), probes = put_array(o, "probes"), experts = put_array(o, "experts");
  for (size_t i = 0; i < r->n_layers && p->layers; i++) put_layer(layers, &p->layers[i]);
  for (size_t i = 0; i < r->n_layers * p->n_probes; i++) put_probe(probes, &p->probes[i]);
  for (size_t i = 0; i < r->n_layers && p->experts; i++)
    put_experts(experts, p->experts + (int64_t)i * r->model.n_experts, r->model.n_experts, (int64_t)i);
}

static void put_mode(branch modes, const report *r, const report_mode *m) {
  branch o = put_object(modes, parity_mode_name(m->mode)), arms = put_array(o, "arms");
  for (size_t a = 0; a < r->n_arms; a++) {
    branch arm = put_object(arms, NULL);
    put_text(arm, "name", r->arms[a].name);
    put_digest(arm, "digest", m->digests[a]);
    branch layers = put_array(arm, "layer_digests");
    for (size_t l = 0; l < r->n_layers; l++) put_digest(layers, NULL, m->layer_digests[a * r->n_layers + l]);
  }
  branch pairs = put_array(o, "pairs");
  for (size_t i = 0; i < r->n_pairs; i++) put_pair(pairs, r, &m->pairs[i]);
}

static void put_estimate(branch to, const char *key, const estimate *e) {
  branch o = put_object(to, key);
  put_real(o, "mean", e->mean);
  put_real(o, "standard_error", e->standard_error);
}

static void put_account(branch list, const report *r, const account *a) {
  branch o = put_object(list, NULL);
  put_text(o, "a", r->arms[a->a].name);
  put_text(o, "b", r->arms[a->b].name);
  put_text(o, "verdict", account_verdict_name(a->verdict));
  put_estimate(o, "total", &a->total);
  put_estimate(o, "forced", &a->forced);
  put_estimate(o, "local", &a->local);
  put_estimate(o, "interference", &a->interference);
  put_estimate(o, "compounding", &a->compounding);
  put_estimate(o, "flips", &a->flips);
  put_estimate(o, "local_flips", &a->local_flips);
  put_integer(o, "flipped_points", a->flipped_points);
  put_estimate(o, "embedding", &a->embedding);
  branch layers = put_array(o, "layers");
  for (size_t l = 0; l < r->n_layers; l++) {
    branch layer = put_object(layers, NULL);
    put_integer(layer, "layer", (int64_t)l);
    put_real(layer, "local", a->layers[l].local.mean);
    put_real(layer, "standard_error", a->layers[l].local.standard_error);
    put_real(layer, "share", a->layers[l].local.mean / a->local.mean);
    put_real(layer, "increment", a->layers[l].increment);
  }
}

void report_json_pairs(branch root, const report *r) {
  branch pairs = put_array(root, "pairs"), modes = put_object(root, "modes"),
         accounts = put_array(root, "accounts");
  for (size_t i = 0; i < r->n_pairs; i++) put_pair(pairs, r, &r->pairs[i]);
  for (size_t i = 0; i < r->n_modes; i++) put_mode(modes, r, &r->modes[i]);
  for (size_t i = 0; i < r->n_pairs && r->accounts; i++) put_account(accounts, r, &r->accounts[i]);
}
