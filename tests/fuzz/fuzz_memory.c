// fuzz_memory: files that are memory, for the modules under test. The linker's --wrap leads their calls here.
//
// Owns: the bytes of the files "/fuzz/...". All other files go to the system.
// Invariant: a mapped file ends exactly where its memory ends; nobody has written to it when it is unmapped.
#include "tests/fuzz/fuzz.h"
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { DESCRIPTOR = 1 << 20, MAP_ALIGNMENT = 64 }; // descriptors that the system does not give out

void fuzz_memory_set(const char *path, size_t no, const void *data, size_t size);
int __real_open(const char *path, int flags, ...);
int __real_close(int descriptor);
int __real_fstat(int descriptor, struct stat *out);
int __real_access(const char *path, int mode);
void *__real_mmap(void *at, size_t size, int access, int flags, int descriptor, off_t offset);
int __real_munmap(void *at, size_t size);
ssize_t __real_read(int descriptor, void *out, size_t size);
int __wrap_open(const char *path, int flags, ...);
int __wrap_close(int descriptor);
int __wrap_fstat(int descriptor, struct stat *out);
int __wrap_access(const char *path, int mode);
void *__wrap_mmap(void *at, size_t size, int access, int flags, int descriptor, off_t offset);
int __wrap_munmap(void *at, size_t size);
ssize_t __wrap_read(int descriptor, void *out, size_t size);

static struct {
  char path[64];
  const void *data;
  void *map;
  size_t size, read; // read: by the descriptor that is open
} files[FUZZ_MOST_FILES];

void fuzz_memory_set(const char *path, size_t no, const void *data, size_t size) {
  REQUIRE(no < FUZZ_MOST_FILES && !files[no].map);
  for (size_t i = 0; i < FUZZ_MOST_FILES && !no; i++) *files[i].path = 0; // a new set begins
  snprintf(files[no].path, sizeof files[no].path, "%s", path);
  files[no].data = data;
  files[no].size = size;
}

static int find(const char *path) {
  for (int i = 0; i < FUZZ_MOST_FILES; i++)
    if (!strcmp(files[i].path, path)) return i;
  return -1;
}

static bool is_ours(const char *path) {
  return !strncmp(path, "/fuzz/", 6);
}

int __wrap_open(const char *path, int flags, ...) {
  int found = is_ours(path) ? find(path) : -1;
  if (found >= 0) {
    files[found].read = 0;
    return DESCRIPTOR + found;
  }
  va_list arguments;
  va_start(arguments, flags);
  int mode = flags & O_CREAT ? va_arg(arguments, int) : 0;
  va_end(arguments);
  return __real_open(path, flags, mode);
}

int __wrap_close(int descriptor) {
  return descriptor >= DESCRIPTOR ? 0 : __real_close(descriptor);
}

int __wrap_fstat(int descriptor, struct stat *out) {
  if (descriptor < DESCRIPTOR) return __real_fstat(descriptor, out);
  memset(out, 0, sizeof *out);
  out->st_mode = S_IFREG | 0600;
  out->st_size = (off_t)files[descriptor - DESCRIPTOR].size;
  return 0;
}

int __wrap_access(const char *path, int mode) {
  if (!is_ours(path)) return __real_access(path, mode);
  errno = ENOENT;
  return find(path) < 0 ? -1 : 0;
}

void *__wrap_mmap(void *at, size_t size, int access, int flags, int descriptor, off_t offset) {
  if (descriptor < DESCRIPTOR) return __real_mmap(at, size, access, flags, descriptor, offset);
  int no = descriptor - DESCRIPTOR;
  REQUIRE(!files[no].map && size == files[no].size && !posix_memalign(&files[no].map, MAP_ALIGNMENT, size));
  memcpy(files[no].map, files[no].data, size);
  return files[no].map;
}

int __wrap_munmap(void *at, size_t size) {
  for (size_t i = 0; i < FUZZ_MOST_FILES; i++) {
    if (!at || files[i].map != at) continue;
    REQUIRE(size == files[i].size && !memcmp(at, files[i].data, size));
    free(at);
    files[i].map = NULL;
    return 0;
  }
  return __real_munmap(at, size);
}

ssize_t __wrap_read(int descriptor, void *out, size_t size) {
  if (descriptor < DESCRIPTOR) return __real_read(descriptor, out, size);
  int no = descriptor - DESCRIPTOR;
  size_t left = files[no].size - files[no].read;
  if (size > left) size = left;
  if (size) memcpy(out, (const char *)files[no].data + files[no].read, size);
  files[no].read += size;
  return (ssize_t)size;
}
