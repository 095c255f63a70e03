// json_tree: values into a JSON tree under construction, and such a tree into a file.
//
// Invariant: where memory runs out, or a text is no UTF-8 even so, `*bad` is set and the rest does nothing.
#pragma once
#include "base/message_list.h"
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>

typedef struct { // an object or array under construction; jansson takes NULL for a value that found no memory
  json_t *node;
  bool *bad;
} branch;

static inline json_t *put(branch to, const char *key, json_t *value) {
  if (json_is_array(to.node) ? json_array_append_new(to.node, value)
                             : json_object_set_new(to.node, key, value)) {
    *to.bad = true;
    return NULL;
  }
  return value;
}

static inline branch put_object(branch to, const char *key) {
  return (branch){put(to, key, json_object()), to.bad};
}

static inline branch put_array(branch to, const char *key) {
  return (branch){put(to, key, json_array()), to.bad};
}

static inline void put_real(branch to, const char *key, double x) {
  put(to, key, isfinite(x) ? json_real(x) : json_null()); // JSON has neither NaN nor infinity
}

static inline void put_integer(branch to, const char *key, int64_t x) {
  put(to, key, json_integer(x));
}

static inline void put_bool(branch to, const char *key, bool x) {
  put(to, key, json_boolean(x));
}

static inline void put_digest(branch to, const char *key, uint64_t digest) {
  char text[17];
  snprintf(text, sizeof text, "%016" PRIx64, digest);
  put(to, key, json_string(text));
}

// A path or a host's name need not be UTF-8, which JSON must be: other bytes become U+FFFD, each one.
json_t *json_tree_repair(const char *text);

static inline void put_text(branch to, const char *key, const char *text) {
  json_t *valid = json_string(text ? text : "");
  put(to, key, valid ? valid : json_tree_repair(text));
}

static inline void put_messages(branch to, const char *key, const message_list *list) {
  branch array = put_array(to, key);
  for (size_t i = 0; list && i < list->count; i++) put_text(array, NULL, list->text[i]);
}

// Takes the tree, also after an error. DIR/name appears when it is whole and synced, and closes with a
// newline; the folder exists.
status json_tree_write(const char *dir, const char *name, branch root);
