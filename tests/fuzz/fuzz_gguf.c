// fuzz_gguf: any bytes as a GGUF file: opened, and everything that gguf.h hands out of it read.
#include "tests/fuzz/fuzz.h"
#include "src/model/model.h"
#include "src/text/vocabulary.h"
#include <stdlib.h>
#include <string.h>

enum { ROW_LIMIT = 1 << 12 };

static uint64_t sum_bytes(const void *data, size_t size) {
  const uint8_t *at = data;
  uint64_t sum = 0;
  for (size_t i = 0; i < size; i++) sum += at[i];
  return sum;
}

static void read_tensor(const gguf *g, size_t i, uint64_t *sum) {
  const gguf_tensor *t = gguf_tensor_at(g, i);
  REQUIRE(gguf_tensor_find(g, t->name) == t);
  *sum += sum_bytes(t->data, t->bytes) + strlen(t->file);
  if (t->dim[0] > ROW_LIMIT) return;
  static float row[ROW_LIMIT];
  if (row_first_not_finite(t->type->type, t->data, (size_t)t->dim[0]) < 0)
    dequantize_row(row, t->type->type, t->data, (size_t)t->dim[0]);
}

static void check_apart(const gguf *g, size_t i) {
  const gguf_tensor *t = gguf_tensor_at(g, i);
  for (size_t k = 0; k < i; k++) {
    const gguf_tensor *other = gguf_tensor_at(g, k);
    bool before = t->offset + t->bytes <= other->offset, after = other->offset + other->bytes <= t->offset;
    REQUIRE(before || after || t->file != other->file);
  }
}

static void read_arrays(const gguf *g, const char *name, uint64_t *sum) {
  gguf_string *texts;
  int32_t *numbers;
  size_t count;
  if (!gguf_key_array_strings(g, name, &texts, &count))
    for (size_t i = 0; i < count; i++) *sum += sum_bytes(texts[i].text, texts[i].length);
  else
    REQUIRE(!texts && !count);
  free(texts);
  if (!gguf_key_array_i32(g, name, &numbers, &count))
    *sum += sum_bytes(numbers, count * sizeof *numbers);
  else
    REQUIRE(!numbers && !count);
  free(numbers);
}

static void read_key(const gguf *g, size_t i, uint64_t *sum) {
  const char *name = gguf_key_name(g, i);
  uint64_t whole = 0;
  double real = 0;
  bool flag = false;
  gguf_string text;
  REQUIRE(gguf_key_exists(g, name));
  int kinds = !gguf_key_u64(g, name, &whole) + !gguf_key_f64(g, name, &real) + !gguf_key_bool(g, name, &flag);
  if (!gguf_key_string(g, name, &text)) {
    *sum += sum_bytes(text.text, text.length);
    kinds++;
  }
  REQUIRE(kinds <= 1);
  read_arrays(g, name, sum);
  size_t size = 1 + (i * 37 + gguf_key_count(g)) % 160; // exact, so that a byte too many is seen
  char *shown = malloc(size);
  gguf_key_describe(g, i, shown, size);
  REQUIRE(strlen(shown) < size);
  free(shown);
}

static void read_vocabulary(const gguf *g) {
  bool exists;
  vocabulary v = {.count = 0};
  if (!vocabulary_exists(&exists, g) && exists && !vocabulary_open(&v, g))
    for (size_t i = 0; i < v.count; i++) REQUIRE(v.start[i] <= v.start[i + 1]);
  vocabulary_close(&v);
}

static void read_model(const char *path) {
  enum { OWNED = 65536 }; // more experts than model.c takes
  static int32_t room[OWNED];
  model *m;
  uint64_t shared, experts;
  if (!model_open(&m, path)) {
    expert_map all = expert_map_of_all(room, m->weights.shape.n_experts);
    model_check_weights(m, &all, 0, 1, &shared, &experts, NULL);
    uint64_t bytes = 0;
    for (size_t i = 0; i < gguf_tensor_count(m->file); i++) bytes += gguf_tensor_at(m->file, i)->bytes;
    REQUIRE(model_experts_bytes(m, &all) == bytes - m->shared_bytes);
    model_close(m);
  } else
    REQUIRE(!m);
}

FUZZ_TARGET(gguf) {
  gguf *g;
  volatile uint64_t kept;
  uint64_t sum = 0;
  const char *path = fuzz_file(0, 1, data, size);
  status_reset();
  status result = gguf_open(&g, path);
  REQUIRE((result != 0) == (g == NULL) && (result != 0) == (*status_text() != 0));
  if (g) {
    for (size_t i = 0; i < gguf_tensor_count(g); i++) {
      read_tensor(g, i, &sum);
      check_apart(g, i);
    }
    for (size_t i = 0; i < gguf_key_count(g); i++) read_key(g, i, &sum);
    sum += gguf_header_hash(g);
    status_reset();
    read_vocabulary(g);
    bool any = gguf_key_exists(g, "general.architecture");
    gguf_close(g);
    if (any) read_model(path);
  }
  kept = sum;
  (void)kept;
  return 0;
}
