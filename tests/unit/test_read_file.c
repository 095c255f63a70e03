// Tests of base/read_file.h: files, pipes and devices, at, below and over the limit.
#define _GNU_SOURCE // F_SETPIPE_SZ
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "base/read_file.h"

static char folder[] = "/tmp/read_file.XXXXXX";
static char path[64];

static const char *file_of(size_t bytes) {
  FILE *f;
  snprintf(path, sizeof path, "%s/file", folder);
  assert_non_null(f = fopen(path, "wb"));
  for (size_t i = 0; i < bytes; i++) fputc((int)(i % 251), f);
  assert_int_equal(fclose(f), 0);
  return path;
}

static void expect_bytes(const char *from, size_t bytes, size_t limit, read_kind kind) {
  char *text;
  size_t length;
  status_reset();
  assert_int_equal(read_file(&text, &length, from, "a test", limit, kind), 0);
  assert_int_equal(length, bytes);
  for (size_t i = 0; i < bytes; i++) assert_int_equal((unsigned char)text[i], i % 251);
  assert_int_equal(text[bytes], 0);
  free(text);
}

static void expect_error(const char *from, size_t limit, read_kind kind, const char *expected) {
  char *text, head[128];
  size_t length;
  status_reset();
  assert_int_not_equal(read_file(&text, &length, from, "a test", limit, kind), 0);
  assert_null(text);
  snprintf(head, sizeof head, "a test %s: ", from);
  assert_non_null(strstr(status_text(), head));
  assert_non_null(strstr(status_text(), expected));
}

static void test_files(void **state) {
  (void)state;
  const size_t sizes[] = {0, 1, 250, 65534, 65535, 65536, 200000};
  for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
    const char *from = file_of(sizes[i]);
    expect_bytes(from, sizes[i], sizes[i], READ_REGULAR);
    expect_bytes(from, sizes[i], sizes[i] + 1, READ_ANY);
    if (sizes[i]) expect_error(from, sizes[i] - 1, READ_REGULAR, "expected at most");
  }
}

static void test_what_is_no_file(void **state) {
  (void)state;
  snprintf(path, sizeof path, "%s/pipe", folder);
  assert_int_equal(mkfifo(path, 0600), 0);
  expect_error(path, 100, READ_REGULAR, "regular file"); // and does not wait for a writer
  unlink(path);
  expect_error("/dev/zero", 100, READ_REGULAR, "regular file");
  expect_error("/dev/zero", 100, READ_ANY, "found more");
  expect_error(folder, 100, READ_REGULAR, "regular file");
  snprintf(path, sizeof path, "%s/none", folder);
  expect_error(path, 100, READ_ANY, "No such file");
}

static void test_a_pipe(void **state) {
  (void)state;
  int ends[2];
  const size_t sizes[] = {0, 3, 65535, 200000};
  for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
    char bytes[200000];
    for (size_t i = 0; i < sizes[s]; i++) bytes[i] = (char)(i % 251);
    assert_int_equal(pipe(ends), 0);
    assert_true(fcntl(ends[1], F_SETPIPE_SZ, 1 << 18) >= 1 << 18); // all of it fits
    assert_int_equal(write(ends[1], bytes, sizes[s]), sizes[s]);
    close(ends[1]);
    snprintf(path, sizeof path, "/dev/fd/%d", ends[0]);
    expect_bytes(path, sizes[s], 200000, READ_ANY);
    close(ends[0]);
  }
}

static int make_folder(void **state) {
  (void)state;
  return !mkdtemp(folder);
}

static int remove_folder(void **state) {
  (void)state;
  unlink(file_of(0));
  return rmdir(folder);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_files),
      cmocka_unit_test(test_what_is_no_file),
      cmocka_unit_test(test_a_pipe),
  };
  return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
