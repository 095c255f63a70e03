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
  size_t length, room; // room for length bytes and the NUL; never more than is read or the file says it has
} reading;

static status widen(reading *r, size_t room) {
  char *wider;
  TRY(TAKE(&wider, room, r->what));
  if (r->length) memcpy(wider, r->text, r->length);
  free(r->text);
  r->text = wider;
  r->room = room;
  return 0;
}

static status read_to_end(reading *r, size_t limit) {
  for (;;) {
    if (r->length + 1 == r->room) TRY(widen(r, 2 * r->room));
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
  TRY(widen(r, regular ? (size_t)is.st_size + 2 : 1 << 16)); // one byte more, to see the end without widening
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
