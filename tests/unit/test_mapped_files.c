// Tests of base/mapped_files.h: an address is of the file around it, as long as that is there.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include "base/mapped_files.h"

static void test_addresses(void **state) {
  (void)state;
  static char memory[300];
  mapped_files_add(memory + 100, 50, "a");
  mapped_files_add(memory + 150, 10, "b");
  assert_null(mapped_files_find(memory + 99));
  assert_string_equal(mapped_files_find(memory + 100), "a");
  assert_string_equal(mapped_files_find(memory + 149), "a");
  assert_string_equal(mapped_files_find(memory + 150), "b");
  assert_null(mapped_files_find(memory + 160));
  assert_null(mapped_files_find(NULL));
  mapped_files_remove(memory + 100);
  mapped_files_remove(memory); // none
  assert_null(mapped_files_find(memory + 100));
  assert_string_equal(mapped_files_find(memory + 155), "b");
  mapped_files_add(memory, 20, "c"); // where a was in the table
  assert_string_equal(mapped_files_find(memory + 1), "c");
  mapped_files_remove(memory);
  mapped_files_remove(memory + 150);
}

static void test_more_than_there_is_room_for(void **state) {
  (void)state;
  static char memory[4000];
  for (int i = 0; i < 4000; i++) mapped_files_add(memory + i, 1, "one");
  assert_string_equal(mapped_files_find(memory + 500), "one");
  assert_null(mapped_files_find(memory + 3999));
  for (int i = 0; i < 4000; i++) mapped_files_remove(memory + i);
  for (int i = 0; i < 4000; i++) assert_null(mapped_files_find(memory + i));
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_addresses),
                                     cmocka_unit_test(test_more_than_there_is_room_for)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
