#include "src/report/trace_read.h"
#include "base/memory.h"
#include "base/read_file.h"
#include "src/config/arm_choice.h"
#include "src/report/json_place.h"
#include "src/run/npy_read.h"
#include "src/report/trace_index.h"
#include <dirent.h>
#include <errno.h>
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST_INDEX_BYTES = 1 << 30, MOST_LAYERS = 1 << 12, MOST_TOKENS = 1 << 24, NAME_BYTES = 64 };

// ---- names ----

// "l_out-7.npy" or "result_norm.npy"
static bool parse_name(probe_point *point, int64_t *layer, const char *file) {
  static const char ENDING[] = ".npy";
  char head[NAME_BYTES];
  size_t length = strlen(file), ending = sizeof ENDING - 1;
  if (length <= ending || length >= sizeof head || strcmp(file + length - ending, ENDING)) return false;
  snprintf(head, sizeof head, "%.*s", (int)(length - ending), file);
  char *dash = strrchr(head, '-');
  *layer = NO_LAYER;
  bool is_number = dash && dash[1] && strlen(dash) < 6 && !dash[1 + strspn(dash + 1, "0123456789")];
  if (is_number && (dash[1] != '0' || !dash[2])) { // a layer has one name
    *layer = atoi(dash + 1);
    *dash = 0;
  }
  if (!probe_find(point, head) || *layer >= MOST_LAYERS) return false;
  return (probe_get(*point)->scope == PROBE_OF_LAYER) == (*layer != NO_LAYER);
}

static bool is_file(const char *dir, const char *name) {
  char path[4096];
  struct stat s;
  int n = snprintf(path, sizeof path, "%s/%s", dir, name);
  return n < (int)sizeof path && !stat(path, &s) && S_ISREG(s.st_mode);
}

static bool holds_probes(const char *dir) {
  struct dirent *entry;
  probe_point point;
  int64_t layer;
  bool found = false;
  DIR *folder = opendir(dir);
  while (folder && !found && (entry = readdir(folder))) found = parse_name(&point, &layer, entry->d_name);
  if (folder) closedir(folder);
  return found;
}

bool trace_is_there(const char *path) {
  return is_file(path, "index.json") || holds_probes(path);
}

// The path's parent and last part, without slashes at the end. false: it has no parent.
static bool split_path(char *parent, char *last, size_t room, const char *path) {
  size_t n = strlen(path);
  while (n > 1 && path[n - 1] == '/') n--;
  if (n >= room) return false;
  memcpy(parent, path, n);
  parent[n] = 0;
  char *slash = strrchr(parent, '/');
  strcpy(last, slash ? slash + 1 : parent);
  if (slash)
    slash[slash == parent] = 0;
  else
    strcpy(parent, ".");
  return *last && strcmp(last, ".") && strcmp(last, "..");
}

// ---- which files an arm has ----

static bool *has_row(const recorded_trace *t, const recorded_trace_arm *a, int64_t layer) {
  return a->has + (layer == NO_LAYER ? t->n_layers : layer) * PROBE_COUNT;
}

bool trace_has(const recorded_trace *t, const recorded_trace_arm *a, probe_point point, int64_t layer) {
  return layer < t->n_layers && has_row(t, a, layer)[point];
}

// Of a folder without index, whose layers are as the files go: call with n_layers 0 first.
static status scan(recorded_trace *t, recorded_trace_arm *a, bool only_count) {
  struct dirent *entry;
  probe_point point;
  int64_t layer;
  DIR *folder = opendir(a->folder);
  if (!folder) return REFUSE("%s: cannot be opened: %s", a->folder, strerror(errno));
  while ((entry = readdir(folder))) {
    size_t n = strlen(entry->d_name);
    bool known = parse_name(&point, &layer, entry->d_name);
    if (only_count && known && layer >= t->n_layers) t->n_layers = layer + 1;
    if (!only_count && known && layer < t->n_layers) has_row(t, a, layer)[point] = true;
    if (!only_count && !known && n > 4 && !strcmp(entry->d_name + n - 4, ".npy"))
      t->other_files += strcmp(entry->d_name, "tokens.npy") != 0;
  }
  closedir(folder);
  return 0;
}

static status open_arm(recorded_trace *t, recorded_trace_arm *a) {
  TRY(TAKE(&a->has, (size_t)((t->n_layers + 1) * PROBE_COUNT), "a trace's files"));
  return scan(t, a, false);
}

// ---- index.json ----

static status read_integers(int32_t **out, const place *root, const char *key, int64_t n) {
  place list, p;
  TRY(take(&list, root, key, JSON_ARRAY));
  if ((int64_t)json_array_size(list.node) != n)
    return REFUSE("%s: %s: expected %lld numbers, found %zu", root->file, key, (long long)n,
                  json_array_size(list.node));
  TRY(TAKE(out, (size_t)n, "a trace's tokens"));
  for (int64_t i = 0; i < n; i++) {
    TRY(take_element(&p, &list, (size_t)i, JSON_INTEGER, "an integer"));
    json_int_t x = json_integer_value(p.node);
    if (x < 0 || x > INT32_MAX)
      return REFUSE("%s: %s: expected 0 to %d, found %lld", p.file, p.where, INT32_MAX, (long long)x);
    (*out)[i] = (int32_t)x;
  }
  return 0;
}

static status read_factors(recorded_trace *t, const place *root) {
  place list, p;
  const char *name;
  probe_point point;
  TRY(take(&list, root, "probes", JSON_ARRAY));
  for (size_t i = 0; i < json_array_size(list.node); i++) {
    TRY(take_element(&p, &list, i, JSON_OBJECT, "an object"));
    TRY(take_text(&name, &p, "name"));
    if (!probe_find(&point, name)) continue; // a newer program's
    const json_t *factor = json_object_get(p.node, "factor");
    t->factor[point] = json_is_number(factor) ? json_number_value(factor) : 0;
    if (!isfinite(t->factor[point]) || t->factor[point] == 0)
      return REFUSE("%s: %s.factor: expected a finite number other than 0", p.file, p.where);
  }
  return 0;
}

static status read_arm(recorded_trace *t, recorded_trace_arm *a, const place *of, const char *dir) {
  arm_choice arm;
  TRY(take_text(&a->name, of, "name"));
  if (arm_choice_parse(&arm, a->name, strlen(a->name)) != ARM_NAME_GOOD || arm.kind == ARM_AUTO)
    return REFUSE("%s: %s.name: expected path@backend or \"ranks\", found \"%.40s\"", of->file, of->where,
                  a->name);
  a->is_plain = arm.kind == ARM_PLAIN;
  a->path = arm.path;
  TRY(take_integer(&a->path_version, of, "path_version", 1, INT32_MAX));
  TRY(take_digest(&a->expert_paths, of, "expert_paths"));
  size_t room = strlen(dir) + strlen(a->name) + 2;
  TRY(TAKE(&a->folder, room, "a trace's folder"));
  snprintf(a->folder, room, "%s/%s", dir, a->name);
  return open_arm(t, a);
}

// only: the one arm to open; NULL: all
static status read_arms(recorded_trace *t, const place *root, const char *dir, const char *only) {
  place list, p;
  const char *name;
  TRY(take(&list, root, "arms", JSON_ARRAY));
  TRY(TAKE(&t->arms, json_array_size(list.node), "a trace's arms"));
  for (size_t i = 0; i < json_array_size(list.node); i++) {
    TRY(take_element(&p, &list, i, JSON_OBJECT, "an object"));
    TRY(take_text(&name, &p, "name"));
    if (!only || !strcmp(only, name)) TRY(read_arm(t, &t->arms[t->n_arms++], &p, dir));
  }
  if (!t->n_arms)
    return REFUSE("%s: arms: expected %s, found none", root->file, only ? only : "one at least");
  return 0;
}

static status read_index(recorded_trace *t, const place *root, const char *dir, const char *only) {
  place model;
  int64_t schema;
  if (!json_is_object(root->node))
    return REFUSE("%s: expected an object, found %s", root->file, kind_of(root->node));
  TRY(take_integer(&schema, root, "schema", TRACE_SCHEMA, TRACE_SCHEMA));
  if (!json_is_true(json_object_get(root->node, "complete")))
    return REFUSE("%s: complete: expected true: the trace is not whole", root->file);
  TRY(take_text(&t->version, root, "version"));
  TRY(take(&model, root, "model", JSON_OBJECT));
  TRY(take_text(&t->model, &model, "name"));
  TRY(take_digest(&t->fingerprint, &model, "fingerprint"));
  TRY(take_integer(&t->n_layers, &model, "n_layers", 1, MOST_LAYERS));
  TRY(take_text(&t->kv, root, "kv"));
  if (strcmp(t->kv, "f16") && strcmp(t->kv, "f32"))
    return REFUSE("%s: kv: expected \"f16\" or \"f32\", found \"%.40s\"", root->file, t->kv);
  TRY(take_digest(&t->input, root, "input"));
  TRY(take_integer(&t->n_tokens, root, "n_tokens", 1, MOST_TOKENS));
  TRY(read_integers(&t->token, root, "tokens", t->n_tokens));
  TRY(read_integers(&t->sequence, root, "sequences", t->n_tokens));
  TRY(read_integers(&t->position, root, "positions", t->n_tokens));
  TRY(read_factors(t, root));
  return read_arms(t, root, dir, only);
}

static status read_index_file(recorded_trace *t, const char *dir, const char *only) {
  char *file, *text = NULL;
  size_t length, room = strlen(dir) + sizeof "/index.json";
  json_error_t e;
  status result;
  TRY(TAKE(&file, room, "a trace's index"));
  snprintf(file, room, "%s/index.json", dir);
  TRY_DONE(result,
           status_as_refusal(read_file(&text, &length, file, "trace", MOST_INDEX_BYTES, READ_REGULAR)));
  t->tree = json_loadb(text, length, JSON_REJECT_DUPLICATES, &e);
  if (!t->tree) TRY_DONE(result, REFUSE("%s:%d: not JSON: %s", file, e.line, e.text));
  place root = {.file = file, .node = (const json_t *)t->tree};
  result = read_index(t, &root, dir, only);
done:
  free(text);
  free(file);
  return result;
}

// ---- a folder of another program ----

static status read_tokens(recorded_trace *t) {
  char path[4096];
  npy_file file;
  double number;
  status result = 0;
  int n = snprintf(path, sizeof path, "%s/tokens.npy", t->given);
  if (n >= (int)sizeof path || access(path, F_OK)) return 0;
  TRY(npy_file_open(&file, path));
  int64_t count = file.header.count;
  if (count < 1 || count > MOST_TOKENS)
    TRY_DONE(result, REFUSE("%s: expected the ids of 1 to %d tokens", path, MOST_TOKENS));
  TRY_DONE(result, TAKE(&t->token, (size_t)count, "a trace's tokens"));
  t->n_tokens = count;
  for (int64_t i = 0; i < count; i++) {
    TRY_DONE(result, npy_file_numbers(&file, i, 1, &number));
    if (!(number >= 0 && number <= INT32_MAX)) TRY_DONE(result, REFUSE("%s: expected ids of tokens", path));
    t->token[i] = (int32_t)number;
  }
done:
  npy_file_close(&file);
  return result;
}

static status read_folder(recorded_trace *t) {
  if (!holds_probes(t->given))
    return REFUSE("%s: expected a trace, or a folder with a probe's .npy (l_out-0.npy, ...)", t->given);
  TRY(TAKE(&t->arms, 1, "a trace's arms"));
  recorded_trace_arm *a = &t->arms[t->n_arms++];
  a->name = t->given;
  TRY(TAKE(&a->folder, strlen(t->given) + 1, "a trace's folder"));
  strcpy(a->folder, t->given);
  TRY(scan(t, a, true));
  TRY(open_arm(t, a));
  return read_tokens(t);
}

// ---- the whole ----

// The arm's folder of a trace, found by the index above it.
static bool is_arm_of_trace(char *parent, char *last, size_t room, const char *path) {
  arm_choice arm;
  return split_path(parent, last, room, path) && is_file(parent, "index.json") &&
         arm_choice_parse(&arm, last, strlen(last)) == ARM_NAME_GOOD;
}

status trace_read(recorded_trace *out, const char *path) {
  char parent[4096], last[4096];
  status result;
  *out = (recorded_trace){.tree = NULL};
  for (int p = 0; p < PROBE_COUNT; p++) out->factor[p] = 1;
  TRY_DONE(result, TAKE(&out->given, strlen(path) + 1, "a trace's name"));
  strcpy(out->given, path);
  if (is_file(path, "index.json"))
    result = read_index_file(out, path, NULL);
  else if (is_arm_of_trace(parent, last, sizeof parent, path))
    result = read_index_file(out, parent, last);
  else
    result = read_folder(out);
done:
  if (result) trace_read_close(out);
  return result;
}

void trace_read_close(recorded_trace *t) {
  for (size_t i = 0; i < t->n_arms; i++) {
    free(t->arms[i].folder);
    free(t->arms[i].has);
  }
  free(t->arms);
  free(t->token);
  free(t->sequence);
  free(t->position);
  free(t->given);
  json_decref((json_t *)t->tree);
  *t = (recorded_trace){.tree = NULL};
}
