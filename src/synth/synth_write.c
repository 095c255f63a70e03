#define _GNU_SOURCE // fallocate
#include "src/synth/synth_write.h"
#include "base/memory.h"
#include "base/progress.h"
#include "base/temporary.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
  PIECE_BYTES = 1 << 20, // written at once: filled and copied while it is in a core's cache
  ROUND_PIECES = 2048,   // of all ranks between two agreements, so that a full disk ends all of them soon
};

typedef struct { // rows of a tensor that are written as one
  const synth_tensor *tensor;
  int64_t first, count;
} piece;

typedef struct {
  comm *c;
  const char *path;
  const synth_layout *layout;
  int threads;
  char *partial; // the file's name until it is whole
  int fd;        // -1: not open
  piece *pieces;
  int64_t n_pieces;
  size_t largest; // bytes of a piece
} writer;

// ---- the file ----

static status open_partial(writer *w, int flags) {
  w->fd = open(w->partial, O_WRONLY | O_CLOEXEC | flags, 0666);
  if (w->fd < 0) return FAIL("%s: cannot be created: %s", w->partial, strerror(errno));
  return 0;
}

// Space is allocated at once where the file system can, so that a full disk shows before the work.
static status size_partial(writer *w) {
  off_t bytes = (off_t)w->layout->file_bytes;
  int error;
  while ((error = fallocate(w->fd, 0, 0, bytes) ? errno : 0) == EINTR)
    ;
  if (error == EOPNOTSUPP || error == ENOSYS) error = ftruncate(w->fd, bytes) ? errno : 0;
  if (error)
    return FAIL("%s: no room for its %llu bytes: %s", w->partial, (unsigned long long)bytes, strerror(error));
  return 0;
}

static status write_at(const writer *w, const void *data, size_t bytes, uint64_t offset) {
  const char *at = data;
  while (bytes) {
    ssize_t n = pwrite(w->fd, at, bytes, (off_t)offset);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0)
      return FAIL("%s: cannot be written at byte %llu: %s", w->partial, (unsigned long long)offset,
                  n ? strerror(errno) : "nothing was taken");
    at += n;
    bytes -= (size_t)n;
    offset += (uint64_t)n;
  }
  return 0;
}

// Checked before the work, though the name is needed only at its end.
static status check_name(const char *path) {
  struct stat is;
  if (stat(path, &is) || S_ISREG(is.st_mode)) return 0;
  return REFUSE("%s: expected a name for the model, found a %s of that name", path,
                S_ISDIR(is.st_mode) ? "folder" : "device or pipe");
}

static status create_file(writer *w) {
  TRY(check_name(w->path));
  temporary_remember(w->partial); // before it is there: a signal may come just after
  TRY(open_partial(w, O_CREAT | O_TRUNC));
  TRY(size_partial(w));
  return write_at(w, w->layout->header, w->layout->header_bytes, 0);
}

static status sync_file(writer *w) {
  int error = fsync(w->fd) && errno != EINVAL ? errno : 0; // EINVAL: a file system that has nothing to sync
  int error_of_close = close(w->fd) ? errno : 0;           // some report a full disk only here
  w->fd = -1;
  if (error || error_of_close)
    return FAIL("%s: cannot be written: %s", w->partial, strerror(error ? error : error_of_close));
  return 0;
}

static status name_file(const writer *w) {
  if (comm_rank(w->c) != 0 || !rename(w->partial, w->path)) return 0;
  return FAIL("%s: cannot be renamed from its temporary name: %s", w->path, strerror(errno));
}

// ---- pieces ----

static int64_t rows_to_piece(const synth_tensor *t) {
  int64_t rows = (int64_t)((size_t)PIECE_BYTES / t->row_bytes);
  return rows ? rows : 1;
}

static status cut_pieces(writer *w) {
  const synth_layout *l = w->layout;
  for (size_t i = 0; i < l->n_tensors; i++) {
    int64_t rows = rows_to_piece(&l->tensors[i]);
    w->n_pieces += (l->tensors[i].rows + rows - 1) / rows;
    size_t bytes = (size_t)rows * l->tensors[i].row_bytes;
    if (bytes > w->largest) w->largest = bytes;
  }
  TRY(TAKE(&w->pieces, (size_t)w->n_pieces, "the table of pieces"));
  int64_t n = 0;
  for (size_t i = 0; i < l->n_tensors; i++) {
    const synth_tensor *t = &l->tensors[i];
    for (int64_t first = 0, rows = rows_to_piece(t); first < t->rows; first += rows)
      w->pieces[n++] = (piece){t, first, t->rows - first < rows ? t->rows - first : rows};
  }
  return 0;
}

static status write_piece(const writer *w, const piece *p, void *room) {
  const synth_tensor *t = p->tensor;
  synth_fill_rows(room, &t->recipe, p->first, p->count);
  return write_at(w, room, (size_t)p->count * t->row_bytes,
                  w->layout->header_bytes + t->offset + (uint64_t)p->first * t->row_bytes);
}

// Pieces first .. last - 1 go to the ranks in turn, and to a rank's threads as they come.
static status write_round(const writer *w, int64_t first, int64_t last, char *rooms) {
  int64_t rank = comm_rank(w->c), size = comm_size(w->c);
  status result = 0;
#pragma omp parallel num_threads(w->threads) reduction(| : result)
  {
    char *room = NULL;
#pragma omp critical
    {
      room = rooms;
      rooms += w->largest;
    }
#pragma omp for schedule(dynamic)
    for (int64_t i = first; i < last; i++)
      if (i % size == rank && !result) result |= write_piece(w, &w->pieces[i], room);
  }
  return result;
}

static status write_tensors(writer *w) {
  char *rooms;
  TRY(comm_agree(w->c, TAKE(&rooms, (size_t)w->threads * w->largest, "pieces"), "synth"));
  progress shown = progress_start(comm_rank(w->c) == 0, w->path, "pieces of 1 MiB", w->n_pieces);
  status result = 0;
  for (int64_t first = 0; first < w->n_pieces && !result; first += ROUND_PIECES) {
    int64_t last = w->n_pieces - first < ROUND_PIECES ? w->n_pieces : first + ROUND_PIECES;
    result = comm_agree(w->c, write_round(w, first, last, rooms), "writing the model");
    progress_at(&shown, last);
  }
  progress_end(&shown);
  free(rooms);
  return result;
}

// ---- the whole ----

static status prepare(writer *w) {
  size_t size = strlen(w->path) + sizeof ".partial";
  TRY(TAKE(&w->partial, size, "the file's name"));
  snprintf(w->partial, size, "%s.partial", w->path);
  return cut_pieces(w);
}

static status make_file(writer *w) {
  bool first = comm_rank(w->c) == 0;
  TRY(comm_agree(w->c, first ? create_file(w) : 0, "making the file"));
  TRY(comm_agree(w->c, first ? 0 : open_partial(w, 0),
                 "opening the file, which must lie where every rank sees it"));
  TRY(write_tensors(w));
  TRY(comm_agree(w->c, sync_file(w), "writing the model"));
  return comm_agree(w->c, name_file(w), "naming the file");
}

status synth_write(comm *c, const char *path, const synth_layout *l, int threads) {
  writer w = {.c = c, .path = path, .layout = l, .threads = threads, .fd = -1};
  status result;
  TRY_DONE(result, comm_agree(c, prepare(&w), "preparing the file"));
  TRY_DONE(result, comm_equal_request(c, l->header, l->header_bytes, "the model to write"));
  result = make_file(&w);
  if (result && comm_rank(c) == 0) unlink(w.partial);
done:
  if (w.fd >= 0) close(w.fd);
  free(w.pieces);
  temporary_forget(w.partial);
  free(w.partial);
  return result;
}
