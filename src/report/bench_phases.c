#include "src/report/bench_phases.h"
#include <inttypes.h>
#include <math.h>
#include <stdbool.h>

// Of the steps, what is in no phase: the calls of steps, and what the program does between them.
static double rest_seconds(const bench_phases *p) {
  double sum = 0;
  for (int i = 0; i < PHASE_COUNT; i++) sum += p->times.of[i].seconds;
  return p->seconds - sum;
}

static double share_of(double amount, double seconds, double peak) {
  return amount > 0 && seconds > 0 ? amount / seconds / peak : __builtin_nan("");
}

// ---- Markdown ----

enum { CELL = 24 };

// "-" where there is nothing to say.
static const char *cell(char out[CELL], double x, const char *format) {
  if (isfinite(x))
    snprintf(out, CELL, format, x);
  else
    snprintf(out, CELL, "-");
  return out;
}

static void md_row(const bench_phases *p, const char *name, phase_scope scope, const phase_time *t,
                   double bytes, double operations, FILE *out) {
  char c[7][CELL];
  double none = __builtin_nan(""), tokens = (double)p->tokens;
  double passes = (double)(p->batches * p->layers);
  bool ran = t->count > 0;
  fprintf(out, "| %-11s | %8s | %9s | %7s | %8s | %12s | %7s | %7s |\n", name,
          cell(c[0], ran && scope == PHASE_IN_LAYER ? t->seconds * 1e6 / passes : none, "%.2f"),
          cell(c[1], ran ? t->seconds * 1e6 / tokens : none, "%.2f"),
          cell(c[2], ran ? 100 * t->seconds / p->seconds : none, "%.1f %%"),
          cell(c[3], bytes > 0 ? bytes * 1e-6 / tokens : none, "%.3f"),
          cell(c[4], 100 * share_of(bytes, t->seconds, p->peaks.bytes_per_second), "%.1f %%"),
          cell(c[5], 100 * share_of(operations, t->seconds, p->peaks.int8_per_second), "%.1f %%"),
          cell(c[6], ran ? 100 * t->waiting / t->seconds : none, "%.1f %%"));
}

static void md_head(const bench_phases *p, const char *arm, const char *test, FILE *out) {
  fprintf(out, "\n%s, %s, by phase: %.3f ms a token", arm, test, p->seconds * 1e3 / (double)p->tokens);
  if (p->threads) fprintf(out, ", %d thread%s", p->threads, p->threads == 1 ? "" : "s");
  if (isfinite(p->peaks.bytes_per_second))
    fprintf(out, ", memory %.1f GB/s", p->peaks.bytes_per_second * 1e-9);
  if (isfinite(p->peaks.int8_per_second))
    fprintf(out, ", int8 at most %.2f TOPS", p->peaks.int8_per_second * 1e-12);
  fprintf(
      out,
      "\n\n| phase       | us/layer |  us/token |    time | MB/token | of bandwidth | of int8 | waiting |\n"
      "|:------------|---------:|----------:|--------:|---------:|-------------:|--------:|--------:|\n");
}

void bench_phases_md(const bench_phases *p, const char *arm, const char *test, FILE *out) {
  phase_time rest = {rest_seconds(p), __builtin_nan(""), 1}, all = {p->seconds, __builtin_nan(""), 1};
  double bytes = 0, operations = 0;
  md_head(p, arm, test, out);
  for (int i = 0; i < PHASE_COUNT; i++) {
    const phase_time *t = &p->times.of[i];
    const phase_info *info = phase_get((phase_kind)i);
    bytes += (double)p->bytes[i];
    operations += p->int8_operations[i];
    if (t->count && isfinite(t->waiting)) all.waiting = (isnan(all.waiting) ? 0 : all.waiting) + t->waiting;
    if (t->count || p->bytes[i] || p->int8_operations[i] > 0)
      md_row(p, info->name, info->scope, t, (double)p->bytes[i], p->int8_operations[i], out);
  }
  md_row(p, "rest", PHASE_ONCE, &rest, 0, 0, out);
  md_row(p, "all", PHASE_ONCE, &all, bytes, operations, out);
}

// ---- JSON ----

static void json_real(FILE *out, const char *key, double x) {
  fprintf(out, ", \"%s\": ", key);
  if (isfinite(x))
    fprintf(out, "%.9g", x);
  else
    fputs("null", out);
}

static void json_row(const bench_phases *p, phase_kind phase, FILE *out) {
  const phase_time *t = &p->times.of[phase];
  const phase_info *info = phase_get(phase);
  double none = __builtin_nan("");
  fprintf(out, "{\"phase\": \"%s\", \"per\": \"%s\", \"count\": %" PRId64 ", \"bytes\": %" PRIu64, info->name,
          info->scope == PHASE_IN_LAYER ? "layer" : "batch", t->count, p->bytes[phase]);
  json_real(out, "int8_operations", p->int8_operations[phase]);
  json_real(out, "seconds", t->count ? t->seconds : none);
  json_real(out, "waiting_seconds", t->count ? t->waiting : none);
  json_real(out, "share_of_bandwidth",
            share_of((double)p->bytes[phase], t->seconds, p->peaks.bytes_per_second));
  json_real(out, "share_of_int8", share_of(p->int8_operations[phase], t->seconds, p->peaks.int8_per_second));
  fputc('}', out);
}

void bench_phases_json(const bench_phases *p, FILE *out) {
  fprintf(out,
          "\"phases\": {\"tokens\": %" PRId64 ", \"batches\": %" PRId64 ", \"layers\": %" PRId64
          ", \"threads\": %d",
          p->tokens, p->batches, p->layers, p->threads);
  json_real(out, "seconds", p->seconds);
  json_real(out, "rest_seconds", rest_seconds(p));
  json_real(out, "peak_bytes_per_s", p->peaks.bytes_per_second);
  json_real(out, "peak_int8_per_s", p->peaks.int8_per_second);
  fputs(",\n       \"of\": [", out);
  for (int i = 0; i < PHASE_COUNT; i++) {
    if (i) fputs(",\n              ", out);
    json_row(p, (phase_kind)i, out);
  }
  fputs("]}", out);
}
