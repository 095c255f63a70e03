#include "src/report/screen_report.h"
#include <inttypes.h>
#include <string.h>

static const char *place_name(const screen_finding *f, const screen_report *r, char *out, size_t size) {
  const screen_rank *rank = &r->result->ranks[f->rank];
  switch (f->place) {
  case AT_CORES:
    snprintf(out, size, "cores %s", rank->cores);
    break;
  case AT_DEVICE:
    snprintf(out, size, "GPU %s", rank->device.pci);
    break;
  case AT_LINK:
    snprintf(out, size, "link from rank %d (%s)", f->from, r->result->ranks[f->from].host);
    break;
  }
  return out;
}

static void print_uuid(const device_id *d, FILE *out) {
  fputs("GPU-", out);
  for (int i = 0; i < 16; i++)
    fprintf(out, "%s%02x", i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", d->uuid[i]);
}

static void print_rank(const screen_report *r, int rank, FILE *out) {
  const screen_rank *k = &r->result->ranks[rank];
  fprintf(out, "  rank %d  %s, cores %s; rows that voted: %s\n", rank, k->host, k->cores, k->cpu_rows);
  if (k->device.index >= 0) {
    fprintf(out, "          GPU %d, %s, %s, ", k->device.index, k->device.name, k->device.pci);
    print_uuid(&k->device, out);
    fputc('\n', out);
  }
  for (int32_t i = 0; i < k->n_units; i++) {
    const screen_coverage *c = &k->unit[i];
    fprintf(out, "          %-14s %-12s", c->arm, c->row);
    for (int cut = 0; cut < SCREEN_CUTS; cut++)
      fprintf(out, "%s %s %" PRIu64 " x", cut ? "," : "", screen_cut_name((screen_cut)cut), c->runs[cut]);
    fputc('\n', out);
  }
}

static double rate(const screen_coverage *c, screen_cut cut) {
  return c->seconds[cut] > 0 ? (double)c->tokens[cut] / c->seconds[cut] : 0;
}

// Slow places show here: every unit did the same.
static void print_rates(const screen_report *r, FILE *out) {
  fprintf(out, "\nTokens per second (digests and their comparison included)\n  %4s  %-16s %-14s", "rank",
          "host", "arm");
  for (int cut = 1; cut < SCREEN_CUTS; cut++) fprintf(out, " %9s", screen_cut_name((screen_cut)cut));
  fputc('\n', out);
  for (int q = 0; q < r->result->n_ranks; q++)
    for (int32_t i = 0; i < r->result->ranks[q].n_units; i++) {
      const screen_coverage *c = &r->result->ranks[q].unit[i];
      fprintf(out, "  %4d  %-16s %-14s", q, r->result->ranks[q].host, c->arm);
      for (int cut = 1; cut < SCREEN_CUTS; cut++) fprintf(out, " %9.1f", rate(c, (screen_cut)cut));
      fputc('\n', out);
    }
}

static void print_count(FILE *out, int64_t n) {
  if (n < 0)
    fprintf(out, " %8s", "-");
  else
    fprintf(out, " %8" PRId64, n);
}

static void print_finding(const screen_report *r, const screen_finding *f, FILE *out) {
  char place[160];
  fprintf(out, "  rank %d  %s  %s  %s%s%s  %s, %s:", f->rank, r->result->ranks[f->rank].host,
          place_name(f, r, place, sizeof place), f->arm, *f->row ? " " : "", f->row, f->work, f->step);
  print_count(out, f->rows);
  fputs(" rows,", out);
  print_count(out, f->values);
  fputs(" numbers,", out);
  print_count(out, f->bits);
  fprintf(out, " bits; %" PRIu64 " times, first after %.2f s%s\n", f->times, f->seconds,
          f->undecided ? "; undecided: as many gave this answer as the other" : "");
}

bool screen_report_is_clean(const screen_report *r) {
  return !r->result->n_findings && !known_differs(r->known);
}

void screen_report_print(const screen_report *r, FILE *out) {
  const screen_result *s = r->result;
  fprintf(out, "moe_run screen  %s, fingerprint %016" PRIx64 "\n", r->model, r->fingerprint);
  fprintf(out, "  %lld tokens, %lld sequences at once, %lld rounds in %.1f s, %d ranks, transport %s\n\n",
          (long long)s->n_tokens, (long long)s->sequences, (long long)s->rounds, s->seconds, s->n_ranks,
          s->transport);
  for (int q = 0; q < s->n_ranks; q++) print_rank(r, q, out);
  print_rates(r, out);
  uint64_t bytes = 0, lost = 0;
  for (int q = 0; q < s->n_ranks; q++) {
    bytes += s->ranks[q].link_bytes;
    lost += s->ranks[q].lost_findings;
  }
  if (s->n_ranks > 1)
    fprintf(out, "\nExchange: %d pairs, %.1f MiB received and compared\n", s->n_ranks * (s->n_ranks - 1),
            (double)bytes / (1 << 20));
  fputc('\n', out);
  known_print(r->known, out);
  if (!r->known->n_checks)
    fprintf(out, "known answers: none of this model and %lld tokens\n", (long long)s->n_tokens);
  fprintf(out, "\n%s\n", s->n_findings ? "Faults" : "No faults found");
  for (size_t i = 0; i < s->n_findings; i++) print_finding(r, &s->findings[i], out);
  if (lost) fprintf(out, "  and %" PRIu64 " at further places\n", lost);
}
