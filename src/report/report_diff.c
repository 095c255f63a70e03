#include "src/report/report_diff.h"
#include <inttypes.h>
#include <string.h>

enum { VERDICT_BYTES = 120 };

// ---- what can be compared ----

// The line of a key in the settings, without its end; length 0: none.
static const char *setting(size_t *length, const char *config, const char *key) {
  size_t n = strlen(key);
  for (const char *line = config; *line; line += *length + (line[*length] == '\n')) {
    *length = strcspn(line, "\n");
    if (!strncmp(line, key, n) && line[n] == ' ') return line;
  }
  *length = 0;
  return "";
}

static status refuse_other_windows(const recorded_report *a, const recorded_report *b) {
  bool windows = command_cuts_windows(a->command), windows_too = command_cuts_windows(b->command);
  if (windows != windows_too || (windows && a->context != b->context))
    return REFUSE(
        "%s and %s cannot be compared: perplexity computes windows of run.context tokens: %s with %" PRId64
        ", %s with %" PRId64,
        a->file, b->file, command_name(a->command), a->context, command_name(b->command), b->context);
  if (windows && a->skip != b->skip)
    return REFUSE("%s and %s cannot be compared: perplexity's digests cover the scored positions alone, and "
                  "perplexity.skip is %" PRId64 " and %" PRId64,
                  a->file, b->file, a->skip, b->skip);
  return 0;
}

static status refuse_other_input(const recorded_report *a, const recorded_report *b) {
  if (a->fingerprint != b->fingerprint || a->n_layers != b->n_layers)
    return REFUSE("%s and %s cannot be compared: the model's fingerprint is %016" PRIx64 " (%" PRId64
                  " layers) and %016" PRIx64 " (%" PRId64 " layers)",
                  a->file, b->file, a->fingerprint, a->n_layers, b->fingerprint, b->n_layers);
  if (a->input != b->input || a->arms[0].n_sequences != b->arms[0].n_sequences)
    return REFUSE("%s and %s cannot be compared: the hash of the input's tokens is %016" PRIx64
                  " and %016" PRIx64,
                  a->file, b->file, a->input, b->input);
  if (a->imposes_routes != b->imposes_routes || a->routes != b->routes)
    return REFUSE("%s and %s cannot be compared: every arm took the experts of %s%016" PRIx64
                  ", and of %s%016" PRIx64,
                  a->file, b->file, a->imposes_routes ? "parity.routes " : "no file, ", a->routes,
                  b->imposes_routes ? "parity.routes " : "no file, ", b->routes);
  return refuse_other_windows(a, b);
}

// Whether run.kv is part of an arm's shared path. An older version may have read it where this one does not:
// q8k did.
static bool reads_kv(const recorded_arm *x) {
  const path_info *path = path_get(x->path_kind);
  return x->path_version < path->version || path_reads_kv(path);
}

// One path, all experts' paths included.
static bool same_path(const recorded_report *a, const recorded_arm *x, const recorded_report *b,
                      const recorded_arm *y) {
  bool same_cache = !strcmp(a->kv, b->kv) || (!reads_kv(x) && !reads_kv(y));
  return same_cache && x->path_kind == y->path_kind && x->path_version == y->path_version &&
         x->expert_paths == y->expert_paths;
}

static size_t partners(const recorded_report *a, const recorded_arm *x, const recorded_report *b) {
  size_t n = 0;
  for (size_t k = 0; k < b->n_arms; k++) n += same_path(a, x, b, &b->arms[k]);
  return n;
}

static status refuse_no_common_arm(const recorded_report *a, const recorded_report *b) {
  char names[2][256] = {"", ""};
  const recorded_report *r[2] = {a, b};
  for (size_t i = 0; i < a->n_arms; i++)
    if (partners(a, &a->arms[i], b)) return 0;
  for (int i = 0; i < 2; i++)
    for (size_t k = 0; k < r[i]->n_arms; k++)
      snprintf(names[i] + strlen(names[i]), sizeof names[i] - strlen(names[i]), "%s%s v%" PRId64,
               k ? ", " : "", r[i]->arms[k].name, r[i]->arms[k].path_version);
  return REFUSE("%s and %s cannot be compared: no arm of one path and version in both: %s (run.kv %s) and %s "
                "(run.kv %s)",
                a->file, b->file, names[0], a->kv, names[1], b->kv);
}

// Same sampler settings: with the same logits, both must have generated the same tokens.
static bool same_sampling(const recorded_report *a, const recorded_report *b) {
  static const char *const KEYS[] = {"run.generate", "run.temperature", "run.top_k", "run.top_p", "run.seed"};
  for (size_t i = 0; i < sizeof KEYS / sizeof *KEYS; i++) {
    size_t n, m;
    const char *x = setting(&n, a->config, KEYS[i]), *y = setting(&m, b->config, KEYS[i]);
    if (n != m || memcmp(x, y, n)) return false;
  }
  return true;
}

// ---- one pair of arms ----

// The first token where two generated texts differ; -1: they are the same.
static int64_t first_difference(const report_text *x, const report_text *y) {
  size_t n = x->n_tokens < y->n_tokens ? x->n_tokens : y->n_tokens;
  for (size_t i = 0; i < n; i++)
    if (x->tokens[i] != y->tokens[i]) return (int64_t)i;
  return x->n_tokens == y->n_tokens && x->digest == y->digest ? -1 : (int64_t)n;
}

static bool judge_texts(char *verdict, const recorded_arm *x, const recorded_arm *y) {
  for (size_t i = 0; i < x->n_texts && i < y->n_texts; i++) {
    int64_t at = first_difference(&x->texts[i], &y->texts[i]);
    if (at < 0) continue;
    if ((size_t)at < x->texts[i].n_tokens && (size_t)at < y->texts[i].n_tokens)
      snprintf(verdict, VERDICT_BYTES, "differ in what they wrote: sequence %zu, token %" PRId64, i, at);
    else
      snprintf(verdict, VERDICT_BYTES, "differ in the logits of what they wrote: sequence %zu", i);
    return false;
  }
  return true;
}

static void judge_sequences(char *verdict, const recorded_arm *x, const recorded_arm *y) {
  size_t n = 0, first = 0;
  for (size_t i = x->n_sequences; i-- > 0;)
    if (x->sequences[i].digest != y->sequences[i].digest) {
      first = i;
      n++;
    }
  if (x->n_sequences > 1)
    snprintf(verdict + strlen(verdict), VERDICT_BYTES - strlen(verdict),
             "; %zu of %zu sequences, the first is %zu", n, x->n_sequences, first);
}

// True: the same bits. The verdict names the first layer that differs.
static bool judge(char verdict[VERDICT_BYTES], const recorded_report *a, const recorded_arm *x,
                  const recorded_report *b, const recorded_arm *y) {
  int64_t layer = 0;
  while (layer < a->n_layers && x->layer_digests[layer] == y->layer_digests[layer]) layer++;
  bool equal_logits = x->digest == y->digest;
  for (size_t i = 0; i < x->n_sequences; i++)
    equal_logits = equal_logits && x->sequences[i].digest == y->sequences[i].digest;
  if (layer == a->n_layers && equal_logits) {
    snprintf(verdict, VERDICT_BYTES, "same bits");
    return !same_sampling(a, b) || judge_texts(verdict, x, y);
  }
  if (layer < a->n_layers)
    snprintf(verdict, VERDICT_BYTES, "differ from layer %" PRId64 " on%s", layer,
             equal_logits ? ", not in the logits" : "");
  else
    snprintf(verdict, VERDICT_BYTES, "differ in the logits, in no layer");
  if (!equal_logits) judge_sequences(verdict, x, y);
  return false;
}

// ---- the table ----

static void print_report(FILE *out, char letter, const recorded_report *r) {
  fprintf(out, "%c  ", letter);
  report_print_line(out, r->file, 70, true);
  fprintf(out, "\n   moe_run ");
  report_print_line(out, r->version, 20, false);
  fputc(' ', out);
  fputs(command_name(r->command), out);
  fprintf(out, ", %zu rank%s on %" PRId64 " host%s, ", r->n_ranks, r->n_ranks == 1 ? "" : "s", r->hosts,
          r->hosts == 1 ? "" : "s");
  report_print_line(out, r->cpu, 60, false);
  fprintf(out, ", row ");
  report_print_line(out, r->row, 20, false);
  fputc('\n', out);
}

static void print_head(FILE *out, const recorded_report *a, const recorded_report *b) {
  int64_t tokens = 0;
  for (size_t i = 0; i < a->arms[0].n_sequences; i++) tokens += a->arms[0].sequences[i].tokens;
  print_report(out, 'A', a);
  print_report(out, 'B', b);
  fprintf(out, "\nmodel ");
  report_print_line(out, a->model, 70, false);
  fprintf(out, ", fingerprint %016" PRIx64 "; %" PRId64 " tokens in %zu sequence%s, hash %016" PRIx64 "\n\n",
          a->fingerprint, tokens, a->arms[0].n_sequences, a->arms[0].n_sequences == 1 ? "" : "s", a->input);
  if (strcmp(a->kv, b->kv))
    fprintf(out, "run.kv is %s in A and %s in B, which makes another path of f32\n\n", a->kv, b->kv);
  fprintf(out, "  %-9s %-9s %-9s %-16s  %s\n", "A", "B", "path", "digest of A", "digest of B");
}

static void print_unmatched(FILE *out, bool in_a, const recorded_arm *x) {
  fprintf(out, "  %-9s %-9s %s v%-4" PRId64, in_a ? x->name : "-", in_a ? "-" : x->name, x->path,
          x->path_version);
  if (in_a) fprintf(out, " %016" PRIx64 "  %-16s", x->digest, "-");
  if (!in_a) fprintf(out, " %-16s  %016" PRIx64, "-", x->digest);
  fprintf(out, "  only in %c\n", in_a ? 'A' : 'B');
}

// Adds to n[same or not] the pairs of arm `x`.
static void print_partners(FILE *out, size_t n[2], const recorded_report *a, const recorded_arm *x,
                           const recorded_report *b) {
  char verdict[VERDICT_BYTES];
  for (size_t k = 0; k < b->n_arms; k++) {
    const recorded_arm *y = &b->arms[k];
    if (!same_path(a, x, b, y)) continue;
    bool same = judge(verdict, a, x, b, y);
    n[same]++;
    fprintf(out, "  %-9s %-9s %s v%-4" PRId64 " %016" PRIx64 "  %016" PRIx64 "  %s\n", x->name, y->name,
            x->path, x->path_version, x->digest, y->digest, verdict);
  }
}

status report_diff(bool *same, FILE *out, const recorded_report *a, const recorded_report *b) {
  size_t n[2] = {0, 0};
  TRY(refuse_other_input(a, b));
  TRY(refuse_no_common_arm(a, b));
  print_head(out, a, b);
  for (size_t i = 0; i < a->n_arms; i++) {
    print_partners(out, n, a, &a->arms[i], b);
    if (!partners(a, &a->arms[i], b)) print_unmatched(out, true, &a->arms[i]);
  }
  for (size_t i = 0; i < b->n_arms; i++)
    if (!partners(b, &b->arms[i], a)) print_unmatched(out, false, &b->arms[i]);
  *same = !n[false];
  if (*same)
    fprintf(out, "\nSame path, same bits: %zu of %zu.\n", n[true], n[true]);
  else
    fprintf(out, "\nOTHER BITS: %zu of %zu pairs of one path differ.\n", n[false], n[false] + n[true]);
  return 0;
}
