// The console's tables of pairs: divergences, each layer, the other modes, the first point above a bound, the
// account.
#include "src/report/console.h"
#include <inttypes.h>
#include <stdlib.h>

enum { WIDTH = 110, LABEL_BYTES = 64, MAX_LAYER_LINES = 12, MAX_LAYER_PAIRS = 8, MAX_SHARES = 3 };

static void label_of(char *out, size_t size, const report *r, const pair_statistics *p) {
  snprintf(out, size, "%s - %s", r->arms[p->a].name, r->arms[p->b].name);
}

// The pairs in the order in which they are shown: those against the truth first. Both lists keep their order.
static const pair_statistics *shown_pair(const report *r, const pair_statistics *pairs, size_t place) {
  for (int truth = true; truth >= false; truth--)
    for (size_t i = 0; i < r->n_pairs; i++)
      if (r->arms[pairs[i].b].is_truth == truth && !place--) return &pairs[i];
  return NULL;
}

static bool is_worse(double x, double than) { // NaN is the worst of all
  return !isnan(than) && (isnan(x) || x > than);
}

static const layer_statistics *worst_layer(const report *r, const pair_statistics *p) {
  const layer_statistics *worst = p->layers;
  for (size_t i = 1; i < r->n_layers && p->layers; i++)
    if (is_worse(p->layers[i].rel_l2.max, worst->rel_l2.max)) worst = &p->layers[i];
  return r->n_layers ? worst : NULL;
}

static int64_t flips_of(const report *r, const pair_statistics *p) {
  int64_t flips = 0;
  for (size_t i = 0; i < r->n_layers && p->layers; i++) flips += p->layers[i].router_flips;
  return flips;
}

static void print_pair(const report *r, const pair_statistics *p, int width, FILE *out) {
  char label[LABEL_BYTES], layer[16] = "-";
  const layer_statistics *l = worst_layer(r, p);
  label_of(label, sizeof label, r, p);
  if (l) snprintf(layer, sizeof layer, "L%" PRId32, l->layer);
  fprintf(out, "  %-*s  %5s %9s %9s  %9s %9s  %9s  %9s %7s %7" PRId64 "%s\n", width, label, layer,
          l ? small(l->rel_l2.median).text : "-", l ? small(l->rel_l2.max).text : "-",
          small(p->rel_l2.median).text, small(p->rel_l2.max).text, small(p->one_minus_cos.max).text,
          small(p->kl.max).text, format("%.2f%%", 100 * p->top1_agreement).text, flips_of(r, p),
          p->finite ? "" : " !");
}

static void print_pairs(const report *r, const pair_statistics *pairs, const char *title, FILE *out) {
  char label[LABEL_BYTES];
  int width = 4;
  bool finite = true, has_truth = false;
  for (size_t i = 0; i < r->n_arms; i++) has_truth = has_truth || r->arms[i].is_truth;
  for (size_t i = 0; i < r->n_pairs; i++) {
    label_of(label, sizeof label, r, &pairs[i]);
    width = widest(width, label);
    finite = finite && pairs[i].finite;
  }
  fprintf(out, "\n%s (a - b: b is the reference%s)\n", title,
          has_truth ? ", and f64 is the truth" : "; without f64 there is no truth");
  fprintf(out, "  %-*s  rel_l2 of the worst layer  rel_l2 of logits     worst logits\n", width, "");
  fprintf(out, "  %-*s  %5s %9s %9s  %9s %9s  %9s  %9s %7s %7s\n", width, "pair", "layer", "median", "max",
          "median", "max", "1 - cos", "KL", "top-1", "flips");
  for (size_t i = 0; i < r->n_pairs; i++) print_pair(r, shown_pair(r, pairs, i), width, out);
  if (!finite) fprintf(out, "  ! a NaN or an infinity was seen: nothing can be said of this pair\n");
}

// All layers where they are few; else eight, evenly spaced from the first to the last, and the worst of the
// others.
static void choose_layers(bool *chosen, const report *r, const pair_statistics *const *pairs,
                          size_t n_pairs) {
  size_t n = r->n_layers, left = MAX_LAYER_LINES;
  for (size_t i = 0; i < n; i++) chosen[i] = n <= MAX_LAYER_LINES;
  if (n <= MAX_LAYER_LINES) return;
  for (size_t i = 0; i < 8; i++, left--) chosen[i * (n - 1) / 7] = true;
  for (; left; left--) {
    size_t worst = n;
    double most = -1;
    for (size_t i = 0; i < n; i++)
      for (size_t p = 0; p < n_pairs && !chosen[i]; p++)
        if (is_worse(pairs[p]->layers[i].rel_l2.max, most)) {
          most = pairs[p]->layers[i].rel_l2.max;
          worst = i;
        }
    if (worst < n) chosen[worst] = true;
  }
}

static void print_layer_rows(const report *r, const pair_statistics *const *pairs, const int *width, size_t n,
                             FILE *out) {
  bool *chosen = malloc(r->n_layers * sizeof *chosen);
  if (!chosen) return; // the table is in layers.csv as well
  choose_layers(chosen, r, pairs, n);
  for (size_t i = 0; i < r->n_layers; i++) {
    if (!chosen[i]) continue;
    fprintf(out, "  %5" PRId32, pairs[0]->layers[i].layer);
    for (size_t p = 0; p < n; p++)
      fprintf(out, "  %*s %6" PRId64, width[p] - 7, small(pairs[p]->layers[i].rel_l2.max).text,
              pairs[p]->layers[i].router_flips);
    fputc('\n', out);
  }
  free(chosen);
}

static void print_layers(const report *r, FILE *out) {
  const pair_statistics *pairs[MAX_LAYER_PAIRS];
  char label[LABEL_BYTES];
  int width[MAX_LAYER_PAIRS], line = 7;
  size_t n = 0;
  for (; n < r->n_pairs && n < MAX_LAYER_PAIRS; n++) {
    pairs[n] = shown_pair(r, r->pairs, n);
    label_of(label, sizeof label, r, pairs[n]);
    width[n] = widest(16, label);
    if (!pairs[n]->layers || line + 2 + width[n] > WIDTH) break;
    line += 2 + width[n];
  }
  if (!n) return;
  fprintf(out, "\nEach layer: largest rel_l2 over positions, router flips (%s%s)\n",
          r->n_layers <= MAX_LAYER_LINES ? "all layers" : "some layers of all, with the worst",
          n < r->n_pairs ? "; the other pairs are in layers.csv" : "");
  fprintf(out, "  %5s", "layer");
  for (size_t p = 0; p < n; p++) {
    label_of(label, sizeof label, r, pairs[p]);
    fprintf(out, "  %*s", width[p], label);
  }
  fputc('\n', out);
  print_layer_rows(r, pairs, width, n, out);
}

// ---- the other modes ----

static const char *title_of(parity_mode mode) {
  switch (mode) {
  case MODE_FREE:
    return "Divergence over all positions";
  case MODE_FORCED:
    return "Forced: each arm takes the truth's experts";
  case MODE_TEACHER:
    return "Teacher-forced: each layer starts from the truth's stream";
  case MODE_LOCAL:
    return "Local: each layer from the truth's stream and experts";
  }
  __builtin_unreachable();
}

static void print_first(const report *r, parity_mode mode, const pair_statistics *pairs, bool *any,
                        FILE *out) {
  char label[LABEL_BYTES];
  for (size_t i = 0; i < r->n_pairs; i++) {
    const pair_statistics *p = shown_pair(r, pairs, i);
    const first_above *f = &p->first;
    if (!f->found) continue;
    if (!*any) fprintf(out, "\nFirst point of the forward pass above parity.bound (rel_l2)\n");
    *any = true;
    label_of(label, sizeof label, r, p);
    fprintf(out, "  %-7s  %-17s  %s-%" PRId32 "  %s > %s at position %" PRId64 "\n", parity_mode_name(mode),
            label, probe_get(f->point)->name, f->layer, small(f->rel_l2).text, small(f->bound).text,
            f->position);
  }
}

// ---- the account ----

// The layers with the most local error, such as "L46 12%, L2 9%, L7 5%".
static void print_shares(const report *r, const account *a, FILE *out) {
  bool taken[MAX_SHARES] = {false};
  size_t layer[MAX_SHARES];
  for (int n = 0; n < MAX_SHARES && n < (int)r->n_layers; n++) {
    size_t best = r->n_layers;
    for (size_t l = 0; l < r->n_layers; l++) {
      bool shown = false;
      for (int k = 0; k < n; k++) shown = shown || (taken[k] && layer[k] == l);
      if (!shown && (best == r->n_layers || a->layers[l].local.mean > a->layers[best].local.mean)) best = l;
    }
    layer[n] = best;
    taken[n] = true;
    fprintf(out, "%s L%zu %.0f%%", n ? "," : "", best, 100 * a->layers[best].local.mean / a->local.mean);
  }
}

static cell share(const estimate *part, const account *a) {
  return a->total.mean > 0 ? format("%.1f%%", 100 * part->mean / a->total.mean) : (cell){"-"};
}

static void print_accounts(const report *r, FILE *out) {
  char label[LABEL_BYTES];
  fprintf(
      out,
      "\nAccount: energy of the last residual stream's difference over the truth's, mean over positions\n");
  fprintf(out, "  %-17s  %8s %6s  %7s %9s %9s %9s  %s\n", "pair", "total", "+-", "local", "interfer.",
          "compound.", "flips", "most local error");
  for (size_t i = 0; i < r->n_pairs; i++) {
    const account *a = &r->accounts[i];
    label_of(label, sizeof label, r, &r->pairs[i]);
    fprintf(out, "  %-17s  %8s %6s  %7s %9s %9s %9s ", label, small(a->total.mean).text,
            share(&(estimate){a->total.standard_error, 0}, a).text, share(&a->local, a).text,
            share(&a->interference, a).text, share(&a->compounding, a).text, share(&a->flips, a).text);
    if (a->local.mean > 0) print_shares(r, a, out);
    fputc('\n', out);
    if (a->verdict != ACCOUNT_ADDS_UP)
      fprintf(out, "  %-17s  %s%s\n", "", account_verdict_name(a->verdict),
              a->verdict == ACCOUNT_NEGATIVE ? ": one is below 0, so none is a share of the whole" : "");
  }
}

void report_print_divergences(const report *r, FILE *out) {
  bool any = false;
  if (!r->n_pairs) return;
  print_pairs(r, r->pairs, title_of(MODE_FREE), out);
  print_layers(r, out);
  for (size_t m = 0; m < r->n_modes; m++) print_pairs(r, r->modes[m].pairs, title_of(r->modes[m].mode), out);
  print_first(r, MODE_FREE, r->pairs, &any, out);
  for (size_t m = 0; m < r->n_modes; m++) print_first(r, r->modes[m].mode, r->modes[m].pairs, &any, out);
  if (r->accounts) print_accounts(r, out);
}
