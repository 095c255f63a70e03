// The console: what ran, then the divergences, then the arms, then the generated texts. At most 110 columns
// wide.
#include "src/report/console.h"
#include "base/plain_text.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_RANK_LINES = 8 };

// ---- numbers and names ----

static cell bytes_cell(uint64_t bytes) {
  static const char *const UNITS[] = {"%.0f B", "%.1f KiB", "%.1f MiB", "%.2f GiB"};
  double x = (double)bytes;
  int unit = 0;
  for (; x >= 1024 && unit < 3; unit++) x /= 1024;
  return format(UNITS[unit], x);
}

static const char *or_none(const char *text) {
  return text && *text ? text : "-";
}

// Text of a model or a user: control characters but newline and tab become '?'.
static void print_text(FILE *out, const char *text, size_t length) {
  for (size_t i = 0; i < length; i++) {
    size_t n = text[i] == '\n' || text[i] == '\t' ? 0 : plain_control_bytes(text + i, length - i);
    fputc(n ? '?' : text[i], out);
    i += n == 2;
  }
}

void report_print_line(FILE *out, const char *text, size_t room, bool tail) {
  size_t length = strlen(text), from = 0, to = length;
  if (length > room && tail) from = length - room;
  if (length > room && !tail) to = room;
  while (from && from < length && ((unsigned char)text[from] & 0xc0) == 0x80)
    from++; // not inside a character
  while (to < length && to && ((unsigned char)text[to] & 0xc0) == 0x80) to--;
  to = from + strcspn(text + from, "\n\t") < to ? from + strcspn(text + from, "\n\t") : to;
  if (from) fputs("...", out);
  print_text(out, text + from, to - from);
  if (to < length) fputs("...", out);
}

// ---- what ran ----

static void print_ranks(const report *r, FILE *out) {
  int host = 4, cores = 5, arm = 3, role = 7;
  bool mixed = false;
  for (size_t i = 0; i < r->n_ranks && i < MAX_RANK_LINES; i++) {
    host = widest(host, or_none(r->ranks[i].host));
    cores = widest(cores, or_none(r->ranks[i].cores));
    arm = widest(arm, or_none(r->ranks[i].arm));
    mixed = mixed || (r->ranks[i].arm && *r->ranks[i].arm);
  }
  if (host > 24 - (mixed ? 9 : 0)) host = 24 - (mixed ? 9 : 0);
  if (cores > 16) cores = 16;
  if (!mixed) arm = role = 0;
  fprintf(out, "\n  rank  %-*s  %-*s  threads  %-*s%s%-*s%sexperts  expert bytes  shared bytes       state\n",
          host, "host", cores, "cores", arm, mixed ? "arm" : "", mixed ? "  " : "", role, mixed ? "role" : "",
          mixed ? "  " : "");
  for (size_t i = 0; i < r->n_ranks && i < MAX_RANK_LINES; i++) {
    const report_rank *k = &r->ranks[i];
    fprintf(out, "  %4d  %-*.*s  %-*.*s  %7d  %-*s%s%-*s%s%7" PRId64 "  %12s  %12s  %10s\n", k->rank, host,
            host, or_none(k->host), cores, cores, or_none(k->cores), k->threads, arm,
            mixed ? or_none(k->arm) : "", mixed ? "  " : "", role, mixed ? k->role : "", mixed ? "  " : "",
            k->experts, bytes_cell(k->experts_bytes).text, bytes_cell(k->shared_bytes).text,
            bytes_cell(k->state_bytes).text);
  }
  if (r->n_ranks > MAX_RANK_LINES) fprintf(out, "  ... and %zu more ranks\n", r->n_ranks - MAX_RANK_LINES);
}

// The ranks' devices; nothing where no rank has one.
static void print_devices(const report *r, FILE *out) {
  bool any = false;
  for (size_t i = 0; i < r->n_ranks; i++) any = any || r->ranks[i].gpu >= 0;
  if (!any) return;
  fprintf(out, "\n  rank  gpu  at            node     name\n");
  for (size_t i = 0; i < r->n_ranks && i < MAX_RANK_LINES; i++) {
    const report_rank *k = &r->ranks[i];
    char node[16] = "unknown";
    if (k->gpu_node >= 0) snprintf(node, sizeof node, "%d", k->gpu_node);
    if (k->gpu < 0)
      fprintf(out, "  %4d    -\n", k->rank);
    else
      fprintf(out, "  %4d  %3d  %-12.12s  %-7s  %.64s\n", k->rank, k->gpu, or_none(k->gpu_pci), node,
              or_none(k->gpu_name));
  }
}

// What the arms keep of keys and values, each kind once, in the order of arms.
static void print_caches(const report *r, FILE *out) {
  for (size_t i = 0; i < r->n_arms; i++) {
    size_t first = 0;
    while (strcmp(or_none(r->arms[first].cache), or_none(r->arms[i].cache))) first++;
    if (first == i) fprintf(out, "%s%s", i ? ", " : "", or_none(r->arms[i].cache));
  }
  fprintf(out, " cache\n");
}

// What the counts say of it, where there are any, and why it was taken.
static void print_placement(const report *r, FILE *out) {
  if (r->placement_reason && r->placement_reason[0])
    fprintf(out, "  experts %s: %s\n", r->placement, r->placement_reason);
  else if (r->counted_load > 0)
    fprintf(
        out,
        "  experts the busiest rank's load is %.3f times the mean's in the counted text, contiguous %.3f\n",
        r->counted_load, r->contiguous_load);
  if (r->replicas)
    fprintf(out, "  experts %" PRId64 " replicas over all layers and ranks, map %016" PRIx64 "\n",
            r->replicas, r->expert_map);
}

static void print_warnings(const report *r, FILE *out) {
  for (size_t i = 0; r->warnings && i < r->warnings->count; i++) {
    fprintf(out, i ? "  warning " : "\n  warning ");
    report_print_line(out, r->warnings->text[i], 400, false);
    fputc('\n', out);
  }
}

static void print_head(const report *r, FILE *out) {
  int64_t tokens = r->n_arms ? r->arms[0].tokens : 0;
  fprintf(out, "moe_run %s  ", command_name(r->command));
  report_print_line(out, or_none(r->model.name), 80, false);
  fprintf(out, "\n  file    ");
  report_print_line(out, or_none(r->model.path), 50, true);
  fprintf(out, "  %s, fingerprint %016" PRIx64 "\n", bytes_cell(r->model.bytes).text, r->model.fingerprint);
  fprintf(out,
          "  model   %.12s: %" PRId64 " layers, hidden %" PRId64 ", heads %" PRId64 "/%" PRId64 " of %" PRId64
          ", %" PRId64 " experts of %" PRId64 ", top-%" PRId64 ", vocabulary %" PRId64 "\n",
          or_none(r->model.architecture), r->model.n_layers, r->model.hidden, r->model.n_heads,
          r->model.n_kv_heads, r->model.head_dim, r->model.n_experts, r->model.expert_width, r->model.top_k,
          r->model.vocabulary);
  fprintf(out, "  types   ");
  report_print_line(out, or_none(r->model.types), 96, false);
  fputc('\n', out);
  fprintf(out, "  input   %" PRId64 " tokens in %zu sequence%s, chunk %" PRId64 ", context %" PRId64 ", ",
          tokens, r->n_sequences, r->n_sequences == 1 ? "" : "s", r->chunk, r->context);
  print_caches(r, out);
  bool explained = r->transport_reason[0]; // then on a line of its own
  fprintf(out, "  ranks   %zu on %d host%s of %d cores, %s%s%sexperts %s, cpu row %s\n", r->n_ranks,
          r->machine.hosts, r->machine.hosts == 1 ? "" : "s", r->machine.cores, explained ? "" : "transport ",
          explained ? "" : or_none(r->transport), explained ? "" : ", ", or_none(r->placement),
          or_none(r->build.row));
  print_placement(r, out);
  if (explained) {
    bool linked = !strcmp(r->peers, "linked");
    fprintf(out, "  over    transport %s (%.80s)%s%.80s\n", or_none(r->transport), r->transport_reason,
            !r->peers[0] ? ""
            : linked     ? ", GPUs "
                         : ", GPUs not linked: ",
            r->peers);
  }
  if (r->timeline.profilers)
    fprintf(out, "  clocks  of ranks up to %.3g s apart, to %.2g s; timeline.json, ranges to %s\n",
            r->timeline.largest_skew, r->timeline.largest_bound, r->timeline.profilers);
  fprintf(out, "  on      ");
  report_print_line(out, or_none(r->machine.cpu), 96, false);
  fputc('\n', out);
  print_ranks(r, out);
  print_devices(r, out);
  print_warnings(r, out);
}

// ---- arms ----

static void print_arms(const report *r, FILE *out) {
  int width = 3;
  for (size_t i = 0; i < r->n_arms; i++) width = widest(width, r->arms[i].name);
  fprintf(out, "\n  %-*s  path  %-16s  perplexity  prefill tok/s  decode tok/s  exchange s\n", width, "arm",
          "digest");
  for (size_t i = 0; i < r->n_arms; i++) {
    const report_arm *a = &r->arms[i];
    fprintf(out, "  %-*s  v%-3d  %016" PRIx64 "  %10s  %13s  %12s  %10s\n", width, a->name, a->path_version,
            a->digest, optional("%.4f", a->perplexity).text, optional("%.2f", a->prefill_tokens_per_s).text,
            optional("%.2f", a->decode_tokens_per_s).text, optional("%.3f", a->exchange_seconds).text);
  }
}

static void print_attention(const report *r, FILE *out) {
  for (size_t i = 0; i < r->n_arms && r->n_ranks > 1; i++) {
    const char *text = r->arms[i].attention;
    if (!*text || !strcmp(text, "replicated")) continue;
    fprintf(out, "  %s attention: ", r->arms[i].name);
    report_print_line(out, text, 300, false);
    fputc('\n', out);
  }
}

double report_bad_expert_missed(const audit_coverage *c) {
  return c->experts_used ? 1 - (double)c->experts / (double)c->experts_used : 0;
}

double report_bad_rank_missed(const audit_coverage *c) {
  return c->ranks_used ? 1 - (double)c->ranks / (double)c->ranks_used : 0;
}

static void print_audits(const report *r, FILE *out) {
  for (size_t i = 0; i < r->n_arms; i++) {
    const audit_coverage *c = &r->arms[i].audit;
    if (!(c->share > 0)) continue;
    fprintf(out,
            "\n%s audit: %" PRId64 " of %" PRId64
            " slots recomputed on another rank than their own and equal, "
            "of %" PRId64 " of %" PRId64 " ranks,\n  %" PRId64 " of %" PRId64
            " experts of a layer, in %.3f s. Missed: one bad rank %.1f%%, one bad expert of a layer %.1f%%\n",
            r->arms[i].name, c->slots, c->slots_seen, c->ranks, c->ranks_used, c->experts, c->experts_used,
            c->seconds, 100 * report_bad_rank_missed(c), 100 * report_bad_expert_missed(c));
  }
}

static void print_texts(const report *r, FILE *out) {
  for (size_t i = 0; i < r->n_arms; i++)
    for (size_t t = 0; t < r->arms[i].n_texts; t++) {
      const report_text *text = &r->arms[i].texts[t];
      fprintf(out, "\n%s wrote %zu tokens after sequence %" PRId64 ", stopped by ", r->arms[i].name,
              text->n_tokens, text->sequence);
      report_print_line(out, or_none(text->stopped_by), 40, false);
      fprintf(out, " (digest %016" PRIx64 "):\n", text->digest);
      if (text->text)
        print_text(out, text->text, strlen(text->text));
      else
        for (size_t n = 0; n < text->n_tokens; n++) fprintf(out, "%s%" PRId32, n ? " " : "", text->tokens[n]);
      if (!text->text || !*text->text || text->text[strlen(text->text) - 1] != '\n') fputc('\n', out);
    }
}

static void print_scored(const report *r, FILE *out) {
  if (r->n_arms)
    fprintf(out, "  over %" PRId64 " scored of %" PRId64 " computed tokens\n", r->arms[0].scored,
            r->arms[0].tokens);
}

void report_print(const report *r, FILE *out) {
  print_head(r, out);
  report_print_divergences(r, out);
  print_arms(r, out);
  print_attention(r, out);
  if (command_cuts_windows(r->command)) print_scored(r, out);
  print_audits(r, out);
  print_texts(r, out);
}
