#include "base/mapped_files.h"
#include <stdatomic.h>

enum { ROOM = 1024 };

typedef struct {
  _Atomic(const char *) at; // NULL: free; set last, for a handler may look between any two stores
  size_t bytes;
  const char *path;
} mapped_file;

static mapped_file files[ROOM];

void mapped_files_add(const void *at, size_t bytes, const char *path) {
  for (int i = 0; i < ROOM; i++) {
    if (atomic_load(&files[i].at)) continue;
    files[i].bytes = bytes;
    files[i].path = path;
    atomic_store(&files[i].at, (const char *)at);
    return;
  }
}

void mapped_files_remove(const void *at) {
  for (int i = 0; i < ROOM; i++)
    if (atomic_load(&files[i].at) == (const char *)at) atomic_store(&files[i].at, NULL);
}

const char *mapped_files_find(const void *address) {
  for (int i = 0; i < ROOM; i++) {
    const char *at = atomic_load(&files[i].at);
    if (at && (const char *)address >= at && (size_t)((const char *)address - at) < files[i].bytes)
      return files[i].path;
  }
  return NULL;
}
