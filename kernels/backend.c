#include "kernels/backend.h"
#include "kernels/formats/numerics.h"
#include "kernels/table.h"
#include <string.h>

// The tag's text is mixed into every digest: a new version of a path can never pass for the old one.
static const path_info paths[PATH_COUNT] = {
    {PATH_F64, "f64", 1, 0x6636340000000001u, 8},
    {PATH_F32, "f32", 1, 0x6633320000000001u, 4},
    {PATH_Q8K, "q8k", 1, 0x71386b0000000001u, 4},
};

const path_info *path_get(path_kind kind) {
  return &paths[kind];
}

const path_info *path_find(const char *name, size_t length) {
  for (int i = 0; i < PATH_COUNT; i++)
    if (strlen(paths[i].name) == length && !memcmp(paths[i].name, name, length)) return &paths[i];
  return NULL;
}

const backend_ops *const *backend_table(void) {
  static const backend_ops *const table[] = {BACKEND_TABLE_ROWS NULL};
  return table;
}

const backend_ops *backend_find(const char *name) {
  for (const backend_ops *const *row = backend_table(); *row; row++)
    if (!strcmp((*row)->name, name)) return *row;
  return NULL;
}

status arm_spec_parse(arm_spec *out, const char *name) {
  const char *at = strchr(name, '@');
  if (!at) return FAIL("arm \"%s\": expected path@backend", name);
  out->path = path_find(name, (size_t)(at - name));
  if (!out->path) return FAIL("arm \"%s\": there is no such path (see --version)", name);
  out->backend = backend_find(at + 1);
  if (!out->backend)
    return FAIL("arm \"%s\": this build has no backend \"%s\" (see --version)", name, at + 1);
  if (!out->backend->has_path(out->path->kind))
    return FAIL("arm \"%s\": the backend %s does not compute the path %s", name, at + 1, out->path->name);
  return 0;
}

void digest_row(uint64_t *sum, const path_info *path, int64_t layer, int64_t token, const void *reals,
                size_t n) {
  uint64_t row = num_digest_row(path->tag, layer, token), total = 0;
  if (path->real_bytes == sizeof(double)) {
    const double *x = (const double *)reals;
    for (size_t i = 0; i < n; i++) total += num_digest_element(row, (int64_t)i, num_bits_f64(x[i]));
  } else {
    const float *x = (const float *)reals;
    for (size_t i = 0; i < n; i++) total += num_digest_element(row, (int64_t)i, num_bits_f32(x[i]));
  }
  *sum += total;
}
