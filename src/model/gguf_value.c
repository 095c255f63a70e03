#include "src/model/gguf_value.h"
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
    return FAIL("%s: %s: %llu values of %s do not fit: %zu bytes are left in the file", r->path, r->where,
                (unsigned long long)count, value_types[type].name, r->left);
  TRY(gguf_read_bytes(&values, r, count * size, "value"));
  return type == VALUE_BOOL ? check_bools(r, values, count) : 0;
}

status gguf_value_read(gguf_key *out, gguf_reader *r) {
  out->file = r->path;
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

static status wrong_type(const gguf_key *key, const char *expected) {
  bool array = key->type == VALUE_ARRAY;
  return FAIL("%s: key \"%s\": expected %s, found %s%s", key->file, key->name, expected,
              array ? "an array of " : "", value_types[key->element].name);
}

// Integers of every width, widened: where *negative, *bits is an int64_t below 0. False: no integer.
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

status gguf_value_u64(uint64_t *out, const gguf_key *key) {
  bool negative;
  uint64_t bits;
  if (!value_integer(&bits, &negative, key->type, key->value)) return wrong_type(key, "an integer");
  if (negative)
    return FAIL("%s: key \"%s\": expected an integer of 0 or more, found %" PRId64, key->file, key->name,
                (int64_t)bits);
  *out = bits;
  return 0;
}

status gguf_value_f64(double *out, const gguf_key *key) {
  if (key->type != VALUE_F32 && key->type != VALUE_F64) return wrong_type(key, "an f32 or f64");
  *out = value_float(key->type, key->value);
  return 0;
}

status gguf_value_bool(bool *out, const gguf_key *key) {
  if (key->type != VALUE_BOOL) return wrong_type(key, "a bool");
  *out = *key->value == 1;
  return 0;
}

status gguf_value_string(gguf_string *out, const gguf_key *key) {
  if (key->type != VALUE_STRING) return wrong_type(key, "a string");
  *out = value_string(key->value);
  return 0;
}

status gguf_value_strings(gguf_string **out, size_t *count, const gguf_key *key) {
  *out = NULL;
  *count = 0;
  if (key->type != VALUE_ARRAY || key->element != VALUE_STRING) return wrong_type(key, "an array of string");
  TRY(TAKE(out, (size_t)key->count, key->name));
  const uint8_t *at = key->value;
  for (size_t i = 0; i < key->count; i++) {
    (*out)[i] = value_string(at);
    at += sizeof(uint64_t) + (*out)[i].length;
  }
  *count = (size_t)key->count;
  return 0;
}

status gguf_value_i32s(int32_t **out, size_t *count, const gguf_key *key) {
  *out = NULL;
  *count = 0;
  if (key->type != VALUE_ARRAY || (key->element != VALUE_I32 && key->element != VALUE_U32))
    return wrong_type(key, "an array of i32 or u32");
  TRY(TAKE(out, (size_t)key->count, key->name));
  memcpy(*out, key->value, (size_t)key->count * sizeof **out);
  for (size_t i = 0; key->element == VALUE_U32 && i < key->count; i++)
    if ((*out)[i] < 0) {
      status result = FAIL("%s: key \"%s\": element %zu is %u, expected at most %d", key->file, key->name, i,
                           (uint32_t)(*out)[i], INT32_MAX);
      free(*out);
      *out = NULL;
      return result;
    }
  *count = (size_t)key->count;
  return 0;
}

bool gguf_value_number(double *out, const gguf_key *key, size_t i) {
  bool negative;
  uint64_t bits;
  if (i >= key->count || key->element == VALUE_STRING) return false;
  const uint8_t *value = key->value + i * value_types[key->element].bytes;
  if (key->element == VALUE_BOOL)
    *out = *value;
  else if (value_integer(&bits, &negative, key->element, value))
    *out = negative ? (double)(int64_t)bits : (double)bits;
  else
    *out = value_float(key->element, value);
  return true;
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

void gguf_value_describe(char *out, size_t size, const gguf_key *key) {
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
