// fuzz_toml: any bytes as a TOML document, through the C face of the parser, every value looked at.
#include "tests/fuzz/fuzz.h"
#include "src/config/config_toml.h"
#include <string.h>

static size_t look(const toml_value *v, int depth) {
  size_t seen = v->kind <= TOML_TABLE && v->line >= 0;
  if (v->kind == TOML_STRING)
    for (size_t i = 0; i < v->length; i++) seen += (unsigned char)v->text[i];
  if (v->kind != TOML_ARRAY || depth > 64) return seen;
  for (size_t i = 0; i < v->count; i++) {
    toml_value element;
    config_toml_element(&element, v, i);
    seen += look(&element, depth + 1);
  }
  return seen;
}

FUZZ_TARGET(toml) {
  config_toml *document;
  toml_error error = {.line = -1};
  volatile size_t kept = 0;
  if (!config_toml_parse(&document, &error, (const char *)data, size)) {
    REQUIRE(!document && error.line >= 0 && *error.text && strlen(error.text) < sizeof error.text);
    return 0;
  }
  for (size_t i = 0; i < config_toml_count(document); i++) {
    toml_value v;
    config_toml_value(&v, document, i);
    kept += look(&v, 0) + strlen(config_toml_key(document, i));
  }
  config_toml_close(document);
  return 0;
}
