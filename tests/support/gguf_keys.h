// A GGUF of keys alone, for tests of what reads keys: gguf_keys_begin, any of the gguf_keys_*,
// gguf_keys_open.
#pragma once
#include "src/model/gguf.h"
#include "src/model/gguf_value.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef struct {
  char *data;
  size_t bytes;
  FILE *f;
  uint64_t count;
} gguf_keys;

static inline void gguf_keys_begin(gguf_keys *k) {
  *k = (gguf_keys){0};
  k->f = open_memstream(&k->data, &k->bytes);
}

static inline void gguf_keys_put(gguf_keys *k, const void *data, size_t bytes) {
  fwrite(data, 1, bytes, k->f);
}

static inline void gguf_keys_text(gguf_keys *k, const char *text) {
  uint64_t n = strlen(text);
  gguf_keys_put(k, &n, 8);
  gguf_keys_put(k, text, n);
}

static inline void gguf_keys_name(gguf_keys *k, const char *name, uint32_t type) {
  gguf_keys_text(k, name);
  gguf_keys_put(k, &type, 4);
  k->count++;
}

static inline void gguf_keys_string(gguf_keys *k, const char *name, const char *text) {
  gguf_keys_name(k, name, VALUE_STRING);
  gguf_keys_text(k, text);
}

// Of any type of number.
static inline void gguf_keys_number(gguf_keys *k, const char *name, uint32_t type, double value) {
  gguf_keys_name(k, name, type);
  uint8_t flag = value != 0;
  uint32_t u = (uint32_t)(int64_t)value;
  uint64_t wide = (uint64_t)(int64_t)value;
  float real = (float)value;
  if (type == VALUE_F32)
    gguf_keys_put(k, &real, 4);
  else if (type == VALUE_F64)
    gguf_keys_put(k, &value, 8);
  else if (type == VALUE_BOOL)
    gguf_keys_put(k, &flag, 1);
  else if (type == VALUE_U64 || type == VALUE_I64)
    gguf_keys_put(k, &wide, 8);
  else
    gguf_keys_put(k, &u,
                  type == VALUE_U32 || type == VALUE_I32   ? 4
                  : type == VALUE_U16 || type == VALUE_I16 ? 2
                                                           : 1);
}

static inline void gguf_keys_ints(gguf_keys *k, const char *name, const int32_t *values, uint64_t n) {
  uint32_t element = VALUE_I32;
  gguf_keys_name(k, name, VALUE_ARRAY);
  gguf_keys_put(k, &element, 4);
  gguf_keys_put(k, &n, 8);
  gguf_keys_put(k, values, n * 4);
}

static inline void gguf_keys_floats(gguf_keys *k, const char *name, const float *values, uint64_t n) {
  uint32_t element = VALUE_F32;
  gguf_keys_name(k, name, VALUE_ARRAY);
  gguf_keys_put(k, &element, 4);
  gguf_keys_put(k, &n, 8);
  gguf_keys_put(k, values, n * 4);
}

static inline void gguf_keys_strings(gguf_keys *k, const char *name, const char *const *texts, uint64_t n) {
  uint32_t element = VALUE_STRING;
  gguf_keys_name(k, name, VALUE_ARRAY);
  gguf_keys_put(k, &element, 4);
  gguf_keys_put(k, &n, 8);
  for (uint64_t i = 0; i < n; i++) gguf_keys_text(k, texts[i]);
}

// The file is removed once it is mapped.
static inline status gguf_keys_open(gguf **out, gguf_keys *k) {
  char path[256];
  snprintf(path, sizeof path, "%s/moe_test_keys_XXXXXX", getenv("TMPDIR") ? getenv("TMPDIR") : "/tmp");
  uint32_t version = 3;
  uint64_t tensors = 0;
  fclose(k->f);
  FILE *f = fdopen(mkstemp(path), "wb");
  fwrite("GGUF", 1, 4, f);
  fwrite(&version, 4, 1, f);
  fwrite(&tensors, 8, 1, f);
  fwrite(&k->count, 8, 1, f);
  fwrite(k->data, 1, k->bytes, f);
  fclose(f);
  free(k->data);
  status result = gguf_open(out, path);
  unlink(path);
  return result;
}
