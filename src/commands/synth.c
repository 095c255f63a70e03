#define _GNU_SOURCE // fallocate
#include "src/commands/synth.h"
#include "base/clock.h"
#include "base/memory.h"
#include "base/temporary.h"
#include "dist/topology.h"
#include "src/run/progress.h"
#include "src/synth/synth_layout.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
  PIECE_BYTES = 1 << 20, // written at once: made and copied while it is in the cache of a core
  ROUND_PIECES = 2048,   // after so many of all ranks, ranks agree: a full disk ends all of them soon
};

static const double deadline_seconds = 3600; // ranks wait for each other's disks

typedef struct { // rows of a tensor that are written as one
  const synth_tensor *tensor;
  int64_t first, count;
} piece;

typedef struct {
  comm *c;
  synth_options options;
  synth_layout layout;
  topology *place;
  char *partial; // the file's name until it is whole
  int fd;        // -1: not open
  piece *pieces;
  int64_t n_pieces;
  size_t largest; // bytes of a piece
} synthesis;

// ---- the file ----

static status open_partial(synthesis *s, int flags) {
  s->fd = open(s->partial, O_WRONLY | O_CLOEXEC | flags, 0666);
  if (s->fd < 0) return FAIL("%s: cannot be made: %s", s->partial, strerror(errno));
  return 0;
}

// Room is asked for at once where the file system can, so that a full disk is known before the work.
static status size_partial(synthesis *s) {
  off_t bytes = (off_t)s->layout.file_bytes;
  int error;
  while ((error = fallocate(s->fd, 0, 0, bytes) ? errno : 0) == EINTR)
    ;
  if (error == EOPNOTSUPP || error == ENOSYS) error = ftruncate(s->fd, bytes) ? errno : 0;
  if (error)
    return FAIL("%s: no room for its %llu bytes: %s", s->partial, (unsigned long long)bytes, strerror(error));
  return 0;
}

static status write_at(const synthesis *s, const void *data, size_t bytes, uint64_t offset) {
  const char *at = data;
  while (bytes) {
    ssize_t n = pwrite(s->fd, at, bytes, (off_t)offset);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0)
      return FAIL("%s: cannot be written at byte %llu: %s", s->partial, (unsigned long long)offset,
                  n ? strerror(errno) : "nothing was taken");
    at += n;
    bytes -= (size_t)n;
    offset += (uint64_t)n;
  }
  return 0;
}

// The name is needed at the end only, when all is written.
static status check_name(const char *path) {
  struct stat is;
  if (stat(path, &is) || S_ISREG(is.st_mode)) return 0;
  return FAIL("%s: expected a name for the model, found a %s of that name", path,
              S_ISDIR(is.st_mode) ? "folder" : "device or pipe");
}

static status create_file(synthesis *s) {
  TRY(check_name(s->options.out));
  TRY(open_partial(s, O_CREAT | O_TRUNC));
  temporary_remember(s->partial);
  TRY(size_partial(s));
  return write_at(s, s->layout.header, s->layout.header_bytes, 0);
}

static status sync_file(synthesis *s) {
  int error = fsync(s->fd) && errno != EINVAL ? errno : 0; // EINVAL: a file system that has nothing to sync
  int error_of_close = close(s->fd) ? errno : 0;           // some file systems report a full disk only here
  s->fd = -1;
  if (error || error_of_close)
    return FAIL("%s: cannot be written: %s", s->partial, strerror(error ? error : error_of_close));
  return 0;
}

static status name_file(const synthesis *s) {
  if (comm_rank(s->c) != 0 || !rename(s->partial, s->options.out)) return 0;
  return FAIL("%s: cannot be given its name: %s", s->options.out, strerror(errno));
}

// ---- pieces ----

static int64_t rows_to_piece(const synth_tensor *t) {
  int64_t rows = (int64_t)((size_t)PIECE_BYTES / t->row_bytes);
  return rows ? rows : 1;
}

static status cut_pieces(synthesis *s) {
  const synth_layout *l = &s->layout;
  for (size_t i = 0; i < l->n_tensors; i++) {
    int64_t rows = rows_to_piece(&l->tensors[i]);
    s->n_pieces += (l->tensors[i].rows + rows - 1) / rows;
    size_t bytes = (size_t)rows * l->tensors[i].row_bytes;
    if (bytes > s->largest) s->largest = bytes;
  }
  TRY(TAKE(&s->pieces, (size_t)s->n_pieces, "the table of pieces"));
  int64_t n = 0;
  for (size_t i = 0; i < l->n_tensors; i++) {
    const synth_tensor *t = &l->tensors[i];
    for (int64_t first = 0, rows = rows_to_piece(t); first < t->rows; first += rows)
      s->pieces[n++] = (piece){t, first, t->rows - first < rows ? t->rows - first : rows};
  }
  return 0;
}

static status write_piece(const synthesis *s, const piece *p, void *room) {
  const synth_tensor *t = p->tensor;
  synth_fill_rows(room, &t->recipe, p->first, p->count);
  return write_at(s, room, (size_t)p->count * t->row_bytes, t->offset + (uint64_t)p->first * t->row_bytes);
}

// Pieces first .. last - 1 go to the ranks in turn, and to a rank's threads as they come.
static status write_round(const synthesis *s, int64_t first, int64_t last, char *rooms) {
  int64_t rank = comm_rank(s->c), size = comm_size(s->c);
  int threads = topology_threads(s->place);
  status result = 0;
#pragma omp parallel num_threads(threads) reduction(| : result)
  {
    char *room = NULL;
#pragma omp critical
    {
      room = rooms;
      rooms += s->largest;
    }
#pragma omp for schedule(dynamic)
    for (int64_t i = first; i < last; i++)
      if (i % size == rank && !result) result |= write_piece(s, &s->pieces[i], room);
  }
  return result;
}

static status write_tensors(synthesis *s) {
  char *rooms;
  TRY(comm_agree(s->c, TAKE(&rooms, (size_t)topology_threads(s->place) * s->largest, "pieces"), "synth"));
  progress shown = progress_start(comm_rank(s->c) == 0, s->options.out, "pieces of 1 MiB", s->n_pieces);
  status result = 0;
  for (int64_t first = 0; first < s->n_pieces && !result; first += ROUND_PIECES) {
    int64_t last = s->n_pieces - first < ROUND_PIECES ? s->n_pieces : first + ROUND_PIECES;
    result = comm_agree(s->c, write_round(s, first, last, rooms), "writing the model");
    progress_at(&shown, last);
  }
  progress_end(&shown);
  free(rooms);
  return result;
}

// ---- the command ----

static status open_synthesis(synthesis *s, int n_args, char **args) {
  TRY(synth_options_parse(&s->options, n_args, args));
  TRY(synth_layout_open(&s->layout, &s->options));
  size_t size = strlen(s->options.out) + sizeof ".partial";
  TRY(TAKE(&s->partial, size, "the file's name"));
  snprintf(s->partial, size, "%s.partial", s->options.out);
  return cut_pieces(s);
}

static status make_file(synthesis *s) {
  bool first = comm_rank(s->c) == 0;
  TRY(comm_agree(s->c, first ? create_file(s) : 0, "making the file"));
  TRY(comm_agree(s->c, first ? 0 : open_partial(s, 0),
                 "opening the file, which must lie where every rank sees it"));
  TRY(write_tensors(s));
  TRY(comm_agree(s->c, sync_file(s), "writing the model"));
  return comm_agree(s->c, name_file(s), "naming the file");
}

static status print_result(const synthesis *s, double seconds) {
  char types[160];
  double bytes = (double)s->layout.file_bytes;
  synth_layout_types(types, sizeof types, &s->layout);
  printf("%s: %zu tensors (%s), %.2f GB in %.1f s, %.2f GB/s\n", s->options.out, s->layout.n_tensors, types,
         bytes * 1e-9, seconds, bytes * 1e-9 / seconds);
  return fflush(stdout) ? FAIL("standard output: could not be written: %s", strerror(errno)) : 0;
}

static void close_synthesis(synthesis *s) {
  if (s->fd >= 0) close(s->fd);
  topology_close(s->place);
  synth_layout_close(&s->layout);
  free(s->pieces);
  temporary_forget(s->partial);
  free(s->partial);
}

status synth_run(comm *c, int n_args, char **args) {
  synthesis s = {.c = c, .fd = -1};
  double start = clock_seconds();
  bool first = comm_rank(c) == 0;
  comm_set_deadline(c, deadline_seconds);
  status result;
  TRY_DONE(result, comm_agree(c, open_synthesis(&s, n_args, args), "the arguments of synth"));
  TRY_DONE(result, comm_equal(c, s.layout.header, s.layout.header_bytes, "the model to write"));
  TRY_DONE(result, topology_open(&s.place, c, s.options.threads, true, NULL));
  topology_bind_threads(s.place);
  result = make_file(&s);
  if (result && first) unlink(s.partial);
  if (!result) result = comm_agree(c, first ? print_result(&s, clock_seconds() - start) : 0, "synth");
done:
  close_synthesis(&s);
  return result;
}

void synth_print_options(FILE *out) {
  synth_options_print(out);
}
