// npy_read: a .npy file that is there already: of this program, of NumPy, of another program.
//
// Owns: the header's grammar (NumPy's "NPY format" page, versions 1 to 3), and the check of the file's size.
// Independent of: what the numbers mean.
// Invariant: what is not such a file, whole and of a known type, is an error that names it; a file is read in
// pieces, and only one in Fortran order is held in memory.
#pragma once
#include "base/status.h"
#include <stddef.h>
#include <stdint.h>

typedef enum { NPY_HAS_F16, NPY_HAS_F32, NPY_HAS_F64, NPY_HAS_I32, NPY_HAS_I64 } npy_content;
enum { NPY_MOST_DIMS = 8 };

typedef struct {
  npy_content content;
  bool is_fortran; // first index fastest
  int n_dims;
  int64_t size[NPY_MOST_DIMS];
  int64_t count;  // of numbers
  uint64_t start; // byte at which they start
} npy_header;

const char *npy_content_name(npy_content content); // "float32", as index.json has it

// From the first `length` bytes of a file of `file_bytes`; errors call it `file`. The size must be exact.
status npy_header_parse(npy_header *out, const char *file, const char *bytes, size_t length,
                        uint64_t file_bytes);

typedef struct {
  npy_header header;
  char *path;
  int fd;
  char *whole; // of one in Fortran order, else NULL
} npy_file;

// After an error nothing stays open.
status npy_file_open(npy_file *out, const char *path);
void npy_file_close(npy_file *f); // one that is zero is fine
// Numbers first .. first + n - 1, counted with the last index fastest whatever the file's order, exact but
// for int64 beyond 2^53.
status npy_file_numbers(const npy_file *f, int64_t first, int64_t n, double *out);
