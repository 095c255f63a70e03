#include "src/contract/judging.h"
#include "src/contract/report_check.h"
#include <sys/stat.h>

// ---- scope ----

static status refuse_scope(const contract *c, const recorded_report *r, const char *key, const char *wanted,
                           const char *found) {
  return REFUSE("%s: scope.%s is %.60s, but %s has %.60s: this contract is not for this report", c->file, key,
                wanted, r->file, found);
}

static status check_text(const contract *c, const recorded_report *r, const char *key, const char *wanted,
                         const char *found) {
  return !wanted || !strcmp(wanted, found) ? 0 : refuse_scope(c, r, key, wanted, found);
}

static status check_digest(const contract *c, const recorded_report *r, const char *key, const char *wanted,
                           uint64_t found) {
  char text[17];
  snprintf(text, sizeof text, "%016" PRIx64, found);
  return check_text(c, r, key, wanted, text);
}

static status check_count(const contract *c, const recorded_report *r, const char *key, int64_t wanted) {
  char one[24], other[24];
  int64_t found = json_integer_value(json_object_get(json_object_get(r->tree, "model"), key));
  if (!wanted || wanted == found) return 0;
  snprintf(one, sizeof one, "%" PRId64, wanted);
  snprintf(other, sizeof other, "%" PRId64, found);
  return refuse_scope(c, r, key, one, other);
}

static const recorded_arm *find_arm(const recorded_report *r, const char *name) {
  for (size_t i = 0; i < r->n_arms; i++)
    if (!strcmp(r->arms[i].name, name)) return &r->arms[i];
  return NULL;
}

// The fingerprint of the model that others are measured against: parity.reference, or else the report's own.
static const char *reference_of(const recorded_report *r, char own[17]) {
  const json_t *reference = json_object_get(json_object_get(r->tree, "run"), "reference");
  const char *text = json_string_value(json_object_get(reference, "fingerprint"));
  snprintf(own, 17, "%016" PRIx64, r->fingerprint);
  return text ? text : own;
}

static status check_scope(const contract *c, const recorded_report *r) {
  char own[17];
  const char *architecture =
      json_string_value(json_object_get(json_object_get(r->tree, "model"), "architecture"));
  TRY(check_text(c, r, "command", c->scope.command, command_name(r->command)));
  TRY(check_digest(c, r, "model", c->scope.model, r->fingerprint));
  TRY(check_text(c, r, "reference", c->scope.reference, reference_of(r, own)));
  TRY(check_digest(c, r, "input", c->scope.input, r->input));
  TRY(check_text(c, r, "kv", c->scope.kv, r->kv));
  TRY(check_text(c, r, "architecture", c->scope.architecture, architecture ? architecture : "none"));
  TRY(check_count(c, r, "n_layers", c->scope.n_layers));
  TRY(check_count(c, r, "hidden", c->scope.hidden));
  TRY(check_count(c, r, "n_experts", c->scope.n_experts));
  TRY(check_count(c, r, "top_k", c->scope.top_k));
  TRY(check_count(c, r, "vocabulary", c->scope.vocabulary));
  for (size_t i = 0; i < c->scope.arms.n; i++)
    if (!find_arm(r, c->scope.arms.text[i]))
      return refuse_scope(c, r, "arms", c->scope.arms.text[i], "no such arm");
  for (size_t i = 0; i < c->scope.modes.n; i++) {
    const char *mode = c->scope.modes.text[i];
    if (strcmp(mode, "free") && !json_object_get(json_object_get(r->tree, "modes"), mode))
      return refuse_scope(c, r, "modes", mode, "no such mode");
  }
  int64_t n = (int64_t)r->n_ranks;
  if (c->scope.most_ranks && (n < c->scope.least_ranks || n > c->scope.most_ranks))
    return REFUSE("%s: scope.ranks is %" PRId64 " to %" PRId64
                  ", but %s ran on %zu: this contract is not for this report",
                  c->file, c->scope.least_ranks, c->scope.most_ranks, r->file, r->n_ranks);
  return 0;
}

// ---- the whole ----

static status refuse_retired(const contract *c) {
  char ids[64] = "";
  for (size_t i = 0; i < c->refuted_by.n; i++)
    snprintf(ids + strlen(ids), sizeof ids - strlen(ids), "%s%03d", i ? ", " : "", c->refuted_by.id[i]);
  return REFUSE("%s: %s is retired, refuted by %s: it gates nothing", c->file, c->name, ids);
}

status judge_report(verdict *out, const contract *c, const recorded_report *r, const char *dir) {
  verdict *v = out;
  *v = (verdict){.line = NULL};
  if (c->state == CONTRACT_RETIRED) return refuse_retired(c);
  TRY(check_scope(c, r));
  if (c->files && !dir) return REFUSE("%s: structure.files: expected a report in a folder (--out)", c->file);
  report_check(v, r);
  if (c->files && !v->failed) report_check_files(v, r, dir);
  if (v->failed || v->out_of_memory) return v->out_of_memory;
  TRY(judge_invariants(v, c, r));
  TRY(judge_exact(v, c, r));
  for (size_t i = 0; i < c->n_gates; i++) TRY(judge_gate(v, c, &c->gates[i], r));
  return v->out_of_memory;
}

// ---- files ----

static status finish(const verdict *v, const contract *c, const verdict_report *r, const char *out) {
  verdict_print(stdout, v, c, r);
  if (fflush(stdout)) return FAIL("standard output: the verdict could not be written: %m");
  if (out) TRY(verdict_write(v, c, r, out));
  return v->failed ? STATUS_DIFFERS : 0;
}

static status judge_recorded_report(const contract *c, const recorded_report *r, const char *dir,
                                    const char *out) {
  verdict v;
  const verdict_report head = {r->file, command_name(r->command), r->fingerprint, r->input, r->n_ranks};
  status result = judge_report(&v, c, r, dir);
  if (!result) result = finish(&v, c, &head, out);
  verdict_close(&v);
  return result;
}

// It is JSON and has our schema's number: so it is a report, and what is wrong with it was done to it.
static bool is_a_report(const char *path) {
  json_t *tree = json_load_file(path, 0, NULL);
  bool is = json_integer_value(json_object_get(tree, "schema")) == REPORT_SCHEMA;
  json_decref(tree);
  return is;
}

// What the reader refuses in a report is a finding like the others, in its own words.
static status judge_unreadable(const contract *c, const char *path, const char *out) {
  verdict v = {.line = NULL};
  const verdict_report head = {.path = path, .command = "no complete report"};
  if (c->state == CONTRACT_RETIRED) return STATUS_REFUSED;
  verdict_add(&v, VERDICT_STRUCTURE, "structure", "report.json", false, "%s", status_text());
  status_reset();
  status result = v.out_of_memory ? v.out_of_memory : finish(&v, c, &head, out);
  verdict_close(&v);
  return result;
}

status judge_files(const char *contract_path, const char *path, const char *out) {
  contract c;
  recorded_report r;
  char file[4096], dir[4096];
  struct stat s;
  bool is_dir = !stat(path, &s) && S_ISDIR(s.st_mode);
  snprintf(file, sizeof file, "%s%s", path, is_dir ? "/report.json" : "");
  snprintf(dir, sizeof dir, "%s", file);
  char *slash = strrchr(dir, '/');
  if (slash)
    *slash = 0;
  else
    strcpy(dir, ".");
  TRY(contract_read(&c, contract_path));
  status result = report_read(&r, path);
  if (!result) {
    result = judge_recorded_report(&c, &r, dir, out);
    report_read_close(&r);
  } else if (result == STATUS_REFUSED && is_a_report(file))
    result = judge_unreadable(&c, file, out);
  contract_close(&c);
  return result;
}

status judge_text(const char *contract_path, const char *text, size_t length, const char *dir,
                  const char *out) {
  contract c;
  recorded_report r;
  TRY(contract_read(&c, contract_path));
  status result = report_read_text(&r, "the report of this run", text, length);
  if (!result) {
    result = judge_recorded_report(&c, &r, *dir ? dir : NULL, out);
    report_read_close(&r);
  }
  contract_close(&c);
  return result;
}
