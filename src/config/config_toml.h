// config_toml: TOML text in, a list of dotted keys with values out. A C interface to toml++, which is C++
// only.
//
// Owns: the parsed document. Independent of: which keys exist and what they mean (config.c).
// Invariant: no exception leaves it and no text can make it overflow the stack.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct config_toml config_toml;

typedef enum {
  TOML_STRING,
  TOML_INTEGER,
  TOML_FLOAT,
  TOML_BOOL,
  TOML_DATE,
  TOML_ARRAY,
  TOML_TABLE
} toml_kind;

typedef struct { // a view into the document
  toml_kind kind;
  int line; // 1 is the first
  union {
    struct {
      const char *text; // TOML_STRING; may hold NUL; no NUL is promised at its end
      size_t length;
    };
    int64_t integer;
    double real;
    bool flag;
    size_t count; // TOML_ARRAY: elements; TOML_TABLE: entries
  };
  const void *node;
} toml_value;

typedef struct {
  int line;
  char text[256];
} toml_error;

// False, with *error filled and *out NULL, for a text that is not TOML. It stores no status, because a bare
// word on the command line need not be TOML.
bool config_toml_parse(config_toml **out, toml_error *error, const char *text, size_t length);
void config_toml_close(config_toml *t); // takes NULL

// The values in the order of the text: every one that is not a table, and every empty table. The key is
// dotted ("run.threads"); a part that is not a bare key is quoted, so that "a.b" in quotes never matches a.b.
size_t config_toml_count(const config_toml *t);
const char *config_toml_key(const config_toml *t, size_t i);
void config_toml_value(toml_value *out, const config_toml *t, size_t i);
void config_toml_element(toml_value *out, const toml_value *array, size_t i);
// A single value where a list is wanted is a list of one, itself.
static inline size_t config_toml_elements(const toml_value *v) {
  return v->kind == TOML_ARRAY ? v->count : 1;
}

#ifdef __cplusplus
}
#endif
