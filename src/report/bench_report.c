#include "src/report/bench_report.h"
#include "base/whole_file.h"
#include "src/report/report.h"
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static const double LEAST_STOLEN = 0.01; // of a row's time, from which on it is told

typedef struct {
  double median, least, most;
} rates;

static int compare_reals(const void *a, const void *b) {
  double x = *(const double *)a, y = *(const double *)b;
  return (x > y) - (x < y);
}

// Sorts rate[n].
static rates rates_sorted(double *rate, size_t n) {
  qsort(rate, n, sizeof *rate, compare_reals);
  return (rates){(rate[(n - 1) / 2] + rate[n / 2]) / 2, rate[0], rate[n - 1]};
}

static double sorted[10000]; // rates of a row, which has at most so many (bench.repeats)

static rates rates_of(const bench_row *row) {
  memcpy(sorted, row->rate, row->n * sizeof *sorted);
  return rates_sorted(sorted, row->n);
}

void bench_report_set_bandwidth(bench_report *r, double bytes_per_second) {
  r->bandwidth = bytes_per_second;
  for (size_t i = 0; i < r->n_rows; i++) {
    bench_phases *p = r->rows[i].phases;
    if (p && p->threads) p->peaks.bytes_per_second = bytes_per_second / r->ranks;
  }
}

// "tg128 @ d4096 x4", as llama-bench writes it; depth 0 and a single sequence are left out.
void bench_test_name(char out[BENCH_TEST], const bench_row *row) {
  int used = snprintf(out, BENCH_TEST, "%s%" PRId64, row->decode ? "tg" : "pp", row->tokens);
  if (row->depth) used += snprintf(out + used, BENCH_TEST - (size_t)used, " @ d%" PRId64, row->depth);
  if (row->batch > 1) snprintf(out + used, BENCH_TEST - (size_t)used, " x%" PRId64, row->batch);
}

static double share_of_bandwidth(const bench_report *r, const bench_row *row) {
  return row->bytes_per_token * rates_of(row).median / r->bandwidth;
}

// The exchange's share of the time of a run at the median rate.
static double share_of_time(const bench_row *row) {
  return row->exchange_seconds * rates_of(row).median / (double)(row->tokens * row->batch);
}

// ---- Markdown ----

static void print_head(const bench_report *r, FILE *out) {
  report_print_line(out, r->model, 80, false);
  fprintf(out,
          " (%s), %.2f GB, fingerprint %016" PRIx64
          "; %d rank%s of %d thread%s on %d host%s, %s; all ranks read %.1f GB/s\n\n",
          r->types, (double)r->model_bytes * 1e-9, r->fingerprint, r->ranks, r->ranks == 1 ? "" : "s",
          r->threads, r->threads == 1 ? "" : "s", r->hosts, r->hosts == 1 ? "" : "s", r->cpu,
          r->bandwidth * 1e-9);
}

// Cores that were kept from a run, as long as a hundredth of its time, may have slowed it down: each step
// waits for the last thread. What the other runs gave is then said too.
// gap: as print_notes has it.
static void print_stolen(const bench_row *row, const char **gap, FILE *out) {
  double stolen = 0, seconds = 0;
  size_t n = 0;
  char name[BENCH_TEST];
  for (size_t i = 0; i < row->n; i++) {
    stolen += row->stolen_seconds[i];
    seconds += (double)(row->tokens * row->batch) / row->rate[i];
    if (row->stolen_seconds[i] == 0) sorted[n++] = row->rate[i];
  }
  if (!(stolen >= LEAST_STOLEN * seconds)) return; // or not known
  bench_test_name(name, row);
  fprintf(out, "%s%s, %s: %.2f s of the cores' time stolen in %zu of %zu runs, together %.2f s", *gap,
          row->arm, name, stolen, row->n - n, row->n, seconds);
  *gap = "";
  if (n) {
    rates s = rates_sorted(sorted, n);
    fprintf(out, "; the other %zu: %.2f tok/s (%.2f to %.2f)", n, s.median, s.least, s.most);
  }
  fputc('\n', out);
}

// Lines after the table, which an empty line ends whatever row the first of them is about.
static void print_notes(const bench_report *r, FILE *out) {
  const char *gap = "\n";
  for (size_t i = 0; i < r->n_rows && r->ranks > 1; i++) {
    char name[BENCH_TEST];
    bench_test_name(name, &r->rows[i]);
    if (!strcmp(r->rows[i].attention, "replicated")) continue;
    fprintf(out, "%s%s, %s: attention %s\n", gap, r->rows[i].arm, name, r->rows[i].attention);
    gap = "";
  }
  for (size_t i = 0; i < r->n_rows; i++) print_stolen(&r->rows[i], &gap, out);
}

static void print_md(const bench_report *r, FILE *out) {
  print_head(r, out);
  fprintf(
      out,
      "| arm          | row          | test                 |  n | median tok/s |        min |        max | "
      "MB/token | of bandwidth | in exchange | digest           |\n"
      "|:-------------|:-------------|:---------------------|---:|-------------:|-----------:|-----------:|--"
      "------"
      "-:|-------------:|------------:|:-----------------|\n");
  for (size_t i = 0; i < r->n_rows; i++) {
    const bench_row *row = &r->rows[i];
    rates s = rates_of(row);
    char name[BENCH_TEST], bytes[32] = "-", share[32] = "-", exchange[32] = "-";
    bench_test_name(name, row);
    if (isfinite(row->bytes_per_token)) {
      snprintf(bytes, sizeof bytes, "%.2f", row->bytes_per_token * 1e-6);
      snprintf(share, sizeof share, "%.1f %%", 100 * share_of_bandwidth(r, row));
    }
    if (isfinite(row->exchange_seconds))
      snprintf(exchange, sizeof exchange, "%.1f %%%s", 100 * share_of_time(row),
               row->exchange_is_alone ? " alone" : "");
    fprintf(out,
            "| %-12s | %-12s | %-20s | %2zu | %12.2f | %10.2f | %10.2f | %8s | %12s | %11s | %016" PRIx64
            " |\n",
            row->arm, row->row_name, name, row->n, s.median, s.least, s.most, bytes, share, exchange,
            row->digest);
  }
  print_notes(r, out);
  for (size_t i = 0; i < r->n_rows; i++) {
    char name[BENCH_TEST];
    bench_test_name(name, &r->rows[i]);
    if (r->rows[i].phases) bench_phases_md(r->rows[i].phases, r->rows[i].arm, name, out);
    if (r->rows[i].ranks) bench_ranks_md(r->rows[i].ranks, r->rows[i].arm, name, out);
  }
}

// ---- CSV and JSON ----

// A number for a program to read; `nothing` where it is not finite: "" or JSON's null.
static void print_real(FILE *out, double x, const char *nothing) {
  if (isfinite(x))
    fprintf(out, "%.9g", x);
  else
    fputs(nothing, out);
}

static void print_csv(const bench_report *r, FILE *out) {
  fprintf(out, "fingerprint,arm,row,test,kind,tokens,depth,batch,ranks,threads,n,median_tokens_per_s,"
               "min_tokens_per_s,max_tokens_per_s,bytes_per_token,bandwidth_bytes_per_s,share_of_bandwidth,"
               "exchange_seconds,exchange_is_alone,digest\n");
  for (size_t i = 0; i < r->n_rows; i++) {
    const bench_row *row = &r->rows[i];
    rates s = rates_of(row);
    char name[BENCH_TEST];
    bench_test_name(name, row);
    fprintf(out, "%016" PRIx64 ",%s,%s,%s,%s,%" PRId64 ",%" PRId64 ",%" PRId64 ",%d,%d,%zu,%.9g,%.9g,%.9g,",
            r->fingerprint, row->arm, row->row_name, name, row->decode ? "tg" : "pp", row->tokens, row->depth,
            row->batch, r->ranks, row->threads, row->n, s.median, s.least, s.most);
    print_real(out, row->bytes_per_token, "");
    fprintf(out, ",%.9g,", r->bandwidth);
    print_real(out, share_of_bandwidth(r, row), "");
    fputc(',', out);
    print_real(out, row->exchange_seconds, "");
    fprintf(out, ",%d,%016" PRIx64 "\n", row->exchange_is_alone, row->digest);
  }
}

// A JSON string in ASCII: what is outside of it becomes "?", for a model's name need not be UTF-8.
static void print_text(FILE *out, const char *text) {
  fputc('"', out);
  for (const char *c = text ? text : ""; *c; c++) {
    if (*c == '"' || *c == '\\') fputc('\\', out);
    fputc(*c >= 0x20 && *c < 0x7f ? *c : '?', out);
  }
  fputc('"', out);
}

static void print_rank_seconds(const bench_row *row, int ranks, FILE *out) {
  for (int r = 0; r < ranks; r++) {
    fputs(r ? ", [" : "[", out);
    for (size_t i = 0; i < row->n; i++)
      fprintf(out, "%s%.9g", i ? ", " : "", row->rank_seconds[(size_t)r * row->n + i]);
    fputc(']', out);
  }
}

static void print_json_row(const bench_report *r, const bench_row *row, FILE *out) {
  rates s = rates_of(row);
  char name[BENCH_TEST];
  bench_test_name(name, row);
  fprintf(
      out,
      "    {\"arm\": \"%s\", \"row\": \"%s\", \"test\": \"%s\", \"kind\": \"%s\", \"tokens\": %" PRId64
      ", \"depth\": %" PRId64 ", \"batch\": %" PRId64
      ", \"n\": %zu,\n     \"tokens_per_s\": {\"median\": %.9g, \"min\": %.9g, \"max\": %.9g, \"runs\": [",
      row->arm, row->row_name, name, row->decode ? "tg" : "pp", row->tokens, row->depth, row->batch, row->n,
      s.median, s.least, s.most);
  for (size_t i = 0; i < row->n; i++) fprintf(out, "%s%.9g", i ? ", " : "", row->rate[i]);
  fputs("]},\n     \"rank_seconds\": [", out);
  print_rank_seconds(row, r->ranks, out);
  fputs("], \"stolen_seconds\": [", out);
  for (size_t i = 0; i < row->n; i++) {
    fputs(i ? ", " : "", out);
    print_real(out, row->stolen_seconds[i], "null");
  }
  fputs("],\n     \"bytes_per_token\": ", out);
  print_real(out, row->bytes_per_token, "null");
  fputs(", \"share_of_bandwidth\": ", out);
  print_real(out, share_of_bandwidth(r, row), "null");
  fputs(", \"exchange_seconds\": ", out);
  print_real(out, row->exchange_seconds, "null");
  fprintf(out, ", \"exchange_is_alone\": %s", row->exchange_is_alone ? "true" : "false");
  fputs(", \"attention\": ", out);
  print_text(out, row->attention);
  fprintf(out, ", \"threads\": %d, \"digest\": \"%016" PRIx64 "\"", row->threads, row->digest);
  if (row->phases) {
    fputs(",\n     ", out);
    bench_phases_json(row->phases, out);
  }
  if (row->ranks) {
    fputs(",\n     ", out);
    bench_ranks_json(row->ranks, out);
  }
  fputc('}', out);
}

static void print_field(FILE *out, const char *key, const char *text) {
  fprintf(out, "  \"%s\": ", key);
  print_text(out, text);
  fputs(",\n", out);
}

static void print_json(const bench_report *r, FILE *out) {
  fputs("{\n  \"bench_version\": 1,\n", out);
  print_field(out, "model", r->model);
  print_field(out, "types", r->types);
  print_field(out, "cpu", r->cpu);
  fprintf(out,
          "  \"model_bytes\": %" PRIu64 ",\n  \"fingerprint\": \"%016" PRIx64
          "\",\n  \"ranks\": %d,\n  \"threads\": %d,\n  \"hosts\": %d,\n",
          r->model_bytes, r->fingerprint, r->ranks, r->threads, r->hosts);
  fputs("  \"warnings\": [", out);
  for (size_t i = 0; r->warnings && i < r->warnings->count; i++) {
    fputs(i ? ", " : "", out);
    print_text(out, r->warnings->text[i]);
  }
  fputs("],\n", out);
  if (r->timeline.profilers)
    fprintf(out,
            "  \"timeline\": {\"largest_skew_seconds\": %.9g, \"skew_bound_seconds\": %.9g, \"profilers\": "
            "\"%s\"},\n",
            r->timeline.largest_skew, r->timeline.largest_bound, r->timeline.profilers);
  fprintf(out, "  \"bandwidth_bytes_per_s\": %.9g,\n  \"rows\": [\n", r->bandwidth);
  for (size_t i = 0; i < r->n_rows; i++) {
    print_json_row(r, &r->rows[i], out);
    fputs(i + 1 < r->n_rows ? ",\n" : "\n", out);
  }
  fputs("  ]\n}\n", out);
}

void bench_report_print(const bench_report *r, bench_format format, FILE *out) {
  if (format == BENCH_MD) print_md(r, out);
  if (format == BENCH_CSV) print_csv(r, out);
  if (format == BENCH_JSON) print_json(r, out);
}

status bench_report_write(const bench_report *r, const char *dir) {
  whole_file f;
  TRY(whole_file_open(&f, dir, "bench.json"));
  print_json(r, f.f);
  status result = whole_file_sync(&f);
  if (!result) result = whole_file_name(&f);
  whole_file_abandon(&f);
  return result ? result : whole_file_sync_dir(dir);
}
