// report_write: report.json, layers.csv and tokens.csv, all or none. First all are written under temporary
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

static status write_layers(FILE *f, const report *r) {
  static const char *const METRICS[] = {"rel_l2", "one_minus_cos", "max_abs", "max_rel", "max_ulp"};
  fputs("a,b,layer", f);
  for (size_t m = 0; m < sizeof METRICS / sizeof *METRICS; m++)
    fprintf(f, ",%s_min,%s_median,%s_max,%s_worst", METRICS[m], METRICS[m], METRICS[m], METRICS[m]);
  fputs(",router_flips,flipped_tokens,flip_margin,min_margin\n", f);
  for (size_t i = 0; i < r->n_pairs; i++)
    for (size_t k = 0; k < r->n_layers && r->pairs[i].layers; k++) {
      const layer_statistics *l = &r->pairs[i].layers[k];
      const spread *spreads[] = {&l->rel_l2, &l->one_minus_cos, &l->max_abs, &l->max_rel, &l->max_ulp};
      fprintf(f, "%s,%s,%" PRId32, r->arms[r->pairs[i].a].name, r->arms[r->pairs[i].b].name, l->layer);
      for (size_t m = 0; m < sizeof spreads / sizeof *spreads; m++) put_spread(f, spreads[m]);
      fprintf(f, ",%" PRId64 ",%" PRId64, l->router_flips, l->flipped_tokens);
      put_number(f, l->flip_margin);
      put_number(f, l->min_margin);
      fputc('\n', f);
    }
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

// Removes logits of an earlier run; those of this run, if any, have their names already.
static status remove_stale(const report *r, const char *dir) {
  const char **kept;
  size_t n = r->has_logits ? r->n_arms : 0;
  TRY(TAKE(&kept, n, "the arms' names"));
  for (size_t i = 0; i < n; i++) kept[i] = r->arms[i].name;
  status result = report_file_sweep(dir, kept, n);
  free(kept);
  return result;
}

status report_write(const report *r, const char *dir) {
  static const struct {
    const char *name;
    status (*write)(FILE *f, const report *r);
  } FILES[] = {{"layers.csv", write_layers}, {"tokens.csv", write_tokens}, {"report.json", write_json}};
  enum { N = sizeof FILES / sizeof *FILES };
  whole_file file[N] = {{.f = NULL}};
  status result;
  for (int i = 0; i < N; i++) {
    TRY_DONE(result, whole_file_open(&file[i], dir, FILES[i].name));
    TRY_DONE(result, FILES[i].write(file[i].f, r));
    TRY_DONE(result, whole_file_sync(&file[i]));
  }
  TRY_DONE(result, report_file_retract(dir));
  TRY_DONE(result, remove_stale(r, dir));
  for (int i = 0; i < N; i++) TRY_DONE(result, whole_file_name(&file[i]));
  result = whole_file_sync_dir(dir);
done:
  for (int i = 0; i < N; i++) whole_file_abandon(&file[i]);
  return result;
}
