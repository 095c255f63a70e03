// The keys of a contract, read by the readers of the configuration's values, so that errors look alike.
#include "base/memory.h"
#include "base/read_file.h"
#include "src/config/config_value.h"
#include "src/config/edit_distance.h"
#include "src/contract/contract.h"
#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { FILE_LIMIT = 1 << 20, NAME_BYTES = 128 };

#define KEY(name, type, field, read, expected, low, high)                                                    \
  { name, 0, offsetof(type, field), read, NULL, expected, low, high, NULL, NULL }
#define TEXT(name, type, field)  KEY(name, type, field, value_read_text, "string", 0, 0)
#define FLAG(name, type, field)  KEY(name, type, field, value_read_flag, "true or false", 0, 0)
#define TEXTS(name, type, field) KEY(name, type, field, read_texts, "list of strings", 0, 0)
#define REAL(name, type, field)  KEY(name, type, field, value_read_real, "number", -DBL_MAX, DBL_MAX)
#define COUNT(name, type, field) KEY(name, type, field, value_read_integer, "integer from 1", 1, 1 << 30)
#define FALSIFIED(name, type, field)                                                                         \
  KEY(name, type, field, read_falsifiers, "list of falsifiers (1 to 10)", 1, CONTRACT_FALSIFIERS)

// ---- readers of lists ----

static void close_texts(text_list *list) {
  for (size_t i = 0; i < list->n; i++) free(list->text[i]);
  free(list->text);
  *list = (text_list){.text = NULL};
}

static status read_texts(void *field, const value_key *k, const toml_value *v, const value_origin *from) {
  text_list fresh = {.text = NULL};
  if (v->kind != TOML_ARRAY || !v->count) return value_refuse(k, v, from, k->type);
  TRY(TAKE(&fresh.text, v->count, k->name));
  for (; fresh.n < v->count; fresh.n++) {
    toml_value element;
    config_toml_element(&element, v, fresh.n);
    status result = value_read_text(&fresh.text[fresh.n], k, &element, from);
    if (!result) continue;
    close_texts(&fresh);
    return result;
  }
  close_texts(field);
  *(text_list *)field = fresh;
  return 0;
}

static status read_falsifiers(void *field, const value_key *k, const toml_value *v,
                              const value_origin *from) {
  falsifier_list *list = field;
  int32_t *ids;
  size_t n;
  TRY(value_read_ids(&ids, &n, k, v, from));
  free(list->id);
  *list = (falsifier_list){ids, n};
  for (size_t i = 0; i < n; i++)
    if (ids[i] < (int32_t)k->low || ids[i] > (int32_t)k->high) return value_refuse(k, v, from, k->type);
  return 0;
}

// [least, most]
static status read_ranks(void *field, const value_key *k, const toml_value *v, const value_origin *from) {
  contract *c = field;
  int32_t *range;
  size_t n;
  TRY(value_read_ids(&range, &n, k, v, from));
  bool good = n == 2 && range[0] >= 1;
  if (good) {
    c->scope.least_ranks = range[0];
    c->scope.most_ranks = range[1];
  }
  free(range);
  return good ? 0 : value_refuse(k, v, from, k->type);
}

// ---- the keys ----

static const value_key KEYS[] = {
    TEXT("name", contract, name),
    COUNT("version", contract, version),
    TEXT("status", contract, state_name),
    TEXT("run", contract, run),
    TEXT("comment", contract, comment),
    TEXTS("equations", contract, equations),
    FALSIFIED("refuted_by", contract, refuted_by),
    TEXT("scope.command", contract, scope.command),
    TEXTS("scope.arms", contract, scope.arms),
    TEXTS("scope.modes", contract, scope.modes),
    {"scope.ranks", 0, 0, read_ranks, NULL, "list of two: least and most ranks, from 1", 0, 0, NULL, NULL},
    TEXT("scope.model", contract, scope.model),
    TEXT("scope.reference", contract, scope.reference),
    TEXT("scope.architecture", contract, scope.architecture),
    COUNT("scope.n_layers", contract, scope.n_layers),
    COUNT("scope.hidden", contract, scope.hidden),
    COUNT("scope.n_experts", contract, scope.n_experts),
    COUNT("scope.top_k", contract, scope.top_k),
    COUNT("scope.vocabulary", contract, scope.vocabulary),
    TEXT("scope.input", contract, scope.input),
    TEXT("scope.kv", contract, scope.kv),
    FLAG("invariants.finite", contract, invariants.finite),
    FLAG("invariants.ids_in_range", contract, invariants.ids_in_range),
    FLAG("invariants.no_zero_layer", contract, invariants.no_zero_layer),
    KEY("invariants.weights_sum_to_1", contract, invariants.weights_sum_to_1, value_read_real,
        "largest error, a number from 0 to 1", 0, 1),
    FLAG("structure.files", contract, files),
    FLAG("exact.same_path", contract, same_path),
};

static const value_key GATE_KEYS[] = {
    TEXT("metric", contract_gate, metric_name),
    TEXTS("pair", contract_gate, pair),
    TEXT("arm", contract_gate, arm),
    TEXT("at", contract_gate, at),
    TEXT("mode", contract_gate, mode),
    REAL("at_most", contract_gate, at_most),
    REAL("at_least", contract_gate, at_least),
    FALSIFIED("falsifiers", contract_gate, falsifiers),
};

static const value_key DIVERGENCE_KEYS[] = {
    TEXT("reason", contract_divergence, reason),
    TEXT("date", contract_divergence, date),
    TEXTS("pair", contract_divergence, pair),
    FALSIFIED("falsifiers", contract_divergence, falsifiers),
};

static const value_key DIGEST_KEYS[] = {
    COUNT("version", contract_digest, version),
    TEXT("digest", contract_digest, digest),
    TEXTS("layers", contract_digest, layers),
};

typedef struct {
  const value_key *key;
  size_t n;
} key_list;

#define LIST(keys)                                                                                           \
  (key_list) {                                                                                               \
    keys, sizeof(keys) / sizeof *(keys)                                                                      \
  }

// `whole`: the key as the file has it; `name`: its part that the list knows.
static status read_key(void *owner, key_list keys, const char *whole, const char *name, const toml_value *v,
                       const value_origin *from) {
  char place[VALUE_PLACE_BYTES], shown[VALUE_SHOWN + 8];
  size_t nearest = 0;
  for (size_t i = 0; i < keys.n; i++) {
    if (!strcmp(keys.key[i].name, name)) {
      value_key k = keys.key[i];
      k.name = whole; // as errors call it
      return k.read((char *)owner + k.offset, &k, v, from);
    }
    if (edit_distance(name, keys.key[i].name) < edit_distance(name, keys.key[nearest].name)) nearest = i;
  }
  value_place(place, from, v->line);
  value_shorten(shown, sizeof shown, whole, strlen(whole));
  return REFUSE("%s: unknown key \"%s\": did you mean \"%.*s%s\"?", place, shown, (int)(name - whole), whole,
                keys.key[nearest].name);
}

// ---- tables with a name of the user's: gates.NAME.key ----

// False: the key is none of the section's. Else *name is the part in the middle, *key the last.
static bool split(char name[NAME_BYTES], const char **key, const char *whole, const char *section) {
  size_t n = strlen(section);
  if (strncmp(whole, section, n) || whole[n] != '.') return false;
  const char *first = whole + n + 1, *dot = strchr(first, '.');
  if (!dot) dot = first + strlen(first); // an empty table
  snprintf(name, NAME_BYTES, "%.*s", (int)(dot - first), first);
  *key = *dot ? dot + 1 : dot;
  return true;
}

_Static_assert(offsetof(contract_gate, name) == 0 && offsetof(contract_divergence, name) == 0,
               "what has a name starts with it");

// *index: where the list's member of that name is; a new one, at its end, is a copy of `fresh` with the name.
static status find_named(size_t *index, void **list, size_t *n, const void *fresh, size_t size,
                         const char *name) {
  char *at, *copy;
  for (*index = 0, at = *list; *index < *n; ++*index, at += size)
    if (!strcmp(*(char **)(void *)at, name)) return 0;
  char *more = realloc(*list, (*n + 1) * size);
  if (!more) return FAIL("cannot allocate the parts of a contract");
  *list = more;
  TRY(TAKE(&copy, strlen(name) + 1, "a name in a contract"));
  strcpy(copy, name);
  memcpy(more + *n * size, fresh, size);
  memcpy(more + *n * size, &copy, sizeof copy);
  ++*n;
  return 0;
}

static status add_gate(contract_gate **out, contract *c, const char *name, int line) {
  const contract_gate fresh = {.line = line, .at_most = (double)NAN, .at_least = (double)NAN};
  void *list = c->gates;
  size_t i;
  status result = find_named(&i, &list, &c->n_gates, &fresh, sizeof fresh, name);
  c->gates = list;
  *out = result ? NULL : &c->gates[i];
  return result;
}

static status add_divergence(contract_divergence **out, contract *c, const char *name, int line) {
  const contract_divergence fresh = {.line = line};
  void *list = c->divergences;
  size_t i;
  status result = find_named(&i, &list, &c->n_divergences, &fresh, sizeof fresh, name);
  c->divergences = list;
  *out = result ? NULL : &c->divergences[i];
  return result;
}

static status read_digest_key(contract *c, const char *whole, const char *name, const char *key,
                              const toml_value *v, const value_origin *from) {
  const path_info *path = path_find(name, strlen(name));
  char place[VALUE_PLACE_BYTES];
  value_place(place, from, v->line);
  if (!path) return REFUSE("%s: %s: expected exact.PATH.KEY, found the path \"%.40s\"", place, whole, name);
  return read_key(&c->exact[path->kind], LIST(DIGEST_KEYS), whole, key, v, from);
}

static status refuse_empty(const char *whole, const toml_value *v, const value_origin *from) {
  char place[VALUE_PLACE_BYTES], shown[VALUE_SHOWN + 8];
  value_place(place, from, v->line);
  value_shorten(shown, sizeof shown, whole, strlen(whole));
  return REFUSE("%s: %s: expected a table with keys, found none", place, shown);
}

static status read_one(contract *c, const char *whole, const toml_value *v, const value_origin *from) {
  char name[NAME_BYTES];
  const char *key;
  if (v->kind == TOML_TABLE && !strchr(whole, '.')) return 0; // [gates] with nothing under it
  if (split(name, &key, whole, "gates")) {
    contract_gate *g;
    if (!*key) return refuse_empty(whole, v, from);
    TRY(add_gate(&g, c, name, v->line));
    return read_key(g, LIST(GATE_KEYS), whole, key, v, from);
  }
  if (split(name, &key, whole, "divergences")) {
    contract_divergence *d;
    if (!*key) return refuse_empty(whole, v, from);
    TRY(add_divergence(&d, c, name, v->line));
    return read_key(d, LIST(DIVERGENCE_KEYS), whole, key, v, from);
  }
  if (split(name, &key, whole, "exact") && *key) return read_digest_key(c, whole, name, key, v, from);
  return read_key(c, LIST(KEYS), whole, whole, v, from);
}

// ---- the whole ----

static status read_document(contract *c, const config_toml *document, const value_origin *from) {
  for (size_t i = 0; i < config_toml_count(document); i++) {
    toml_value v;
    config_toml_value(&v, document, i);
    TRY(read_one(c, config_toml_key(document, i), &v, from));
  }
  return contract_check(c);
}

status contract_read_text(contract *out, const char *file, const char *text, size_t length) {
  const value_origin from = {.file = file};
  config_toml *document = NULL;
  toml_error error;
  status result;
  *out = (contract){.invariants.weights_sum_to_1 = (double)NAN};
  TRY_DONE(result, TAKE(&out->file, strlen(file) + 1, "a contract's name"));
  strcpy(out->file, file);
  if (config_toml_parse(&document, &error, text, length))
    result = read_document(out, document, &from);
  else
    result = REFUSE("%s:%d: expected TOML: %s", file, error.line, error.text);
done:
  config_toml_close(document);
  if (result) contract_close(out);
  return result;
}

status contract_read(contract *out, const char *path) {
  char *text;
  size_t length;
  *out = (contract){.file = NULL};
  TRY(status_as_refusal(read_file(&text, &length, path, "contract", FILE_LIMIT, READ_REGULAR)));
  status result = contract_read_text(out, path, text, length);
  free(text);
  return result;
}

static void close_gate(contract_gate *g) {
  free(g->name);
  free(g->metric_name);
  free(g->at);
  free(g->mode);
  free(g->arm);
  free(g->falsifiers.id);
  close_texts(&g->pair);
}

static void close_divergence(contract_divergence *d) {
  free(d->name);
  free(d->reason);
  free(d->date);
  free(d->falsifiers.id);
  close_texts(&d->pair);
}

void contract_close(contract *c) {
  for (size_t i = 0; i < c->n_gates; i++) close_gate(&c->gates[i]);
  for (size_t i = 0; i < c->n_divergences; i++) close_divergence(&c->divergences[i]);
  for (int p = 0; p < PATH_COUNT; p++) {
    free(c->exact[p].digest);
    close_texts(&c->exact[p].layers);
  }
  char *const texts[] = {c->file,        c->name,          c->state_name,  c->run,
                         c->comment,     c->scope.command, c->scope.model, c->scope.architecture,
                         c->scope.input, c->scope.kv};
  for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) free(texts[i]);
  free(c->scope.reference);
  close_texts(&c->equations);
  close_texts(&c->scope.arms);
  close_texts(&c->scope.modes);
  free(c->refuted_by.id);
  free(c->gates);
  free(c->divergences);
  *c = (contract){.file = NULL};
}
