// Tests of the tokenizer: golden cases, bad vocabularies, invalid text, long words, random text against plain
// definitions. As `test_tokenizer --ids FILE.gguf` it is the counterpart of golden_tokenizer.py.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include "base/memory.h"
#include "src/text/tokenizer.h"
#include "src/text/tokenizer_bpe.h"
#include "src/text/tokenizer_text.h"
#include "tests/support/seed.h"
#include <jansson.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <utf8proc.h>

#define GOLDEN MOE_SOURCE_DIR "/tests/golden/tokenizer/"

enum { BYTE_TOKENS = 256, MANY = 3000, LONG_WORD = 1 << 20, THREADS = 4 };
enum { VALUE_U32 = 4, VALUE_I32 = 5, VALUE_STRING = 8, VALUE_ARRAY = 9 }; // numbers of the GGUF specification

static uint64_t random_state;
static char folder[512];

static uint64_t random_below(uint64_t n) { // SplitMix64
  uint64_t z = random_state += 0x9E3779B97F4A7C15u;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return (z ^ z >> 31) % n;
}

// ---- a vocabulary written as GGUF ----

typedef struct {
  const char *model, *pre; // NULL: no such key
  const char *token[400], *merge[64];
  int32_t type[400];
  size_t tokens, merges, types; // types 0: no such key
  int64_t eos;                  // -1: no such key
  bool no_tokens;
  char byte_text[BYTE_TOKENS][3];
} vocabulary;

static void add_token(vocabulary *v, const char *text, int32_t type) {
  v->type[v->tokens] = type;
  v->token[v->tokens++] = text;
  v->types = v->tokens;
}

// Byte tokens 0 to 255 in the order of the bytes, then "ab", "bc", "abc" and special tokens.
static void vocabulary_init(vocabulary *v) {
  static const char *const more[] = {"ab", "bc", "abc", "Ġa"};
  static const char *const merges[] = {"b c", "a b", "a bc", "Ġ a"};
  int next = 0x100;
  *v = (vocabulary){.model = "gpt2", .pre = "qwen2", .eos = 260};
  for (int b = 0; b < BYTE_TOKENS; b++) {
    bool visible = (b > 0x20 && b < 0x7F) || (b > 0xA0 && b < 0xAD) || b > 0xAD;
    utf8proc_encode_char(visible ? b : next++, (uint8_t *)v->byte_text[b]);
    add_token(v, v->byte_text[b], 1);
  }
  for (size_t i = 0; i < 4; i++) {
    add_token(v, more[i], 1);
    v->merge[v->merges++] = merges[i];
  }
  add_token(v, "<|end|>", 3);
  add_token(v, "<|end|>\n", 4);
  add_token(v, "<|endless|>", 4);
  add_token(v, "[PAD263]", 5);
}

static void put(FILE *f, uint64_t value, size_t bytes) {
  assert_int_equal(fwrite(&value, 1, bytes, f), bytes);
}

static void put_string(FILE *f, const char *text) {
  put(f, strlen(text), 8);
  assert_int_equal(fwrite(text, 1, strlen(text), f), strlen(text));
}

static void put_key(FILE *f, const char *name, uint32_t type) {
  put_string(f, name);
  put(f, type, 4);
}

static void put_strings(FILE *f, const char *name, const char *const *text, size_t count) {
  put_key(f, name, VALUE_ARRAY);
  put(f, VALUE_STRING, 4);
  put(f, count, 8);
  for (size_t i = 0; i < count; i++) put_string(f, text[i]);
}

static void vocabulary_write(const vocabulary *v, const char *path) {
  FILE *f = fopen(path, "wb");
  assert_non_null(f);
  size_t keys = 1u + !v->no_tokens * 2u + !!v->model + !!v->pre + !!v->types + (v->eos >= 0);
  assert_int_equal(fwrite("GGUF", 1, 4, f), 4);
  put(f, 3, 4);
  put(f, 0, 8);
  put(f, keys, 8);
  put_key(f, "general.architecture", VALUE_STRING);
  put_string(f, "qwen3moe");
  if (v->model) put_key(f, "tokenizer.ggml.model", VALUE_STRING), put_string(f, v->model);
  if (v->pre) put_key(f, "tokenizer.ggml.pre", VALUE_STRING), put_string(f, v->pre);
  if (!v->no_tokens) {
    put_strings(f, "tokenizer.ggml.tokens", v->token, v->tokens);
    put_strings(f, "tokenizer.ggml.merges", v->merge, v->merges);
  }
  if (v->types) {
    put_key(f, "tokenizer.ggml.token_type", VALUE_ARRAY);
    put(f, VALUE_I32, 4);
    put(f, v->types, 8);
    for (size_t i = 0; i < v->types; i++) put(f, (uint32_t)v->type[i], 4);
  }
  if (v->eos >= 0) put_key(f, "tokenizer.ggml.eos_token_id", VALUE_U32), put(f, (uint64_t)v->eos, 4);
  assert_int_equal(fclose(f), 0);
}

static status open_file(tokenizer **out, const char *path) {
  gguf *g;
  *out = NULL;
  TRY(gguf_open(&g, path));
  status result = tokenizer_open(out, g);
  gguf_close(g); // the tokenizer keeps nothing of the file
  return result;
}

static status open_vocabulary(tokenizer **out, const vocabulary *v) {
  char path[600];
  snprintf(path, sizeof path, "%s/vocabulary.gguf", folder);
  vocabulary_write(v, path);
  status result = open_file(out, path);
  unlink(path);
  return result;
}

static tokenizer *open_golden(void) {
  tokenizer *t;
  if (open_file(&t, GOLDEN "vocabulary.gguf")) fail_msg("%s", status_text());
  assert_non_null(t);
  return t;
}

// ---- golden cases ----

static json_t *load_cases(const char *path, size_t at_least) {
  json_error_t error;
  json_t *cases = json_load_file(path, JSON_ALLOW_NUL, &error);
  if (!cases) fail_msg("%s:%d: %s", path, error.line, error.text);
  assert_true(json_array_size(cases) >= at_least);
  return cases;
}

static void check_ids(const tokenizer *t, const char *text, size_t length, const json_t *wanted,
                      size_t which) {
  int32_t *ids;
  size_t count;
  if (tokenizer_encode(t, text, length, &ids, &count)) fail_msg("case %zu: %s", which, status_text());
  if (count != json_array_size(wanted))
    fail_msg("case %zu: %zu ids, not %zu", which, count, json_array_size(wanted));
  for (size_t i = 0; i < count; i++)
    if (ids[i] != json_integer_value(json_array_get(wanted, i)))
      fail_msg("case %zu: id %zu is %d", which, i, ids[i]);
  free(ids);
}

static void check_decoded(const tokenizer *t, const json_t *ids, const json_t *wanted, size_t which) {
  size_t count = json_array_size(ids), length;
  int32_t *id;
  char *text;
  assert_int_equal(TAKE(&id, count, "ids"), 0);
  for (size_t i = 0; i < count; i++) id[i] = (int32_t)json_integer_value(json_array_get(ids, i));
  assert_int_equal(tokenizer_decode(t, id, count, &text, &length), 0);
  if (length != json_string_length(wanted) || memcmp(text, json_string_value(wanted), length + 1))
    fail_msg("case %zu decodes to \"%s\"", which, text);
  free(id);
  free(text);
}

static void test_golden(void **state) {
  (void)state;
  tokenizer *t = open_golden();
  json_t *cases = load_cases(GOLDEN "cases.json", 600);
  for (size_t i = 0; i < json_array_size(cases); i++) {
    const json_t *one = json_array_get(cases, i), *text = json_array_get(one, 0),
                 *ids = json_array_get(one, 1);
    check_ids(t, json_string_value(text), json_string_length(text), ids, i);
    check_decoded(t, ids, json_array_size(one) > 2 ? json_array_get(one, 2) : text, i);
  }
  json_decref(cases);
  tokenizer_close(t);
}

static void test_golden_words(void **state) {
  (void)state;
  splitter *s;
  splitter_cursor *c;
  json_t *cases = load_cases(GOLDEN "words.json", 200);
  assert_int_equal(splitter_open(&s), 0);
  assert_int_equal(splitter_cursor_open(&c), 0);
  for (size_t i = 0; i < json_array_size(cases); i++) {
    const json_t *text = json_array_get(json_array_get(cases, i), 0),
                 *ends = json_array_get(json_array_get(cases, i), 1);
    size_t length = json_string_length(text), end = 0;
    for (size_t k = 0; k < json_array_size(ends); k++) {
      assert_int_equal(splitter_next(&end, s, c, json_string_value(text), length, end), 0);
      if ((json_int_t)end != json_integer_value(json_array_get(ends, k)))
        fail_msg("words.json, case %zu, \"%s\": word %zu ends at %zu", i, json_string_value(text), k, end);
    }
    assert_int_equal(end, length);
  }
  splitter_cursor_close(c);
  splitter_close(s);
  json_decref(cases);
}

// ---- small cases on the vocabulary of this file ----

static void check_text(const tokenizer *t, const char *text, const char *wanted) { // ids written as "1 2 3 "
  int32_t *ids;
  size_t count;
  char found[256] = "";
  if (tokenizer_encode(t, text, strlen(text), &ids, &count)) fail_msg("\"%s\": %s", text, status_text());
  for (size_t i = 0; i < count; i++)
    snprintf(found + strlen(found), sizeof found - strlen(found), "%d ", ids[i]);
  assert_non_null(ids);
  assert_string_equal(found, wanted);
  free(ids);
}

static void test_small(void **state) {
  (void)state;
  vocabulary v;
  tokenizer *t;
  vocabulary_init(&v);
  if (open_vocabulary(&t, &v)) fail_msg("%s", status_text());
  check_text(t, "", "");
  check_text(t, "abc", "258 "); // "b c" has the lower rank, then "a bc"
  check_text(t, "ababc", "256 258 ");
  check_text(t, "a abc", "97 32 258 "); // the merge of rank 3 comes too late
  check_text(t, "a a", "97 259 ");
  check_text(t, "<|end|>", "260 ");
  check_text(t, "<|end|>\n<|end|", "261 60 124 101 110 100 124 ");
  check_text(t, "<|endless|><|end|>a", "262 260 97 ");
  check_text(t, "[PAD263]", "91 80 65 68 50 54 51 93 ");
  check_text(t, "\xC3\xA9", "195 169 ");
  check_text(t, "e\xCC\x81", "195 169 ");           // NFC
  check_text(t, "<|end|>\xCC\xB8", "260 204 184 "); // a special token takes no mark
  assert_int_equal(tokenizer_vocabulary(t), 264);
  tokenizer_close(t);
  tokenizer_close(NULL);
}

static void test_no_tokenizer(void **state) {
  (void)state;
  tokenizer *t;
  vocabulary none = {.eos = -1, .no_tokens = true}, named = {.eos = -1, .no_tokens = true, .model = "none"};
  assert_int_equal(open_vocabulary(&t, &none), 0);
  assert_null(t);
  assert_int_equal(open_vocabulary(&t, &named), 0);
  assert_null(t);
}

// An embedding may have more rows than the vocabulary has tokens, and a model may choose them.
static void test_decode_of_padding(void **state) {
  (void)state;
  tokenizer *t = open_golden();
  char *one, *all;
  size_t n, length;
  int32_t ids[] = {(int32_t)tokenizer_vocabulary(t), 5, INT32_MAX};
  assert_int_equal(tokenizer_decode(t, ids + 1, 1, &one, &n), 0);
  assert_int_equal(tokenizer_decode(t, ids, 3, &all, &length), 0);
  assert_int_equal(length, n + 6);
  assert_memory_equal(all, "\xef\xbf\xbd", 3);
  assert_memory_equal(all + 3, one, n);
  assert_string_equal(all + 3 + n, "\xef\xbf\xbd");
  free(one);
  free(all);
  tokenizer_close(t);
}

static void test_decode_refuses(void **state) {
  (void)state;
  tokenizer *t = open_golden();
  char *text;
  size_t length;
  int32_t bad[] = {5, -1};
  assert_int_not_equal(tokenizer_decode(t, bad, 2, &text, &length), 0);
  assert_non_null(strstr(status_text(), "position 1"));
  assert_null(text);
  status_reset();
  assert_int_equal(tokenizer_decode(t, NULL, 0, &text, &length), 0);
  assert_string_equal(text, "");
  free(text);
  tokenizer_close(t);
}

// ---- bad vocabularies ----

typedef enum { MODEL, PRE, ARRAYS, ROWS, TYPES, TYPE, EOS, TOKEN, MERGE } part;

static const struct {
  part part;
  int at;           // index, number or type
  const char *text; // what the part becomes
  const char *key, *fault;
} bad_vocabularies[] = {{MODEL, 0, NULL, "tokenizer.ggml.model", "missing"},
                        {MODEL, 0, "llama", "tokenizer.ggml.model", "expected \"gpt2\", found \"llama\""},
                        {PRE, 0, NULL, "tokenizer.ggml.pre", "missing"},
                        {PRE, 0, "llama-bpe", "tokenizer.ggml.pre", "\"llama-bpe\""},
                        {ARRAYS, 0, NULL, "tokenizer.ggml.tokens", "missing"},
                        {ROWS, 0, NULL, "tokenizer.ggml.tokens", "found 0"},
                        {TYPES, 263, NULL, "tokenizer.ggml.token_type", "264 tokens, found 263"},
                        {TYPE, 9, NULL, "tokenizer.ggml.token_type", "found 9 for token 259"},
                        {TYPE, 0, NULL, "tokenizer.ggml.token_type", "found 0 for token 259"},
                        {TYPE, 4, NULL, "tokenizer.ggml.merges",
                         "special token beyond ASCII"}, // " a" as merges read it, not its text
                        {EOS, 264, NULL, "tokenizer.ggml.eos_token_id", "below 264, found 264"},
                        {TOKEN, 9, "", "tokenizer.ggml.tokens", "token 9 is empty"},
                        {TOKEN, 259, "abc", "tokenizer.ggml.tokens", "token 259 repeats token 258"},
                        {TOKEN, 259, "a b", "tokenizer.ggml.tokens", "token 259"},
                        {TOKEN, 259, "\xE4\xB8\xAD", "tokenizer.ggml.tokens", "token 259"},
                        {TOKEN, 259, "a\xC4", "tokenizer.ggml.tokens", "token 259"},
                        {MERGE, 1, "ab", "tokenizer.ggml.merges", "merge 1 "},
                        {MERGE, 1, "a b c", "tokenizer.ggml.merges", "merge 1 "},
                        {MERGE, 1, "", "tokenizer.ggml.merges", "merge 1 "},
                        {MERGE, 1, " b", "tokenizer.ggml.merges", "merge 1 "},
                        {MERGE, 1, "b ", "tokenizer.ggml.merges", "merge 1 "},
                        {MERGE, 1, "a zz", "tokenizer.ggml.merges", "\"zz\" is not a token"},
                        {MERGE, 1, "a z", "tokenizer.ggml.merges", "\"az\" is not a token"},
                        {MERGE, 3, "b c", "tokenizer.ggml.merges", "merge 3 repeats merge 0"}};

static void spoil(vocabulary *v, part what, int at, const char *text) {
  if (what == MODEL) v->model = text;
  if (what == PRE) v->pre = text;
  if (what == ARRAYS) v->no_tokens = true;
  if (what == ROWS) v->tokens = v->merges = v->types = 0;
  if (what == TYPES) v->types = (size_t)at;
  if (what == TYPE) v->type[259] = at;
  if (what == EOS) v->eos = at;
  if (what == TOKEN) v->token[at] = text;
  if (what == MERGE) v->merge[at] = text;
}

static void test_bad_vocabularies(void **state) {
  (void)state;
  for (size_t i = 0; i < sizeof bad_vocabularies / sizeof *bad_vocabularies; i++) {
    vocabulary v;
    tokenizer *t;
    const char *key = bad_vocabularies[i].key, *fault = bad_vocabularies[i].fault, *found = status_text();
    vocabulary_init(&v);
    spoil(&v, bad_vocabularies[i].part, bad_vocabularies[i].at, bad_vocabularies[i].text);
    if (!open_vocabulary(&t, &v)) fail_msg("bad vocabulary %zu is taken", i);
    assert_null(t);
    if (!strstr(found, "vocabulary.gguf") || !strstr(found, key) || !strstr(found, fault))
      fail_msg("bad vocabulary %zu: \"%s\" says nothing of %s, %s", i, found, key, fault);
    status_reset();
  }
}

static void test_missing_byte(void **state) {
  (void)state;
  vocabulary v;
  tokenizer *t;
  int32_t *ids;
  size_t count;
  vocabulary_init(&v);
  v.token['q'] = "abab";
  if (open_vocabulary(&t, &v)) fail_msg("%s", status_text());
  check_text(t, "abc", "258 ");
  assert_int_not_equal(tokenizer_encode(t, "abq", 3, &ids, &count), 0);
  assert_null(ids);
  assert_non_null(strstr(status_text(), "single byte 0x71"));
  status_reset();
  tokenizer_close(t);
}

static void
test_other_types(void **state) { // no types at all, and a special token within ASCII that merges make
  (void)state;
  vocabulary v;
  tokenizer *t;
  vocabulary_init(&v);
  v.types = 0;
  v.token[261] = "end";
  if (open_vocabulary(&t, &v)) fail_msg("%s", status_text());
  check_text(t, "<|end|>", "60 124 101 110 100 124 62 ");
  tokenizer_close(t);
  vocabulary_init(&v);
  v.type[256] = 4;
  if (open_vocabulary(&t, &v)) fail_msg("%s", status_text());
  check_text(t, "abc", "256 99 ");
  tokenizer_close(t);
}

// ---- invalid UTF-8 ----

static void test_invalid_utf8(void **state) {
  (void)state;
  static const struct {
    const char *text;
    size_t length, offset;
  } bad[] = {{"\x80", 1, 0},
             {"ab\xFF"
              "c",
              4, 2},
             {"a\xC3", 2, 1},
             {"\xC0\x80", 2, 0},
             {"\xC1\xBF", 2, 0},
             {"\xE0\x80\x80", 3, 0},
             {"\xE0\x9F\xBF", 3, 0},
             {"\xED\xA0\x80", 3, 0},
             {"x\xED\xBF\xBF", 4, 1},
             {"\xF0\x80\x80\x80", 4, 0},
             {"\xF0\x8F\xBF\xBF", 4, 0},
             {"\xF4\x90\x80\x80", 4, 0},
             {"\xF5\x80\x80\x80", 4, 0},
             {"\xE4\xB8", 2, 0},
             {"\xF0\x9F\x98", 3, 0},
             {"\xC3(", 2, 0},
             {"<|im_end|>\xFE", 11, 10},
             {"\xE4\xB8"
              "a",
              3, 0},
             {"\xC3\xA9\xA9", 3, 2}};
  tokenizer *t = open_golden();
  for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
    int32_t *ids;
    size_t count;
    char wanted[64], *copy = malloc(bad[i].length); // exact, so that a sanitizer sees a read beyond it
    assert_non_null(copy);
    memcpy(copy, bad[i].text, bad[i].length);
    if (!tokenizer_encode(t, copy, bad[i].length, &ids, &count)) fail_msg("invalid text %zu is taken", i);
    snprintf(wanted, sizeof wanted, "at offset %zu of %zu", bad[i].offset, bad[i].length);
    if (!strstr(status_text(), wanted))
      fail_msg("invalid text %zu: \"%s\", not \"%s\"", i, status_text(), wanted);
    assert_null(ids);
    status_reset();
    free(copy);
  }
  tokenizer_close(t);
}

// ---- random text ----

// Any code point, or only such as every Unicode since version 9 knows: for these utf8proc has the same NFC.
static int32_t random_code(bool old) {
  static const int32_t range[][2] = {
      {0x0, 0x7E},      {0x20, 0x24F},    {0x300, 0x36F},     {0x391, 0x3FF},     {0x400, 0x52F},
      {0x5B0, 0x5BD},   {0x900, 0x97F},   {0xE01, 0xE3A},     {0x1100, 0x11A6},   {0x11A8, 0x11FF},
      {0x1E00, 0x1EFF}, {0x1F00, 0x1F15}, {0x2000, 0x206F},   {0x3041, 0x3096},   {0x4E00, 0x9FD0},
      {0xAC00, 0xD7A3}, {0xE000, 0xFA6D}, {0x10000, 0x100FA}, {0x1D15E, 0x1D172}, {0x1F300, 0x1F64F}};
  if (old) {
    const int32_t *r = range[random_below(sizeof range / sizeof *range)];
    return r[0] + (int32_t)random_below((uint64_t)(r[1] - r[0] + 1));
  }
  int32_t code = (int32_t)random_below(random_below(2) ? 0x110000 : 0x3000);
  return code >= 0xD800 && code <= 0xDFFF ? 'x' : code;
}

static size_t random_text(char *out, size_t codes, bool old) {
  size_t n = 0;
  for (size_t i = 0; i < codes; i++) {
    int32_t code = random_code(old);
    n += (size_t)utf8proc_encode_char(code ? code : ' ', (uint8_t *)out + n);
  }
  out[n] = 0;
  return n;
}

static void check_round_trip(const tokenizer *t, const char *text, size_t length, const char *wanted,
                             size_t wanted_length) {
  int32_t *ids;
  size_t count, decoded_length;
  char *decoded;
  if (tokenizer_encode(t, text, length, &ids, &count)) fail_msg("\"%s\": %s", text, status_text());
  assert_int_equal(tokenizer_decode(t, ids, count, &decoded, &decoded_length), 0);
  if (decoded_length != wanted_length || memcmp(decoded, wanted, wanted_length))
    fail_msg("\"%s\" decodes to \"%s\"", text, decoded);
  free(ids);
  free(decoded);
}

static void test_round_trip(void **state) {
  (void)state;
  tokenizer *t = open_golden();
  for (size_t i = 0; i < MANY; i++) {
    char text[4 * 40 + 1], *normal;
    bool old = i % 2;
    size_t normal_length, length = random_text(text, random_below(40), old);
    assert_int_equal(text_normalize(&normal, &normal_length, text, length), 0);
    check_round_trip(t, text, length, normal, normal_length);
    check_round_trip(t, normal, normal_length, normal, normal_length); // a normal form is its own
    if (old) {
      char *other = (char *)utf8proc_NFC((const uint8_t *)text);
      if (strlen(other) != normal_length || memcmp(other, normal, normal_length))
        fail_msg("\"%s\": NFC \"%.*s\", utf8proc says \"%s\"", text, (int)normal_length, normal, other);
      free(other);
    }
    free(normal);
  }
  tokenizer_close(t);
}

// ---- long words and many threads ----

// What is linear or n log n takes well under a second for each; what is quadratic takes many minutes.
static void test_long_words(void **state) {
  (void)state;
  static const char *const unit[] = {"a",
                                     "ab",
                                     "the",
                                     " ",
                                     "\n",
                                     "\r\n ",
                                     "=",
                                     "9",
                                     "\xE4\xB8\xAD",
                                     "\xCC\x81\xCC\xA3",
                                     "<|",
                                     "<|im_",
                                     " \t",
                                     "a ",
                                     "\xF0\x9F\x98\x80",
                                     "\xEA\xB0\x80\xE1\x86\xA7",
                                     "\xE2\x80\x83",
                                     NULL};
  tokenizer *t = open_golden();
  char *text;
  assert_int_equal(TAKE(&text, LONG_WORD + 1, "text"), 0);
  for (size_t u = 0; u < sizeof unit / sizeof *unit; u++) {
    size_t n = 0, length;
    char *normal;
    for (size_t step = unit[u] ? strlen(unit[u]) : 1; n + step <= LONG_WORD; n += step)
      if (unit[u])
        memcpy(text + n, unit[u], step);
      else
        text[n] = (char)('a' + random_below(26));
    text[n] = 0;
    clock_t start = clock(); // of this process: other work on the machine must not count
    assert_int_equal(text_normalize(&normal, &length, text, n), 0);
    check_round_trip(t, text, n, normal, length);
    if ((double)(clock() - start) > 60.0 * CLOCKS_PER_SEC)
      fail_msg("1 MB of %s takes too long", unit[u] ? unit[u] : "letters");
    free(normal);
  }
  free(text);
  tokenizer_close(t);
}

typedef struct {
  const tokenizer *t;
  const char *text;
  size_t length, count;
  int32_t *ids;
} thread_job;

static void *encode_in_thread(void *argument) {
  thread_job *job = argument;
  for (int i = 0; i < 20; i++) {
    free(job->ids);
    if (tokenizer_encode(job->t, job->text, job->length, &job->ids, &job->count)) return NULL;
  }
  return NULL;
}

static void test_threads(void **state) {
  (void)state;
  tokenizer *t = open_golden();
  char text[4 * 2000 + 1];
  pthread_t thread[THREADS];
  thread_job job[THREADS];
  size_t length = random_text(text, 2000, true);
  for (int i = 0; i < THREADS; i++) {
    job[i] = (thread_job){t, text, length, 0, NULL};
    assert_int_equal(pthread_create(&thread[i], NULL, encode_in_thread, &job[i]), 0);
  }
  for (int i = 0; i < THREADS; i++) assert_int_equal(pthread_join(thread[i], NULL), 0);
  for (int i = 0; i < THREADS; i++) {
    assert_non_null(job[i].ids);
    assert_int_equal(job[i].count, job[0].count);
    assert_memory_equal(job[i].ids, job[0].ids, job[0].count * sizeof *job[0].ids);
  }
  for (int i = 0; i < THREADS; i++) free(job[i].ids);
  tokenizer_close(t);
}

// ---- the counterpart of golden_tokenizer.py ----

typedef struct {
  tokenizer *t;
  splitter *s;
  splitter_cursor *c;
} answerer;

static void put_array(const void *item, size_t size, size_t count) { // u32 count, then the items
  fwrite(&count, sizeof(uint32_t), 1, stdout); // the low half: little-endian, as all of the program
  fwrite(item, size, count, stdout);
}

static status answer_words(const answerer *a, const char *text, size_t length) {
  id_list ends = {0};
  status result = 0;
  for (size_t end = 0; end < length && !result;) {
    result = splitter_next(&end, a->s, a->c, text, length, end);
    if (!result) result = id_list_push(&ends, (int32_t)end);
  }
  if (!result) put_array(ends.id, sizeof *ends.id, ends.count);
  free(ends.id);
  return result;
}

static status answer(const answerer *a, const char *text, size_t length) {
  int32_t *ids;
  size_t count, decoded_length;
  char *decoded;
  TRY(tokenizer_encode(a->t, text, length, &ids, &count));
  put_array(ids, sizeof *ids, count);
  status result = tokenizer_decode(a->t, ids, count, &decoded, &decoded_length);
  free(ids);
  if (result) return result;
  put_array(decoded, 1, decoded_length);
  free(decoded);
  return answer_words(a, text, length);
}

static status answer_next(bool *more, const answerer *a) {
  uint32_t length;
  char *text;
  *more = fread(&length, sizeof length, 1, stdin) == 1;
  if (!*more) return 0;
  TRY(TAKE(&text, (size_t)length + 1, "text"));
  status result =
      fread(text, 1, length, stdin) == length ? answer(a, text, length) : FAIL("the text ends early");
  free(text);
  return result;
}

// Reads texts as u32 length and bytes; writes for each its ids, the decoded text and the ends of its words as
// it is, each as a count and the items.
static status answer_all(const char *path) {
  answerer a = {0};
  bool more = true;
  status result = open_file(&a.t, path);
  if (!result) result = splitter_open(&a.s);
  if (!result) result = splitter_cursor_open(&a.c);
  while (!result && more) result = answer_next(&more, &a);
  if (!result && fflush(stdout)) result = FAIL("cannot write the answers");
  tokenizer_close(a.t);
  splitter_close(a.s);
  splitter_cursor_close(a.c);
  return result;
}

int main(int argc, char **argv) {
  if (argc == 3 && !strcmp(argv[1], "--ids")) {
    if (!answer_all(argv[2])) return 0;
    fprintf(stderr, "%s\n", status_text());
    return 1;
  }
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_golden),
                                     cmocka_unit_test(test_golden_words),
                                     cmocka_unit_test(test_small),
                                     cmocka_unit_test(test_no_tokenizer),
                                     cmocka_unit_test(test_decode_of_padding),
                                     cmocka_unit_test(test_decode_refuses),
                                     cmocka_unit_test(test_bad_vocabularies),
                                     cmocka_unit_test(test_missing_byte),
                                     cmocka_unit_test(test_other_types),
                                     cmocka_unit_test(test_invalid_utf8),
                                     cmocka_unit_test(test_round_trip),
                                     cmocka_unit_test(test_long_words),
                                     cmocka_unit_test(test_threads)};
  random_state = test_seed_bits();
  const char *base = getenv("TMPDIR");
  snprintf(folder, sizeof folder, "%s/test_tokenizer.XXXXXX", base && *base ? base : "/tmp");
  if (!mkdtemp(folder)) return 1;
  int failed = cmocka_run_group_tests(tests, NULL, NULL);
  rmdir(folder);
  return failed;
}
