#include "src/synth/synth_header.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

enum { GGUF_VERSION = 3, GGUF_U32 = 4, GGUF_FLOAT32 = 6, GGUF_STRING = 8, GENERAL_KEYS = 6 };

static void put(FILE *f, const void *data, size_t bytes) { // the caller asks ferror at the end
  fwrite(data, 1, bytes, f);
}

static void put_u32(FILE *f, uint32_t x) {
  put(f, &x, sizeof x);
}

static void put_u64(FILE *f, uint64_t x) {
  put(f, &x, sizeof x);
}

static void put_text(FILE *f, const char *text) {
  put_u64(f, strlen(text));
  put(f, text, strlen(text));
}

static void put_key_text(FILE *f, const char *key, const char *text) {
  put_text(f, key);
  put_u32(f, GGUF_STRING);
  put_text(f, text);
}

static void put_key_u32(FILE *f, const char *key, int64_t value) {
  put_text(f, key);
  put_u32(f, GGUF_U32);
  put_u32(f, (uint32_t)value);
}

static void put_key_float(FILE *f, const char *key, double value) {
  float narrow = (float)value;
  put_text(f, key);
  put_u32(f, GGUF_FLOAT32);
  put(f, &narrow, sizeof narrow);
}

static void put_setting(FILE *f, const architecture *a, const setting_row *row, const model_settings *s) {
  char key[96];
  const char *from = (const char *)s + row->to;
  snprintf(key, sizeof key, "%s.%s", a->name, row->name);
  if (row->kind == SETTING_REAL)
    put_key_float(f, key, *(const double *)(const void *)from);
  else
    put_key_u32(f, key, *(const int64_t *)(const void *)from);
}

static void put_keys(FILE *f, const architecture *a, const synth_model *m) {
  uint64_t count = GENERAL_KEYS;
  for (size_t i = 0; i < a->n_settings; i++) count += a->settings[i].written;
  put_u64(f, count);
  put_key_text(f, "general.architecture", a->name);
  put_key_text(f, "general.name", m->name);
  put_key_u32(f, "general.file_type", m->mix->file_type);
  put_key_u32(f, "general.quantization_version", 2);
  put_key_text(f, "moe_run.synth", m->made_with);
  for (size_t i = 0; i < a->n_settings; i++)
    if (a->settings[i].written) put_setting(f, a, &a->settings[i], &m->settings);
  put_key_text(f, "tokenizer.ggml.model", "none"); // the model runs on token ids
}

static void put_tensor(FILE *f, const synth_tensor *t) {
  put_text(f, t->name);
  put_u32(f, (uint32_t)t->n_dims);
  for (int d = 0; d < t->n_dims; d++) put_u64(f, (uint64_t)t->dim[d]);
  put_u32(f, (uint32_t)t->recipe.type);
  put_u64(f, t->offset);
}

status synth_header(char **out, size_t *bytes, const architecture *a, const synth_model *m,
                    const synth_tensor *tensors, size_t n_tensors) {
  static const char zeros[SYNTH_ALIGNMENT];
  FILE *f = open_memstream(out, bytes);
  if (!f) return FAIL("cannot allocate the header: %s", strerror(errno));
  put(f, "GGUF", 4);
  put_u32(f, GGUF_VERSION);
  put_u64(f, n_tensors);
  put_keys(f, a, m);
  for (size_t i = 0; i < n_tensors; i++) put_tensor(f, &tensors[i]);
  size_t over = (size_t)ftell(f) % SYNTH_ALIGNMENT;
  if (over) put(f, zeros, SYNTH_ALIGNMENT - over);
  bool bad = ferror(f);
  if (fclose(f) || bad) return FAIL("cannot allocate the header: out of memory");
  return 0;
}
