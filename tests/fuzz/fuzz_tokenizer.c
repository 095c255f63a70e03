// fuzz_tokenizer: any bytes as text for a real vocabulary: encoded, decoded, held against the promise that
// the text comes back in its normal form.
#include "tests/fuzz/fuzz.h"
#include "src/text/tokenizer.h"
#include "src/text/tokenizer_text.h"
#include <stdlib.h>
#include <string.h>

static const char *const specials[] = {
    // of tests/golden/tokenizer/vocabulary.gguf, whose README lists them
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|object_ref_start|>",
    "<|object_ref_end|>",
    "<|box_start|>",
    "<|box_end|>",
    "<|quad_start|>",
    "<|quad_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
    "<tool_call>",
    "</tool_call>",
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
    "<tool_response>",
    "</tool_response>",
    "<think>",
    "</think>",
    "<|im_start|>assistant",
    "<|im_end|>\n",
    "<|im_end|>\n<|im_start|>",
    "\u00ab\u00e9\u00bb",
};

// Bytes of the longest special token that begins here, by comparing them all; 0: none.
static size_t special_length(const char *text, size_t length) {
  size_t longest = 0;
  for (size_t i = 0; i < sizeof specials / sizeof *specials; i++) {
    size_t n = strlen(specials[i]);
    if (n <= length && n > longest && !memcmp(text, specials[i], n)) longest = n;
  }
  return longest;
}

static void append_normal(char *out, size_t *n, const char *text, size_t length) {
  char *normal;
  size_t added;
  REQUIRE(!text_normalize(&normal, &added, text, length));
  memcpy(out + *n, normal, added);
  *n += added;
  free(normal);
}

// The normal form of each part between special tokens, and these as they are.
static char *expected_text(size_t *n, const char *text, size_t length) {
  char *out = malloc(3 * length + 1);
  size_t begin = 0, special;
  *n = 0;
  for (size_t at = 0; at < length; at += special ? special : 1) {
    if (!(special = special_length(text + at, length - at))) continue;
    append_normal(out, n, text + begin, at - begin);
    memcpy(out + *n, text + at, special);
    *n += special;
    begin = at + special;
  }
  append_normal(out, n, text + begin, length - begin);
  return out;
}

static bool is_utf8(const uint8_t *text,
                    size_t length) { // by the table of the Unicode Standard, not by a library
  for (size_t i = 0; i < length;) {
    unsigned lead = text[i], low = 0x80, high = 0xBF;
    size_t more = lead < 0x80 ? 0 : lead < 0xC2 ? 4 : lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : lead < 0xF5 ? 3 : 4;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
    if (more == 4 || more >= length - i) return false;
    for (size_t k = 1; k <= more; k++, low = 0x80, high = 0xBF)
      if (text[i + k] < low || text[i + k] > high) return false;
    i += more + 1;
  }
  return true;
}

FUZZ_TARGET(tokenizer) {
  const tokenizer *t = fuzz_golden_tokenizer();
  int32_t *ids;
  char *text;
  size_t count, length, wanted_length;
  status_reset();
  status result = tokenizer_encode(t, (const char *)data, size, &ids, &count);
  REQUIRE((result == 0) == is_utf8(data, size)); // the vocabulary has every byte
  if (result) {
    REQUIRE(!ids && *status_text());
    return 0;
  }
  REQUIRE(count <= 3 * size && !tokenizer_decode(t, ids, count, &text, &length));
  char *wanted = expected_text(&wanted_length, (const char *)data, size);
  REQUIRE(length == wanted_length && !memcmp(text, wanted, length) && !text[length]);
  free(wanted);
  free(text);
  free(ids);
  return 0;
}
