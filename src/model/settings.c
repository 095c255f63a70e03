#include "src/model/settings.h"
#include "src/model/qwen3moe.h"
#include <stdio.h>
#include <string.h>

static const architecture *const known[] = {&qwen3moe};
enum { N_KNOWN = sizeof known / sizeof *known, KEY_BYTES = 96, SHOWN_BYTES = 64 };

static bool is_text(gguf_string found, const char *text) {
  return found.length == strlen(text) && !memcmp(found.text, text, found.length);
}

static int shown_length(gguf_string text) {
  return (int)(text.length < SHOWN_BYTES ? text.length : SHOWN_BYTES);
}

static status find_architecture(const architecture **out, const gguf *g) {
  gguf_string found;
  char names[256] = "";
  TRY(gguf_key_string(g, "general.architecture", &found));
  for (int i = 0; i < N_KNOWN; i++) {
    if (is_text(found, known[i]->name)) {
      *out = known[i];
      return 0;
    }
    size_t used = strlen(names);
    snprintf(names + used, sizeof names - used, "%s\"%s\"", i ? " or " : "", known[i]->name);
  }
  return FAIL("%s: key general.architecture: expected %s, found \"%.*s\"", gguf_path(g), names,
              shown_length(found), found.text);
}

static status read_size(int64_t *out, const gguf *g, const setting_row *row, const char *key) {
  uint64_t value;
  TRY(gguf_key_u64(g, key, &value));
  if (value < (uint64_t)row->low || value > (uint64_t)row->high)
    return FAIL("%s: key %s: expected %lld to %lld, found %llu", gguf_path(g), key, (long long)row->low,
                (long long)row->high, (unsigned long long)value);
  *out = (int64_t)value;
  return 0;
}

static status read_real(double *out, const gguf *g, const setting_row *row, const char *key) {
  TRY(gguf_key_f64(g, key, out));
  if (!(*out > row->low && *out < row->high))
    return FAIL("%s: key %s: expected a number between %g and %g, found %g", gguf_path(g), key, row->low,
                row->high, *out);
  return 0;
}

// Flags are bools, counts integers, factors floats; writers do not agree on which is which.
static status read_any_number(double *out, const gguf *g, const char *key) {
  bool flag;
  uint64_t count;
  if (gguf_key_bool(g, key, &flag) == 0) {
    *out = flag;
    return 0;
  }
  status_reset();
  if (gguf_key_u64(g, key, &count) == 0) {
    *out = (double)count;
    return 0;
  }
  status_reset();
  return gguf_key_f64(g, key, out);
}

static status refuse_other_number(const gguf *g, const setting_row *row, const char *key) {
  double value;
  TRY(read_any_number(&value, g, key));
  if (value == row->only) return 0;
  return FAIL("%s: key %s: only %g is supported, found %g", gguf_path(g), key, row->only, value);
}

static status refuse_other_text(const gguf *g, const setting_row *row, const char *key) {
  gguf_string value;
  TRY(gguf_key_string(g, key, &value));
  if (is_text(value, row->only_text)) return 0;
  return FAIL("%s: key %s: only \"%s\" is supported, found \"%.*s\"", gguf_path(g), key, row->only_text,
              shown_length(value), value.text);
}

static status read_setting(model_settings *out, const gguf *g, const setting_row *row, const char *key) {
  void *to = (char *)out + row->to;
  bool there = gguf_key_exists(g, key);
  switch (row->kind) {
  case SETTING_SIZE:
    if (there || !row->fallback) return read_size(to, g, row, key);
    *(int64_t *)to = row->fallback(out);
    return 0;
  case SETTING_REAL:
    return read_real(to, g, row, key);
  case SETTING_ONLY:
    return there ? refuse_other_number(g, row, key) : 0;
  case SETTING_ONLY_TEXT:
    return there ? refuse_other_text(g, row, key) : 0;
  case SETTING_UNUSED:
    return 0;
  }
  return FAIL("%s: key %s: no rule for it", gguf_path(g), key);
}

status settings_read(const architecture **which, model_settings *out, const gguf *g) {
  *out = (model_settings){.context_length = 0};
  TRY(find_architecture(which, g));
  const architecture *a = *which;
  for (size_t i = 0; i < a->n_settings; i++) {
    char key[KEY_BYTES];
    snprintf(key, sizeof key, "%s.%s", a->name, a->settings[i].name);
    TRY(read_setting(out, g, &a->settings[i], key));
  }
  return a->check(out, gguf_path(g));
}
