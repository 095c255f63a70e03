// read_file: a whole file, in memory.
#pragma once
#include "base/status.h"
#include <stddef.h>

typedef enum {
  READ_REGULAR, // a pipe or device is refused, not waited for
  READ_ANY,     // read to its end
} read_kind;

// *out: the file's bytes and a NUL behind them; the caller frees. Errors start with `what` and the path, and
// refuse more than `limit` bytes.
status read_file(char **out, size_t *length, const char *path, const char *what, size_t limit,
                 read_kind kind);
