// Tests of src/model/gguf.h: a good file of every value type, then files that lie in each field, are cut at
// each byte or have random bits flipped, and split sets that do not hold together.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include "src/model/gguf.h"
#include "tests/support/seed.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

// ---- a builder of GGUF bytes that remembers where each field lies ----

enum { BUILDER_BYTES = 1 << 16, MARKS = 128 };

typedef struct {
  uint8_t data[BUILDER_BYTES];
  size_t n;
  struct {
    char name[32];
    size_t at;
  } mark[MARKS];
  int n_marks;
} builder;

static char folder[256];
static uint64_t random_state;

static uint32_t random_below(uint32_t limit) { // xorshift64*
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return (uint32_t)((random_state * 0x2545F4914F6CDD1DULL) >> 32) % limit;
}

static void put(builder *b, const void *data, size_t n) {
  assert_true(b->n + n <= sizeof b->data);
  memcpy(b->data + b->n, data, n);
  b->n += n;
}

static void put_u8(builder *b, uint8_t v) {
  put(b, &v, sizeof v);
}
static void put_u16(builder *b, uint16_t v) {
  put(b, &v, sizeof v);
}
static void put_u32(builder *b, uint32_t v) {
  put(b, &v, sizeof v);
}
static void put_u64(builder *b, uint64_t v) {
  put(b, &v, sizeof v);
}
static void put_f32(builder *b, float v) {
  put(b, &v, sizeof v);
}
static void put_f64(builder *b, double v) {
  put(b, &v, sizeof v);
}
static void put_string(builder *b, const char *text) {
  put_u64(b, strlen(text));
  put(b, text, strlen(text));
}
static void put_padding(builder *b, size_t alignment) {
  while (b->n % alignment) put_u8(b, 0);
}

static void set_mark(builder *b, const char *name, const char *part) {
  assert_true(b->n_marks < MARKS);
  snprintf(b->mark[b->n_marks].name, sizeof b->mark->name, "%s%s", name, part);
  b->mark[b->n_marks++].at = b->n;
}

static size_t mark_at(const builder *b, const char *name) {
  for (int i = 0; i < b->n_marks; i++)
    if (strcmp(b->mark[i].name, name) == 0) return b->mark[i].at;
  fail_msg("no mark %s", name);
  return 0;
}

static void put_header(builder *b, uint32_t version, uint64_t tensors, uint64_t keys) {
  b->n = 0;
  b->n_marks = 0;
  set_mark(b, "magic", "");
  put(b, "GGUF", 4);
  set_mark(b, "version", "");
  put_u32(b, version);
  set_mark(b, "tensors", "");
  put_u64(b, tensors);
  set_mark(b, "keys", "");
  put_u64(b, keys);
}

// Marks "<name>" at the name's length, "<name>.type" and "<name>.value".
static void put_key(builder *b, const char *name, uint32_t type) {
  set_mark(b, name, "");
  put_string(b, name);
  set_mark(b, name, ".type");
  put_u32(b, type);
  set_mark(b, name, ".value");
}

static void put_key_u32(builder *b, const char *name, uint32_t value) {
  put_key(b, name, 4);
  put_u32(b, value);
}

static void put_array(builder *b, uint32_t element, uint64_t count) {
  put_u32(b, element);
  put_u64(b, count);
}

// Marks "<name>", "<name>.n_dims", "<name>.dims", "<name>.type", "<name>.offset".
static void put_tensor(builder *b, const char *name, uint32_t n_dims, const uint64_t *dims, uint32_t type,
                       uint64_t offset) {
  set_mark(b, name, "");
  put_string(b, name);
  set_mark(b, name, ".n_dims");
  put_u32(b, n_dims);
  set_mark(b, name, ".dims");
  for (uint32_t i = 0; i < n_dims; i++) put_u64(b, dims[i]);
  set_mark(b, name, ".type");
  put_u32(b, type);
  set_mark(b, name, ".offset");
  put_u64(b, offset);
}

enum { N_KEYS = 21, N_TENSORS = 4, ALIGNMENT = 64 };

static void put_keys(builder *b) {
  put_key(b, "general.architecture", 8);
  put_string(b, "qwen3moe");
  put_key_u32(b, "general.alignment", ALIGNMENT);
  put_key(b, "t.u8", 0), put_u8(b, 200);
  put_key(b, "t.i8", 1), put_u8(b, (uint8_t)-5);
  put_key(b, "t.u16", 2), put_u16(b, 60000);
  put_key(b, "t.i16", 3), put_u16(b, 300);
  put_key(b, "t.u32", 4), put_u32(b, 4000000000u);
  put_key(b, "t.i32", 5), put_u32(b, (uint32_t)-7);
  put_key(b, "t.f32", 6), put_f32(b, 0.1f);
  put_key(b, "t.bool", 7), put_u8(b, 1);
  put_key(b, "t.text", 8), put_u64(b, 9), put(b, "a\n\xc3\xa9\xff\x1b[2", 8), put_u8(b, 0);
  put_key(b, "t.u64", 10), put_u64(b, UINT64_MAX);
  put_key(b, "t.i64", 11), put_u64(b, (uint64_t)INT64_MIN);
  put_key(b, "t.f64", 12), put_f64(b, 0.1);
  put_key(b, "a.text", 9), put_array(b, 8, 3), put_string(b, "one"), put_string(b, ""),
      put_string(b, "three");
  put_key(b, "a.i32", 9), put_array(b, 5, 3), put_u32(b, 1), put_u32(b, (uint32_t)-2), put_u32(b, 3);
  put_key(b, "a.u32", 9), put_array(b, 4, 2), put_u32(b, 0), put_u32(b, INT32_MAX);
  put_key(b, "a.big", 9), put_array(b, 4, 2), put_u32(b, 7), put_u32(b, 1u << 31);
  put_key(b, "a.bool", 9), put_array(b, 7, 2), put_u8(b, 0), put_u8(b, 1);
  put_key(b, "a.none", 9), put_array(b, 8, 0);
  put_key(b, "t.last", 8), put_string(b, "");
}

// Four tensors; the last one ends with the file, so that every cut is a loss.
static void put_good(builder *b, uint32_t version) {
  put_header(b, version, N_TENSORS, N_KEYS);
  put_keys(b);
  put_tensor(b, "w.f32", 2, (const uint64_t[]){8, 3}, TYPE_F32, 0);
  put_tensor(b, "w.q4k", 3, (const uint64_t[]){512, 2, 1}, TYPE_Q4_K, 128);
  put_tensor(b, "w.q8z", 1, (const uint64_t[]){64}, TYPE_Q8_0, 128 + 576);
  put_tensor(b, "w.f16", 4, (const uint64_t[]){16, 2, 1, 3}, TYPE_F16, 128 + 576 + 128);
  set_mark(b, "end", "");
  put_padding(b, ALIGNMENT);
  set_mark(b, "data", "");
  for (int i = 0; i < 128 + 576 + 128 + 192; i++) put_u8(b, (uint8_t)random_below(256));
}

static void write_file(char *path, size_t room, const char *name, const void *data, size_t n) {
  snprintf(path, room, "%s/%s", folder, name);
  FILE *file = fopen(path, "wb");
  assert_non_null(file);
  assert_int_equal(fwrite(data, 1, n, file), n);
  fclose(file);
}

static void expect_fault(const char *path, const char *part) {
  gguf *g = (gguf *)folder; // must become NULL
  status_reset();
  status result = gguf_open(&g, path);
  if (!result) fail_msg("%s was opened, expected a fault with \"%s\"", path, part);
  assert_null(g);
  if (!strstr(status_text(), path) || !strstr(status_text(), part))
    fail_msg("expected a fault with \"%s\", found \"%s\"", part, status_text());
  status_reset();
}

static void expect_bytes_fault(const builder *b, const char *part) {
  char path[512];
  write_file(path, sizeof path, "lie.gguf", b->data, b->n);
  expect_fault(path, part);
}

static gguf *open_good(const builder *b) {
  char path[512];
  gguf *g;
  write_file(path, sizeof path, "good.gguf", b->data, b->n);
  status_reset();
  if (gguf_open(&g, path)) fail_msg("%s", status_text());
  assert_string_equal(gguf_path(g), path);
  return g;
}

// ---- good files ----

static void reads_tensors(void **state) {
  (void)state;
  static builder b;
  put_good(&b, 3);
  gguf *g = open_good(&b);
  size_t data = mark_at(&b, "data");
  assert_int_equal(gguf_tensor_count(g), N_TENSORS);
  assert_int_equal(gguf_file_count(g), 1);
  assert_int_equal(gguf_file_bytes(g, 0), b.n);
  assert_string_equal(gguf_file_path(g, 0), gguf_path(g));
  const gguf_tensor *t = gguf_tensor_find(g, "w.q4k");
  assert_non_null(t);
  assert_ptr_equal(t, gguf_tensor_at(g, 1));
  assert_string_equal(t->name, "w.q4k");
  assert_string_equal(t->type->name, "Q4_K");
  assert_int_equal(t->n_dims, 3);
  assert_int_equal(t->dim[0], 512);
  assert_int_equal(t->dim[1], 2);
  assert_int_equal(t->dim[3], 1);
  assert_int_equal(t->bytes, 4 * 144);
  assert_int_equal(t->offset, data + 128);
  assert_string_equal(t->file, gguf_path(g));
  for (size_t i = 0; i < N_TENSORS; i++) {
    t = gguf_tensor_at(g, i);
    assert_memory_equal(t->data, b.data + t->offset, t->bytes);
  }
  assert_null(gguf_tensor_find(g, "w.q4"));
  assert_null(gguf_tensor_find(g, ""));
  gguf_close(g);
  gguf_close(NULL);
}

static void hash_depends_on_header_and_size_only(void **state) {
  (void)state;
  static builder b;
  uint64_t hash[5];
  put_good(&b, 3);
  for (int i = 0; i < 5; i++) {
    if (i == 1) b.data[b.n - 1] ^= 1;                   // a weight: the same
    if (i == 2) b.data[mark_at(&b, "t.u8.value")] ^= 1; // a value
    if (i == 3) b.data[mark_at(&b, "version")] = 2;     // the version
    if (i == 4) put_u8(&b, 0);                          // the size
    gguf *g = open_good(&b);
    hash[i] = gguf_header_hash(g);
    gguf_close(g);
  }
  assert_true(hash[0] == hash[1]);
  for (int i = 2; i < 5; i++)
    for (int k = 0; k < i; k++) assert_true(hash[i] != hash[k] || (i == 1 && k == 0));
}

static void reads_scalars(void **state) {
  (void)state;
  static builder b;
  uint64_t u;
  double f;
  bool yes;
  gguf_string text;
  put_good(&b, 2);
  gguf *g = open_good(&b);
  static const struct {
    const char *key;
    uint64_t value;
  } integers[] = {{"t.u8", 200},          {"t.u16", 60000},      {"t.i16", 300},
                  {"t.u32", 4000000000u}, {"t.u64", UINT64_MAX}, {"general.alignment", ALIGNMENT}};
  for (size_t i = 0; i < sizeof integers / sizeof *integers; i++) {
    assert_int_equal(gguf_key_u64(g, integers[i].key, &u), 0);
    assert_true(u == integers[i].value);
  }
  assert_int_equal(gguf_key_f64(g, "t.f32", &f), 0);
  assert_true(f == (double)0.1f);
  assert_int_equal(gguf_key_f64(g, "t.f64", &f), 0);
  assert_true(f == 0.1);
  assert_int_equal(gguf_key_bool(g, "t.bool", &yes), 0);
  assert_true(yes);
  assert_int_equal(gguf_key_string(g, "general.architecture", &text), 0);
  assert_int_equal(text.length, 8);
  assert_memory_equal(text.text, "qwen3moe", 8);
  assert_true(gguf_key_exists(g, "t.last"));
  assert_false(gguf_key_exists(g, "t.las"));
  gguf_close(g);
}

static void expect_key_fault(const gguf *g, status result, const char *key, const char *part) {
  assert_int_not_equal(result, 0);
  if (!strstr(status_text(), gguf_path(g)) || !strstr(status_text(), key) || !strstr(status_text(), part))
    fail_msg("key %s: expected a fault with \"%s\", found \"%s\"", key, part, status_text());
  status_reset();
}

static void refuses_lossy_conversions(void **state) {
  (void)state;
  static builder b;
  uint64_t u;
  double f;
  bool yes;
  gguf_string text, *texts;
  int32_t *numbers;
  size_t count = 77;
  put_good(&b, 3);
  gguf *g = open_good(&b);
  expect_key_fault(g, gguf_key_u64(g, "no.key", &u), "no.key", "missing");
  expect_key_fault(g, gguf_key_u64(g, "t.i8", &u), "t.i8", "found -5");
  expect_key_fault(g, gguf_key_u64(g, "t.i32", &u), "t.i32", "found -7");
  expect_key_fault(g, gguf_key_u64(g, "t.i64", &u), "t.i64", "found -9223372036854775808");
  expect_key_fault(g, gguf_key_u64(g, "t.f32", &u), "t.f32", "expected an integer, found f32");
  expect_key_fault(g, gguf_key_u64(g, "t.bool", &u), "t.bool", "found bool");
  expect_key_fault(g, gguf_key_u64(g, "a.u32", &u), "a.u32", "found an array of u32");
  expect_key_fault(g, gguf_key_f64(g, "t.u32", &f), "t.u32", "found u32");
  expect_key_fault(g, gguf_key_bool(g, "t.u8", &yes), "t.u8", "found u8");
  expect_key_fault(g, gguf_key_string(g, "a.text", &text), "a.text", "found an array of string");
  expect_key_fault(g, gguf_key_array_strings(g, "t.text", &texts, &count), "t.text", "found string");
  assert_null(texts);
  assert_int_equal(count, 0);
  expect_key_fault(g, gguf_key_array_i32(g, "a.text", &numbers, &count), "a.text",
                   "found an array of string");
  expect_key_fault(g, gguf_key_array_i32(g, "a.big", &numbers, &count), "a.big", "element 1 is 2147483648");
  assert_null(numbers);
  gguf_close(g);
}

static void reads_arrays(void **state) {
  (void)state;
  static builder b;
  gguf_string *texts;
  int32_t *numbers;
  size_t count;
  put_good(&b, 3);
  gguf *g = open_good(&b);
  assert_int_equal(gguf_key_array_strings(g, "a.text", &texts, &count), 0);
  assert_int_equal(count, 3);
  assert_int_equal(texts[1].length, 0);
  assert_int_equal(texts[2].length, 5);
  assert_memory_equal(texts[2].text, "three", 5);
  free(texts);
  assert_int_equal(gguf_key_array_strings(g, "a.none", &texts, &count), 0);
  assert_int_equal(count, 0);
  free(texts);
  assert_int_equal(gguf_key_array_i32(g, "a.i32", &numbers, &count), 0);
  assert_int_equal(count, 3);
  assert_int_equal(numbers[1], -2);
  free(numbers);
  assert_int_equal(gguf_key_array_i32(g, "a.u32", &numbers, &count), 0);
  assert_int_equal(numbers[1], INT32_MAX);
  free(numbers);
  gguf_close(g);
}

static void describes_every_key(void **state) {
  (void)state;
  static builder b;
  put_good(&b, 3);
  gguf *g = open_good(&b);
  static const char *const wanted[N_KEYS][2] = {
      {"general.architecture", "\"qwen3moe\""},
      {"general.alignment", "64"},
      {"t.u8", "200"},
      {"t.i8", "-5"},
      {"t.u16", "60000"},
      {"t.i16", "300"},
      {"t.u32", "4000000000"},
      {"t.i32", "-7"},
      {"t.f32", "0.100000001"},
      {"t.bool", "true"},
      {"t.text", "\"a\\x0a\xc3\xa9\\xff\\x1b[2\\x00\""},
      {"t.u64", "18446744073709551615"},
      {"t.i64", "-9223372036854775808"},
      {"t.f64", "0.10000000000000001"},
      {"a.text", "[string x 3]"},
      {"a.i32", "[i32 x 3]"},
      {"a.u32", "[u32 x 2]"},
      {"a.big", "[u32 x 2]"},
      {"a.bool", "[bool x 2]"},
      {"a.none", "[string x 0]"},
      {"t.last", "\"\""},
  };
  assert_int_equal(gguf_key_count(g), N_KEYS);
  for (size_t i = 0; i < N_KEYS; i++) {
    char text[200];
    gguf_key_describe(g, i, text, sizeof text);
    assert_string_equal(gguf_key_name(g, i), wanted[i][0]);
    assert_string_equal(text, wanted[i][1]);
    for (size_t size = 0; size < 40; size++) { // never beyond what the caller gave
      memset(text, '#', sizeof text);
      gguf_key_describe(g, i, text, size);
      assert_true(text[size] == '#');
      if (size) assert_non_null(memchr(text, 0, size));
    }
  }
  gguf_close(g);
}

// ---- files that lie ----

static const struct {
  const char *mark;
  size_t shift, bytes;
  uint64_t value;
  const char *fault;
} lies[] = {
    {"magic", 0, 4, 0x4c4d4747, "magic"},
    {"version", 0, 4, 0, "expected GGUF version 2 or 3, found 0"},
    {"version", 0, 4, 1, "expected GGUF version 2 or 3, found 1"},
    {"version", 0, 4, 4, "expected GGUF version 2 or 3, found 4"},
    {"version", 0, 4, 0x03000000, "big-endian"},
    {"tensors", 0, 8, UINT64_MAX, "tensor count"},
    {"tensors", 0, 8, 1 << 20, "tensor count"},
    {"tensors", 0, 8, N_TENSORS + 1, "tensor 5 of 5"},
    {"keys", 0, 8, UINT64_MAX, "key count"},
    {"keys", 0, 8, 1 << 20, "key count"},
    {"keys", 0, 8, N_KEYS + 1, "tensor 1 of 4: name: expected"},
    {"keys", 0, 8, N_KEYS - 1, "tensor"},
    {"t.u8", 0, 8, UINT64_MAX, "expected 18446744073709551615 bytes"},
    {"t.u8", 0, 8, 1 << 20, "expected 1048576 bytes"},
    {"t.u8", 0, 8, 0, "name of 0 bytes"},
    {"t.u8", 8 + 1, 1, 0, "byte 1 of its name is 0x00"},
    {"t.u8", 8 + 1, 1, 0x1b, "byte 1 of its name is 0x1b"},
    {"t.u8", 8 + 1, 1, 0xc3, "byte 1 of its name is 0xc3"},
    {"t.i8", 8 + 2, 1, 'u', "key \"t.u8\" appears twice"},
    {"t.u8.type", 0, 4, 13, "value type: expected 0 to 12, found 13"},
    {"t.u8.type", 0, 4, UINT32_MAX, "value type"},
    {"t.bool.value", 0, 1, 2, "key \"t.bool\": expected a bool of 0 or 1, found 2"},
    {"t.text.value", 0, 8, UINT64_MAX - 7, "key \"t.text\": string: expected 18446744073709551608 bytes"},
    {"a.text.value", 0, 4, 9, "array of arrays"},
    {"a.text.value", 0, 4, 99, "array element type: expected 0 to 12, found 99"},
    {"a.text.value", 4, 8, UINT64_MAX, "key \"a.text\""},
    {"a.text.value", 12, 8, UINT64_MAX, "key \"a.text\": string"},
    {"a.i32.value", 4, 8, 1ull << 62, "key \"a.i32\": 4611686018427387904 values of i32 do not fit"},
    {"a.i32.value", 4, 8, 1 << 16, "values of i32 do not fit"},
    {"a.bool.value", 12, 1, 255, "expected a bool of 0 or 1, found 255"},
    {"general.alignment.value", 0, 4, 0, "power of two"},
    {"general.alignment.value", 0, 4, 4, "power of two"},
    {"general.alignment.value", 0, 4, 48, "power of two"},
    {"general.alignment.value", 0, 4, 1 << 21, "power of two"},
    {"general.alignment.value", 0, 4, 1 << 20, "tensor \"w.f32\" needs 1048672"},
    {"general.alignment.type", 0, 4, 6, "expected an integer, found f32"},
    {"w.f32.n_dims", 0, 4, 0, "tensor \"w.f32\": expected 1 to 4 dimensions, found 0"},
    {"w.f32.n_dims", 0, 4, 5, "found 5"},
    {"w.f32.n_dims", 0, 4, UINT32_MAX, "found 4294967295"},
    {"w.f32.dims", 0, 8, 0, "tensor \"w.f32\": dimension 0 is 0"},
    {"w.f32.dims", 8, 8, UINT64_MAX, "dimension 1 is -1"},
    {"w.f32.dims", 8, 8, 1ull << 62, "overflows"},
    {"w.f32.dims", 0, 8, INT64_MAX, "overflows"},
    {"w.f32.dims", 8, 8, 1ull << 40, "tensor \"w.f32\" needs"},
    {"w.q4k.dims", 0, 8, 300, "rows of a multiple of 256 elements (Q4_K), found 300"},
    {"w.q8z.dims", 0, 8, 48, "rows of a multiple of 32 elements (Q8_0), found 48"},
    {"w.q4k.type", 0, 4, 16, "found IQ2_XXS"},
    {"w.q4k.type", 0, 4, 19, "tensor \"w.q4k\": expected one of F32, F16, "},
    {"w.q4k.type", 0, 4, 31, "found Q4_0_4_4"},
    {"w.q4k.type", 0, 4, 15, "found Q8_K"},
    {"w.q4k.type", 0, 4, 1000, "found type 1000"},
    {"w.q4k.offset", 0, 8, 129, "tensor \"w.q4k\": expected an offset that is a multiple of 64, found 129"},
    {"w.q4k.offset", 0, 8, UINT64_MAX - 63, "overflows"},
    {"w.q4k.offset", 0, 8, 1ull << 63, "tensor \"w.q4k\" needs"},
    {"w.q4k.offset", 0, 8, 0, "overlap"},
    {"w.q4k.offset", 0, 8, 64, "tensor \"w.f32\" (96 bytes from byte"},
    {"w.q8z.offset", 0, 8, 640, "tensor \"w.q8z\""},
    {"w.f16", 8 + 2, 3, 0x6b3471, "tensor \"w.q4k\" appears twice"},
    {"w.f16", 8 + 2, 1, 0, "byte 2 of its name is 0x00"},
};

static void refuses_lies(void **state) {
  (void)state;
  static builder b;
  for (size_t i = 0; i < sizeof lies / sizeof *lies; i++) {
    put_good(&b, 2 + random_below(2));
    memcpy(b.data + mark_at(&b, lies[i].mark) + lies[i].shift, &lies[i].value, lies[i].bytes);
    expect_bytes_fault(&b, lies[i].fault);
  }
}

static void names_both_tensors_that_overlap(void **state) {
  (void)state;
  static builder b;
  put_good(&b, 3);
  b.data[mark_at(&b, "w.q8z.offset")] -= 64;
  expect_bytes_fault(&b, "tensor \"w.q4k\"");
  expect_bytes_fault(&b, "tensor \"w.q8z\"");
  put_good(&b, 3); // one tensor inside another, with a third between them in the table
  memset(b.data + mark_at(&b, "w.f16.offset"), 0, 8);
  b.data[mark_at(&b, "w.f16.offset")] = 192;
  expect_bytes_fault(&b, "tensor \"w.f16\"");
}

static void says_what_a_short_file_needs(void **state) {
  (void)state;
  static builder b;
  char wanted[128];
  put_good(&b, 3);
  b.n--;
  snprintf(wanted, sizeof wanted, "file is %zu bytes, tensor \"w.f16\" needs %zu", b.n, b.n + 1);
  expect_bytes_fault(&b, wanted);
}

static void refuses_every_truncation(void **state) {
  (void)state;
  static builder b;
  char path[512];
  put_good(&b, 3);
  size_t header = mark_at(&b, "end");
  for (size_t n = 0; n < b.n; n++) {
    write_file(path, sizeof path, "cut.gguf", b.data, n);
    gguf *g = NULL;
    status_reset();
    if (!gguf_open(&g, path)) fail_msg("a file cut at byte %zu of %zu was opened", n, b.n);
    const char *text = status_text();
    bool told = n == 0 ? strstr(text, "empty file") != NULL
                : n < header
                    ? strstr(text, "truncated") || strstr(text, "too large") || strstr(text, "do not fit")
                    : strstr(text, " needs ") != NULL;
    if (!told || !strstr(text, path)) fail_msg("cut at byte %zu of %zu: found \"%s\"", n, b.n, text);
  }
  status_reset();
}

static void refuses_what_is_no_file(void **state) {
  (void)state;
  char path[512];
  snprintf(path, sizeof path, "%s/nothing.gguf", folder);
  expect_fault(path, "No such file");
  snprintf(path, sizeof path, "%s/folder.gguf", folder);
  assert_int_equal(mkdir(path, 0700), 0);
  expect_fault(path, "directory");
  snprintf(path, sizeof path, "%s/pipe.gguf", folder);
  assert_int_equal(mkfifo(path, 0600), 0);
  expect_fault(path, "not a regular file");
  expect_fault("", "cannot be opened");
}

static volatile uint8_t sink;

// Reads all that an open file offers: a false bound would leave the map or the heap.
static void use_everything(const gguf *g) {
  for (size_t i = 0; i < gguf_tensor_count(g); i++) {
    const gguf_tensor *t = gguf_tensor_at(g, i);
    for (size_t k = 0; k < t->bytes; k += 16) sink = ((const uint8_t *)t->data)[k];
    sink = ((const uint8_t *)t->data)[t->bytes - 1];
    assert_ptr_equal(gguf_tensor_find(g, t->name), t);
  }
  for (size_t i = 0; i < gguf_key_count(g); i++) {
    const char *key = gguf_key_name(g, i);
    char text[64];
    uint64_t u;
    double f;
    bool yes;
    gguf_string one, *texts;
    int32_t *numbers;
    size_t count;
    gguf_key_describe(g, i, text, sizeof text);
    (void)gguf_key_u64(g, key, &u);
    (void)gguf_key_f64(g, key, &f);
    (void)gguf_key_bool(g, key, &yes);
    if (!gguf_key_string(g, key, &one) && one.length) sink = (uint8_t)one.text[one.length - 1];
    if (!gguf_key_array_strings(g, key, &texts, &count))
      for (size_t k = 0; k < count; k++)
        if (texts[k].length) sink = (uint8_t)texts[k].text[texts[k].length - 1];
    free(texts);
    (void)gguf_key_array_i32(g, key, &numbers, &count);
    free(numbers);
  }
}

static void survives_random_flips(void **state) {
  (void)state;
  static builder b;
  enum { FLIPS = 40000 };
  char path[512];
  int opened = 0;
  put_good(&b, 3);
  write_file(path, sizeof path, "flip.gguf", b.data, b.n);
  int file = open(path, O_WRONLY);
  assert_true(file >= 0);
  uint32_t header = (uint32_t)mark_at(&b, "end");
  for (int i = 0; i < FLIPS; i++) {
    uint32_t at[4], n = 1 + random_below(4);
    for (uint32_t k = 0; k < n; k++) {
      at[k] = random_below(header);
      uint8_t byte = b.data[at[k]] ^ (uint8_t)(random_below(2) ? 1u << random_below(8) : random_below(256));
      assert_int_equal(pwrite(file, &byte, 1, at[k]), 1);
    }
    gguf *g;
    if (!gguf_open(&g, path)) {
      opened++;
      use_everything(g);
      gguf_close(g);
    } else {
      assert_non_null(strstr(status_text(), path));
    }
    status_reset();
    for (uint32_t k = 0; k < n; k++) assert_int_equal(pwrite(file, b.data + at[k], 1, at[k]), 1);
  }
  close(file);
  printf("%d of %d damaged files still had a sound structure\n", opened, FLIPS);
}

static long peak_kilobytes(void) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss;
}

// A sparse file of 64 GiB with room for any count that it claims: what is believed must be what was read.
static void takes_memory_for_what_is_there_only(void **state) {
  (void)state;
  static builder b;
  char path[512];
  const off_t size = (off_t)64 << 30;
  for (int i = 0; i < 2; i++) {
    put_header(&b, 3, i ? 1ull << 30 : 0, i ? 0 : 1ull << 30);
    write_file(path, sizeof path, "sparse.gguf", b.data, b.n);
    assert_int_equal(truncate(path, size), 0);
    long before = peak_kilobytes();
    expect_fault(path, "name of 0 bytes");
    assert_true(peak_kilobytes() - before < 32 * 1024);
  }
  put_header(&b, 3, 1, 0);
  put_tensor(&b, "w", 2, (const uint64_t[]){1 << 20, ((size_t)size >> 22) - 1}, TYPE_F32, 0);
  write_file(path, sizeof path, "sparse.gguf", b.data, b.n);
  assert_int_equal(truncate(path, size), 0);
  long before = peak_kilobytes();
  gguf *g = NULL;
  assert_int_equal(gguf_open(&g, path), 0);
  assert_true(gguf_tensor_at(g, 0)->bytes == (size_t)size - ((size_t)1 << 22));
  assert_true(peak_kilobytes() - before < 32 * 1024); // not one tensor byte was touched
  gguf_close(g);
  unlink(path);
}

// ---- split sets ----

typedef struct {
  const char *name;
  uint16_t no, count;
  uint32_t total;
  const char *tensor;
  bool has_keys;
} part;

static void write_part(char *path, size_t room, const part *p) {
  static builder b;
  put_header(&b, 3, 1, p->has_keys ? 4 : 1);
  put_key(&b, "t.name", 8);
  put_string(&b, p->name);
  if (p->has_keys) {
    put_key(&b, "split.no", 2), put_u16(&b, p->no);
    put_key(&b, "split.count", 2), put_u16(&b, p->count);
    put_key(&b, "split.tensors.count", 5), put_u32(&b, p->total);
  }
  put_tensor(&b, p->tensor, 1, (const uint64_t[]){8}, TYPE_F32, 0);
  put_padding(&b, 32);
  for (int i = 0; i < 32; i++) put_u8(&b, (uint8_t)p->tensor[0]);
  write_file(path, room, p->name, b.data, b.n);
}

#define SET_OF_THREE                                                                                         \
  {                                                                                                          \
    {"set-00001-of-00003.gguf", 0, 3, 3, "a", true}, {"set-00002-of-00003.gguf", 1, 3, 3, "b", true},        \
        {"set-00003-of-00003.gguf", 2, 3, 3, "c", true},                                                     \
  }

static void opens_a_split_set_by_any_of_its_files(void **state) {
  (void)state;
  const part set[] = SET_OF_THREE;
  char path[3][512];
  uint64_t hash[3];
  for (int i = 0; i < 3; i++) write_part(path[i], sizeof path[i], &set[i]);
  for (int i = 0; i < 3; i++) {
    gguf *g;
    gguf_string text;
    if (gguf_open(&g, path[i])) fail_msg("%s", status_text());
    assert_string_equal(gguf_path(g), path[i]);
    assert_int_equal(gguf_file_count(g), 3);
    assert_int_equal(gguf_tensor_count(g), 3);
    assert_int_equal(gguf_key_string(g, "t.name", &text), 0); // the first file's, whichever was named
    assert_memory_equal(text.text, set[0].name, text.length);
    for (size_t k = 0; k < 3; k++) {
      const gguf_tensor *t = gguf_tensor_find(g, set[k].tensor);
      assert_ptr_equal(t, gguf_tensor_at(g, k));
      assert_string_equal(t->file, path[k]);
      assert_string_equal(gguf_file_path(g, k), path[k]);
      assert_int_equal(*(const char *)t->data, set[k].tensor[0]);
    }
    hash[i] = gguf_header_hash(g);
    gguf_close(g);
  }
  assert_true(hash[0] == hash[1] && hash[1] == hash[2]);
}

// A write to the second file of an open set, by its time alone and by its size; another file in its place is
// none.
static void tells_of_a_file_that_changed(void **state) {
  (void)state;
  const part set[] = SET_OF_THREE;
  const struct timespec long_ago[2] = {{1000, 0}, {1000, 1}};
  char path[3][512], aside[520];
  gguf *g;
  for (int how = 0; how < 3; how++) {
    for (int i = 0; i < 3; i++) write_part(path[i], sizeof path[i], &set[i]);
    if (gguf_open(&g, path[0])) fail_msg("%s", status_text());
    assert_null(gguf_changed_file(g));
    snprintf(aside, sizeof aside, "%s.aside", path[1]);
    if (how == 0) assert_int_equal(utimensat(AT_FDCWD, path[1], long_ago, 0), 0);
    if (how == 1) assert_int_equal(truncate(path[1], 4096), 0);
    if (how == 2) assert_int_equal(rename(path[1], aside), 0), write_part(path[1], sizeof path[1], &set[1]);
    if (how < 2)
      assert_string_equal(gguf_changed_file(g), path[1]);
    else
      assert_null(gguf_changed_file(g));
    gguf_close(g);
  }
  unlink(aside);
}

static void refuses_broken_split_sets(void **state) {
  (void)state;
  static const struct {
    int which;
    part instead;
    int opened;
    const char *fault;
  } breaks[] = {
      {1, {"set-00002-of-00003.gguf", 2, 3, 3, "b", true}, 0, "its name 2 of 3"},
      {1, {"set-00002-of-00003.gguf", 2, 3, 3, "b", true}, 1, "a name that ends in -00003-of-00003.gguf"},
      {1, {"set-00002-of-00003.gguf", 1, 4, 3, "b", true}, 0, "file 2 of 4"},
      {1, {"set-00002-of-00003.gguf", 1, 4, 3, "b", true}, 1, "file 2 of 4"},
      {1, {"set-00002-of-00003.gguf", 3, 3, 3, "b", true}, 1, "expected no below count"},
      {1, {"set-00002-of-00003.gguf", 0, 0, 0, "b", false}, 0, "file 1 of 1"},
      {0, {"set-00001-of-00003.gguf", 0, 0, 0, "a", false}, 0, "its name 1 of 3"},
      {2, {"set-00003-of-00003.gguf", 2, 3, 4, "c", true}, 0, "\"split.tensors.count\": expected 3"},
      {2, {"set-00003-of-00003.gguf", 2, 3, 3, "a", true}, 0, "tensor \"a\" appears twice"},
      {0, {"set-00001-of-00003.gguf", 0, 65535, 3, "a", true}, 0, "file 1 of 65535"},
  };
  for (size_t i = 0; i < sizeof breaks / sizeof *breaks; i++) {
    const part set[] = SET_OF_THREE;
    char path[3][512];
    gguf *g = NULL;
    for (int k = 0; k < 3; k++)
      write_part(path[k], sizeof path[k], k == breaks[i].which ? &breaks[i].instead : &set[k]);
    status_reset();
    if (!gguf_open(&g, path[breaks[i].opened])) fail_msg("break %zu was opened", i);
    assert_null(g);
    if (!strstr(status_text(), breaks[i].fault) || !strstr(status_text(), path[breaks[i].which]))
      fail_msg("break %zu: expected \"%s\", found \"%s\"", i, breaks[i].fault, status_text());
  }
  status_reset();
}

static void names_the_missing_sibling(void **state) {
  (void)state;
  const part set[] = SET_OF_THREE;
  char path[3][512];
  for (int i = 0; i < 3; i++) write_part(path[i], sizeof path[i], &set[i]);
  assert_int_equal(unlink(path[1]), 0);
  expect_fault(path[0], path[1]);
  expect_fault(path[2], path[1]);
  const part renamed = {"renamed.gguf", 0, 3, 3, "a", true};
  write_part(path[0], sizeof path[0], &renamed);
  expect_fault(path[0], "expected a name that ends in -00001-of-00003.gguf");
}

static long size_of(const char *path) {
  struct stat found;
  assert_int_equal(stat(path, &found), 0);
  return (long)found.st_size;
}

// To be shown: a part that is cut anywhere or missing is one more refusal; of the first one it is an error.
static void shows_what_is_left_of_a_split_set(void **state) {
  (void)state;
  const part set[] = SET_OF_THREE;
  char path[3][512];
  for (int broken = 0; broken < 3; broken++) {
    for (int i = 0; i < 3; i++) write_part(path[i], sizeof path[i], &set[i]);
    for (long bytes = size_of(path[broken]) - 1; bytes >= -1; bytes--) { // -1: missing
      if (bytes >= 0) assert_int_equal(truncate(path[broken], bytes), 0);
      if (bytes < 0) assert_int_equal(unlink(path[broken]), 0);
      for (int by = 0; by < 3; by++) {
        message_list refusals = {.count = 0};
        gguf *g;
        status_reset();
        status result = gguf_open_to_show(&g, path[by], &refusals);
        if (result) {
          assert_true(broken == 0 || by == broken);
          assert_non_null(strstr(status_text(), path[broken]));
        } else {
          size_t index = 0;
          assert_true(refusals.count > 0);
          for (size_t i = 0; i < gguf_file_count(g); i++) index += gguf_file_path(g, i) != NULL;
          assert_true(index >= 2);
          assert_true(gguf_tensor_count(g) >= 2);
          gguf_close(g);
        }
        message_list_close(&refusals);
      }
    }
  }
  status_reset();
}

// llama.cpp's merge leaves split.no 0, split.count 0 and the total in the whole file.
static void takes_a_merged_file_as_whole(void **state) {
  (void)state;
  char path[512];
  gguf *g;
  const part merged = {"merged.gguf", 0, 0, 1, "a", true},
             single = {"one-00001-of-00001.gguf", 0, 1, 1, "a", true};
  write_part(path, sizeof path, &merged);
  if (gguf_open(&g, path)) fail_msg("%s", status_text());
  gguf_close(g);
  write_part(path, sizeof path, &single);
  if (gguf_open(&g, path)) fail_msg("%s", status_text());
  gguf_close(g);
}

static int make_folder(void **state) {
  (void)state;
  const char *base = getenv("TMPDIR");
  snprintf(folder, sizeof folder, "%s/test_gguf_XXXXXX", base ? base : "/tmp");
  return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state) {
  (void)state;
  char command[512];
  snprintf(command, sizeof command, "rm -r '%s'", folder);
  return system(command);
}

int main(void) {
  random_state = test_seed_bits();
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(reads_tensors),
      cmocka_unit_test(hash_depends_on_header_and_size_only),
      cmocka_unit_test(reads_scalars),
      cmocka_unit_test(refuses_lossy_conversions),
      cmocka_unit_test(reads_arrays),
      cmocka_unit_test(describes_every_key),
      cmocka_unit_test(refuses_lies),
      cmocka_unit_test(names_both_tensors_that_overlap),
      cmocka_unit_test(says_what_a_short_file_needs),
      cmocka_unit_test(refuses_every_truncation),
      cmocka_unit_test(refuses_what_is_no_file),
      cmocka_unit_test(survives_random_flips),
      cmocka_unit_test(takes_memory_for_what_is_there_only),
      cmocka_unit_test(opens_a_split_set_by_any_of_its_files),
      cmocka_unit_test(tells_of_a_file_that_changed),
      cmocka_unit_test(refuses_broken_split_sets),
      cmocka_unit_test(names_the_missing_sibling),
      cmocka_unit_test(shows_what_is_left_of_a_split_set),
      cmocka_unit_test(takes_a_merged_file_as_whole),
  };
  return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
