#include "src/report/bisect_report.h"
#include <inttypes.h>

enum { SENTENCE = 1024 };

static void print_case(FILE *out, const bisect_product *p) {
  const matrix *w = &p->weights->weights;
  const gguf_tensor *t = p->weights->tensor;
  fprintf(out, "moe_run bisect  one product\n  file    %s\n", p->model);
  fprintf(out, "  weights %s, %s, %" PRId64 " rows of %" PRId64 " columns%s\n", t->name, t->type->name,
          w->rows, w->cols, w->cols == t->dim[0] ? "" : ", cut from its bytes");
  if (p->arm)
    fprintf(out, "  input   %s of %s, %" PRId64 " rows, of which the last is shown\n", p->activations, p->arm,
            p->n);
  else
    fprintf(out, "  input   uniform, xorshift32 from 0x%08" PRIx32 ", drawn %" PRId64 " time%s\n", p->seed,
            p->n, p->n == 1 ? "" : "s; the first is shown");
}

static void print_operations(FILE *out, const product_bisection *f) {
  fprintf(out, "\nClass of each operation: those of a class agree to rounding (rel_l2 <= %.2e)\n", f->bound);
  for (size_t i = 0; i < f->n_rows; i++) {
    fprintf(out, "  %-10s  ", f->row[i].name);
    if (f->absent[i])
      fprintf(out, "-  %s: not computed, %s\n", f->row[i].what, f->absent[i]);
    else
      fprintf(out, "%d  %s\n", f->cls[i] + 1, f->row[i].what);
  }
}

static void print_pairs(FILE *out, const product_bisection *f) {
  fprintf(out, "\nPairs (a - b: b is the reference)\n  %-23s %10s %10s %10s\n", "", "max_rel", "rel_l2",
          "1 - cos");
  for (size_t i = 0; i < f->n_pairs; i++) {
    const product_pair *p = &f->pair[i];
    fprintf(out, "  %-10s - %-10s", f->row[p->a].name, f->row[p->b].name);
    for (int d = 0; d < PRODUCT_DISTANCES; d++) fprintf(out, " %10.3e", p->shown[d]);
    fputc('\n', out);
  }
}

// Of the pairs between classes: within one there is nothing to spread but rounding.
static void print_quantiles(FILE *out, const bisect_product *b) {
  const product_bisection *f = b->found;
  if (b->n < 2) return;
  fprintf(out, "\nOver %" PRId64 " activations, and the share of them at or below the shown one\n", b->n);
  fprintf(out, "  %-23s %-13s", "", "");
  for (int q = 0; q < PRODUCT_QUANTILES; q++) fprintf(out, " %8.0f%%", 100 * product_quantile[q]);
  fprintf(out, " %9s\n", "shown at");
  for (size_t i = 0; i < f->n_pairs; i++) {
    const product_pair *p = &f->pair[i];
    if (f->cls[p->a] == f->cls[p->b]) continue;
    for (int d = 0; d < PRODUCT_DISTANCES; d++) {
      fprintf(out, d ? "  %23s" : "  %-10s - %-10s", d ? "" : f->row[p->a].name, f->row[p->b].name);
      fprintf(out, " %-13s", product_distance_name((product_distance)d));
      for (int q = 0; q < PRODUCT_QUANTILES; q++) fprintf(out, " %9.2e", p->quantile[d][q]);
      fprintf(out, " %8.1f%%\n", 100 * p->rank[d]);
    }
  }
}

static void print_sentences(FILE *out, const product_bisection *f) {
  char text[SENTENCE];
  fputs("\nWhy: one axis switched at a time\n", out);
  for (size_t i = 0; i < f->n_walks; i++) {
    product_walk_say(text, sizeof text, f, &f->walk[i]);
    fprintf(out, "  %s.\n", text);
  }
  if (!f->n_walks) fputs("  All operations agree to rounding.\n", out);
}

void bisect_print_product(FILE *out, const bisect_product *p) {
  print_case(out, p);
  print_operations(out, p->found);
  print_pairs(out, p->found);
  print_quantiles(out, p);
  print_sentences(out, p->found);
}
