#include "src/config/config_set.h"
#include "base/memory.h"
#include <stdlib.h>
#include <string.h>

// Text that is not TOML is a string, unless it starts like a string, an array or a table, or is digits alone:
// then it is a typing error, or an integer beyond TOML's range.
static bool is_bare(const char *text) {
  while (*text == ' ' || *text == '\t') text++;
  return !*text || (!strchr("\"'[{", *text) && text[strspn(text, "+-_0123456789")]);
}

// A copy of a list in which words that no other TOML value can be meant by are quoted: [f32@cpu, 3] becomes
// ['f32@cpu', 3]. What is quoted already stays. The caller frees; NULL: it is no list, or no memory.
static char *quote_words(const char *text) {
  char *out = *text == '[' ? malloc(3 * strlen(text) + 1) : NULL;
  size_t n = 0;
  while (out && *text) {
    size_t length = strcspn(text, ",[]\"'");
    size_t blanks = strspn(text, " \t\n");
    if (blanks || !length) { // blanks, a separator, or a string up to its end
      const char *end = *text == '"' || *text == '\'' ? strchr(text + 1, *text) : NULL;
      length = blanks ? blanks : end ? (size_t)(end - text) + 1 : 1;
      memcpy(out + n, text, length);
    } else {
      bool word =
          !strchr("+-.0123456789", *text) && strncmp(text, "true", length) && strncmp(text, "false", length);
      if (word) out[n++] = '\'';
      while (length > 1 && strchr(" \t\n", text[length - 1])) length--;
      memcpy(out + n, text, length);
      if (word) out[n + length] = '\'', n++;
    }
    n += length;
    text += length;
  }
  if (out) out[n] = 0;
  return out;
}

// Parses VALUE as the document `v = VALUE`.
static status parse_value(config_toml **out, bool *parsed, toml_error *error, const char *text) {
  char *line;
  TRY(TAKE(&line, strlen(text) + 8, "--set"));
  size_t length = (size_t)sprintf(line, "v = %s\n", text);
  *parsed = config_toml_parse(out, error, line, length);
  free(line);
  return 0;
}

status config_set_parse(toml_value *out, config_toml **document, const char *text, const char *key,
                        const value_origin *from) {
  toml_error error = {.text = "more than one value"}, error_of_quoted;
  bool parsed;
  *document = NULL;
  TRY(parse_value(document, &parsed, &error, text));
  char *quoted = parsed ? NULL : quote_words(text);
  status result = quoted ? parse_value(document, &parsed, &error_of_quoted, quoted) : 0;
  free(quoted);
  if (result) return result;
  *out = (toml_value){.kind = TOML_STRING, .line = 1, .text = text, .length = strlen(text)};
  if (parsed && config_toml_count(*document) == 1 && !strcmp(config_toml_key(*document, 0), "v")) {
    config_toml_value(out, *document, 0);
    return 0;
  }
  if (!parsed && is_bare(text)) return 0;
  char place[VALUE_PLACE_BYTES];
  value_place(place, from, 1);
  return REFUSE("%s: %s: expected one TOML value: %s", place, key, error.text);
}
