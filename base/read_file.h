// read_file: a whole file, in memory.
#pragma once
#include "base/status.h"
#include <stddef.h>

typedef enum {
  READ_REGULAR, // a pipe or device is refused, not waited for
  READ_ANY,     // read to its end
} read_kind;

// *out: the file's bytes and a NUL after them; the caller frees. *length: without the NUL. Errors start with
// `what` and the path; a file of more than `limit` bytes is one.
status read_file(char **out, size_t *length, const char *path, const char *what, size_t limit,
                 read_kind kind);
