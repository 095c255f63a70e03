// Tests of base/plain_text.h: what is not a control character stays byte by byte.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include "base/plain_text.h"

static void test_made_plain(void **state) {
  static const struct {
    const char *text, *plain;
  } cases[] = {
      {"", ""},
      {"a name", "a name"},
      {"\x1b[2Jx\x7f", "?[2Jx?"},
      {"a\nb\tc\r", "a?b?c?"},
      {"\xc2\x9b"
       "2J",
       "?2J"},                                  // U+009B alone starts a sequence on some terminals
      {"\xc2\xa0\xc3\x9f", "\xc2\xa0\xc3\x9f"}, // U+00A0, U+00DF
      {"\xe4\xb8\xad\xf0\x9f\x98\x80", "\xe4\xb8\xad\xf0\x9f\x98\x80"},
      {"\xc2", "\xc2"}, // cut within a character
  };
  (void)state;
  for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
    char text[64];
    snprintf(text, sizeof text, "%s", cases[i].text);
    plain_make(text);
    assert_string_equal(text, cases[i].plain);
  }
}

static void test_lengths(void **state) {
  (void)state;
  assert_int_equal(plain_control_bytes("\x1b", 1), 1);
  assert_int_equal(plain_control_bytes("\xc2\x80", 2), 2);
  assert_int_equal(plain_control_bytes("\xc2\x80", 1), 0); // what follows is not read
  assert_int_equal(plain_control_bytes("x", 1), 0);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_made_plain), cmocka_unit_test(test_lengths)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
