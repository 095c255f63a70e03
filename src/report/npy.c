// Source of the format: NumPy's "NPY format" page, version 1.0: magic, version, header length, a Python dict,
// padded with spaces and a newline to a multiple of 64 bytes, then the numbers row by row.
#include "src/report/report.h"
#include "src/report/report_file.h"
#include "base/memory.h"
#include "base/whole_file.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the header says '<'");

enum { HEADER_BYTES = 128, PREFIX_BYTES = 10 }; // room for any two 64-bit sizes

struct npy {
  whole_file file;
  char *dir;
  bool is_f64;
  size_t columns;
  uint64_t rows;
};

static void put_header(const npy *f) {
  char header[HEADER_BYTES + 1];
  memcpy(header, "\x93NUMPY\x01\x00", 8);
  header[8] = (char)((HEADER_BYTES - PREFIX_BYTES) & 0xff);
  header[9] = (char)((HEADER_BYTES - PREFIX_BYTES) >> 8);
  int n = snprintf(header + PREFIX_BYTES, HEADER_BYTES - PREFIX_BYTES,
                   "{'descr': '<f%d', 'fortran_order': False, 'shape': (%" PRIu64 ", %zu), }",
                   f->is_f64 ? 8 : 4, f->rows, f->columns);
  memset(header + PREFIX_BYTES + n, ' ', (size_t)(HEADER_BYTES - PREFIX_BYTES - n));
  header[HEADER_BYTES - 1] = '\n';
  fwrite(header, 1, HEADER_BYTES, f->file.f); // whole_file_sync reports failures
}

status npy_open(npy **out, const char *dir, const char *name, bool is_f64, size_t columns) {
  npy *f;
  status result;
  *out = NULL;
  TRY(TAKE(&f, 1, name));
  f->is_f64 = is_f64;
  f->columns = columns;
  TRY_DONE(result, TAKE(&f->dir, strlen(dir) + 1, name));
  strcpy(f->dir, dir);
  TRY_DONE(result, whole_file_open(&f->file, dir, name));
  put_header(f);
  *out = f;
  return 0;
done:
  npy_abandon(f);
  return result;
}

status npy_append(npy *f, const void *rows, size_t n_rows) {
  size_t size = f->is_f64 ? sizeof(double) : sizeof(float);
  if (fwrite(rows, f->columns * size, n_rows, f->file.f) != n_rows)
    return FAIL("%s: cannot be written: %s", f->file.path, strerror(errno));
  f->rows += n_rows;
  return 0;
}

status npy_finish(npy *f) {
  status result;
  if (fflush(f->file.f) || fseeko(f->file.f, 0, SEEK_SET))
    TRY_DONE(result, FAIL("%s: cannot be written: %s", f->file.path, strerror(errno)));
  put_header(f);
  TRY_DONE(result, whole_file_sync(&f->file));
  TRY_DONE(result, report_file_retract(f->dir));
  result = whole_file_name(&f->file);
done:
  npy_abandon(f);
  return result;
}

void npy_abandon(npy *f) {
  if (!f) return;
  whole_file_abandon(&f->file);
  free(f->dir);
  free(f);
}
