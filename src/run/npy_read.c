#include "src/run/npy_read.h"
#include "base/memory.h"
#include "kernels/formats/half.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { MOST_HEADER = 1 << 16, PIECE_BYTES = 1 << 16 };

static const struct {
  const char *descr, *name;
  size_t bytes;
} CONTENTS[] = {
    [NPY_HAS_F16] = {"<f2", "float16", 2}, [NPY_HAS_F32] = {"<f4", "float32", 4},
    [NPY_HAS_F64] = {"<f8", "float64", 8}, [NPY_HAS_I32] = {"<i4", "int32", 4},
    [NPY_HAS_I64] = {"<i8", "int64", 8},
};
enum { N_CONTENTS = sizeof CONTENTS / sizeof *CONTENTS };

const char *npy_content_name(npy_content content) {
  return CONTENTS[content].name;
}

// ---- the header: a Python dict of three keys ----

typedef struct {
  const char *file, *at, *end;
} cursor;

static void skip_blanks(cursor *c) {
  while (c->at < c->end && (*c->at == ' ' || *c->at == '\n' || *c->at == '\t')) c->at++;
}

// True, and past it, where the text goes on with `word` after blanks.
static bool skip(cursor *c, const char *word) {
  size_t n = strlen(word);
  skip_blanks(c);
  if ((size_t)(c->end - c->at) < n || memcmp(c->at, word, n)) return false;
  c->at += n;
  return true;
}

static status bad(const cursor *c, const char *expected) {
  return REFUSE("%s: no .npy header: expected %s at byte %td before its end", c->file, expected,
                c->end - c->at);
}

static status take_quoted(cursor *c, char *out, size_t room) {
  char quote = skip(c, "'") ? '\'' : skip(c, "\"") ? '"' : 0;
  size_t n = 0;
  if (!quote) return bad(c, "a text in quotes");
  while (c->at < c->end && *c->at != quote && n + 1 < room) out[n++] = *c->at++;
  out[n] = 0;
  if (c->at == c->end || *c->at != quote) return bad(c, "the end of a text");
  c->at++;
  return 0;
}

static status take_size(cursor *c, int64_t *out) {
  int digits = 0;
  skip_blanks(c);
  for (*out = 0; c->at < c->end && *c->at >= '0' && *c->at <= '9'; c->at++, digits++)
    if (__builtin_mul_overflow(*out, 10, out) || __builtin_add_overflow(*out, *c->at - '0', out))
      return bad(c, "a size that 63 bits hold");
  return digits ? 0 : bad(c, "a size");
}

static status take_shape(cursor *c, npy_header *h) {
  if (!skip(c, "(")) return bad(c, "\"(\"");
  for (h->n_dims = 0; !skip(c, ")"); h->n_dims++) {
    if (h->n_dims == NPY_MOST_DIMS) return bad(c, "at most 8 sizes");
    TRY(take_size(c, &h->size[h->n_dims]));
    if (!skip(c, ",") && (c->at == c->end || *c->at != ')')) return bad(c, "\",\" or \")\"");
  }
  return 0;
}

static status take_descr(cursor *c, npy_header *h) {
  char descr[16];
  TRY(take_quoted(c, descr, sizeof descr));
  for (int i = 0; i < N_CONTENTS; i++)
    if (!strcmp(descr, CONTENTS[i].descr)) {
      h->content = (npy_content)i;
      return 0;
    }
  return REFUSE("%s: numbers of the type \"%.12s\": expected <f2, <f4, <f8, <i4 or <i8", c->file, descr);
}

static status take_order(cursor *c, npy_header *h) {
  h->is_fortran = skip(c, "True");
  return h->is_fortran || skip(c, "False") ? 0 : bad(c, "True or False");
}

static status take_dict(cursor *c, npy_header *h) {
  static const struct {
    const char *key;
    status (*take)(cursor *c, npy_header *h);
  } KEYS[] = {{"descr", take_descr}, {"fortran_order", take_order}, {"shape", take_shape}};
  enum { N = sizeof KEYS / sizeof *KEYS };
  unsigned seen = 0;
  if (!skip(c, "{")) return bad(c, "\"{\"");
  while (!skip(c, "}")) {
    char key[32];
    int k = 0;
    TRY(take_quoted(c, key, sizeof key));
    while (k < N && strcmp(key, KEYS[k].key)) k++;
    if (k == N || seen >> k & 1) return bad(c, "descr, fortran_order and shape, each once,");
    if (!skip(c, ":")) return bad(c, "\":\"");
    TRY(KEYS[k].take(c, h));
    seen |= 1u << k;
    if (!skip(c, ",") && (c->at == c->end || *c->at != '}')) return bad(c, "\",\" or \"}\"");
  }
  if (seen != (1u << N) - 1) return bad(c, "descr, fortran_order and shape, each once,");
  skip_blanks(c);
  return c->at == c->end ? 0 : bad(c, "nothing more");
}

// The header's text, and where the numbers start.
static status find_dict(cursor *c, npy_header *h, const char *bytes, size_t length) {
  const unsigned char *b = (const unsigned char *)bytes;
  if (length < 12 || memcmp(bytes, "\x93NUMPY", 6)) return REFUSE("%s: not a .npy file", c->file);
  if (b[6] < 1 || b[6] > 3)
    return REFUSE("%s: .npy format %d.%d: expected version 1, 2 or 3", c->file, b[6], b[7]);
  uint64_t n = b[8] | (uint64_t)b[9] << 8, prefix = b[6] == 1 ? 10 : 12;
  if (prefix == 12) n |= (uint64_t)b[10] << 16 | (uint64_t)b[11] << 24;
  h->start = prefix + n;
  if (h->start > length)
    return REFUSE("%s: the .npy header is cut off, or longer than %d bytes", c->file, MOST_HEADER);
  c->at = bytes + prefix;
  c->end = bytes + h->start;
  return 0;
}

static status count_numbers(npy_header *h, const char *file, uint64_t file_bytes) {
  uint64_t bytes = CONTENTS[h->content].bytes;
  h->count = 1;
  for (int i = 0; i < h->n_dims; i++) {
    if (__builtin_mul_overflow(h->count, h->size[i], &h->count))
      return REFUSE("%s: its shape holds more numbers than 63 bits count", file);
    if (!h->size[i]) break; // sizes after a 0 count for nothing, however large
  }
  if (__builtin_mul_overflow(bytes, (uint64_t)h->count, &bytes) || bytes != file_bytes - h->start)
    return REFUSE("%s: expected %" PRId64 " numbers of %zu bytes after the header, found %" PRIu64 " bytes",
                  file, h->count, CONTENTS[h->content].bytes, file_bytes - h->start);
  return 0;
}

status npy_header_parse(npy_header *out, const char *file, const char *bytes, size_t length,
                        uint64_t file_bytes) {
  cursor c = {.file = file};
  *out = (npy_header){.n_dims = 0};
  TRY(find_dict(&c, out, bytes, length));
  TRY(take_dict(&c, out));
  return count_numbers(out, file, file_bytes);
}

// ---- the file ----

static status read_at(const npy_file *f, void *out, size_t n, uint64_t at) {
  for (size_t done = 0; done < n;) {
    ssize_t got = pread(f->fd, (char *)out + done, n - done, (off_t)(at + done));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return FAIL("%s: cannot be read: %s", f->path, strerror(errno));
    if (!got) return FAIL("%s: ended while it was read", f->path);
    done += (size_t)got;
  }
  return 0;
}

static status read_header(npy_file *f) {
  char *bytes;
  struct stat s;
  if (fstat(f->fd, &s)) return FAIL("%s: cannot be read: %s", f->path, strerror(errno));
  if (!S_ISREG(s.st_mode)) return REFUSE("%s: expected a regular file", f->path);
  size_t length = s.st_size < MOST_HEADER ? (size_t)s.st_size : MOST_HEADER;
  TRY(TAKE(&bytes, length, f->path));
  status result = read_at(f, bytes, length, 0);
  if (!result) result = npy_header_parse(&f->header, f->path, bytes, length, (uint64_t)s.st_size);
  free(bytes);
  return result;
}

static status read_whole(npy_file *f) {
  size_t n = (size_t)f->header.count * CONTENTS[f->header.content].bytes;
  TRY(TAKE(&f->whole, n, f->path));
  return read_at(f, f->whole, n, f->header.start);
}

status npy_file_open(npy_file *out, const char *path) {
  status result;
  *out = (npy_file){.fd = -1};
  TRY_DONE(result, TAKE(&out->path, strlen(path) + 1, "a file's name"));
  strcpy(out->path, path);
  out->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a pipe is refused, not waited for
  if (out->fd < 0) TRY_DONE(result, REFUSE("%s: cannot be opened: %s", path, strerror(errno)));
  TRY_DONE(result, read_header(out));
  if (out->header.is_fortran && out->header.n_dims > 1) TRY_DONE(result, read_whole(out));
  return 0;
done:
  npy_file_close(out);
  return result;
}

void npy_file_close(npy_file *f) {
  if (f->path && f->fd >= 0) close(f->fd);
  free(f->path);
  free(f->whole);
  *f = (npy_file){.fd = -1};
}

// ---- numbers ----

static double widen(npy_content content, const char *from) {
  uint16_t half;
  float single;
  double wide;
  int32_t integer;
  int64_t wide_integer;
  switch (content) {
  case NPY_HAS_F16:
    memcpy(&half, from, sizeof half);
    return (double)half_to_f32(half);
  case NPY_HAS_F32:
    memcpy(&single, from, sizeof single);
    return (double)single;
  case NPY_HAS_F64:
    memcpy(&wide, from, sizeof wide);
    return wide;
  case NPY_HAS_I32:
    memcpy(&integer, from, sizeof integer);
    return (double)integer;
  case NPY_HAS_I64:
    memcpy(&wide_integer, from, sizeof wide_integer);
    return (double)wide_integer;
  }
  __builtin_unreachable();
}

// Where number i, last index fastest, stands in a file whose first index is fastest.
static int64_t place_in_fortran(const npy_header *h, int64_t i) {
  int64_t at = 0, stride = h->count;
  for (int d = h->n_dims - 1; d >= 0; d--) {
    stride /= h->size[d];
    at += i % h->size[d] * stride;
    i /= h->size[d];
  }
  return at;
}

status npy_file_numbers(const npy_file *f, int64_t first, int64_t n, double *out) {
  char piece[PIECE_BYTES];
  npy_content content = f->header.content;
  size_t bytes = CONTENTS[content].bytes;
  int64_t most = (int64_t)(sizeof piece / bytes);
  if (first < 0 || n < 0 || n > f->header.count - first)
    return REFUSE("%s: numbers %" PRId64 " to %" PRId64 " of %" PRId64, f->path, first, first + n,
                  f->header.count);
  if (f->whole) {
    for (int64_t i = 0; i < n; i++)
      out[i] = widen(content, f->whole + (size_t)place_in_fortran(&f->header, first + i) * bytes);
    return 0;
  }
  for (int64_t done = 0; done < n;) {
    int64_t now = n - done < most ? n - done : most;
    TRY(read_at(f, piece, (size_t)now * bytes, f->header.start + (uint64_t)(first + done) * bytes));
    for (int64_t i = 0; i < now; i++) out[done + i] = widen(content, piece + (size_t)i * bytes);
    done += now;
  }
  return 0;
}
