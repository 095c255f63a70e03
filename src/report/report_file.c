#include "src/report/report_file.h"
#include "base/memory.h"
#include "src/config/arm_choice.h"
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

status report_file_retract_name(const char *dir, const char *name) {
  char *path;
  TRY(TAKE(&path, strlen(dir) + strlen(name) + 2, name));
  strcat(strcat(strcpy(path, dir), "/"), name);
  status result = 0;
  if (unlink(path) && errno != ENOENT)
    result = FAIL("%s: the report of an earlier run cannot be removed: %s", path, strerror(errno));
  free(path);
  return result;
}

status report_file_retract(const char *dir) {
  return report_file_retract_name(dir, "report.json");
}

// The file's name is logits.<arm>.npy, as parity.c writes it, and its arm is none of `kept`.
static bool is_stale(const char *name, const char *const *kept, size_t n_kept) {
  static const char HEAD[] = "logits.", TAIL[] = ".npy";
  size_t length = strlen(name), head = sizeof HEAD - 1, tail = sizeof TAIL - 1;
  if (length <= head + tail || memcmp(name, HEAD, head) || strcmp(name + length - tail, TAIL)) return false;
  const char *of = name + head;
  arm_choice arm;
  length -= head + tail;
  if (arm_choice_parse(&arm, of, length) != ARM_NAME_GOOD) return false;
  for (size_t i = 0; i < n_kept; i++)
    if (strlen(kept[i]) == length && !memcmp(kept[i], of, length)) return false;
  return true;
}

status report_file_sweep(const char *dir, const char *const *kept, size_t n_kept) {
  status result = 0;
  struct dirent *entry;
  DIR *folder = opendir(dir);
  if (!folder) return FAIL("%s: cannot be opened: %s", dir, strerror(errno));
  while (!result && (entry = readdir(folder)))
    if (is_stale(entry->d_name, kept, n_kept) && unlinkat(dirfd(folder), entry->d_name, 0) && errno != ENOENT)
      result = FAIL("%s/%s: the logits of an earlier run cannot be removed: %s", dir, entry->d_name,
                    strerror(errno));
  closedir(folder);
  return result;
}
