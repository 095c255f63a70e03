// npy: a .npy file that grows row by row. Its header is completed and it gets its name at the end.
//
// Invariant: until npy_name the folder shows nothing under the file's name.
#pragma once
#include "base/status.h"
#include <stddef.h>
#include <stdint.h>

typedef enum { NPY_F32, NPY_F64, NPY_I32 } npy_type;
enum { NPY_ROW_DIMS = 2 }; // at most

typedef struct {
  npy_type type;
  int n_dims; // of a row, 1 to NPY_ROW_DIMS
  int64_t size[NPY_ROW_DIMS];
} npy_row;

typedef struct npy npy;

size_t npy_number_bytes(npy_type type);

// [rows, size...]
status npy_open(npy **out, const char *dir, const char *name, const npy_row *row);
status npy_append(npy *f, const void *rows, size_t n_rows); // of numbers of the type
// Closes the file until the next append or npy_complete, so that more can grow at once than can be open.
status npy_pause(npy *f);

status npy_complete(npy *f); // all that comes before the name: the header, and on the disk
status npy_name(npy *f);     // of a complete one; takes and releases `f`
// Both, where the folder is a report's: its old report.json goes first. Takes and releases `f`.
status npy_finish(npy *f);
void npy_abandon(npy *f); // removes and releases `f`; takes NULL
