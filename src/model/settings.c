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

static const char *shown_value(char out[SHOWN_BYTES + 1], const gguf *g, const char *key) {
  *out = 0;
  for (size_t i = 0; i < gguf_key_count(g); i++)
    if (!strcmp(gguf_key_name(g, i), key)) gguf_key_describe(g, i, out, SHOWN_BYTES);
  return out;
}

// An array has a number for each layer; what can be computed is the same for all of them.
static status read_size_of_layers(uint64_t *out, const gguf *g, const char *key) {
  double first, other;
  size_t n = gguf_key_elements(g, key);
  if (!n || !gguf_key_number(g, key, 0, &first) || !(first >= 0 && first < 0x1p63) ||
      first != (double)(uint64_t)first)
    return gguf_key_u64(g, key, out); // which says what it is
  for (size_t i = 1; i < n; i++)
    if (gguf_key_number(g, key, i, &other) && other != first)
      return FAIL(
          "%s: key %s: expected one number for all layers, found %.0f for layer 0 and %.9g for layer %zu",
          gguf_path(g), key, first, other, i);
  *out = (uint64_t)first;
  return 0;
}

static status read_size(int64_t *out, const gguf *g, const setting_row *row, const char *key) {
  uint64_t value;
  TRY(gguf_key_is_array(g, key) ? read_size_of_layers(&value, g, key) : gguf_key_u64(g, key, &value));
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

static bool is_one_of(const setting_row *row, const model_settings *so_far, double value) {
  for (int i = 0; i < row->n_only; i++)
    if (value == row->only[i]) return true;
  return row->also && value == row->also(so_far);
}

// The value says nothing, because a writer has put 0, "not set", for another key as well.
static bool is_unset(const gguf *g, const setting_row *row, const char *name, double value) {
  char key[KEY_BYTES];
  double other;
  if (!row->unset_by || value != row->unset) return false;
  snprintf(key, sizeof key, "%s.%s", name, row->unset_by);
  return gguf_key_number(g, key, 0, &other) && other == 0;
}

// Flags are bools, counts integers, factors floats; writers do not agree on which is which, nor on whether
// what is the same for all layers is an array.
static status refuse_other_number(const model_settings *so_far, const gguf *g, const setting_row *row,
                                  const char *name, const char *key) {
  char found[SHOWN_BYTES + 1];
  size_t n = gguf_key_elements(g, key);
  for (size_t i = 0; i < n; i++) {
    double value;
    if (!gguf_key_number(g, key, i, &value))
      return FAIL("%s: key %s: expected a number, found %s", gguf_path(g), key, shown_value(found, g, key));
    if (is_one_of(row, so_far, value) || is_unset(g, row, name, value)) continue;
    return FAIL("%s: key %s: only %g is supported (%s), found %.7g", gguf_path(g), key, row->only[0],
                row->why, value);
  }
  return 0;
}

static status refuse_other_text(const gguf *g, const setting_row *row, const char *key) {
  gguf_string value;
  TRY(gguf_key_string(g, key, &value));
  for (int i = 0; i < SETTING_VALUES && row->only_text[i]; i++)
    if (is_text(value, row->only_text[i])) return 0;
  return FAIL("%s: key %s: only \"%s\" is supported (%s), found \"%.*s\"", gguf_path(g), key,
              row->only_text[0], row->why, shown_length(value), value.text);
}

static status read_setting(model_settings *out, const gguf *g, const setting_row *row, const char *name,
                           const char *key) {
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
    return there ? refuse_other_number(out, g, row, name, key) : 0;
  case SETTING_ONLY_TEXT:
    return there ? refuse_other_text(g, row, key) : 0;
  case SETTING_UNUSED:
    return 0;
  }
  return FAIL("%s: key %s: no rule for it", gguf_path(g), key);
}

// The keys of the file under the architecture's name that no row reads by its own name: those of families,
// and the unknown.
static status read_other_keys(model_settings *out, const gguf *g, const architecture *a,
                              message_list *warnings, message_list *refusals) {
  char shown[SHOWN_BYTES + 1];
  for (size_t i = 0; i < gguf_key_count(g); i++) {
    bool ours;
    const char *key = gguf_key_name(g, i);
    const setting_row *row = architecture_setting(&ours, a, key);
    if (ours && !row)
      TRY(message_list_add(warnings, "%s: key %s = %s: no setting of %s that is known here; it has no effect",
                           gguf_path(g), key, shown_value(shown, g, key), a->name));
    if (row && row->name[strlen(row->name) - 1] == '.')
      TRY(message_list_take_error(refusals, read_setting(out, g, row, a->name, key)));
  }
  return 0;
}

status settings_read(const architecture **which, model_settings *out, const gguf *g, message_list *warnings,
                     message_list *refusals) {
  *out = (model_settings){.context_length = 0};
  *which = NULL;
  TRY(find_architecture(which, g));
  const architecture *a = *which;
  size_t before = refusals ? refusals->count : 0;
  for (size_t i = 0; i < a->n_settings; i++) {
    char key[KEY_BYTES];
    snprintf(key, sizeof key, "%s.%s", a->name, a->settings[i].name);
    TRY(message_list_take_error(refusals, read_setting(out, g, &a->settings[i], a->name, key)));
  }
  TRY(read_other_keys(out, g, a, warnings, refusals));
  if (refusals && refusals->count > before) return 0; // the whole cannot be checked
  return message_list_take_error(refusals, a->check(out, gguf_path(g)));
}
