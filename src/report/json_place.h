// json_place: values out of a JSON tree that was read, each with its place in the file, for what reads
// reports, traces and the kept state.
//
// Owns: the errors that say which key of which file was expected to be what.
// Invariant: texts are views into the tree.
#pragma once
#include "base/status.h"
#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { PLACE_BYTES = 160 };

typedef struct { // a value and its place in the file: "arms[2].digest"
  const char *file;
  const json_t *node;
  char where[PLACE_BYTES];
} place;

static inline const char *kind_of(const json_t *node) {
  static const char *const KINDS[] = {"an object", "an array", "a string", "an integer",
                                      "a real",    "true",     "false",    "null"};
  return KINDS[json_typeof(node)];
}

static inline status take(place *out, const place *of, const char *key, json_type type) {
  static const char *const KINDS[] = {"an object", "an array", "a string", "an integer"};
  *out = (place){.file = of->file, .node = json_object_get(of->node, key)};
  snprintf(out->where, sizeof out->where, "%.100s%s%s", of->where, *of->where ? "." : "", key);
  if (!out->node) return REFUSE("%s: %s: expected %s, found no such key", of->file, out->where, KINDS[type]);
  if (json_typeof(out->node) == type) return 0;
  return REFUSE("%s: %s: expected %s, found %s", of->file, out->where, KINDS[type], kind_of(out->node));
}

static inline status take_element(place *out, const place *of, size_t i, json_type type, const char *kind) {
  *out = (place){.file = of->file, .node = json_array_get(of->node, i)};
  snprintf(out->where, sizeof out->where, "%.100s[%zu]", of->where, i);
  if (json_typeof(out->node) == type) return 0;
  return REFUSE("%s: %s: expected %s, found %s", of->file, out->where, kind, kind_of(out->node));
}

static inline status take_text(const char **out, const place *of, const char *key) {
  place p;
  TRY(take(&p, of, key, JSON_STRING));
  *out = json_string_value(p.node);
  return 0;
}

static inline status take_integer(int64_t *out, const place *of, const char *key, int64_t least,
                                  int64_t most) {
  place p;
  TRY(take(&p, of, key, JSON_INTEGER));
  *out = json_integer_value(p.node);
  if (*out >= least && *out <= most) return 0;
  return REFUSE("%s: %s: expected %lld to %lld, found %lld", p.file, p.where, (long long)least,
                (long long)most, (long long)*out);
}

static inline status read_digest(uint64_t *out, const place *p) {
  static const char DIGITS[] = "0123456789abcdef";
  const char *text = json_string_value(p->node);
  size_t n = strspn(text, DIGITS);
  if (n != 16 || text[n])
    return REFUSE("%s: %s: expected 16 hexadecimal digits, found \"%.40s\"", p->file, p->where, text);
  *out = strtoull(text, NULL, 16);
  return 0;
}

// null is -1.
static inline status take_integer_or_null(int64_t *out, const place *of, const char *key, int64_t least,
                                          int64_t most) {
  *out = -1;
  return json_is_null(json_object_get(of->node, key)) ? 0 : take_integer(out, of, key, least, most);
}

static inline status take_digest(uint64_t *out, const place *of, const char *key) {
  place p;
  TRY(take(&p, of, key, JSON_STRING));
  return read_digest(out, &p);
}
