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

// HEAD.npy or HEAD.<arm>.npy.
static bool is_array(const char *name, const char *head, bool needs_arm) {
  static const char TAIL[] = ".npy";
  size_t length = strlen(name), n = strlen(head), tail = sizeof TAIL - 1;
  arm_choice arm;
  if (length < n + tail || memcmp(name, head, n) || strcmp(name + length - tail, TAIL)) return false;
  if (length == n + tail) return !needs_arm;
  return name[n] == '.' && length > n + 1 + tail &&
         arm_choice_parse(&arm, name + n + 1, length - n - 1 - tail) == ARM_NAME_GOOD;
}

// A file of a report that not every run writes.
static bool is_optional(const char *name) {
  return is_array(name, "logits", true) || is_array(name, "routes", false) ||
         is_array(name, "route_weights", false) || !strcmp(name, "modes.csv") ||
         !strcmp(name, "experts.csv") || !strcmp(name, "placement.npy") || !strcmp(name, "timeline.json");
}

static bool is_stale(const char *name, const char *const *kept, size_t n_kept) {
  for (size_t i = 0; i < n_kept; i++)
    if (!strcmp(kept[i], name)) return false;
  return is_optional(name);
}

status report_file_sweep(const char *dir, const char *const *kept, size_t n_kept) {
  status result = 0;
  struct dirent *entry;
  DIR *folder = opendir(dir);
  if (!folder) return FAIL("%s: cannot be opened: %s", dir, strerror(errno));
  while (!result && (entry = readdir(folder)))
    if (is_stale(entry->d_name, kept, n_kept) && unlinkat(dirfd(folder), entry->d_name, 0) && errno != ENOENT)
      result =
          FAIL("%s/%s: what an earlier run left cannot be removed: %s", dir, entry->d_name, strerror(errno));
  closedir(folder);
  return result;
}
