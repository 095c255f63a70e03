#include "base/whole_file.h"
#include "base/memory.h"
#include "base/temporary.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static status join(char **out, const char *dir, const char *name) {
  size_t size = strlen(dir) + strlen(name) + 40; // a slash, a dot, the process and an ending
  TRY(memory_take((void **)out, size, 1, name));
  snprintf(*out, size, "%s/%s", dir, name);
  return 0;
}

static status join_temporary(char **out, const char *dir, const char *name) {
  TRY(join(out, dir, name));
  sprintf(*out + strlen(dir) + 1, ".%s.%ld.tmp", name, (long)getpid());
  return 0;
}

status whole_file_open(whole_file *out, const char *dir, const char *name) {
  *out = (whole_file){.f = NULL};
  status result;
  TRY_DONE(result, join(&out->path, dir, name));
  TRY_DONE(result, join_temporary(&out->temporary, dir, name));
  temporary_remember(out->temporary); // before it is there: a signal may come just after
  int fd = open(out->temporary, O_RDWR | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0666);
  if (fd >= 0 && !(out->f = fdopen(fd, "w+b"))) {
    int why = errno;
    close(fd);
    unlink(out->temporary);
    errno = why;
  }
  if (!out->f) TRY_DONE(result, FAIL("%s: cannot be created: %s", out->path, strerror(errno)));
  return 0;
done:
  temporary_forget(out->temporary);
  free(out->path);
  free(out->temporary);
  *out = (whole_file){.f = NULL};
  return result;
}

status whole_file_pause(whole_file *f) {
  errno = 0;
  bool bad = ferror(f->f);
  bad = fclose(f->f) || bad;
  f->f = NULL;
  return bad ? FAIL("%s: cannot be written: %s", f->path, strerror(errno)) : 0;
}

status whole_file_resume(whole_file *f) {
  int fd = open(f->temporary, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
  if (fd >= 0 && !(f->f = fdopen(fd, "r+b"))) close(fd);
  if (!f->f || fseeko(f->f, 0, SEEK_END))
    return FAIL("%s: cannot be written on: %s", f->path, strerror(errno));
  return 0;
}

status whole_file_sync(whole_file *f) {
  errno = 0;
  bool bad = ferror(f->f) || fflush(f->f);
  // EINVAL: a file system that has nothing to sync
  bad = bad || (fsync(fileno(f->f)) && errno != EINVAL);
  int why = errno;
  bool bad_close = fclose(f->f); // some network file systems report a full disk only here
  f->f = NULL;
  if (bad || bad_close) return FAIL("%s: cannot be written: %s", f->path, strerror(bad && why ? why : errno));
  return 0;
}

static void release(whole_file *f) {
  temporary_forget(f->temporary);
  free(f->path);
  free(f->temporary);
  *f = (whole_file){.f = NULL};
}

status whole_file_name(whole_file *f) {
  if (rename(f->temporary, f->path))
    return FAIL("%s: cannot be renamed from its temporary name: %s", f->path, strerror(errno));
  release(f);
  return 0;
}

void whole_file_abandon(whole_file *f) {
  if (f->f) fclose(f->f);
  if (f->temporary) unlink(f->temporary);
  release(f);
}

status whole_file_sync_dir(const char *dir) {
  int fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return FAIL("%s: cannot be opened: %s", dir, strerror(errno));
  status result = 0;
  if (fsync(fd) && errno != EINVAL && errno != ENOTSUP)
    result = FAIL("%s: cannot be synced: %s", dir, strerror(errno));
  close(fd);
  return result;
}

// mkdir -p. A folder that exists already is fine, also where it could not have been created.
static status make_folders(const char *dir) {
  char *path;
  struct stat s;
  TRY(join(&path, dir, ""));
  for (char *slash = strchr(path + 1, '/'); slash; slash = strchr(slash + 1, '/')) {
    *slash = 0;
    int why = mkdir(path, 0777) ? errno : 0;
    if (why && stat(path, &s)) {
      status result = FAIL("%s: the folder cannot be created: %s: %s", dir, path, strerror(why));
      free(path);
      return result;
    }
    *slash = '/';
  }
  free(path);
  if (stat(dir, &s) || !S_ISDIR(s.st_mode)) return FAIL("%s: expected a folder, found a file", dir);
  return 0;
}

status output_dir_check(const char *dir) {
  whole_file probe;
  if (!*dir) return FAIL("expected the name of a folder for the report, found an empty text");
  TRY(make_folders(dir));
  TRY(whole_file_open(&probe, dir, "probe"));
  fputc('\n', probe.f);
  status result = whole_file_sync(&probe);
  whole_file_abandon(&probe);
  return result;
}
