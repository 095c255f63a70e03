#include "src/report/trace_files.h"
#include "base/memory.h"
#include "base/whole_file.h"
#include "src/config/arm_choice.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

// ---- open and close ----

static bool is_traced(const trace_files *t, int point) {
  return t->points >> point & 1;
}

// Numbers in a token's row of a file.
static int64_t row_width(const trace_files *t, probe_point point) {
  int64_t rows = probe_get(point)->per_slot ? t->shape->top_k : 1;
  return rows * probe_width(point, t->shape);
}

status trace_files_open(trace_files *out, const char *dir, const model_shape *shape, uint32_t points,
                        const bool *layers, size_t n_arms, int64_t max_rows) {
  *out = (trace_files){.dir = dir, .shape = shape, .points = points, .layers = layers, .n_arms = n_arms};
  int64_t widest = 0;
  for (int p = 0; p < PROBE_COUNT; p++)
    if (is_traced(out, p) && row_width(out, (probe_point)p) > widest) widest = row_width(out, (probe_point)p);
  out->numbers_bytes = (size_t)(widest * max_rows) * sizeof(double);
  TRY(TAKE(&out->numbers, out->numbers_bytes, "a trace"));
  return TAKE(&out->arms, n_arms, "a trace");
}

static void close_arm(trace_arm *a) {
  for (size_t i = 0; i < a->n_files && a->files; i++) npy_abandon(a->files[i].file);
  free(a->files);
  free(a->dir);
}

void trace_files_close(trace_files *t) {
  for (size_t i = 0; i < t->n_arms && t->arms; i++) close_arm(&t->arms[i]);
  free(t->arms);
  free(t->numbers);
}

// ---- an arm's files ----

static void describe(const trace_files *t, trace_file *f, probe_point point, int64_t layer, npy_type reals) {
  const probe_info *info = probe_get(point);
  *f = (trace_file){.point = point, .layer = layer, .type = info->is_ids ? NPY_I32 : reals, .n_dims = 1};
  if (info->per_slot) f->size[f->n_dims++] = t->shape->top_k;
  f->n_dims += probe_dims(f->size + f->n_dims, point, t->shape);
  if (layer < 0)
    snprintf(f->name, sizeof f->name, "%s.npy", info->name);
  else
    snprintf(f->name, sizeof f->name, "%s-%" PRId64 ".npy", info->name, layer);
}

static void describe_all(const trace_files *t, trace_arm *a) {
  for (int p = 0; p < PROBE_COUNT; p++) {
    bool of_layer = probe_get((probe_point)p)->scope == PROBE_OF_LAYER;
    if (!is_traced(t, p)) continue;
    if (!of_layer) describe(t, &a->files[a->n_files++], (probe_point)p, -1, a->reals);
    for (int64_t l = 0; l < t->shape->n_layers && of_layer; l++)
      if (t->layers[l]) describe(t, &a->files[a->n_files++], (probe_point)p, l, a->reals);
  }
}

static status open_file(const trace_arm *a, trace_file *f) {
  npy_row row = {.type = f->type, .n_dims = f->n_dims - 1};
  for (int i = 0; i < row.n_dims; i++) row.size[i] = f->size[i + 1];
  TRY(npy_open(&f->file, a->dir, f->name, &row));
  return npy_pause(f->file);
}

status trace_files_add(trace_files *t, size_t index, const char *arm_name, bool is_f64) {
  trace_arm *a = &t->arms[index];
  size_t length = strlen(t->dir) + strlen(arm_name) + 2;
  *a = (trace_arm){.name = arm_name, .reals = is_f64 ? NPY_F64 : NPY_F32};
  TRY(TAKE(&a->dir, length, arm_name));
  snprintf(a->dir, length, "%s/%s", t->dir, arm_name);
  TRY(output_dir_check(a->dir));
  TRY(TAKE(&a->files, (size_t)(PROBE_COUNT * t->shape->n_layers), arm_name));
  describe_all(t, a);
  for (size_t i = 0; i < a->n_files; i++) TRY(open_file(a, &a->files[i]));
  return 0;
}

// ---- rows ----

static trace_file *find_file(trace_arm *a, probe_point point, int64_t layer) {
  for (size_t i = 0; i < a->n_files; i++)
    if (a->files[i].point == point && a->files[i].layer == layer) return &a->files[i];
  return NULL;
}

// What arm_probe_take has widened, as it was: exact.
static void narrow(void *out, npy_type type, const double *in, size_t n) {
  switch (type) {
  case NPY_F32:
    for (size_t i = 0; i < n; i++) ((float *)out)[i] = (float)in[i];
    return;
  case NPY_F64:
    memcpy(out, in, n * sizeof *in);
    return;
  case NPY_I32:
    for (size_t i = 0; i < n; i++) ((int32_t *)out)[i] = (int32_t)in[i];
    return;
  }
  __builtin_unreachable();
}

status trace_files_append(trace_files *t, size_t index, probe_point point, int64_t layer,
                          const double *numbers, int64_t n_tokens) {
  trace_file *f = find_file(&t->arms[index], point, layer);
  size_t n = (size_t)(n_tokens * row_width(t, point));
  if (!f || n * sizeof(double) > t->numbers_bytes)
    return FAIL("the trace of %s: it has no file or no room for it", probe_get(point)->name);
  narrow(t->numbers, f->type, numbers, n);
  TRY(npy_append(f->file, t->numbers, (size_t)n_tokens));
  f->size[0] += n_tokens;
  return npy_pause(f->file);
}

// ---- the end ----

status trace_files_complete(trace_files *t) {
  for (size_t a = 0; a < t->n_arms; a++)
    for (size_t i = 0; i < t->arms[a].n_files; i++) TRY(npy_complete(t->arms[a].files[i].file));
  return 0;
}

// "<probe>.npy" or "<probe>-<layer>.npy"
static bool is_trace_file(const char *name) {
  static const char ENDING[] = ".npy";
  char head[64];
  probe_point point;
  size_t length = strlen(name), ending = sizeof ENDING - 1;
  if (length <= ending || length >= sizeof head || strcmp(name + length - ending, ENDING)) return false;
  snprintf(head, sizeof head, "%.*s", (int)(length - ending), name);
  char *dash = strrchr(head, '-');
  if (dash && dash[1] && !dash[1 + strspn(dash + 1, "0123456789")]) *dash = 0;
  return probe_find(&point, head);
}

static status remove_in(int folder, const char *dir, const char *name) {
  if (!unlinkat(folder, name, 0) || errno == ENOENT) return 0;
  return FAIL("%s: %s of an earlier trace cannot be removed: %s", dir, name, strerror(errno));
}

static status sweep_arm(const char *dir, const char *arm_name) {
  char *path;
  size_t length = strlen(dir) + strlen(arm_name) + 2;
  struct dirent *entry;
  status result = 0;
  TRY(TAKE(&path, length, arm_name));
  snprintf(path, length, "%s/%s", dir, arm_name);
  DIR *folder = opendir(path);
  while (folder && !result && (entry = readdir(folder)))
    if (is_trace_file(entry->d_name)) result = remove_in(dirfd(folder), path, entry->d_name);
  if (folder) closedir(folder);
  free(path);
  return result;
}

// Every file that a trace names so, in the folders of any arms.
static status sweep(const char *dir) {
  struct dirent *entry;
  arm_choice arm;
  status result = 0;
  DIR *folder = opendir(dir);
  if (!folder) return FAIL("%s: cannot be opened: %s", dir, strerror(errno));
  result = remove_in(dirfd(folder), dir, "index.json");
  while (!result && (entry = readdir(folder)))
    if (arm_choice_parse(&arm, entry->d_name, strlen(entry->d_name)) == ARM_NAME_GOOD) {
      result = sweep_arm(dir, entry->d_name);
      unlinkat(dirfd(folder), entry->d_name, AT_REMOVEDIR); // where nothing is left in it
    }
  closedir(folder);
  return result;
}

static status name_arm(trace_arm *a) {
  for (size_t i = 0; i < a->n_files; i++) {
    npy *file = a->files[i].file;
    a->files[i].file = NULL;
    TRY(npy_name(file));
  }
  return whole_file_sync_dir(a->dir);
}

status trace_files_name(trace_files *t) {
  TRY(sweep(t->dir));
  for (size_t i = 0; i < t->n_arms; i++) TRY(name_arm(&t->arms[i]));
  return 0;
}
