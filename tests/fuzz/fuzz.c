#include "tests/fuzz/fuzz.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

void fuzz_broken(const char *condition, const char *file, int line) {
  fprintf(stderr, "%s:%d: does not hold: %s (fault: %s)\n", file, line, condition, status_text());
  abort();
}

uint64_t fuzz_take(fuzz_input *in, size_t bytes) {
  uint64_t value = 0;
  size_t n = in->left < bytes ? in->left : bytes;
  if (n) memcpy(&value, in->at, n);
  in->at += n;
  in->left -= n;
  return value;
}

// ---- files ----

static void file_name(char *out, size_t room, const char *folder, size_t no, size_t of) {
  if (of == 1)
    snprintf(out, room, "%s/fuzz.gguf", folder);
  else
    snprintf(out, room, "%s/fuzz-%05zu-of-%05zu.gguf", folder, no + 1, of);
}

#ifdef FUZZ_MEMORY

void fuzz_memory_set(const char *path, size_t no, const void *data, size_t size); // fuzz_memory.c

const char *fuzz_file(size_t no, size_t of, const void *data, size_t size) {
  static char path[FUZZ_MOST_FILES][64];
  file_name(path[no], sizeof path[no], "/fuzz", no, of);
  fuzz_memory_set(path[no], no, data, size);
  return path[no];
}

#else

static char fuzz_folder[512];

static void remove_folder(void) {
  char path[600];
  for (size_t no = 0; no < FUZZ_MOST_FILES; no++) {
    file_name(path, sizeof path, fuzz_folder, no, FUZZ_MOST_FILES);
    unlink(path);
  }
  file_name(path, sizeof path, fuzz_folder, 0, 1);
  unlink(path);
  rmdir(fuzz_folder);
}

const char *fuzz_file(size_t no, size_t of, const void *data, size_t size) {
  static char path[FUZZ_MOST_FILES][600];
  if (!*fuzz_folder) {
    const char *place = getenv("TMPDIR");
    snprintf(fuzz_folder, sizeof fuzz_folder, "%s/moe_fuzz_XXXXXX", place && *place ? place : "/tmp");
    REQUIRE(mkdtemp(fuzz_folder));
    atexit(remove_folder);
  }
  file_name(path[no], sizeof path[no], fuzz_folder, no, of);
  FILE *f = fopen(path[no], "wb");
  REQUIRE(f && (!size || fwrite(data, 1, size, f) == size) && !fclose(f));
  return path[no];
}

#endif

// ---- a GGUF, piece by piece ----

void gguf_put(gguf_bytes *g, const void *data, size_t size) {
  if (!size || size > sizeof g->bytes - g->count) return;
  memcpy(g->bytes + g->count, data, size);
  g->count += size;
}

void gguf_put_number(gguf_bytes *g, uint64_t value, size_t size) {
  if (g->fields < GGUF_FIELDS) g->field[g->fields++] = (uint32_t)g->count;
  gguf_put(g, &value, size);
}

void gguf_put_text(gguf_bytes *g, const char *text, size_t size) {
  gguf_put_number(g, size, 8);
  gguf_put(g, text, size);
}

void gguf_put_name(gguf_bytes *g, const char *name) {
  gguf_put_text(g, name, strlen(name));
}

void gguf_put_head(gguf_bytes *g, uint64_t tensors, uint64_t keys) {
  g->count = g->fields = 0;
  gguf_put(g, "GGUF", 4);
  gguf_put_number(g, 3, 4);
  gguf_put_number(g, tensors, 8);
  gguf_put_number(g, keys, 8);
}

void gguf_put_u32(gguf_bytes *g, const char *key, uint32_t value) {
  gguf_put_name(g, key);
  gguf_put_number(g, VALUE_U32, 4);
  gguf_put_number(g, value, 4);
}

void gguf_put_f32(gguf_bytes *g, const char *key, float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  gguf_put_name(g, key);
  gguf_put_number(g, VALUE_F32, 4);
  gguf_put_number(g, bits, 4);
}

void gguf_put_string(gguf_bytes *g, const char *key, const char *value) {
  gguf_put_name(g, key);
  gguf_put_number(g, VALUE_STRING, 4);
  gguf_put_name(g, value);
}

void gguf_put_array(gguf_bytes *g, const char *key, uint32_t element, uint64_t count) {
  gguf_put_name(g, key);
  gguf_put_number(g, VALUE_ARRAY, 4);
  gguf_put_number(g, element, 4);
  gguf_put_number(g, count, 8);
}
