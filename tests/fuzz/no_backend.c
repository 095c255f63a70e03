// no_backend: for launch/fuzz alone, whose targets read files and settings and compute nothing: a build
// without backends.
#include "kernels/backend.h"

status arm_spec_get(arm_spec *out, path_kind path, backend_kind where) {
  *out = (arm_spec){path_get(path), NULL};
  return FAIL("arm \"%s@%s\": this build has no backend", out->path->name, backend_name(where));
}
