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

// ---- the whole model ----

enum { PARTS_SHOWN = 24 }; // lines of the table of parts; bisect.json has all

static void print_side(FILE *out, const char *name, const bisect_side *s) {
  fprintf(out, "  %s       %s  %016" PRIx64 "  %s, %s cache, row %s\n", name, s->arm, s->digest, s->model,
          s->kv, s->row);
}

static void print_distance_line(FILE *out, const char *name, double gone, double appears,
                                const pass_distance *to_a, const pass_distance *to_b) {
  fprintf(out, "  %-36s %8.2f%% %8.2f%%  %9.2e %9.2e %6" PRId64 " %6" PRId64 "%s\n", name, 100 * gone,
          100 * appears, to_b->kl, to_b->rel_l2, to_b->flips, to_a->flips,
          to_b->same_bits   ? "  b's bits"
          : to_a->same_bits ? "  a's bits"
                            : "");
}

static void print_head(FILE *out, const char *what) {
  fprintf(out, "\n%s\n  %-36s %9s %9s  %9s %9s %6s %6s\n", what, "", "gone", "appears", "KL to b", "rel_l2 b",
          "flips", "to a");
}

static void print_parts(FILE *out, const model_bisection *m) {
  size_t shown = m->n_nodes < PARTS_SHOWN ? m->n_nodes : PARTS_SHOWN;
  print_head(out, "Only this as in b: how much of the KL between a and b goes, how much of it comes into a");
  for (size_t i = 0; i < shown; i++) {
    const model_node *n = &m->node[i];
    print_distance_line(out, n->name, n->gone, n->appears, &n->to_a, &n->to_b);
  }
  if (shown < m->n_nodes) fprintf(out, "  ... %zu more in bisect.json (--out)\n", m->n_nodes - shown);
}

void bisect_print_model(FILE *out, const bisect_model *b) {
  const model_bisection *m = b->found;
  char text[SENTENCE], tensor[PRODUCT_TENSOR_BYTES];
  probe_point reads;
  fputs("moe_run bisect  the whole model\n", out);
  print_side(out, "a", &b->a);
  print_side(out, "b", &b->b);
  fprintf(out, "  input   %" PRId64 " tokens, %" PRId64 " passes of %" PRId64 "%s\n", b->n_tokens, m->passes,
          m->budget, m->budget_spent ? ", and parts are left (bisect.budget)" : "");
  fprintf(out, "  a - b   KL %.3e, rel_l2 %.3e, top-1 %.2f%%, %" PRId64 " flips\n", m->a_b.kl, m->a_b.rel_l2,
          100 * m->a_b.top1, m->a_b.flips);
  if (m->n_settings > 1) print_head(out, "Only this setting as in b");
  for (size_t i = 0; i < m->n_settings && m->n_settings > 1; i++) {
    const model_setting *s = &m->setting[i];
    print_distance_line(out, s->name, s->gone, s->appears, &s->to_a, &s->to_b);
  }
  if (m->n_nodes) print_parts(out, m);
  model_bisection_say(text, sizeof text, m);
  fprintf(out, "\n%s.\n", text);
  if (model_bisection_product(tensor, &reads, m))
    fprintf(out, "One product of it: --set bisect.tensor=%s --set bisect.activations=%s (without bisect.a)\n",
            tensor, probe_get(reads)->name);
}
