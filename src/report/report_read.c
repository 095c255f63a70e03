#include "src/report/report_read.h"
#include "base/memory.h"
#include "base/read_file.h"
#include "src/config/arm_choice.h"
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum { MOST_BYTES = 1 << 30, MOST_COUNT = 1 << 24, WHERE_BYTES = 160 };

// ---- values ----

typedef struct { // a value and its place in the file: "arms[2].digest"
  const char *file;
  const json_t *node;
  char where[WHERE_BYTES];
} place;

static const char *kind_of(const json_t *node) {
  static const char *const KINDS[] = {"an object", "an array", "a string", "an integer",
                                      "a real",    "true",     "false",    "null"};
  return KINDS[json_typeof(node)];
}

static status take(place *out, const place *of, const char *key, json_type type) {
  static const char *const KINDS[] = {"an object", "an array", "a string", "an integer"};
  *out = (place){.file = of->file, .node = json_object_get(of->node, key)};
  snprintf(out->where, sizeof out->where, "%.100s%s%s", of->where, *of->where ? "." : "", key);
  if (!out->node) return REFUSE("%s: %s: expected %s, found no such key", of->file, out->where, KINDS[type]);
  if (json_typeof(out->node) == type) return 0;
  return REFUSE("%s: %s: expected %s, found %s", of->file, out->where, KINDS[type], kind_of(out->node));
}

static status take_element(place *out, const place *of, size_t i, json_type type, const char *kind) {
  *out = (place){.file = of->file, .node = json_array_get(of->node, i)};
  snprintf(out->where, sizeof out->where, "%.100s[%zu]", of->where, i);
  if (json_typeof(out->node) == type) return 0;
  return REFUSE("%s: %s: expected %s, found %s", of->file, out->where, kind, kind_of(out->node));
}

static status take_text(const char **out, const place *of, const char *key) {
  place p;
  TRY(take(&p, of, key, JSON_STRING));
  *out = json_string_value(p.node);
  return 0;
}

static status take_integer(int64_t *out, const place *of, const char *key, int64_t least, int64_t most) {
  place p;
  TRY(take(&p, of, key, JSON_INTEGER));
  *out = json_integer_value(p.node);
  if (*out >= least && *out <= most) return 0;
  return REFUSE("%s: %s: expected %lld to %lld, found %lld", p.file, p.where, (long long)least,
                (long long)most, (long long)*out);
}

static status read_digest(uint64_t *out, const place *p) {
  static const char DIGITS[] = "0123456789abcdef";
  const char *text = json_string_value(p->node);
  size_t n = strspn(text, DIGITS);
  if (n != 16 || text[n])
    return REFUSE("%s: %s: expected 16 hexadecimal digits, found \"%.40s\"", p->file, p->where, text);
  *out = strtoull(text, NULL, 16);
  return 0;
}

// null is -1.
static status take_integer_or_null(int64_t *out, const place *of, const char *key, int64_t least,
                                   int64_t most) {
  *out = -1;
  return json_is_null(json_object_get(of->node, key)) ? 0 : take_integer(out, of, key, least, most);
}

static status take_digest(uint64_t *out, const place *of, const char *key) {
  place p;
  TRY(take(&p, of, key, JSON_STRING));
  return read_digest(out, &p);
}

// ---- an arm ----

static status read_layers(recorded_arm *a, const place *of, int64_t n_layers) {
  place list, p;
  TRY(take(&list, of, "layer_digests", JSON_ARRAY));
  size_t n = json_array_size(list.node);
  if ((int64_t)n != n_layers)
    return REFUSE("%s: %s: expected one for each of the model's %lld layers, found %zu", of->file, list.where,
                  (long long)n_layers, n);
  TRY(TAKE(&a->layer_digests, n, "a report's digests"));
  for (size_t i = 0; i < n; i++) {
    TRY(take_element(&p, &list, i, JSON_STRING, "a string"));
    TRY(read_digest(&a->layer_digests[i], &p));
  }
  return 0;
}

static status read_sequences(recorded_arm *a, const place *of) {
  place list, p;
  uint64_t sum = 0;
  TRY(take(&list, of, "sequences", JSON_ARRAY));
  size_t n = json_array_size(list.node);
  if (!n) return REFUSE("%s: %s: expected at least one sequence", of->file, list.where);
  TRY(TAKE(&a->sequences, n, "a report's sequences"));
  a->n_sequences = n;
  for (size_t i = 0; i < n; i++) {
    TRY(take_element(&p, &list, i, JSON_OBJECT, "an object"));
    TRY(take_integer(&a->sequences[i].tokens, &p, "tokens", 1, INT64_MAX));
    TRY(take_digest(&a->sequences[i].digest, &p, "digest"));
    sum += a->sequences[i].digest;
  }
  if (sum != a->digest)
    return REFUSE("%s: %s.digest: expected the sum of its sequences, %016llx, found %016llx", of->file,
                  of->where, (unsigned long long)sum, (unsigned long long)a->digest);
  return 0;
}

static status read_tokens(report_text *t, const place *of) {
  place list, p;
  TRY(take(&list, of, "tokens", JSON_ARRAY));
  size_t n = json_array_size(list.node);
  TRY(TAKE(&t->tokens, n, "a report's tokens"));
  t->n_tokens = n;
  for (size_t i = 0; i < n; i++) {
    TRY(take_element(&p, &list, i, JSON_INTEGER, "an integer"));
    json_int_t id = json_integer_value(p.node);
    if (id < 0 || id > INT32_MAX)
      return REFUSE("%s: %s: expected a token's id, found %lld", of->file, p.where, (long long)id);
    t->tokens[i] = (int32_t)id;
  }
  return 0;
}

static status read_texts(recorded_arm *a, const place *of) {
  place list, p;
  TRY(take(&list, of, "generated", JSON_ARRAY));
  size_t n = json_array_size(list.node);
  if (n && n != a->n_sequences)
    return REFUSE("%s: %s: expected one for each of %zu sequences, found %zu", of->file, list.where,
                  a->n_sequences, n);
  TRY(TAKE(&a->texts, n, "a report's texts"));
  a->n_texts = n;
  for (size_t i = 0; i < n; i++) {
    TRY(take_element(&p, &list, i, JSON_OBJECT, "an object"));
    TRY(take_integer(&a->texts[i].sequence, &p, "sequence", (int64_t)i, (int64_t)i));
    TRY(take_digest(&a->texts[i].digest, &p, "digest"));
    TRY(read_tokens(&a->texts[i], &p));
  }
  return 0;
}

// The name and the path that it says, which the key "path" must repeat; a mixed arm leaves the path open.
static status read_name(recorded_arm *a, const place *of) {
  arm_choice arm;
  TRY(take_text(&a->name, of, "name"));
  TRY(take_text(&a->path, of, "path"));
  if (arm_choice_parse(&arm, a->name, strlen(a->name)) != ARM_NAME_GOOD || arm.kind == ARM_AUTO)
    return REFUSE("%s: %s.name: expected path@backend or \"ranks\", found \"%.40s\"", of->file, of->where,
                  a->name);
  const path_info *path = path_find(a->path, strlen(a->path));
  if (!path || (arm.kind == ARM_PLAIN && path->kind != arm.path))
    return REFUSE("%s: %s.path: expected the path of %s, found \"%.40s\"", of->file, of->where, a->name,
                  a->path);
  a->path_kind = path->kind;
  return 0;
}

static status read_arm(recorded_arm *a, const place *of, const recorded_report *r) {
  int64_t ranks;
  TRY(read_name(a, of));
  TRY(take_integer(&a->path_version, of, "path_version", 1, INT32_MAX));
  TRY(take_digest(&a->expert_paths, of, "expert_paths"));
  TRY(take_digest(&a->digest, of, "digest"));
  TRY(take_integer(&ranks, of, "ranks", (int64_t)r->n_ranks, (int64_t)r->n_ranks));
  TRY(read_layers(a, of, r->n_layers));
  TRY(read_sequences(a, of));
  return read_texts(a, of);
}

static status read_arms(recorded_report *r, const place *root) {
  place list, p;
  TRY(take(&list, root, "arms", JSON_ARRAY));
  size_t n = json_array_size(list.node);
  if (!n) return REFUSE("%s: arms: expected at least one arm", r->file);
  TRY(TAKE(&r->arms, n, "a report's arms"));
  r->n_arms = n;
  for (size_t i = 0; i < n; i++) {
    TRY(take_element(&p, &list, i, JSON_OBJECT, "an object"));
    TRY(read_arm(&r->arms[i], &p, r));
    for (size_t k = 0; k < i; k++)
      if (!strcmp(r->arms[k].name, r->arms[i].name))
        return REFUSE("%s: %s.name: \"%s\" is arms[%zu] already", r->file, p.where, r->arms[i].name, k);
    if (r->arms[i].n_sequences != r->arms[0].n_sequences)
      return REFUSE("%s: %s.sequences: expected as many as of arms[0]", r->file, p.where);
  }
  return 0;
}

// ---- the whole ----

static status read_model(recorded_report *r, const place *root) {
  place model;
  TRY(take(&model, root, "model", JSON_OBJECT));
  TRY(take_text(&r->model, &model, "name"));
  TRY(take_digest(&r->fingerprint, &model, "fingerprint"));
  return take_integer(&r->n_layers, &model, "n_layers", 1, MOST_COUNT);
}

static status read_surroundings(recorded_report *r, const place *root) {
  place machine, build, run, ranks;
  TRY(take(&machine, root, "machine", JSON_OBJECT));
  TRY(take_text(&r->cpu, &machine, "cpu"));
  TRY(take_integer(&r->hosts, &machine, "hosts", 1, MOST_COUNT));
  TRY(take(&build, root, "build", JSON_OBJECT));
  TRY(take_text(&r->version, &build, "version"));
  TRY(take_text(&r->row, &build, "row"));
  TRY(take(&run, root, "run", JSON_OBJECT));
  TRY(take_digest(&r->input, &run, "input"));
  r->imposes_routes = !json_is_null(json_object_get(run.node, "routes"));
  if (r->imposes_routes) TRY(take_digest(&r->routes, &run, "routes"));
  TRY(take_text(&r->config, &run, "config"));
  TRY(take_text(&r->kv, &run, "kv"));
  if (strcmp(r->kv, "f16") && strcmp(r->kv, "f32"))
    return REFUSE("%s: run.kv: expected \"f16\" or \"f32\", found \"%.40s\"", r->file, r->kv);
  TRY(take_integer(&r->context, &run, "context", 1, INT32_MAX));
  TRY(take_integer_or_null(&r->skip, &run, "skip", 0, INT32_MAX));
  TRY(take(&ranks, root, "ranks", JSON_ARRAY));
  r->n_ranks = json_array_size(ranks.node);
  return r->n_ranks ? 0 : REFUSE("%s: ranks: expected at least one rank", r->file);
}

static status read_command(recorded_report *r, const place *root) {
  const char *name;
  TRY(take_text(&name, root, "command"));
  if (command_find(&r->command, name)) return 0;
  return REFUSE("%s: command: expected a command of moe_run, found \"%.40s\"", r->file, name);
}

static status read_report(recorded_report *r, const place *root) {
  int64_t schema;
  if (!json_is_object(root->node))
    return REFUSE("%s: expected an object, found %s", r->file, kind_of(root->node));
  TRY(take_integer(&schema, root, "schema", REPORT_SCHEMA, REPORT_SCHEMA));
  const json_t *complete = json_object_get(root->node, "complete");
  if (!json_is_true(complete))
    return REFUSE("%s: complete: expected true, found %s", r->file,
                  complete ? kind_of(complete) : "no such key");
  TRY(read_command(r, root));
  TRY(read_model(r, root));
  TRY(read_surroundings(r, root));
  return read_arms(r, root);
}

status report_read_text(recorded_report *out, const char *file, const char *text, size_t length) {
  json_error_t e;
  status result;
  *out = (recorded_report){.file = NULL};
  TRY_DONE(result, TAKE(&out->file, strlen(file) + 1, "a report's name"));
  strcpy(out->file, file);
  out->tree = json_loadb(text, length, JSON_REJECT_DUPLICATES, &e);
  if (!out->tree) TRY_DONE(result, REFUSE("%s:%d: not JSON: %s", file, e.line, e.text));
  place root = {.file = out->file, .node = (const json_t *)out->tree};
  result = read_report(out, &root);
done:
  if (result) report_read_close(out);
  return result;
}

void report_read_close(recorded_report *r) {
  for (size_t i = 0; i < r->n_arms; i++) {
    recorded_arm *a = &r->arms[i];
    for (size_t t = 0; t < a->n_texts; t++) free(a->texts[t].tokens);
    free(a->layer_digests);
    free(a->sequences);
    free(a->texts);
  }
  free(r->arms);
  free(r->file);
  json_decref((json_t *)r->tree);
  *r = (recorded_report){.file = NULL};
}

// ---- files ----

status report_read(recorded_report *out, const char *path) {
  struct stat s;
  char *file, *text;
  size_t length, room = strlen(path) + sizeof "/report.json";
  *out = (recorded_report){.file = NULL};
  TRY(TAKE(&file, room, "a report's name"));
  snprintf(file, room, "%s%s", path, !stat(path, &s) && S_ISDIR(s.st_mode) ? "/report.json" : "");
  status result = status_as_refusal(read_file(&text, &length, file, "report", MOST_BYTES, READ_REGULAR));
  if (!result) result = report_read_text(out, file, text, length);
  free(text);
  free(file);
  return result;
}
