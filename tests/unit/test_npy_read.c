// npy_read: headers of NumPy's three versions, types, orders; what is no .npy file, with its name.
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "src/run/npy_read.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char path[4096];

static int make_file(void **state) {
  const char *base = getenv("TMPDIR");
  (void)state;
  snprintf(path, sizeof path, "%s/moe_npy_XXXXXX", base && *base ? base : "/tmp");
  int fd = mkstemp(path);
  return fd < 0 || close(fd);
}

static int remove_file(void **state) {
  (void)state;
  return unlink(path);
}

// A file of the version with this dict, padded as NumPy does, and `bytes` after it.
static void write_file(int version, const char *dict, const void *bytes, size_t n) {
  FILE *f = fopen(path, "wb");
  size_t prefix = version == 1 ? 10 : 12, length = strlen(dict) + 1;
  assert_non_null(f);
  fwrite("\x93NUMPY", 1, 6, f);
  fputc(version, f);
  fputc(0, f);
  for (size_t i = 0; i < prefix - 8; i++) fputc((int)(length >> 8 * i & 0xff), f);
  fprintf(f, "%s\n", dict);
  fwrite(bytes, 1, n, f);
  assert_int_equal(fclose(f), 0);
}

static void test_types(void **state) {
  static const struct {
    const char *descr;
    unsigned char bytes[16];
    size_t n;
  } ROWS[] = {{"<f2", {0, 0x3c, 0, 0xc0}, 4},
              {"<f4", {0, 0, 0x80, 0x3f, 0, 0, 0, 0xc0}, 8},
              {"<f8", {0, 0, 0, 0, 0, 0, 0xf0, 0x3f, 0, 0, 0, 0, 0, 0, 0, 0xc0}, 16},
              {"<i4", {1, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff}, 8},
              {"<i8", {1, 0, 0, 0, 0, 0, 0, 0, 0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, 16}};
  (void)state;
  for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++) {
    char dict[128];
    npy_file f;
    double x[2];
    snprintf(dict, sizeof dict, "{'descr': '%s', 'fortran_order': False, 'shape': (2,), }", ROWS[i].descr);
    write_file((int)i % 3 + 1, dict, ROWS[i].bytes, ROWS[i].n);
    assert_int_equal(npy_file_open(&f, path), 0);
    assert_int_equal(f.header.n_dims, 1);
    assert_int_equal(npy_file_numbers(&f, 0, 2, x), 0);
    assert_true(x[0] == 1 && x[1] == -2);
    assert_int_equal(npy_file_numbers(&f, 1, 1, x), 0);
    assert_true(x[0] == -2);
    assert_int_not_equal(npy_file_numbers(&f, 1, 2, x), 0);
    status_reset();
    npy_file_close(&f);
  }
}

// Number i of a [2][3][2] array, last index fastest, is i.
static void test_fortran_order(void **state) {
  int32_t stored[12];
  double x[12];
  npy_file f;
  (void)state;
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 3; j++)
      for (int k = 0; k < 2; k++) stored[i + 2 * j + 6 * k] = (i * 3 + j) * 2 + k;
  write_file(1, "{\"shape\": (2, 3, 2), 'fortran_order': True,'descr':'<i4'}", stored, sizeof stored);
  assert_int_equal(npy_file_open(&f, path), 0);
  assert_int_equal(npy_file_numbers(&f, 0, 12, x), 0);
  for (int i = 0; i < 12; i++) assert_true(x[i] == i);
  assert_int_equal(npy_file_numbers(&f, 5, 4, x), 0);
  for (int i = 0; i < 4; i++) assert_true(x[i] == i + 5);
  npy_file_close(&f);
}

static void test_refused(void **state) {
  static const struct {
    const char *dict, *says;
  } ROWS[] = {
      {"{'descr': '>f4', 'fortran_order': False, 'shape': (1,), }", "type \">f4\""},
      {"{'descr': '<c8', 'fortran_order': False, 'shape': (1,), }", "type \"<c8\""},
      {"{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,), }", "text in quotes"},
      {"{'descr': '<f4', 'fortran_order': None, 'shape': (1,), }", "True or False"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }", "expected 2 numbers"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (), 'shape': (1,)}", "each once"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }", "a size"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775808,), }", "63 bits"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296), }", "63 bits"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,1,1,1,1,1,1,1,1), }", "at most 8"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), 'more': 1}", "each once"},
      {"{'descr': '<f4', 'shape': (1,), }", "each once"},
      {"{'descr': '<f4', 'fortran_order': False, 'shape': (1,), } x", "nothing more"},
      {"{'descr': '<f4", "the end of a text"},
      {"", "\"{\""},
  };
  (void)state;
  for (size_t i = 0; i < sizeof ROWS / sizeof *ROWS; i++) {
    npy_file f;
    write_file(1, ROWS[i].dict, "\0\0\0\0", 4);
    assert_int_not_equal(npy_file_open(&f, path), 0);
    if (!strstr(status_text(), path) || !strstr(status_text(), ROWS[i].says))
      fail_msg("%s: found \"%s\", expected \"%s\"", ROWS[i].dict, status_text(), ROWS[i].says);
    status_reset();
  }
}

// Every file that is cut short, or is something else, is an error.
static void test_cut(void **state) {
  npy_file f;
  char bytes[200];
  (void)state;
  write_file(1, "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 2), }",
             "01234567012345670123456701234567", 32);
  FILE *in = fopen(path, "rb");
  size_t n = fread(bytes, 1, sizeof bytes, in);
  fclose(in);
  for (size_t cut = 0; cut < n; cut++) {
    npy_header h;
    assert_int_not_equal(npy_header_parse(&h, "cut", bytes, cut, cut), 0);
    status_reset();
  }
  assert_int_not_equal(npy_file_open(&f, "/dev/null"), 0);
  status_reset();
  assert_int_not_equal(npy_file_open(&f, "/tmp"), 0);
  status_reset();
  assert_int_not_equal(npy_file_open(&f, "/nothing/there.npy"), 0);
  assert_non_null(strstr(status_text(), "/nothing/there.npy"));
  status_reset();
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_types), cmocka_unit_test(test_fortran_order),
                                     cmocka_unit_test(test_refused), cmocka_unit_test(test_cut)};
  return cmocka_run_group_tests(tests, make_file, remove_file);
}
