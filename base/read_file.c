#include "base/read_file.h"
#include "base/memory.h"
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

typedef struct {
  const char *what, *path;
  int fd;
  char *text;
  size_t length, room; // of bytes; the NUL comes on top
} reading;

static status read_to_end(reading *r, size_t limit) {
  for (;;) {
    TRY(memory_grow((void **)&r->text, &r->room, r->length + 1, 1, r->what)); // for a byte and the NUL
    ssize_t n = read(r->fd, r->text + r->length, r->room - 1 - r->length);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return FAIL("%s %s: cannot be read: %s", r->what, r->path, strerror(errno));
    if (n == 0) return 0;
    r->length += (size_t)n;
    if (r->length > limit)
      return FAIL("%s %s: expected at most %zu bytes, found more", r->what, r->path, limit);
  }
}

static status read_open_file(reading *r, size_t limit, read_kind kind) {
  struct stat is;
  if (fstat(r->fd, &is)) return FAIL("%s %s: cannot be examined: %s", r->what, r->path, strerror(errno));
  bool regular = S_ISREG(is.st_mode);
  if (kind == READ_REGULAR && !regular)
    return FAIL("%s %s: expected a regular file, found something else", r->what, r->path);
  if (regular && (uint64_t)is.st_size > limit)
    return FAIL("%s %s: expected at most %zu bytes, found %lld", r->what, r->path, limit,
                (long long)is.st_size);
  r->room =
      regular ? (size_t)is.st_size + 2 : 1 << 16; // a byte more than all and the NUL, to see the end there
  TRY(TAKE(&r->text, r->room, r->what));
  TRY(read_to_end(r, limit));
  if (regular && r->length < (size_t)is.st_size)
    return FAIL("%s %s: expected %lld bytes, found %zu: it was cut while it was read", r->what, r->path,
                (long long)is.st_size, r->length);
  return 0;
}

status read_file(char **out, size_t *length, const char *path, const char *what, size_t limit,
                 read_kind kind) {
  reading r = {.what = what, .path = path};
  *out = NULL;
  *length = 0;
  r.fd = open(path, O_RDONLY | O_CLOEXEC | (kind == READ_REGULAR ? O_NONBLOCK : 0));
  if (r.fd < 0) return FAIL("%s %s: cannot be opened: %s", what, path, strerror(errno));
  status result = read_open_file(&r, limit, kind);
  close(r.fd);
  if (result) {
    free(r.text);
    return result;
  }
  *out = r.text;
  *length = r.length;
  return 0;
}
