#include "src/report/known_answers.h"
#include "base/memory.h"
#include "base/read_file.h"
#include "known_answers_text.h"
#include "src/config/config_toml.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

enum { FILE_LIMIT = 1 << 20, DIGITS = 16 };

typedef struct { // a digest of the table
  char test[KNOWN_TEST];
  const path_info *path;
  int version;
  uint64_t digest;
} known_row;

typedef struct { // where the reader is: a model's table, and of a path the version
  known_answers *k;
  const char *file;
  uint64_t wanted;
  char model[64];
  bool is_wanted;
  int version[PATH_COUNT];
} reader;

// ---- reading ----

static status refuse(const reader *r, const toml_value *v, const char *key, const char *expected) {
  return REFUSE("%s:%d: %s: expected %s", r->file, v->line, key, expected);
}

static status read_hex(uint64_t *out, const reader *r, const toml_value *v, const char *key) {
  char text[DIGITS + 1], *end;
  if (v->kind != TOML_STRING || v->length != DIGITS) return refuse(r, v, key, "16 hexadecimal digits");
  memcpy(text, v->text, DIGITS);
  text[DIGITS] = 0;
  *out = strtoull(text, &end, 16);
  bool plain = strspn(text, "0123456789abcdef") == DIGITS;
  return plain ? 0 : refuse(r, v, key, "16 hexadecimal digits");
}

// "a.b" without its first part; the part goes to `out`.
static const char *split(char out[64], const char *key) {
  size_t n = strcspn(key, ".");
  if (n >= 64) n = 63;
  memcpy(out, key, n);
  out[n] = 0;
  return key[n] == '.' ? key + n + 1 : key + n;
}

static status add_row(reader *r, const path_info *path, const char *test, uint64_t digest) {
  known_row *to;
  TRY(memory_grow(&r->k->rows, &r->k->room, r->k->n_rows, sizeof *to, "the known answers"));
  to = (known_row *)r->k->rows + r->k->n_rows++;
  *to = (known_row){.path = path, .version = r->version[path->kind], .digest = digest};
  size_t n = strlen(test);
  bool quoted = n > 1 && test[0] == '"';
  snprintf(to->test, sizeof to->test, "%.*s", (int)(quoted ? n - 2 : n), test + quoted);
  return 0;
}

// [MODEL.PATH]: `version` before the digests.
static status read_answer(reader *r, const toml_value *v, const char *whole, const char *key) {
  char name[64];
  const char *test = split(name, key);
  const path_info *path = path_find(name, strlen(name));
  uint64_t digest;
  if (!path || !*test) return refuse(r, v, whole, "MODEL.PATH.TEST");
  if (!strcmp(test, "version")) {
    if (v->kind != TOML_INTEGER || v->integer < 1 || v->integer > 1000)
      return refuse(r, v, whole, "a version");
    r->version[path->kind] = (int)v->integer;
    return 0;
  }
  if (!r->version[path->kind]) return refuse(r, v, whole, "the path's version before it");
  TRY(read_hex(&digest, r, v, whole));
  return r->is_wanted ? add_row(r, path, test, digest) : 0;
}

// [MODEL]: `fingerprint` before its paths; `synth` or `file` says how to get it.
static status read_one(reader *r, const char *whole, const toml_value *v) {
  char model[64];
  const char *key = split(model, whole);
  if (strcmp(model, r->model)) {
    memset(r->version, 0, sizeof r->version);
    r->is_wanted = false;
    strcpy(r->model, model);
  }
  if (!strcmp(key, "synth") || !strcmp(key, "file"))
    return v->kind == TOML_STRING ? 0 : refuse(r, v, whole, "a text");
  if (strcmp(key, "fingerprint")) return read_answer(r, v, whole, key);
  uint64_t fingerprint;
  TRY(read_hex(&fingerprint, r, v, whole));
  r->is_wanted = fingerprint == r->wanted;
  return 0;
}

static status read_text(reader *r, const char *text, size_t length) {
  config_toml *document;
  toml_error error;
  if (!config_toml_parse(&document, &error, text, length))
    return REFUSE("%s:%d: expected TOML: %s", r->file, error.line, error.text);
  status result = 0;
  for (size_t i = 0; i < config_toml_count(document) && !result; i++) {
    toml_value v;
    config_toml_value(&v, document, i);
    result = read_one(r, config_toml_key(document, i), &v);
  }
  config_toml_close(document);
  return result;
}

status known_open(known_answers *out, const char *path, uint64_t fingerprint) {
  *out = (known_answers){.rows = NULL};
  reader r = {.k = out, .file = *path ? path : "configs/known-answers.toml", .wanted = fingerprint};
  char *text = NULL;
  size_t length;
  if (!*path) return read_text(&r, KNOWN_ANSWERS_TEXT, sizeof KNOWN_ANSWERS_TEXT - 1);
  TRY(status_as_refusal(read_file(&text, &length, path, "table of known answers", FILE_LIMIT, READ_REGULAR)));
  status result = read_text(&r, text, length);
  free(text);
  return result;
}

void known_close(known_answers *k) {
  free(k->rows);
  free(k->checks);
}

// ---- checking ----

status known_add(known_answers *k, const char *arm, const path_info *path, const char *test, uint64_t found) {
  const known_row *row = k->rows, *end = row + k->n_rows;
  while (row < end && (row->path != path || strcmp(row->test, test))) row++;
  if (row == end) return 0;
  TRY(memory_grow((void **)&k->checks, &k->checks_room, k->n_checks, sizeof *k->checks, "the known answers"));
  known_check *c = &k->checks[k->n_checks++];
  *c = (known_check){.path = path, .version = row->version, .expected = row->digest, .found = found};
  snprintf(c->arm, sizeof c->arm, "%s", arm);
  snprintf(c->test, sizeof c->test, "%s", test);
  c->verdict = row->version != path->version ? KNOWN_OTHER_VERSION
               : row->digest == found        ? KNOWN_HOLDS
                                             : KNOWN_DIFFERS;
  return 0;
}

bool known_differs(const known_answers *k) {
  for (size_t i = 0; i < k->n_checks; i++)
    if (k->checks[i].verdict == KNOWN_DIFFERS) return true;
  return false;
}

static void print_check(const known_check *c, FILE *out) {
  switch (c->verdict) {
  case KNOWN_HOLDS:
    return;
  case KNOWN_DIFFERS:
    fprintf(out,
            "known answer DIFFERS: %s, %s: expected %016" PRIx64 " of %s version %d, found %016" PRIx64 "\n",
            c->arm, c->test, c->expected, c->path->name, c->version, c->found);
    return;
  case KNOWN_OTHER_VERSION:
    fprintf(out,
            "known answer not compared: %s, %s: it is of %s version %d, this build computes version %d\n",
            c->arm, c->test, c->path->name, c->version, c->path->version);
    return;
  }
}

void known_print(const known_answers *k, FILE *out) {
  size_t hold = 0;
  for (size_t i = 0; i < k->n_checks; i++) {
    hold += k->checks[i].verdict == KNOWN_HOLDS;
    print_check(&k->checks[i], out);
  }
  if (k->n_checks) fprintf(out, "known answers: %zu of %zu hold\n", hold, k->n_checks);
}
