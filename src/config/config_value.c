// The readers check first and store last, so a refused value leaves the field as it was.
#include "src/config/config_value.h"
#include "base/memory.h"
#include "kernels/backend.h"
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

// ---- errors ----

void value_shorten(char *out, size_t size, const char *text, size_t length) {
  size_t n = length > VALUE_SHOWN ? VALUE_SHOWN : length;
  while (n < length && n > 0 && ((unsigned char)text[n] & 0xc0) == 0x80) n--; // not inside a character
  int end = snprintf(out, size, "%.*s%s", (int)n, text, n < length ? "..." : "");
  for (int i = 0; i < end && i < (int)size; i++)
    if ((unsigned char)out[i] < 0x20 || out[i] == 0x7f) out[i] = ' ';
}

static void describe(char *out, size_t size, const toml_value *v) {
  char text[VALUE_SHOWN + 8];
  switch (v->kind) {
  case TOML_STRING:
    value_shorten(text, sizeof text, v->text, v->length);
    snprintf(out, size, "the string \"%s\"", text);
    break;
  case TOML_INTEGER:
    snprintf(out, size, "the integer %" PRId64, v->integer);
    break;
  case TOML_FLOAT:
    snprintf(out, size, "the number %.17g", v->real);
    break;
  case TOML_BOOL:
    snprintf(out, size, "%s", v->flag ? "true" : "false");
    break;
  case TOML_DATE:
    snprintf(out, size, "a date or time");
    break;
  case TOML_ARRAY:
    snprintf(out, size, "an array of %zu", v->count);
    break;
  case TOML_TABLE:
    snprintf(out, size, "a table");
    break;
  }
}

void value_place(char out[VALUE_PLACE_BYTES], const value_origin *from, int line) {
  char text[VALUE_SHOWN + 8];
  if (from->file)
    snprintf(out, VALUE_PLACE_BYTES, "%.400s:%d", from->file, line);
  else {
    value_shorten(text, sizeof text, from->set, strlen(from->set));
    snprintf(out, VALUE_PLACE_BYTES, "--set %s", text);
  }
}

// The error of a value that the key does not take; `expected` differs from k->type for an element of a list.
status value_refuse(const value_key *k, const toml_value *v, const value_origin *from, const char *expected) {
  char place[VALUE_PLACE_BYTES], found[128];
  value_place(place, from, v->line);
  describe(found, sizeof found, v);
  bool unquoted = from->set && v->kind != TOML_STRING && !strncmp(expected, "string", 6);
  return REFUSE("%s: %s: expected %s, found %s%s", place, k->name, expected, found,
                unquoted ? " (put a text that is also a TOML value in quotes: --set 'key=\"12\"')" : "");
}

// ---- readers and writers, one pair for each kind of key ----

status value_read_integer(void *field, const value_key *k, const toml_value *v, const value_origin *from) {
  if (v->kind != TOML_INTEGER || v->integer < (int64_t)k->low || (double)v->integer > k->high)
    return value_refuse(k, v, from, k->type);
  *(int64_t *)field = v->integer;
  return 0;
}

void value_write_integer(FILE *out, const void *field) {
  fprintf(out, "%" PRId64, *(const int64_t *)field);
}

status value_read_real(void *field, const value_key *k, const toml_value *v, const value_origin *from) {
  if (v->kind != TOML_FLOAT && v->kind != TOML_INTEGER) return value_refuse(k, v, from, k->type);
  double x = v->kind == TOML_FLOAT ? v->real : (double)v->integer;
  if (!(x >= k->low && x <= k->high)) return value_refuse(k, v, from, k->type); // refuses NaN as well
  *(double *)field = x == 0 ? 0 : x; // one zero, so one canonical text
  return 0;
}

void value_write_real(FILE *out, const void *field) {
  fprintf(out, "%.17g", *(const double *)field);
}

status value_read_flag(void *field, const value_key *k, const toml_value *v, const value_origin *from) {
  if (v->kind != TOML_BOOL) return value_refuse(k, v, from, k->type);
  *(bool *)field = v->flag;
  return 0;
}

void value_write_flag(FILE *out, const void *field) {
  fputs(*(const bool *)field ? "true" : "false", out);
}

status value_copy_string(char **out, const value_key *k, const toml_value *v, const value_origin *from,
                         bool may_be_empty) {
  *out = NULL;
  if (v->kind != TOML_STRING || (!may_be_empty && !v->length))
    return value_refuse(k, v, from, may_be_empty ? "string" : "string that is not empty");
  char place[VALUE_PLACE_BYTES];
  value_place(place, from, v->line);
  for (size_t i = 0; i < v->length;) {
    utf8proc_int32_t code;
    utf8proc_ssize_t n =
        utf8proc_iterate((const utf8proc_uint8_t *)v->text + i, (utf8proc_ssize_t)(v->length - i), &code);
    if (n < 1)
      return REFUSE("%s: %s: expected UTF-8, found an invalid byte at offset %zu", place, k->name, i);
    if (!code) return REFUSE("%s: %s: expected text, found a NUL character at offset %zu", place, k->name, i);
    i += (size_t)n;
  }
  TRY(TAKE(out, v->length + 1, k->name));
  memcpy(*out, v->text, v->length);
  return 0;
}

static status replace_string(char **field, const value_key *k, const toml_value *v, const value_origin *from,
                             bool may_be_empty) {
  char *text;
  TRY(value_copy_string(&text, k, v, from, may_be_empty));
  free(*field);
  *field = text;
  return 0;
}

status value_read_text(void *field, const value_key *k, const toml_value *v, const value_origin *from) {
  return replace_string(field, k, v, from, false);
}

status value_read_text_or_empty(void *field, const value_key *k, const toml_value *v,
                                const value_origin *from) {
  return replace_string(field, k, v, from, true);
}

void value_write_string(FILE *out, const char *text) {
  fputc('"', out);
  for (const char *c = text ? text : ""; *c; c++) {
    unsigned char u = (unsigned char)*c;
    if (u == '"' || u == '\\')
      fprintf(out, "\\%c", u);
    else if (u < 0x20 || u == 0x7f)
      fprintf(out, "\\u%04X", u);
    else
      fputc(u, out);
  }
  fputc('"', out);
}

void value_write_text(FILE *out, const void *field) {
  value_write_string(out, *(char *const *)field);
}

// The index of a string value in a list of choices, or -1.
static int find_choice(const toml_value *v, const char *const *choices, int n) {
  for (int i = 0; v->kind == TOML_STRING && i < n; i++)
    if (v->length == strlen(choices[i]) && !memcmp(v->text, choices[i], v->length)) return i;
  return -1;
}

static const char *const KV_TYPES[] = {[KV_F16] = "f16", [KV_F32] = "f32"};
static const char *const PLACEMENTS[] = {[PLACEMENT_CONTIGUOUS] = "contiguous",
                                         [PLACEMENT_STRIDED] = "strided",
                                         [PLACEMENT_BALANCED] = "balanced",
                                         [PLACEMENT_COUNTED] = "counted",
                                         [PLACEMENT_AUTO] = "auto"};
#define COUNT(array) ((int)(sizeof(array) / sizeof((array)[0])))

status value_read_transport(void *field, const value_key *k, const toml_value *v, const value_origin *from) {
  const char *names[TRANSPORT_COUNT];
  for (int i = 0; i < TRANSPORT_COUNT; i++) names[i] = transport_kind_name((transport_kind)i);
  int choice = find_choice(v, names, TRANSPORT_COUNT);
  if (choice < 0) return value_refuse(k, v, from, k->type);
  *(transport_kind *)field = (transport_kind)choice;
  return 0;
}

void value_write_transport(FILE *out, const void *field) {
  value_write_string(out, transport_kind_name(*(const transport_kind *)field));
}

status value_read_kv(void *field, const value_key *k, const toml_value *v, const value_origin *from) {
  int choice = find_choice(v, KV_TYPES, COUNT(KV_TYPES));
  if (choice < 0) return value_refuse(k, v, from, k->type);
  *(kv_type *)field = (kv_type)choice;
  return 0;
}

void value_write_kv(FILE *out, const void *field) {
  value_write_string(out, KV_TYPES[*(const kv_type *)field]);
}

status value_read_sizes(void *field, const value_key *k, const toml_value *v, const value_origin *from) {
  size_list found = {.count = 0};
  if (config_toml_elements(v) > CONFIG_MAX_SIZES) return value_refuse(k, v, from, k->type);
  for (; found.count < config_toml_elements(v); found.count++) {
    toml_value element;
    config_toml_element(&element, v, found.count);
    if (element.kind != TOML_INTEGER || element.integer < (int64_t)k->low ||
        (double)element.integer > k->high) {
      char expected[80];
      snprintf(expected, sizeof expected, "an integer from %.0f to %.0f as element %zu", k->low, k->high,
               found.count);
      return value_refuse(k, &element, from, expected);
    }
    found.size[found.count] = element.integer;
  }
  *(size_list *)field = found;
  return 0;
}

void value_write_sizes(FILE *out, const void *field) {
  const size_list *list = field;
  fputc('[', out);
  for (size_t i = 0; i < list->count; i++) fprintf(out, "%s%" PRId64, i ? ", " : "", list->size[i]);
  fputc(']', out);
}

static status check_filled(const value_key *k, const toml_value *v, const value_origin *from) {
  return config_toml_elements(v) ? 0 : value_refuse(k, v, from, k->type);
}

// A list of int32 from 0 up, in fresh memory.
status value_read_ids(int32_t **out, size_t *count, const value_key *k, const toml_value *list,
                      const value_origin *from) {
  int32_t *ids;
  *out = NULL;
  TRY(check_filled(k, list, from));
  size_t n = config_toml_elements(list);
  TRY(TAKE(&ids, n, k->name));
  for (size_t i = 0; i < n; i++) {
    toml_value v;
    config_toml_element(&v, list, i);
    if (v.kind != TOML_INTEGER || v.integer < 0 || v.integer > INT32_MAX) {
      char expected[80];
      snprintf(expected, sizeof expected, "an integer from 0 to %d as element %zu", INT32_MAX, i);
      free(ids);
      return value_refuse(k, &v, from, expected);
    }
    ids[i] = (int32_t)v.integer;
  }
  *out = ids;
  *count = n;
  return 0;
}

void value_write_ids(FILE *out, const int32_t *ids, size_t count) {
  fputc('[', out);
  for (size_t i = 0; i < count; i++) fprintf(out, "%s%" PRId32, i ? ", " : "", ids[i]);
  fputc(']', out);
}

enum { TAKES_AUTO = 1, TAKES_MIXED = 2 }; // kinds of arms beside path@backend

// The paths, or the backends and, where it is taken, "auto".
static void list_choices(char *out, size_t size, bool paths, unsigned takes) {
  int n = paths ? PATH_COUNT : BACKEND_COUNT;
  *out = 0;
  for (int i = 0; i < n; i++)
    snprintf(out + strlen(out), size - strlen(out), "%s%s", i ? ", " : "",
             paths ? path_get((path_kind)i)->name : backend_name((backend_kind)i));
  if (!paths && takes & TAKES_AUTO) snprintf(out + strlen(out), size - strlen(out), ", auto");
}

static status refuse_part(const value_key *k, const toml_value *v, const value_origin *from, bool is_path,
                          unsigned takes) {
  char place[VALUE_PLACE_BYTES], found[VALUE_SHOWN + 8], choices[64];
  size_t path = (size_t)((const char *)memchr(v->text, '@', v->length) - v->text);
  value_place(place, from, v->line);
  value_shorten(found, sizeof found, v->text + (is_path ? 0 : path + 1),
                is_path ? path : v->length - path - 1);
  list_choices(choices, sizeof choices, is_path, takes);
  return REFUSE("%s: %s: unknown %s \"%s\" in an arm: expected one of %s", place, k->name,
                is_path ? "path" : "backend", found, choices);
}

static status read_arm(arm_choice *out, const value_key *k, const toml_value *v, const value_origin *from,
                       unsigned takes) {
  if (v->kind != TOML_STRING) return value_refuse(k, v, from, k->type);
  switch (arm_choice_parse(out, v->text, v->length)) {
  case ARM_NAME_WITHOUT_AT:
    return value_refuse(k, v, from, k->type);
  case ARM_NAME_BAD_PATH:
    return refuse_part(k, v, from, true, takes);
  case ARM_NAME_BAD_BACKEND:
    return refuse_part(k, v, from, false, takes);
  case ARM_NAME_GOOD:
    break;
  }
  if (out->kind == ARM_AUTO && !(takes & TAKES_AUTO)) return refuse_part(k, v, from, false, takes);
  return out->kind == ARM_MIXED && !(takes & TAKES_MIXED) ? value_refuse(k, v, from, k->type) : 0;
}

static status read_arm_list(arm_list *list, const value_key *k, const toml_value *v, const value_origin *from,
                            unsigned takes, bool distinct) {
  arm_list found = {.count = 0};
  size_t n = config_toml_elements(v);
  if (n > CONFIG_MAX_ARMS || (distinct && !n)) return value_refuse(k, v, from, k->type);
  for (; found.count < n; found.count++) {
    toml_value element;
    arm_choice *arm = &found.arm[found.count];
    config_toml_element(&element, v, found.count);
    TRY(read_arm(arm, k, &element, from, takes));
    for (size_t i = 0; distinct && i < found.count; i++)
      if (arm_choice_equal(&found.arm[i], arm)) return value_refuse(k, &element, from, "each arm once");
  }
  *list = found;
  return 0;
}

status value_read_arms(void *field, const value_key *k, const toml_value *v, const value_origin *from) {
  return read_arm_list(field, k, v, from, TAKES_MIXED, true);
}

status value_read_auto_arms(void *field, const value_key *k, const toml_value *v, const value_origin *from) {
  return read_arm_list(field, k, v, from, TAKES_AUTO, true);
}

status value_read_auto_arm(arm_choice *out, const value_key *k, const toml_value *v,
                           const value_origin *from) {
  return read_arm(out, k, v, from, TAKES_AUTO);
}

void value_write_arm_names(FILE *out, const arm_choice *arm, size_t count) {
  fputc('[', out);
  for (size_t i = 0; i < count; i++) fprintf(out, "%s\"%s\"", i ? ", " : "", arm[i].name);
  fputc(']', out);
}

void value_write_arms(FILE *out, const void *field) {
  const arm_list *list = field;
  value_write_arm_names(out, list->arm, list->count);
}

status value_read_arm_or_empty(void *field, const value_key *k, const toml_value *v,
                               const value_origin *from) {
  arm_choice arm = {.kind = ARM_NONE};
  if (v->kind != TOML_STRING || v->length) TRY(read_arm(&arm, k, v, from, 0));
  *(arm_choice *)field = arm;
  return 0;
}

void value_write_arm(FILE *out, const void *field) {
  const arm_choice *arm = field;
  value_write_string(out, arm->name);
}

status value_read_placement(void *field, const value_key *k, const toml_value *v, const value_origin *from) {
  struct config_experts *experts = field;
  int32_t *ranks = NULL;
  size_t count = 0;
  int choice = find_choice(v, PLACEMENTS, COUNT(PLACEMENTS));
  if (choice < 0 && v->kind != TOML_ARRAY) return value_refuse(k, v, from, k->type);
  if (choice < 0) TRY(value_read_ids(&ranks, &count, k, v, from));
  free(experts->rank_of_expert);
  experts->placement = choice < 0 ? PLACEMENT_LIST : (placement_kind)choice;
  experts->rank_of_expert = ranks;
  experts->n_experts = count;
  return 0;
}

void value_write_placement(FILE *out, const void *field) {
  const struct config_experts *experts = field;
  if (experts->placement == PLACEMENT_LIST)
    value_write_ids(out, experts->rank_of_expert, experts->n_experts);
  else
    value_write_string(out, PLACEMENTS[experts->placement]);
}

// The four inputs share one field: each reader makes its value whole, then puts it in the old one's place.
void value_clear_input(void *field) {
  struct config_input *input = field;
  for (size_t i = 0; i < input->n_prompts; i++) free(input->prompts[i]);
  free(input->prompts);
  free(input->tokens);
  free(input->file);
  memset(input, 0, sizeof *input);
}

status value_read_tokens(void *field, const value_key *k, const toml_value *v, const value_origin *from) {
  struct config_input *input = field;
  int32_t *tokens;
  size_t count;
  TRY(value_read_ids(&tokens, &count, k, v, from));
  value_clear_input(field);
  input->kind = INPUT_TOKENS;
  input->tokens = tokens;
  input->n_tokens = count;
  return 0;
}

status value_read_prompts(void *field, const value_key *k, const toml_value *v, const value_origin *from) {
  struct config_input *input = field;
  struct config_input fresh = {.kind = INPUT_PROMPTS};
  status result;
  TRY(check_filled(k, v, from));
  TRY(TAKE(&fresh.prompts, config_toml_elements(v), k->name));
  for (; fresh.n_prompts < config_toml_elements(v); fresh.n_prompts++) {
    toml_value element;
    config_toml_element(&element, v, fresh.n_prompts);
    TRY_DONE(result, value_copy_string(&fresh.prompts[fresh.n_prompts], k, &element, from, false));
  }
  value_clear_input(field);
  *input = fresh;
  return 0;
done:
  value_clear_input(&fresh);
  return result;
}

status value_read_prompt(void *field, const value_key *k, const toml_value *v, const value_origin *from) {
  struct config_input *input = field;
  char *text, **prompts;
  TRY(value_copy_string(&text, k, v, from, false));
  if (TAKE(&prompts, 1, k->name)) {
    free(text);
    return STATUS_FAILED;
  }
  prompts[0] = text;
  value_clear_input(field);
  input->kind = INPUT_PROMPT;
  input->prompts = prompts;
  input->n_prompts = 1;
  return 0;
}

status value_read_input_file(void *field, const value_key *k, const toml_value *v, const value_origin *from) {
  struct config_input *input = field;
  char *text;
  TRY(value_copy_string(&text, k, v, from, false));
  value_clear_input(field);
  input->kind = INPUT_FILE;
  input->file = text;
  return 0;
}

void value_write_tokens(FILE *out, const void *field) {
  const struct config_input *input = field;
  value_write_ids(out, input->tokens, input->n_tokens);
}

void value_write_prompt(FILE *out, const void *field) {
  const struct config_input *input = field;
  value_write_string(out, input->prompts[0]);
}

void value_write_prompts(FILE *out, const void *field) {
  const struct config_input *input = field;
  fputc('[', out);
  for (size_t i = 0; i < input->n_prompts; i++) {
    fputs(i ? ", " : "", out);
    value_write_string(out, input->prompts[i]);
  }
  fputc(']', out);
}

void value_write_input_file(FILE *out, const void *field) {
  const struct config_input *input = field;
  value_write_string(out, input->file);
}
