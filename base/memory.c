#include "base/memory.h"
#include <stdlib.h>
#include <string.h>

enum {
  ALIGNMENT = 64, // a cache line, and the widest vector register
  FIRST_ROOM = 64 // elements of an array that grows
};

status memory_take(void **out, size_t count, size_t size, const char *what) {
  size_t bytes;
  *out = NULL;
  if (!size_mul(&bytes, count, size) || bytes > (size_t)1 << 46)
    return FAIL("cannot allocate %zu x %zu bytes for %s: the size overflows", count, size, what);
  bytes = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
  if (!bytes) bytes = ALIGNMENT;
  *out = aligned_alloc(ALIGNMENT, bytes);
  if (!*out) return FAIL("cannot allocate %zu bytes for %s: out of memory", bytes, what);
  memset(*out, 0, bytes);
  return 0;
}

status memory_grow(void **array, size_t *capacity, size_t count, size_t size, const char *what) {
  if (count < *capacity) return 0;
  size_t wider = *capacity ? *capacity * 2 : FIRST_ROOM;
  void *moved;
  TRY(memory_take(&moved, wider, size, what));
  if (*array) memcpy(moved, *array, count * size);
  free(*array);
  *array = moved;
  *capacity = wider;
  return 0;
}
