// Source of the format: NumPy's "NPY format" page, version 1.0: magic, version, header length, a Python dict,
// padded with spaces and a newline to a multiple of 64 bytes, then the numbers row by row.
#include "src/report/npy.h"
#include "base/memory.h"
#include "base/whole_file.h"
#include "src/report/report_file.h"
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the header says '<'");

enum { HEADER_BYTES = 128, PREFIX_BYTES = 10 }; // room for any three 64-bit sizes

struct npy {
  whole_file file;
  char *dir;
  npy_row row;
  size_t row_bytes;
  uint64_t rows;
};

static const struct {
  const char *name;
  size_t bytes;
} TYPES[] = {[NPY_F32] = {"<f4", 4}, [NPY_F64] = {"<f8", 8}, [NPY_I32] = {"<i4", 4}};

size_t npy_number_bytes(npy_type type) {
  return TYPES[type].bytes;
}

static void put_header(const npy *f) {
  char header[HEADER_BYTES + 1];
  char *text = header + PREFIX_BYTES;
  int room = HEADER_BYTES - PREFIX_BYTES;
  memcpy(header, "\x93NUMPY\x01\x00", 8);
  header[8] = (char)(room & 0xff);
  header[9] = (char)(room >> 8);
  int n = snprintf(text, (size_t)room, "{'descr': '%s', 'fortran_order': False, 'shape': (%" PRIu64,
                   TYPES[f->row.type].name, f->rows);
  for (int i = 0; i < f->row.n_dims; i++)
    n += snprintf(text + n, (size_t)(room - n), ", %" PRId64, f->row.size[i]);
  n += snprintf(text + n, (size_t)(room - n), "), }");
  memset(text + n, ' ', (size_t)(room - n));
  header[HEADER_BYTES - 1] = '\n';
  fwrite(header, 1, HEADER_BYTES, f->file.f); // whole_file_sync tells of failures
}

status npy_open(npy **out, const char *dir, const char *name, const npy_row *row) {
  npy *f;
  status result;
  *out = NULL;
  TRY(TAKE(&f, 1, name));
  f->row = *row;
  f->row_bytes = TYPES[row->type].bytes;
  for (int i = 0; i < row->n_dims; i++) f->row_bytes *= (size_t)row->size[i];
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
  if (!f->file.f) TRY(whole_file_resume(&f->file));
  if (fwrite(rows, f->row_bytes, n_rows, f->file.f) != n_rows)
    return FAIL("%s: cannot be written: %s", f->file.path, strerror(errno));
  f->rows += n_rows;
  return 0;
}

status npy_pause(npy *f) {
  return f->file.f ? whole_file_pause(&f->file) : 0;
}

status npy_complete(npy *f) {
  if (!f->file.f) TRY(whole_file_resume(&f->file));
  if (fflush(f->file.f) || fseeko(f->file.f, 0, SEEK_SET))
    return FAIL("%s: cannot be written: %s", f->file.path, strerror(errno));
  put_header(f);
  return whole_file_sync(&f->file);
}

status npy_name(npy *f) {
  status result = whole_file_name(&f->file);
  npy_abandon(f);
  return result;
}

status npy_finish(npy *f) {
  status result;
  TRY_DONE(result, npy_complete(f));
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
