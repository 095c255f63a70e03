// gguf_keys: the values of a GGUF's keys: how far each reaches in the file, and how a caller gets it.
//
// Owns: the value types of the format and the conversions that lose nothing.
// Refuses to know: what a key means.
// Invariant: gguf_read_key has walked every value to its end before any getter reads it, so getters cannot
// leave the map.
#include "src/model/gguf_internal.h"
#include "base/memory.h"
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum { KEY_NAME_LIMIT = 65535, TEXT_SHOWN_BYTES = 96 };

static const struct {
  const char *name;
  size_t bytes; // 0: its length stands in the file
} value_types[] = {
    [VALUE_U8] = {"u8", 1},       [VALUE_I8] = {"i8", 1},     [VALUE_U16] = {"u16", 2},
    [VALUE_I16] = {"i16", 2},     [VALUE_U32] = {"u32", 4},   [VALUE_I32] = {"i32", 4},
    [VALUE_F32] = {"f32", 4},     [VALUE_BOOL] = {"bool", 1}, [VALUE_STRING] = {"string", 0},
    [VALUE_ARRAY] = {"array", 0}, [VALUE_U64] = {"u64", 8},   [VALUE_I64] = {"i64", 8},
    [VALUE_F64] = {"f64", 8},
};

static status read_value_type(uint32_t *out, gguf_reader *r, const char *what) {
  TRY(gguf_read_u32(out, r, what));
  if (*out >= sizeof value_types / sizeof *value_types)
    return FAIL("%s: %s: %s: expected 0 to %d, found %u", r->path, r->where, what, VALUE_F64, *out);
  return 0;
}

static status check_bools(const gguf_reader *r, const uint8_t *values, uint64_t count) {
  for (uint64_t i = 0; i < count; i++)
    if (values[i] > 1)
      return FAIL("%s: %s: expected a bool of 0 or 1, found %u", r->path, r->where, (unsigned)values[i]);
  return 0;
}

// Walks over `count` values of one type that is no array.
static status read_values(gguf_reader *r, uint32_t type, uint64_t count) {
  if (type == VALUE_STRING) {
    gguf_string text;
    for (uint64_t i = 0; i < count; i++) TRY(gguf_read_string(&text, r, "string"));
    return 0;
  }
  const uint8_t *values;
  size_t size = value_types[type].bytes;
  if (count > r->left / size)
    return FAIL("%s: %s: %llu values of %s cannot be: %zu bytes are left in the file", r->path, r->where,
                (unsigned long long)count, value_types[type].name, r->left);
  TRY(gguf_read_bytes(&values, r, count * size, "value"));
  return type == VALUE_BOOL ? check_bools(r, values, count) : 0;
}

status gguf_read_key(gguf_key *out, gguf_reader *r) {
  TRY(gguf_read_name(&out->raw_name, r, "key", KEY_NAME_LIMIT));
  TRY(read_value_type(&out->type, r, "value type"));
  out->element = out->type;
  out->count = 1;
  if (out->type == VALUE_ARRAY) {
    TRY(read_value_type(&out->element, r, "array element type"));
    if (out->element == VALUE_ARRAY)
      return FAIL("%s: %s: expected an array of plain values, found an array of arrays", r->path, r->where);
    TRY(gguf_read_u64(&out->count, r, "array count"));
  }
  out->value = r->at;
  return read_values(r, out->element, out->count);
}

static const gguf_key *key_find(const gguf_file *file, const char *name) {
  size_t index;
  return name_table_find(&index, &file->key_names, name) ? &file->keys[index] : NULL;
}

static status key_require(const gguf_key **out, const gguf_file *file, const char *name) {
  *out = key_find(file, name);
  return *out ? 0 : FAIL("%s: key \"%s\" is missing", file->path, name);
}

static status key_wrong_type(const gguf_file *file, const gguf_key *key, const char *expected) {
  bool array = key->type == VALUE_ARRAY;
  return FAIL("%s: key \"%s\": expected %s, found %s%s", file->path, key->name, expected,
              array ? "an array of " : "", value_types[key->element].name);
}

// Integers of every width, widened: *negative tells that *bits is an int64_t below 0. False: no integer.
static bool value_integer(uint64_t *bits, bool *negative, uint32_t type, const uint8_t *value) {
  bool is_signed = type == VALUE_I8 || type == VALUE_I16 || type == VALUE_I32 || type == VALUE_I64;
  bool is_unsigned = type == VALUE_U8 || type == VALUE_U16 || type == VALUE_U32 || type == VALUE_U64;
  if (!is_signed && !is_unsigned) return false;
  size_t bytes = value_types[type].bytes;
  *negative = is_signed && value[bytes - 1] >> 7;
  *bits = *negative ? UINT64_MAX : 0; // sign extension, then the low bytes as they lie
  memcpy(bits, value, bytes);
  return true;
}

static double value_float(uint32_t type, const uint8_t *value) {
  float narrow;
  double wide;
  if (type == VALUE_F32) {
    memcpy(&narrow, value, sizeof narrow);
    return (double)narrow;
  }
  memcpy(&wide, value, sizeof wide);
  return wide;
}

static gguf_string value_string(const uint8_t *value) {
  uint64_t length;
  memcpy(&length, value, sizeof length);
  return (gguf_string){(const char *)value + sizeof length, (size_t)length};
}

static status key_u64(uint64_t *out, const gguf_file *file, const gguf_key *key) {
  bool negative;
  uint64_t bits;
  if (!value_integer(&bits, &negative, key->type, key->value)) return key_wrong_type(file, key, "an integer");
  if (negative)
    return FAIL("%s: key \"%s\": expected an integer of 0 or more, found %" PRId64, file->path, key->name,
                (int64_t)bits);
  *out = bits;
  return 0;
}

status gguf_file_u64(uint64_t *out, const gguf_file *file, const char *name, uint64_t fallback) {
  const gguf_key *key = key_find(file, name);
  *out = fallback;
  return key ? key_u64(out, file, key) : 0;
}

bool gguf_key_exists(const gguf *g, const char *key) {
  return key_find(g->files, key) != NULL;
}

status gguf_key_u64(const gguf *g, const char *key, uint64_t *out) {
  const gguf_key *found;
  TRY(key_require(&found, g->files, key));
  return key_u64(out, g->files, found);
}

status gguf_key_f64(const gguf *g, const char *key, double *out) {
  const gguf_key *found;
  TRY(key_require(&found, g->files, key));
  if (found->type != VALUE_F32 && found->type != VALUE_F64)
    return key_wrong_type(g->files, found, "an f32 or f64");
  *out = value_float(found->type, found->value);
  return 0;
}

status gguf_key_bool(const gguf *g, const char *key, bool *out) {
  const gguf_key *found;
  TRY(key_require(&found, g->files, key));
  if (found->type != VALUE_BOOL) return key_wrong_type(g->files, found, "a bool");
  *out = *found->value == 1;
  return 0;
}

status gguf_key_string(const gguf *g, const char *key, gguf_string *out) {
  const gguf_key *found;
  TRY(key_require(&found, g->files, key));
  if (found->type != VALUE_STRING) return key_wrong_type(g->files, found, "a string");
  *out = value_string(found->value);
  return 0;
}

static status key_require_array(const gguf_key **out, const gguf *g, const char *name, uint32_t element,
                                uint32_t or_element, const char *expected) {
  TRY(key_require(out, g->files, name));
  const gguf_key *key = *out;
  if (key->type != VALUE_ARRAY || (key->element != element && key->element != or_element))
    return key_wrong_type(g->files, key, expected);
  return 0;
}

status gguf_key_array_strings(const gguf *g, const char *key, gguf_string **out, size_t *count) {
  const gguf_key *found;
  *out = NULL;
  *count = 0;
  TRY(key_require_array(&found, g, key, VALUE_STRING, VALUE_STRING, "an array of string"));
  TRY(TAKE(out, (size_t)found->count, key));
  const uint8_t *at = found->value;
  for (size_t i = 0; i < found->count; i++) {
    (*out)[i] = value_string(at);
    at += sizeof(uint64_t) + (*out)[i].length;
  }
  *count = (size_t)found->count;
  return 0;
}

status gguf_key_array_i32(const gguf *g, const char *key, int32_t **out, size_t *count) {
  const gguf_key *found;
  *out = NULL;
  *count = 0;
  TRY(key_require_array(&found, g, key, VALUE_I32, VALUE_U32, "an array of i32 or u32"));
  TRY(TAKE(out, (size_t)found->count, key));
  memcpy(*out, found->value, (size_t)found->count * sizeof **out);
  for (size_t i = 0; found->element == VALUE_U32 && i < found->count; i++)
    if ((*out)[i] < 0) {
      status result = FAIL("%s: key \"%s\": element %zu is %u, expected at most %d", g->files->path, key, i,
                           (uint32_t)(*out)[i], INT32_MAX);
      free(*out);
      *out = NULL;
      return result;
    }
  *count = (size_t)found->count;
  return 0;
}

size_t gguf_key_count(const gguf *g) {
  return g->files->n_keys;
}

const char *gguf_key_name(const gguf *g, size_t i) {
  return g->files->keys[i].name;
}

// What a terminal can show: valid UTF-8 without control characters as it is, every other byte as \xNN.
static void describe_string(char *out, size_t size, gguf_string text) {
  size_t used = (size_t)snprintf(out, size, "\"");
  size_t at = 0;
  while (at < text.length && at < TEXT_SHOWN_BYTES) {
    utf8proc_int32_t point;
    utf8proc_ssize_t limit = text.length - at < 4 ? (utf8proc_ssize_t)(text.length - at) : 4;
    utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)text.text + at, limit, &point);
    bool shown = n > 0 && point >= 0x20 && (point < 0x7f || point > 0x9f);
    if (n <= 0) n = 1;
    size_t need = shown ? (size_t)n : 4 * (size_t)n;
    if (used + need + 5 > size) break; // room for the closing quote, three dots and the NUL
    if (shown) memcpy(out + used, text.text + at, need);
    for (size_t i = 0; !shown && i < (size_t)n; i++)
      snprintf(out + used + 4 * i, 5, "\\x%02x", (unsigned)(unsigned char)text.text[at + i]);
    used += need;
    at += (size_t)n;
  }
  if (used < size) snprintf(out + used, size - used, at < text.length ? "\"..." : "\"");
}

void gguf_key_describe(const gguf *g, size_t i, char *out, size_t size) {
  const gguf_key *key = &g->files->keys[i];
  bool negative;
  uint64_t bits;
  if (size == 0) return;
  if (key->type == VALUE_ARRAY)
    snprintf(out, size, "[%s x %" PRIu64 "]", value_types[key->element].name, key->count);
  else if (key->type == VALUE_STRING)
    describe_string(out, size, value_string(key->value));
  else if (key->type == VALUE_BOOL)
    snprintf(out, size, "%s", *key->value ? "true" : "false");
  else if (value_integer(&bits, &negative, key->type, key->value))
    snprintf(out, size, negative ? "%" PRId64 : "%" PRIu64, bits);
  else
    snprintf(out, size, key->type == VALUE_F32 ? "%.9g" : "%.17g", value_float(key->type, key->value));
}
