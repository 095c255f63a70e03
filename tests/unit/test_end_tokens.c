// Tests of src/text/end_tokens.h: keys, lists and well-known texts; ids that are none; files without text.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include "src/text/end_tokens.h"
#include "tests/support/gguf_keys.h"

static const char *const tokens[] = {"a",    "<|endoftext|>", "<|im_start|>", "<|im_end|>",
                                     "</s>", "</s>x",         "<eos>",        "<|file_sep|>",
                                     "end",  "<|endoftext|>x"};
enum { TOKENS = sizeof tokens / sizeof *tokens };

// The ids as "1 3 ".
static void check(gguf_keys *k, const char *wanted) {
  gguf *g;
  end_tokens *e;
  char found[128] = "";
  assert_int_equal(gguf_keys_open(&g, k), 0);
  assert_int_equal(end_tokens_open(&e, g), 0);
  gguf_close(g); // nothing of the file is kept
  for (size_t i = 0; i < end_tokens_count(e); i++) {
    snprintf(found + strlen(found), sizeof found - strlen(found), "%d ", end_tokens_id(e, i));
    assert_string_equal(end_tokens_find(e, end_tokens_id(e, i)), end_tokens_text(e, i));
  }
  assert_string_equal(found, wanted);
  assert_null(end_tokens_find(e, 2));
  assert_null(end_tokens_find(e, -1));
  end_tokens_close(e);
}

static void begin(gguf_keys *k, bool with_tokens, const int32_t *types) {
  gguf_keys_begin(k);
  if (with_tokens) gguf_keys_strings(k, "tokenizer.ggml.tokens", tokens, TOKENS);
  if (types) gguf_keys_ints(k, "tokenizer.ggml.token_type", types, TOKENS);
}

static void test_keys(void **state) {
  (void)state;
  gguf_keys k;
  const int32_t list[] = {900, 7, 900, -1};
  begin(&k, false, NULL);
  check(&k, "");
  begin(&k, false, NULL);
  gguf_keys_number(&k, "tokenizer.ggml.eos_token_id", VALUE_U32, 151643);
  gguf_keys_number(&k, "tokenizer.ggml.eot_token_id", VALUE_I32, 151645);
  gguf_keys_number(&k, "tokenizer.ggml.eom_token_id", VALUE_U64, 5);
  gguf_keys_number(&k, "tokenizer.ggml.bos_token_id", VALUE_U32, 4); // ends nothing
  check(&k, "5 151643 151645 ");
  begin(&k, false, NULL);
  gguf_keys_ints(&k, "tokenizer.ggml.eos_token_ids", list, 4); // Ollama's
  gguf_keys_number(&k, "tokenizer.ggml.fim_pad_token_id", VALUE_U32, 11);
  check(&k, "7 11 900 ");
}

static void test_ids_that_are_none(void **state) {
  (void)state;
  gguf_keys k;
  begin(&k, false, NULL);
  gguf_keys_number(&k, "tokenizer.ggml.eos_token_id", VALUE_U32, 4294967295.0);
  gguf_keys_number(&k, "tokenizer.ggml.eot_token_id", VALUE_I32, -1);
  gguf_keys_string(&k, "tokenizer.ggml.eom_token_id", "none");
  gguf_keys_number(&k, "tokenizer.ggml.fim_sep_token_id", VALUE_F32, 1.5);
  check(&k, "");
}

static void test_texts(void **state) {
  (void)state;
  gguf_keys k;
  const int32_t normal[TOKENS] = {1, 1, 1, 1, 1, 1, 1, 1, 1, 1},
                special[TOKENS] = {1, 3, 3, 3, 3, 1, 4, 3, 3, 1};
  begin(&k, true, NULL);
  check(&k, "1 3 7 ");
  begin(&k, true, normal); // text may hold "</s>"
  check(&k, "1 3 7 ");
  begin(&k, true, special);
  check(&k, "1 3 4 6 7 ");
  begin(&k, true, special); // a chat's end beside a base model's key
  gguf_keys_number(&k, "tokenizer.ggml.eos_token_id", VALUE_U32, 1);
  gguf_keys_number(&k, "tokenizer.ggml.eot_token_id", VALUE_U32, TOKENS); // beyond the vocabulary
  check(&k, "1 3 4 6 7 ");
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_keys),
      cmocka_unit_test(test_ids_that_are_none),
      cmocka_unit_test(test_texts),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
