#include "src/lab/experiment_files.h"
#include "base/memory.h"
#include "base/read_file.h"
#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { FILE_LIMIT = 1 << 20 };

static const struct {
  const char *name, *text;
} BUILT_IN[] = {
#include "experiments.h"
};
enum { N_BUILT_IN = sizeof BUILT_IN / sizeof *BUILT_IN };

typedef struct {
  experiment *list;
  size_t n, room;
} experiment_list;

static status add(experiment_list *l, const char *path, const char *text, size_t length) {
  TRY(memory_grow((void **)&l->list, &l->room, l->n, sizeof *l->list, "the experiments"));
  return experiment_read(&l->list[l->n++], path, text, length);
}

static status add_file(experiment_list *l, const char *dir, const char *name) {
  char *path, *text = NULL;
  size_t length = 0;
  TRY(TAKE(&path, strlen(dir) + strlen(name) + 2, "an experiment's path"));
  strcat(strcat(strcpy(path, dir), "/"), name);
  status result = read_file(&text, &length, path, "experiment", FILE_LIMIT, READ_REGULAR);
  if (!result) result = add(l, path, text, length);
  free(text);
  free(path);
  return result;
}

static bool is_experiment(const char *name) {
  size_t n = strlen(name);
  return strspn(name, "0123456789") >= 3 && n > 5 && !strcmp(name + n - 5, ".toml");
}

static status add_folder(experiment_list *l, const char *dir) {
  status result = 0;
  struct dirent *entry;
  DIR *folder = opendir(dir);
  if (!folder) return REFUSE("falsify.experiments: folder %s cannot be opened: %s", dir, strerror(errno));
  while (!result && (entry = readdir(folder)))
    if (is_experiment(entry->d_name)) result = add_file(l, dir, entry->d_name);
  closedir(folder);
  if (!result && !l->n)
    return REFUSE("falsify.experiments: folder %s: expected files NNN*.toml, found none", dir);
  return result;
}

static int by_id(const void *a, const void *b) {
  return ((const experiment *)a)->id - ((const experiment *)b)->id;
}

static status check_ids(const experiment_list *l) {
  for (size_t i = 1; i < l->n; i++)
    if (l->list[i].id == l->list[i - 1].id)
      return REFUSE("falsify.experiments: expected one file of experiment %d, found two", l->list[i].id);
  return 0;
}

status experiments_open(experiment **out, size_t *n, const char *dir) {
  experiment_list l = {NULL, 0, 0};
  status result = dir[0] ? add_folder(&l, dir) : 0;
  for (size_t i = 0; i < N_BUILT_IN && !dir[0] && !result; i++)
    result = add(&l, BUILT_IN[i].name, BUILT_IN[i].text, strlen(BUILT_IN[i].text));
  if (!result) {
    qsort(l.list, l.n, sizeof *l.list, by_id);
    result = check_ids(&l);
  }
  if (result) free(l.list);
  *out = result ? NULL : l.list;
  *n = result ? 0 : l.n;
  return status_as_refusal(result); // the files are part of what was asked
}
