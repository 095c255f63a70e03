#include "kernels/backend.h"
#include "kernels/table.h"

const backend_ops *const *backend_table(void) {
  static const backend_ops *const table[] = {BACKEND_TABLE_ROWS NULL};
  return table;
}

const backend_ops *backend_get(backend_kind kind) {
  for (const backend_ops *const *row = backend_table(); *row; row++)
    if ((*row)->kind == kind) return *row;
  return NULL;
}

status arm_spec_get(arm_spec *out, path_kind path, backend_kind where) {
  *out = (arm_spec){path_get(path), backend_get(where)};
  const char *path_name = out->path->name, *name = backend_name(where);
  if (!out->backend)
    return REFUSE("arm \"%s@%s\": this build has no backend \"%s\" (see --version)", path_name, name, name);
  if (!out->backend->has_path(path))
    return REFUSE("arm \"%s@%s\": the backend %s does not compute the path %s", path_name, name, name,
                  path_name);
  return 0;
}
