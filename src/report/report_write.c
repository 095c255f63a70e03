// report_write: report.json and the CSV files, all or none. First all are written under temporary
// names, where a full disk shows; then an old report.json is removed; the new one is renamed last.
#include "base/memory.h"
#include "base/whole_file.h"
#include "src/report/report_file.h"
#include "src/report/report_json.h"
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void put_number(FILE *f, double x) {
  if (isfinite(x))
    fprintf(f, ",%.17g", x);
  else
    fprintf(f, ",%s", isnan(x) ? "nan" : x > 0 ? "inf" : "-inf");
}

static void put_spread(FILE *f, const spread *s) {
  put_number(f, s->min);
  put_number(f, s->median);
  put_number(f, s->max);
  fprintf(f, ",%" PRId64, s->worst);
}

static void put_layers(FILE *f, const report *r, const char *mode, const pair_statistics *p) {
  for (size_t k = 0; k < r->n_layers && p->layers; k++) {
    const layer_statistics *l = &p->layers[k];
    const spread *spreads[] = {&l->rel_l2, &l->one_minus_cos, &l->max_abs, &l->max_rel, &l->max_ulp};
    fprintf(f, "%s%s%s,%s,%" PRId32, mode, *mode ? "," : "", r->arms[p->a].name, r->arms[p->b].name,
            l->layer);
    for (size_t m = 0; m < sizeof spreads / sizeof *spreads; m++) put_spread(f, spreads[m]);
    fprintf(f, ",%" PRId64 ",%" PRId64, l->router_flips, l->flipped_tokens);
    put_number(f, l->flip_margin);
    put_number(f, l->min_margin);
    fputc('\n', f);
  }
}

static void put_layers_head(FILE *f) {
  static const char *const METRICS[] = {"rel_l2", "one_minus_cos", "max_abs", "max_rel", "max_ulp"};
  fputs("a,b,layer", f);
  for (size_t m = 0; m < sizeof METRICS / sizeof *METRICS; m++)
    fprintf(f, ",%s_min,%s_median,%s_max,%s_worst", METRICS[m], METRICS[m], METRICS[m], METRICS[m]);
  fputs(",router_flips,flipped_tokens,flip_margin,min_margin\n", f);
}

static status write_layers(FILE *f, const report *r) {
  put_layers_head(f);
  for (size_t i = 0; i < r->n_pairs; i++) put_layers(f, r, "", &r->pairs[i]);
  return 0;
}

static bool has_modes(const report *r) {
  return r->n_modes > 0;
}

static status write_modes(FILE *f, const report *r) {
  fputs("mode,", f);
  put_layers_head(f);
  for (size_t m = 0; m < r->n_modes; m++)
    for (size_t i = 0; i < r->n_pairs; i++)
      put_layers(f, r, parity_mode_name(r->modes[m].mode), &r->modes[m].pairs[i]);
  return 0;
}

static bool has_experts(const report *r) {
  return r->n_pairs && r->pairs[0].experts;
}

static void put_experts(FILE *f, const report *r, parity_mode mode, const pair_statistics *p) {
  size_t n_experts = (size_t)r->model.n_experts;
  for (size_t i = 0; i < r->n_layers * n_experts && p->experts; i++) {
    const expert_sample *e = &p->experts[i];
    fprintf(f, "%s,%s,%s,%zu,%zu,%" PRId64 ",%" PRId64 ",%" PRId64, parity_mode_name(mode),
            r->arms[p->a].name, r->arms[p->b].name, i / n_experts, i % n_experts, e->hits_a, e->hits_b,
            e->matched);
    if (e->matched) {
      put_number(f, expert_rel_l2(e));
      put_number(f, e->finite ? e->worst_rel_l2 : (double)NAN);
    } else {
      fputs(",,", f); // nothing was measured
    }
    fputc('\n', f);
  }
}

static status write_experts(FILE *f, const report *r) {
  fputs("mode,a,b,layer,expert,hits_a,hits_b,matched,rel_l2,rel_l2_worst\n", f);
  for (size_t i = 0; i < r->n_pairs; i++) put_experts(f, r, MODE_FREE, &r->pairs[i]);
  for (size_t m = 0; m < r->n_modes; m++)
    for (size_t i = 0; i < r->n_pairs; i++) put_experts(f, r, r->modes[m].mode, &r->modes[m].pairs[i]);
  return 0;
}

static status write_tokens(FILE *f, const report *r) {
  fputs(
      "a,b,sequence,position,token,rel_l2,one_minus_cos,max_abs,max_rel,kl,margin,top1_agrees,router_flips\n",
      f);
  for (size_t i = 0; i < r->n_tokens; i++) {
    const report_token *t = &r->tokens[i];
    fprintf(f, "%s,%s,%" PRId64 ",%" PRId64 ",%" PRId32, r->arms[r->pairs[t->pair].a].name,
            r->arms[r->pairs[t->pair].b].name, t->sequence, t->position, t->token);
    const double numbers[] = {t->rel_l2, t->one_minus_cos, t->max_abs, t->max_rel, t->kl, t->margin};
    for (size_t n = 0; n < sizeof numbers / sizeof *numbers; n++) put_number(f, numbers[n]);
    fprintf(f, ",%d,%" PRId64 "\n", t->top1_agrees, t->router_flips);
  }
  return 0;
}

static status write_json(FILE *f, const report *r) {
  json_t *tree;
  TRY(report_json(&tree, r));
  int bad = json_dumpf(tree, f, JSON_INDENT(1) | JSON_REAL_PRECISION(17));
  json_decref(tree);
  fputc('\n', f);
  return bad ? FAIL("report.json: cannot be written: %s", strerror(errno)) : 0;
}

// ---- all of them ----

static const struct {
  const char *name;
  status (*write)(FILE *f, const report *r);
  bool (*has)(const report *r); // NULL: always
} FILES[] = {{"layers.csv", write_layers, NULL},
             {"tokens.csv", write_tokens, NULL},
             {"modes.csv", write_modes, has_modes},
             {"experts.csv", write_experts, has_experts},
             {"report.json", write_json, NULL}};
enum { N_FILES = sizeof FILES / sizeof *FILES };

static bool is_written(const report *r, int i) {
  return !FILES[i].has || FILES[i].has(r);
}

// The arrays of this run, which have their names already, and the CSV files that come.
typedef struct {
  size_t n;
  char (*name)[64];
  const char **list; // [n] of these
} kept_files;

static void keep_file(kept_files *k, const char *head, const char *of, const char *tail) {
  snprintf(k->name[k->n], sizeof *k->name, "%s%s%s%s", head, *of ? "." : "", of, tail);
  k->list[k->n] = k->name[k->n];
  k->n++;
}

static status list_kept(kept_files *k, const report *r) {
  size_t most = 3 * (r->n_arms + 1) + N_FILES + 1;
  TRY(TAKE(&k->name, most, "the names of files"));
  TRY(TAKE(&k->list, most, "the names of files"));
  for (size_t a = 0; a < r->n_arms && r->has_logits; a++) keep_file(k, "logits", r->arms[a].name, ".npy");
  for (size_t a = 0; a <= r->n_arms && r->has_routes; a++) {
    keep_file(k, "routes", a < r->n_arms ? r->arms[a].name : "", ".npy");
    keep_file(k, "route_weights", a < r->n_arms ? r->arms[a].name : "", ".npy");
  }
  if (r->has_routes) keep_file(k, "placement", "", ".npy");
  for (int i = 0; i < N_FILES; i++)
    if (is_written(r, i)) keep_file(k, FILES[i].name, "", "");
  return 0;
}

static status remove_stale(const report *r, const char *dir) {
  kept_files k = {.n = 0};
  status result = list_kept(&k, r);
  if (!result) result = report_file_sweep(dir, k.list, k.n);
  free(k.name);
  free(k.list);
  return result;
}

status report_write(const report *r, const char *dir) {
  whole_file file[N_FILES] = {{.f = NULL}};
  status result;
  for (int i = 0; i < N_FILES; i++) {
    if (!is_written(r, i)) continue;
    TRY_DONE(result, whole_file_open(&file[i], dir, FILES[i].name));
    TRY_DONE(result, FILES[i].write(file[i].f, r));
    TRY_DONE(result, whole_file_sync(&file[i]));
  }
  TRY_DONE(result, report_file_retract(dir));
  TRY_DONE(result, remove_stale(r, dir));
  for (int i = 0; i < N_FILES; i++)
    if (is_written(r, i)) TRY_DONE(result, whole_file_name(&file[i]));
  result = whole_file_sync_dir(dir);
done:
  for (int i = 0; i < N_FILES; i++) whole_file_abandon(&file[i]);
  return result;
}
