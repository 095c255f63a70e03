#include "src/report/bench_ranks.h"
#include "base/memory.h"
#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

static status open_arrays(bench_ranks *r, size_t n) {
  TRY(memory_take((void **)&r->host, n, sizeof *r->host, "hosts"));
  TRY(TAKE(&r->times, n, "ranks' times"));
  TRY(TAKE(&r->sent, n, "ranks' bytes"));
  TRY(TAKE(&r->received, n, "ranks' bytes"));
  TRY(TAKE(&r->slots, n, "ranks' slots"));
  return TAKE(&r->expert_bytes, n, "ranks' bytes");
}

status bench_ranks_open(bench_ranks **out, int n) {
  double none = __builtin_nan("");
  TRY(TAKE(out, 1, "what ranks do"));
  (*out)->n = n;
  (*out)->same.seconds = (*out)->largest.seconds = (*out)->token_share = (*out)->head_share = none;
  return open_arrays(*out, (size_t)n);
}

void bench_ranks_close(bench_ranks *r) {
  if (!r) return;
  free(r->host);
  free(r->times);
  free(r->sent);
  free(r->received);
  free(r->slots);
  free(r->expert_bytes);
  free(r);
}

int64_t bench_group_first(const bench_ranks *r, int g) {
  return r->n_layers * g / r->n_groups;
}

static void put_real(FILE *out, const char *key, double x) {
  fprintf(out, "\"%s\": ", key);
  if (isfinite(x))
    fprintf(out, "%.9g", x);
  else
    fputs("null", out);
}

static void put_phases(const rank_times *t, FILE *out) {
  bool first = true;
  fputs("\"phases\": {", out);
  for (int p = 0; p < PHASE_COUNT; p++) {
    if (!(t->phase[p] > 0)) continue;
    fprintf(out, "%s\"%s\": %.9g", first ? "" : ", ", phase_get((phase_kind)p)->name, t->phase[p]);
    first = false;
  }
  fputc('}', out);
}

static void put_groups(const bench_ranks *r, const rank_times *t, FILE *out) {
  bool known = isfinite(r->transfer_seconds);
  fputs("\"groups\": [", out);
  for (int g = 0; g < r->n_groups; g++) {
    const double *part = t->group[g];
    fprintf(out, "%s{\"first\": %" PRId64 ", \"last\": %" PRId64 ", ", g ? ", " : "", bench_group_first(r, g),
            bench_group_first(r, g + 1) - 1);
    put_real(out, "shared", part[PART_SHARED]);
    fputs(", ", out);
    put_real(out, "experts", part[PART_EXPERTS]);
    fputs(", ", out);
    put_real(out, "exchange", part[PART_EXCHANGE]);
    fputs(", ", out);
    put_real(out, "waiting", known ? part[PART_WAITING] : __builtin_nan(""));
    fputc('}', out);
  }
  fputc(']', out);
}

// A host's name is of letters, digits, dots and hyphens.
static void put_rank(const bench_ranks *r, int rank, FILE *out) {
  const rank_times *t = &r->times[rank];
  fprintf(out, "{\"rank\": %d, \"host\": \"%s\", ", rank, r->host[rank]);
  put_real(out, "seconds", t->seconds);
  fprintf(out,
          ", \"sent_bytes\": %" PRIu64 ", \"received_bytes\": %" PRIu64 ", \"slots\": %" PRIu64
          ", \"expert_bytes\": %" PRIu64 ",\n          ",
          r->sent[rank], r->received[rank], r->slots[rank], r->expert_bytes[rank]);
  put_phases(t, out);
  fputs(",\n          ", out);
  put_groups(r, t, out);
  fputc('}', out);
}

static void put_link(const char *key, const bench_link *l, FILE *out) {
  fprintf(out, ", \"%s\": {\"bytes\": %" PRIu64 ", ", key, l->bytes);
  put_real(out, "seconds", l->seconds);
  fputc('}', out);
}

void bench_ranks_json(const bench_ranks *r, FILE *out) {
  fprintf(out, "\"ranks\": {\"transport\": \"%s\", \"peers\": %s, \"exchange_is_inside\": %s, ", r->transport,
          r->has_peers ? "true" : "false", r->exchange_is_inside ? "true" : "false");
  put_real(out, "transfer_seconds", r->transfer_seconds);
  fputs(", ", out);
  put_real(out, "token_share", r->token_share);
  fputs(", ", out);
  put_real(out, "head_share", r->head_share);
  fprintf(out, ", \"busiest_slots\": %" PRIu64 ", \"busiest_expert_bytes\": %" PRIu64, r->busiest_slots,
          r->busiest_expert_bytes);
  put_link("link_same_size", &r->same, out);
  put_link("link_largest", &r->largest, out);
  fputs(",\n       \"of\": [", out);
  for (int i = 0; i < r->n; i++) {
    if (i) fputs(",\n         ", out);
    put_rank(r, i, out);
  }
  fputs("]}", out);
}

// ---- Markdown ----

static double rate_of(double bytes, double seconds) {
  return seconds > 0 ? bytes * 1e-9 / seconds : __builtin_nan("");
}

// Bytes that each rank receives from the others, over the time: nccl-tests' busbw of an all-gather.
static double link_rate(const bench_ranks *r, const bench_link *l) {
  return rate_of((double)l->bytes * (r->n - 1), l->seconds);
}

static void md_real(FILE *out, const char *before, double x, const char *after) {
  if (isfinite(x)) fprintf(out, "%s%.3f%s", before, x, after);
}

static void md_rank(const bench_ranks *r, int rank, FILE *out) {
  const rank_times *t = &r->times[rank];
  double of[BENCH_PARTS] = {0};
  for (int g = 0; g < r->n_groups; g++)
    for (int p = 0; p < BENCH_PARTS; p++) of[p] += t->group[g][p];
  fprintf(out, "| %4d | %-16s | %9.3f | %9.3f | %9.3f | %9.3f | %9.3f | %9.3f | %11.3f | %8" PRIu64 " |\n",
          rank, r->host[rank], t->seconds * 1e3, of[PART_SHARED] * 1e3, of[PART_EXPERTS] * 1e3,
          of[PART_EXCHANGE] * 1e3, of[PART_WAITING] * 1e3, (double)r->sent[rank] * 1e-6,
          (double)r->received[rank] * 1e-6, r->slots[rank]);
}

void bench_ranks_md(const bench_ranks *r, const char *arm, const char *test, FILE *out) {
  uint64_t received = 0;
  if (r->n == 1) return;
  for (int i = 0; i < r->n; i++) received = r->received[i] > received ? r->received[i] : received;
  fprintf(out, "\n%s, %s, by rank: ms of the layers%s\n\n", arm, test,
          r->exchange_is_inside           ? "; the exchange is inside of experts"
          : isfinite(r->transfer_seconds) ? ""
                                          : "; exchange has the wait");
  fprintf(out,
          "| rank | host             |        ms |    shared |   experts |  exchange |   waiting |   MB sent "
          "| MB received |    slots |\n"
          "|-----:|:-----------------|----------:|----------:|----------:|----------:|----------:|----------:"
          "|------------:|---------:|\n");
  for (int i = 0; i < r->n; i++) md_rank(r, i, out);
  fprintf(out, "\nover %s%s", r->transport, r->has_peers ? ", GPUs linked" : "");
  md_real(out, ": busbw ", rate_of((double)received, r->transfer_seconds), " GB/s");
  md_real(out, "; an all-gather alone of a layer's bytes ", link_rate(r, &r->same), " GB/s");
  md_real(out, ", of many ", link_rate(r, &r->largest), " GB/s");
  fputc('\n', out);
}
