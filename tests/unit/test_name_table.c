// Tests of base/name_table.h: many names, prefixes of each other, bytes of every value.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <stdio.h>
#include <string.h>
#include "base/name_table.h"

enum { NAMES = 10000, NAME_BYTES = 16 };

static void test_many_names(void **state) {
  (void)state;
  static char names[NAMES][NAME_BYTES];
  name_table t = {0};
  size_t found;
  assert_int_equal(name_table_open(&t, NAMES), 0);
  for (size_t i = 0; i < NAMES; i++) {
    snprintf(names[i], NAME_BYTES, "name %zu", i);
    assert_false(name_table_find(&found, &t, names[i], strlen(names[i])));
    assert_true(name_table_add(&found, &t, names[i], strlen(names[i]), i));
  }
  for (size_t i = 0; i < NAMES; i++) {
    assert_true(name_table_find(&found, &t, names[i], strlen(names[i])));
    assert_int_equal(found, i);
    assert_false(name_table_add(&found, &t, names[i], strlen(names[i]), NAMES));
    assert_int_equal(found, i);
  }
  name_table_close(&t);
  name_table_close(&t);
}

static void test_the_length_counts(void **state) {
  (void)state;
  static const char bytes[] = "a\0a\0\0";
  name_table t = {0};
  size_t found;
  assert_int_equal(name_table_open(&t, 5), 0);
  for (size_t length = 1; length <= 5; length++)
    assert_true(name_table_add(&found, &t, bytes, length, length));
  for (size_t length = 1; length <= 5; length++) {
    assert_true(name_table_find(&found, &t, bytes, length));
    assert_int_equal(found, length);
  }
  assert_false(name_table_find(&found, &t, bytes + 1, 1));
  name_table_close(&t);
}

static void test_no_names(void **state) {
  (void)state;
  name_table t = {0};
  size_t found;
  assert_int_equal(name_table_open(&t, 0), 0);
  assert_false(name_table_find(&found, &t, "", 0));
  name_table_close(&t);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_many_names),
      cmocka_unit_test(test_the_length_counts),
      cmocka_unit_test(test_no_names),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
