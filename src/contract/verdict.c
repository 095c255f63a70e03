#include "src/contract/verdict.h"
#include "base/memory.h"
#include "base/plain_text.h"
#include "base/whole_file.h"
#include "src/report/json_tree.h"
#include "src/report/report.h"
#include <inttypes.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

static const char *const KINDS[] = {
    [VERDICT_STRUCTURE] = "structure",
    [VERDICT_INVARIANT] = "invariant",
    [VERDICT_EXACT] = "exact",
    [VERDICT_GATE] = "gate",
};

void verdict_close(verdict *v) {
  free(v->line);
  *v = (verdict){.line = NULL};
}

// NULL: no memory, and v->out_of_memory says so.
static verdict_line *add(verdict *v, verdict_kind kind, const char *name, const char *where, bool holds) {
  if (v->out_of_memory) return NULL;
  v->out_of_memory = memory_grow((void **)&v->line, &v->room, v->n, sizeof *v->line, "a verdict");
  if (v->out_of_memory) return NULL;
  verdict_line *l = &v->line[v->n++];
  *l = (verdict_line){.kind = kind, .holds = holds};
  snprintf(l->name, sizeof l->name, "%s", name);
  plain_make(l->name);
  snprintf(l->where, sizeof l->where, "%s", where);
  v->failed += !holds;
  return l;
}

void verdict_add(verdict *v, verdict_kind kind, const char *name, const char *where, bool holds,
                 const char *reason, ...) {
  verdict_line *l = add(v, kind, name, where, holds);
  if (!l || !reason) return;
  va_list args;
  va_start(args, reason);
  vsnprintf(l->reason, sizeof l->reason, reason, args);
  va_end(args);
}

void verdict_add_bound(verdict *v, verdict_kind kind, const char *name, const char *where,
                       const metric_info *m, double figure, double bound, bool is_most,
                       const falsifier_list *falsifiers) {
  bool holds = is_most ? figure <= bound : figure >= bound; // false for NaN
  verdict_line *l = add(v, kind, name, where, holds);
  if (!l) return;
  l->has_bound = true;
  l->is_most = is_most;
  l->figure = figure;
  l->bound = bound;
  l->margin = is_most ? bound - figure : figure - bound;
  l->used = metric_used(m, figure, bound, is_most);
  l->falsifiers = falsifiers;
  if (isnan(figure)) snprintf(l->reason, sizeof l->reason, "NaN: the report has null, which no bound admits");
}

// ---- console ----

static void print_falsifiers(FILE *out, const falsifier_list *list) {
  for (size_t i = 0; list && i < list->n; i++)
    fprintf(out, "%s%03d", i ? ", " : "  behind it: ", list->id[i]);
}

static void print_line(FILE *out, const verdict_line *l) {
  fprintf(out, "  %s  %-9s  %-19s  ", l->holds ? "holds" : "FAILS", KINDS[l->kind], l->name);
  report_print_line(out, l->where, 60, false);
  if (l->has_bound)
    fprintf(out, "  %.6g %s %.6g, margin %.3g, %.3g of the bound", l->figure,
            l->is_most ? "<=" : ">=", l->bound, l->margin, l->used);
  if (l->reason[0]) {
    fputs(": ", out);
    report_print_line(out, l->reason, VERDICT_REASON_BYTES, false);
  }
  print_falsifiers(out, l->falsifiers);
  fputc('\n', out);
}

// Of the lines of one gate that hold, the one that uses most of its bound.
static bool is_worst_of_gate(const verdict *v, size_t i) {
  const verdict_line *l = &v->line[i];
  if (l->kind != VERDICT_GATE) return true;
  for (size_t k = 0; k < v->n; k++) {
    const verdict_line *o = &v->line[k];
    if (k == i || o->kind != VERDICT_GATE || strcmp(o->name, l->name) || o->is_most != l->is_most) continue;
    if (!o->holds || o->used > l->used || (!(o->used < l->used) && k < i)) return false;
  }
  return true;
}

void verdict_print(FILE *out, const verdict *v, const contract *c, const verdict_report *r) {
  size_t gates = 0;
  fputs("\ncontract ", out);
  report_print_line(out, c->name, 70, false);
  fprintf(out, ", version %lld, %s: ", (long long)c->version, contract_state_name(c->state));
  report_print_line(out, c->file, 70, true);
  fputs("\nreport   ", out);
  report_print_line(out, r->path, 70, true);
  fprintf(out, ": %s on %zu rank%s, model %016" PRIx64 ", input %016" PRIx64 "\n\n", r->command, r->n_ranks,
          r->n_ranks == 1 ? "" : "s", r->fingerprint, r->input);
  for (size_t i = 0; i < v->n; i++) {
    gates += v->line[i].kind == VERDICT_GATE;
    if (!v->line[i].holds || is_worst_of_gate(v, i)) print_line(out, &v->line[i]);
  }
  for (size_t i = 0; i < c->n_divergences; i++) {
    fputs("\n  known divergence ", out);
    report_print_line(out, c->divergences[i].name, 70, false);
    fprintf(out, ", %s: ", c->divergences[i].date);
    report_print_line(out, c->divergences[i].reason, 400, false);
    print_falsifiers(out, &c->divergences[i].falsifiers);
  }
  if (c->n_divergences) fputc('\n', out);
  if (v->failed)
    fprintf(out, "\nDOES NOT HOLD: %zu of %zu checks fail (%zu of them are figures of gates).\n", v->failed,
            v->n, gates);
  else
    fprintf(out, "\nHolds: %zu checks, %zu of them figures of gates.\n", v->n, gates);
}

// ---- verify.json ----

static void put_line(branch list, const verdict_line *l) {
  branch o = put_object(list, NULL);
  put_text(o, "kind", KINDS[l->kind]);
  put_text(o, "name", l->name);
  put_text(o, "where", l->where);
  if (l->has_bound) {
    put_real(o, "figure", l->figure);
    put_text(o, "direction", l->is_most ? "at_most" : "at_least");
    put_real(o, "bound", l->bound);
    put_real(o, "margin", l->margin);
    put_real(o, "used", l->used);
  }
  branch ids = put_array(o, "falsifiers");
  for (size_t i = 0; l->falsifiers && i < l->falsifiers->n; i++) put_integer(ids, NULL, l->falsifiers->id[i]);
  put_text(o, "reason", l->reason);
  put_bool(o, "holds", l->holds);
}

static void put_verdict(branch root, const verdict *v, const contract *c, const verdict_report *r) {
  branch head = put_object(root, "contract"), about = put_object(root, "report");
  put_text(head, "file", c->file);
  put_text(head, "name", c->name);
  put_integer(head, "version", c->version);
  put_text(head, "status", contract_state_name(c->state));
  put_text(head, "run", c->run);
  put_text(about, "file", r->path);
  put_text(about, "command", r->command);
  put_digest(about, "fingerprint", r->fingerprint);
  put_digest(about, "input", r->input);
  put_integer(about, "ranks", (int64_t)r->n_ranks);
  branch lines = put_array(root, "checks");
  for (size_t i = 0; i < v->n; i++) put_line(lines, &v->line[i]);
  branch known = put_array(root, "divergences");
  for (size_t i = 0; i < c->n_divergences; i++) {
    branch d = put_object(known, NULL);
    put_text(d, "name", c->divergences[i].name);
    put_text(d, "date", c->divergences[i].date);
    put_text(d, "reason", c->divergences[i].reason);
  }
  put_integer(root, "failed", (int64_t)v->failed);
  put_bool(root, "holds", !v->failed);
  put_bool(root, "complete", true);
}

status verdict_write(const verdict *v, const contract *c, const verdict_report *r, const char *dir) {
  bool bad = false;
  TRY(output_dir_check(dir));
  branch root = {json_object(), &bad};
  put_verdict(root, v, c, r);
  return json_tree_write(dir, "verify.json", root);
}
