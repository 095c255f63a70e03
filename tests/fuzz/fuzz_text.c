// fuzz_text: any bytes through the Unicode side of the tokenizer alone: the check, the normal form, the
// words.
#include "tests/fuzz/fuzz.h"
#include "src/text/tokenizer_text.h"
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

enum { SURE_CODES = 0x5c8 }; // below it no character has changed its normal form since Unicode 9

static bool all_below(const char *text, size_t length, int32_t limit) {
  for (size_t i = 0; i < length;) {
    int32_t code;
    i += (size_t)utf8proc_iterate((const uint8_t *)text + i, (utf8proc_ssize_t)(length - i), &code);
    if (code >= limit) return false;
  }
  return true;
}

static void check_against_library(const char *normal, size_t n, const char *text, size_t length) {
  uint8_t *wanted;
  utf8proc_ssize_t wanted_length = utf8proc_map((const uint8_t *)text, (utf8proc_ssize_t)length, &wanted,
                                                UTF8PROC_STABLE | UTF8PROC_COMPOSE);
  REQUIRE(wanted_length == (utf8proc_ssize_t)n && !memcmp(normal, wanted, n));
  free(wanted);
}

static void check_normal(const char *text, size_t length) {
  char *normal, *again;
  size_t n, more;
  REQUIRE(!text_normalize(&normal, &n, text, length) && n <= 3 * length);
  REQUIRE(!text_check(normal, n));
  REQUIRE(!text_normalize(&again, &more, normal, n));
  REQUIRE(more == n && !memcmp(again, normal, n));
  if (all_below(text, length, SURE_CODES)) check_against_library(normal, n, text, length);
  free(normal);
  free(again);
}

FUZZ_TARGET(text) {
  static splitter *words;
  static splitter_cursor *cursor;
  if (!words) REQUIRE(!splitter_open(&words) && !splitter_cursor_open(&cursor));
  const char *text = (const char *)data;
  status_reset();
  if (text_check(text, size)) return 0;
  check_normal(text, size);
  for (size_t start = 0, end; start < size; start = end) {
    REQUIRE(!splitter_next(&end, words, cursor, text, size, start));
    REQUIRE(end > start && end <= size && (end == size || (data[end] & 0xC0) != 0x80));
  }
  return 0;
}
